"""Continual learning: one network walks a stream of tasks once, and is asked about all of them at the end of each visit.

What is recorded is the matrix R[i, j], the accuracy on the held-out images of task j after visit i; every number comes from it
(`nestmem.probes.continual`). All labels share one output, and nobody says which task a held-out image is of.
Score: mean of the last row over the tasks that were visited. Held-out images are never learned from, and nothing is chosen by
them: options are chosen on streams with env.part=val, which have other ones.
Scalars: val/accuracy on tasks met so far, in percent; val/forgetting and val/current (the last task met), of 1; train/accuracy.
Figures: R.
Legend: V visits, T tasks, n images of an update.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from algos import figures
from algos.checkpoint import below
from algos.parts import drawn, memory
from algos.problem import Judged, Optimize
from algos.strategies import STRATEGIES, Strategy
from algos.strategies.fixed import Remembering
from algos.task_stream import stream as make_stream
from envs.drift import Drift
from envs.manifest import manifest
from nestmem.errors import UserError
from nestmem.memory.base import Fields
from nestmem.nets import MLP, Conv
from nestmem.probes import Interval, Undefined, continual_metrics, mean_interval

ALGOS = ("continual",)
BATCH = 500  # held-out images asked at once
SIZE = 28  # pixels of an image's side, for which encoders are made


class ContinualProblem:
    """A strategy on a stream. batch: images of an update."""

    measure, counted = "accuracy", "tasks' held-out images"

    def __init__(self, strategy: Strategy, name: str, stream: Drift, batch: int, device: torch.device):
        self.strategy, self.name, self.stream, self.batch, self.device = strategy, name, stream, batch, device
        self.learner = strategy.learner
        self.task_of = stream.task[0].view(-1, stream.steps).mode(-1).values.tolist()  # of each visit
        self.told = bool((stream.shown >= 0).all())
        if strategy.told and not self.told:
            free = ", ".join(n for n, s in STRATEGIES.items() if not s.told)
            raise UserError(
                f"algo.strategy: {name} has to be told where tasks end, but env.boundaries is hidden; without: {free}"
            )
        self.sha256 = manifest(stream).sha256
        if strategy.shuffled:
            shuffle(stream, strategy.generator)
        self.place = 0  # images seen
        self.rows = torch.zeros(0, len(stream.tasks), dtype=torch.float64)  # R so far
        self.untrained = torch.zeros(len(stream.tasks), dtype=torch.float64)

    def update(self, optimize: Optimize) -> dict[str, float]:
        if self.place == 0:
            self.untrained = self.ask()
        start, steps = self.place, self.stream.steps
        visit, self.place = start // steps, start + self.batch
        if self.told and start % steps == 0:
            self.strategy.begin(self.task_of[visit])
        images, labels = self.shown(start, self.place)
        metrics = optimize(self.strategy.parts(images, labels))
        self.strategy.stepped(images, labels)
        if self.place % steps == 0:
            if self.told:
                self.strategy.end(self.task_of[visit], *self.shown(visit * steps, self.place))
            self.rows = torch.cat([self.rows, self.ask()[None]])
        return metrics

    def shown(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images [n, 1, H, W] and labels [n] of a stretch of the stream."""
        images, labels = self.stream.images(start, stop)[0], self.stream.labels[0, start:stop]
        return images.to(self.device), labels.to(self.device)

    @torch.no_grad()
    def ask(self) -> Tensor:
        """Accuracy on the held-out images of every task: [T]."""
        self.learner.eval()
        found = []
        for task in range(len(self.stream.tasks)):
            images, labels = self.stream.test(task)
            answers = [self.strategy.logits(part.to(self.device)).argmax(-1).cpu() for part in images.split(BATCH)]
            found.append((torch.cat(answers) == labels).double().mean())
        self.learner.train()
        return torch.stack(found)

    def validate(self) -> Judged:
        """Where the stream stands; inside a visit with one more row."""
        whole = self.place % self.stream.steps == 0 and len(self.rows) > 0
        return self.judge(self.rows if whole else torch.cat([self.rows, self.ask()[None]]))

    def test(self) -> Judged:
        return self.judge(self.rows)

    def judge(self, rows: Tensor) -> Judged:
        """What follows from the rows of R so far, [V, T]."""
        learned = self.learned(len(rows))
        seen = [j for j, row in enumerate(learned) if row >= 0]
        r, chance = rows.numpy(), 1 / self.stream.outputs
        score = mean_interval(100 * r[-1, seen])
        numbers = continual_metrics(r, self.untrained.numpy(), learned, floor=chance)
        scalars = {"current": float(r[-1, self.task_of[len(rows) - 1]])}
        if not isinstance(numbers["forgetting"], Undefined):
            scalars["forgetting"] = float(numbers["forgetting"])
        names = [task.name for task in self.stream.tasks]
        visits = [f"{i + 1}: {names[self.task_of[i]]}" for i in range(len(rows))]
        matrix = {
            "caption": "Accuracy on each task after each visit (held-out images)", "values": r.tolist(),
            "y": "after visit", "rows": visits, "x": "task", "columns": names,
        }  # fmt: skip
        retention = {
            "caption": "Accuracy on a task by visits since it was first learned (held-out images, 95 % band over tasks)",
            "x": "visits since", "y": "accuracy, %", "points": retained(r, learned),
        }  # fmt: skip
        details: dict[str, Any] = {
            "algo": self.name,
            "state_bytes": self.strategy.state_bytes,
            "matrices": {"R": matrix},
            "lines": {"retention": retention},
            "numbers": numbers | {"outputs": self.stream.outputs},
            "learned": learned,
            "manifest": self.sha256,
        }
        drawn = {"R": figures.matrix(matrix["values"], visits, names, "after visit", "task")}
        return Judged(score, scalars, drawn, details)

    def learned(self, rows: int) -> list[int]:
        """The row at the end of each task's first visit, -1 if there was none. In random order all end at the end."""
        if self.strategy.shuffled:
            return [rows - 1] * len(self.stream.tasks)
        first = {task: visit for visit, task in reversed(list(enumerate(self.task_of[:rows])))}
        return [first.get(task, -1) for task in range(len(self.stream.tasks))]

    def state_dict(self) -> dict[str, Tensor]:
        state = {"place": torch.tensor(self.place), "rows": self.rows, "untrained": self.untrained}
        return state | {f"strategy.{name}": tensor for name, tensor in self.strategy.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.place, self.rows, self.untrained = int(state["place"]), state["rows"], state["untrained"]
        self.strategy.load_state_dict(below(state, "strategy."))


def shuffle(stream: Drift, generator: torch.Generator) -> None:
    """The same images in random order."""
    order = torch.randperm(stream.task.shape[1], generator=generator)
    for name in ("task", "visit", "shown", "classes", "drawings", "labels"):
        setattr(stream, name, getattr(stream, name)[:, order])


def retained(r: np.ndarray, learned: list[int]) -> list[list[float]]:
    """Points (age, mean, low, high) in percent over the tasks that reached that age."""
    points = []
    for age in range(len(r)):
        values = [100 * r[row + age, j] for j, row in enumerate(learned) if row >= 0 and row + age < len(r)]
        if values:
            mean = mean_interval(values)
            alone = Interval(mean.mean, mean.mean, mean.mean, 1)
            points.append([float(age), *(mean if len(values) > 1 else alone)[:3]])
    return points


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> ContinualProblem:
    """The problem of a configuration with env=tasks and algo=continual."""
    algo, options = config.algo, config.trainer
    if algo.strategy not in STRATEGIES:
        raise UserError(f"algo.strategy: expected one of {', '.join(STRATEGIES)}, got {algo.strategy!r}")
    if (algo.strategy == "memory") != (config.memory.name != "none"):
        raise UserError(
            f"memory: algo.strategy=memory goes with a memory, every other one with none; got algo.strategy "
            f"{algo.strategy} and memory {config.memory.name}"
        )
    stream = make_stream(config.env, options.steps, options.tasks, seeds["train"])
    kind = STRATEGIES[algo.strategy]
    with drawn(config):
        made = network(config, stream, kind).to(device)
    strategy = kind(made, strength=algo.strength, buffer=algo.buffer, seed=seeds["strategy"])
    return ContinualProblem(strategy, algo.strategy, stream, options.tasks, device)


def learner(config: DictConfig) -> nn.Module:
    raise UserError(
        "algo=continual: a run has no baselines and is not compared by memory; expected baselines=[], and other "
        "strategies as runs of their own"
    )


def network(config: DictConfig, stream: Drift, kind: type[Strategy]) -> nn.Module:
    """The network of a strategy with freshly drawn weights, or with the encoder of another run."""
    height, width = stream.tasks[0].data.images.shape[2:]
    encoder: nn.Module
    if config.algo.encoder:
        encoder, features = trained_encoder(config.algo.encoder)
    elif config.algo.mlp:
        widths = list(config.algo.mlp)
        encoder, features = nn.Sequential(nn.Flatten(), MLP([height * width, *widths]), nn.ReLU()), widths[-1]
    else:
        encoder = Conv(**OmegaConf.to_container(config.encoder))
        features = encoder.features
    if config.algo.freeze:
        encoder.requires_grad_(False)
    if config.algo.strategy == "memory":
        fields = Fields(features, 0, stream.outputs)
        return Remembering(encoder, memory(config, fields.width, fields), fields)
    return kind.network(encoder, features, stream.outputs, len(stream.tasks))


def trained_encoder(run: str) -> tuple[nn.Module, int]:
    """The encoder of the newest checkpoint of a run, and how many features it gives."""
    from algos import jobs  # late: it builds on this module

    config = jobs.stored_config(Path(run))
    encoder = getattr(jobs.restored(config).learner, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UserError(f"algo.encoder: {run} keeps no encoder apart (algo={config.algo.name}); prototypes, oml do")
    with torch.no_grad():
        features = encoder.cpu().eval()(torch.zeros(1, 1, SIZE, SIZE)).shape[-1]
    return encoder.train(), features
