"""Synaptic intelligence: a weight is important if moving it is what brought the loss down.

Zenke et al. 2017:
    loss = cross-entropy + c sum_k Omega_k (w_k - w*_k)^2
    at every step:         credit_k += -g_k (w_k after - w_k before),  g the gradient of the cross-entropy alone
    at the end of a task:  Omega_k += max(credit_k, 0) / ((w_k - w*_k)^2 + xi);   credit = 0;  w* = w
Credit that noise has made negative counts as none, so that no spring pushes away.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from algos.problem import Part
from algos.strategies.base import Strategy

XI = 0.1  # keeps Omega bounded where a weight has hardly moved; the paper's value


class SI(Strategy):
    """strength: c."""

    told = True
    default_strength = 100.0

    def __init__(self, learner: nn.Module, *, strength: float | None = None, buffer: int = 200, seed: int = 0):
        super().__init__(learner, strength=strength, buffer=buffer, seed=seed)
        self.moving: dict[str, tuple[Tensor, Tensor]] = {}  # weight and gradient before a step, for that step alone
        for name, p in self.trained().items():
            for what in ("credit", "importance"):
                self.kept[f"{what}.{name}"] = torch.zeros_like(p)
            self.kept[f"anchor.{name}"] = p.detach().clone()

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        yield from super().parts(images, labels)
        trained = self.trained()
        self.moving = {n: (p.detach().clone(), p.grad.clone()) for n, p in trained.items() if p.grad is not None}
        each = [
            (self.kept[f"importance.{name}"] * (p - self.kept[f"anchor.{name}"]).square()).sum()
            for name, p in trained.items()
        ]
        penalty = self.strength * torch.stack(each).sum()
        yield Part(penalty, {"penalty": penalty.detach()})

    @torch.no_grad()
    def stepped(self, images: Tensor, labels: Tensor) -> None:
        for name, p in self.trained().items():
            if name in self.moving:
                before, gradient = self.moving[name]
                self.kept[f"credit.{name}"] -= gradient * (p - before)

    @torch.no_grad()
    def end(self, task: int, images: Tensor, labels: Tensor) -> None:
        for name, p in self.trained().items():
            moved = (p - self.kept[f"anchor.{name}"]).square()
            self.kept[f"importance.{name}"] += self.kept[f"credit.{name}"].clamp(min=0) / (moved + XI)
            self.kept[f"credit.{name}"].zero_()
            self.kept[f"anchor.{name}"] = p.detach().clone()
