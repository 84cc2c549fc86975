"""Learning without forgetting: on new images, go on saying of the old classes what the old network said.

Li & Hoiem 2016: with the network as it was when the last task ended (logits o) and as it is now (z), over the classes met by then,
    loss = cross-entropy + lambda sum_c -q_c log p_c,   q = softmax(o / T),  p = softmax(z / T),   T = 2
No image is kept, but a second set of weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from algos.problem import Part
from algos.strategies.base import Strategy, right

TEMPERATURE = 2.0


class LwF(Strategy):
    """strength: lambda."""

    told = True
    default_strength = 1.0

    def __init__(self, learner: nn.Module, *, strength: float | None = None, buffer: int = 200, seed: int = 0):
        super().__init__(learner, strength=strength, buffer=buffer, seed=seed)
        self.kept = {f"old.{name}": tensor.detach().clone() for name, tensor in learner.state_dict().items()}
        self.kept["met"] = torch.zeros(0, dtype=torch.long)  # classes, in rising order

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        logits = self.learner(images)
        loss, metrics = F.cross_entropy(logits, labels), {"accuracy": right(logits, labels)}
        met = self.kept["met"]
        if len(met) > 1:  # of one class there is nothing to say
            kept = self.distance(logits[:, met], self.old(images)[:, met])
            loss, metrics["distillation"] = loss + self.strength * kept, kept.detach()
        yield Part(loss, metrics)

    @torch.no_grad()
    def old(self, images: Tensor) -> Tensor:
        """Logits of the old network [n, C]."""
        weights = {name.removeprefix("old."): t for name, t in self.kept.items() if name.startswith("old.")}
        self.learner.eval()
        logits: Tensor = functional_call(self.learner, weights, (images,))
        self.learner.train()
        return logits

    @staticmethod
    def distance(new: Tensor, old: Tensor) -> Tensor:
        """Cross-entropy of the softened answers [n, c]."""
        return -((old / TEMPERATURE).softmax(-1) * (new / TEMPERATURE).log_softmax(-1)).sum(-1).mean()

    def end(self, task: int, images: Tensor, labels: Tensor) -> None:
        self.kept |= {f"old.{name}": tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        self.kept["met"] = torch.cat([self.kept["met"], labels]).unique()
