"""Few-shot learning: tasks of a few classes, drawn anew for every update; judged on classes never trained on.

Scalars: val/accuracy in percent with val/low and val/high (95 %), val/accuracy/P after P shots or inner steps.
Figures: adaptation (accuracy against shots or inner steps) and gates (which level answers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from algos import figures
from algos.blackbox import BlackBox
from algos.learner import Learner, Outcome
from algos.maml import MAML, Classifier
from algos.parts import drawn, image_sets, memory, no_memory, options
from algos.problem import Judged, Optimize, Part
from algos.prototypes import Prototypes
from envs.fewshot import Episodes, FewShot, ImageSet
from nestmem.errors import UserError
from nestmem.memory.base import Fields
from nestmem.nets import Conv
from nestmem.probes import Interval, mean_interval

ALGOS = ("blackbox", "maml", "prototypes")


def learner(config: DictConfig) -> Learner:
    with drawn(config):
        algo, ways = options(config.algo), config.env.ways
        encoder = Conv(**options(config.encoder))
        fields = Fields(encoder.features, 0, ways)
        match config.algo.name:
            case "maml":
                if config.encoder.norm == "running":
                    raise UserError(
                        "encoder.norm: running statistics cannot be kept in an inner loop; "
                        "expected batch, instance, layer, group, rms or none"
                    )
                held = None if config.memory.name == "none" else memory(config, fields.width, fields)
                return MAML(Classifier(encoder, encoder.features, ways, held), **algo)
            case "prototypes":
                no_memory(config)
                return Prototypes(encoder)
        return BlackBox(encoder, memory(config, fields.width, fields), fields, **algo)


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> FewShotProblem:
    return FewShotProblem(learner(config).to(device), image_sets(config.env), config.env, config.trainer, seeds, device)


class FewShotProblem:
    """A learner on tasks out of three sets of classes. seeds: one for each of train, val and test."""

    measure, counted = "accuracy", "tasks"

    def __init__(
        self,
        learner: Learner,
        sets: dict[str, ImageSet],
        env: DictConfig,
        options: DictConfig,
        seeds: dict[str, int],
        device: torch.device,
    ):
        self.learner, self.sets, self.env, self.options = learner, sets, env, options
        self.seeds, self.device = seeds, device
        for split in ("val", "test"):  # refuse what cannot be sampled before any work starts
            self._sampler(split)
        self.tasks = FewShot(
            sets["train"],
            ways=env.ways, shots=env.shots, queries=env.queries, seed=seeds["train"], augment=env.augment, device=device,
        )  # fmt: skip

    def update(self, optimize: Optimize) -> dict[str, float]:
        """One batch of tasks, computed in chunks whose gradients add up to its own."""
        return optimize(self._parts(self.tasks.sample(self.options.tasks)))

    def _parts(self, batch: Episodes) -> Iterator[Part]:
        for start in range(0, self.options.tasks, self.options.chunk):
            part = Episodes(*(tensor[start : start + self.options.chunk] for tensor in batch))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
                loss, metrics = self.learner.loss(part)
            yield Part(loss, metrics, len(part.support_x) / self.options.tasks)

    def validate(self) -> Judged:
        return self.judge(self.evaluate("val", self.options.eval_tasks))

    def test(self) -> Judged:
        return self.judge(self.evaluate("test", self.options.test_tasks))

    def evaluate(self, split: str, tasks: int, **changes: int) -> Outcome:
        """The learner on `tasks` tasks of a split, always the same ones; `changes` replace ways, shots or queries."""
        source = self._sampler(split, **changes)
        self.learner.eval()
        accuracy, gates = [], []
        for start in range(0, tasks, self.options.chunk):
            outcome = self.learner.evaluate(source.sample(min(self.options.chunk, tasks - start)))
            accuracy.append(outcome.accuracy)
            if outcome.gates is not None:
                gates.append(outcome.gates)
        self.learner.train()
        return Outcome(torch.cat(accuracy).cpu(), torch.stack(gates).mean(0).cpu() if gates else None)

    def judge(self, outcome: Outcome) -> Judged:
        """The last point of adaptation is the score."""
        intervals = curve(outcome)
        scalars = {f"accuracy/{i}": interval.mean for i, interval in enumerate(intervals)}
        triples = [[i.mean, i.low, i.high] for i in intervals]
        levels = [type(level).__name__ for level in getattr(getattr(self.learner, "memory", None), "levels", [])]
        drawn: dict[str, Figure] = {
            "adaptation": figures.adaptation(
                {"this run": tuple(zip(*triples, strict=True))}, self.learner.point, 100 / self.env.ways
            )
        }
        details: dict[str, Any] = {"point": self.learner.point, "curve": triples, "chance": 100 / self.env.ways}
        after = [i.mean for i in intervals[1:]]
        details["axes"] = {
            "adaptation": {
                "value": sum(after) / len(after),
                "what": f"mean accuracy after 1 to {len(after)} {self.learner.point}, %",
            }
        }
        if outcome.gates is not None:
            drawn["gates"] = figures.gates(outcome.gates.tolist(), levels, self.learner.point)
            details |= {"gates": outcome.gates.tolist(), "levels": levels}
        return Judged(intervals[-1], scalars, drawn, details)

    def state_dict(self) -> dict[str, Tensor]:
        return {"sampler": self.tasks.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tasks.generator.set_state(state["sampler"])

    def _sampler(self, split: str, **changes: int) -> FewShot:
        sizes = {"ways": self.env.ways, "shots": self.env.shots, "queries": self.env.queries} | changes
        return FewShot(self.sets[split], **sizes, seed=self.seeds[split], device=self.device)


def curve(outcome: Outcome) -> list[Interval]:
    """Interval of the accuracy in percent at each amount of adaptation."""
    return [mean_interval(100 * np.asarray(column)) for column in outcome.accuracy.T]
