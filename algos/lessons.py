"""Lessons: short streams to learn how to learn long ones from (OML, ANML), judged by the long ones.

An update draws `trainer.tasks` lessons (`envs.sequential_omniglot.lessons`) over the training classes. A judgement shows classes
never trained on, one image at a time, to a linear head on the encoder's features, and asks for held-out drawings of all of them:
    val     all validation classes, by `trainer.eval_tasks` streams
    test    up to 600 test classes, by `trainer.test_tasks` streams
The head's rate is chosen on validation classes by OML's rule, which looks at the learned images alone.
Scalars: val/accuracy on held-out drawings, val/learned on learned ones, val/rate; train/accuracy/new and /old in lessons.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor

from algos import figures
from algos.oml import OML, Gated
from algos.parts import drawn, image_sets, no_memory, options
from algos.problem import Judged, Optimize, Part
from algos.sequential import Gradient, Record, embed, follow
from algos.sequential_rate import best_rate
from envs.fewshot import ImageSet, affine_jitter
from envs.sequential_omniglot import LEARNED, OUTPUTS, POINTS, Trajectories, lessons
from nestmem.errors import UserError
from nestmem.nets import Conv
from nestmem.probes import mean_interval

ALGOS = ("oml", "anml", "classifier")
CLASSES = 600


def learner(config: DictConfig) -> OML:
    no_memory(config)
    algo, sizes = config.algo, options(config.encoder)
    with drawn(config):
        encoder: Conv | Gated = Conv(**sizes)
        if algo.name == "anml":
            encoder = Gated(encoder, Conv(**sizes | {"channels": algo.modulator}))
        return OML(encoder, encoder.features, algo.outputs, algo.get("rate", 0.0))


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> LessonProblem:
    ways = 0 if config.algo.name == "classifier" else config.env.ways
    return LessonProblem(
        learner(config).to(device), image_sets(config.env), config.env, ways, config.algo.remember, config.trainer,
        seeds, device,
    )  # fmt: skip


class LessonProblem:
    """A learner on lessons of `env.ways` classes, `env.shots` images learned and `env.queries` asked of each, and `remember`
    images of any class; ways 0 leaves ordinary classification. seeds: one for each of train, val and test."""

    measure, counted = "accuracy", "streams"

    def __init__(
        self,
        learner: OML,
        sets: dict[str, ImageSet],
        env: DictConfig,
        ways: int,
        remember: int,
        options: DictConfig,
        seeds: dict[str, int],
        device: torch.device,
    ):
        self.learner, self.sets, self.env, self.options = learner, sets, env, options
        self.seeds, self.device = seeds, device
        classes, each = sets["train"].images.shape[:2]
        if classes > learner.head.out_features:
            raise UserError(
                f"algo.outputs: {classes} classes to train on need as many outputs, got {learner.head.out_features}"
            )
        if remember < 1 or ways < 0:
            raise UserError(f"algo.remember: expected images to ask for and no negative ways, got {remember}, {ways}")
        self.lessons = partial(
            lessons, ways=ways, shots=env.shots, queries=env.queries, remember=remember,
            inner=range(classes), outer=range(classes), drawings=each,
        )  # fmt: skip
        self.images = sets["train"].images.to(device)
        self.generator = torch.Generator().manual_seed(seeds["train"])
        self.lessons(torch.Generator(), 1)  # refuse what cannot be drawn before any work starts
        for split in ("val", "test"):
            self._streams(split)

    def update(self, optimize: Optimize) -> dict[str, float]:
        """One batch of lessons, computed in chunks whose gradients add up to its own."""
        return optimize(self._parts())

    def _parts(self) -> Iterator[Part]:
        learn, ask = self.lessons(self.generator, self.options.tasks)
        for start in range(0, self.options.tasks, self.options.chunk):
            part = [self._images(pairs[start : start + self.options.chunk]) for pairs in (learn, ask)]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
                loss, metrics = self.learner.loss(*part[0], *part[1])
            yield Part(loss, metrics, len(part[0][1]) / self.options.tasks)

    def _images(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """(class, drawing) [B, n, 2] to float images [B, n, 1, H, W] and labels [B, n]."""
        labels, drawings = pairs.to(self.device).unbind(-1)
        images = self.images[labels, drawings].unsqueeze(2).float().div_(255)
        if self.env.augment:
            images = affine_jitter(images.flatten(0, 1), self.env.augment, self.generator).view_as(images)
        return images, labels

    def _streams(self, split: str) -> Trajectories:
        data = self.sets[split]
        count = {"val": self.options.eval_tasks, "test": self.options.test_tasks}[split]
        classes = min(CLASSES, len(data.images))
        return Trajectories(data, seed=self.seeds[split], classes=classes, trajectories=count, order="random")

    def validate(self) -> Judged:
        streams = self._streams("val")
        features = self._embed(self.sets["val"])
        return self._judge(streams, features, best_rate(features, streams, Gradient))

    def test(self) -> Judged:
        """Validation classes and their rotations, as many as test classes, say at which rate."""
        val = self.sets["val"] if self.env.test_rotations else self.sets["val"].rotated()
        streams = self._streams("test")
        classes = min(streams.classes.shape[1], len(val.images))
        choice = Trajectories(val, seed=self.seeds["val"], classes=classes, trajectories=5, order="random")
        return self._judge(streams, self._embed(self.sets["test"]), best_rate(self._embed(val), choice, Gradient))

    def _embed(self, data: ImageSet) -> Tensor:
        self.learner.eval()
        features = embed(self.learner.encoder, data)
        self.learner.train()
        return features

    def _judge(self, streams: Trajectories, features: Tensor, rate: float) -> Judged:
        count, classes = streams.classes.shape
        asked = sorted({n for n in POINTS if n < classes} | {classes})
        head = Gradient(count, OUTPUTS, features.shape[-1], rate)
        records = list(follow(head, features, streams, asked))
        last = records[-1]
        caption = f"Held-out drawings of all classes learned so far, {LEARNED} images of each seen once"
        points = [_point(r) for r in records]
        line = {"caption": caption, "x": "classes learned", "y": "accuracy, %", "points": points}
        scalars = {"learned": float(last.learned.mean()), "rate": rate}
        drawn = figures.lines({"this run": points}, "classes learned", "accuracy, %")
        details = {"lines": {"sequential": line}, "numbers": {"rate of the head": rate, "classes": float(classes)}}
        return Judged(mean_interval(last.held_out.tolist()), scalars, {"sequential": drawn}, details)

    def state_dict(self) -> dict[str, Tensor]:
        return {"lessons": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["lessons"])


def _point(record: Record) -> list[float]:
    interval = mean_interval(record.held_out.tolist())
    return [record.classes, interval.mean, interval.low, interval.high]
