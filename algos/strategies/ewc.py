"""Elastic weight consolidation: weights that earlier tasks needed are held by springs.

Kirkpatrick et al. 2017, in the online form of Schwarz et al. 2018 (one Fisher diagonal for all tasks, with forgetting gamma = 1):
    loss = cross-entropy + lambda / 2 sum_k F_k (w_k - w*_k)^2
    at the end of a task:  F += mean_x (d log p(y | x) / d w)^2,  y ~ p(. | x);   w* = w
The labels are drawn from what the network answers, so F is the Fisher information and not its "empirical" stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.problem import Part
from algos.strategies.base import Strategy

SAMPLES = 100  # images of a task that its Fisher information is taken from


class EWC(Strategy):
    """strength: lambda."""

    told = True
    default_strength = 300.0

    def __init__(self, learner: nn.Module, *, strength: float | None = None, buffer: int = 200, seed: int = 0):
        super().__init__(learner, strength=strength, buffer=buffer, seed=seed)
        for name, p in self.trained().items():
            self.kept |= {f"fisher.{name}": torch.zeros_like(p), f"anchor.{name}": p.detach().clone()}

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        yield from super().parts(images, labels)
        penalty = self.strength / 2 * self.distance()
        yield Part(penalty, {"penalty": penalty.detach()})

    def distance(self) -> Tensor:
        """sum_k F_k (w_k - w*_k)^2."""
        each = [
            (self.kept[f"fisher.{name}"] * (p - self.kept[f"anchor.{name}"]).square()).sum()
            for name, p in self.trained().items()
        ]
        return torch.stack(each).sum()

    def end(self, task: int, images: Tensor, labels: Tensor) -> None:
        trained = self.trained()
        chosen = torch.randperm(len(images), generator=self.generator)[:SAMPLES]
        self.learner.eval()
        for image in images[chosen]:
            log_p = F.log_softmax(self.learner(image[None])[0], -1)
            label = int(torch.multinomial(log_p.detach().exp().cpu(), 1, generator=self.generator))
            gradient = torch.autograd.grad(log_p[label], list(trained.values()))
            for name, g in zip(trained, gradient, strict=True):
                self.kept[f"fisher.{name}"] += g.square() / len(chosen)
        self.learner.train()
        for name, p in trained.items():
            self.kept[f"anchor.{name}"] = p.detach().clone()
