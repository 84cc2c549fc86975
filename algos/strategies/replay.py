"""Experience replay out of a reservoir: every image seen so far has had the same chance to be kept.

Reservoir sampling (Vitter 1985): the first M images are kept; the i-th after them (counting from i = M + 1) takes the place of a
random one with probability M / i. Every update learns from the batch at hand and as many kept images, both equally
(Chaudhry et al. 2019, On tiny episodic memories in continual learning). No boundary is needed.
Legend: n images of a batch, M images kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.problem import Part
from algos.strategies.base import Strategy, right
from nestmem.errors import UserError


class Reservoir(Strategy):
    """Keeps `buffer` images, as bytes, and what they are."""

    def __init__(self, learner: nn.Module, *, strength: float | None = None, buffer: int = 200, seed: int = 0):
        super().__init__(learner, strength=strength, buffer=buffer, seed=seed)
        if buffer < 1:
            raise UserError(f"algo.buffer: expected at least 1 image, got {buffer}")
        self.kept = {"labels": torch.zeros(buffer, dtype=torch.long), "seen": torch.zeros((), dtype=torch.long)}

    def stepped(self, images: Tensor, labels: Tensor) -> None:
        self.add(images, labels)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Offer images [n, 1, H, W] in 0..1 with labels [n], one after the other."""
        if "images" not in self.kept:
            self.kept["images"] = images.new_zeros(self.buffer, *images.shape[1:], dtype=torch.uint8)
        for image, label in zip((255 * images).round().to(torch.uint8), labels, strict=True):
            seen = int(self.kept["seen"])
            place = seen if seen < self.buffer else int(torch.randint(seen + 1, (), generator=self.generator))
            if place < self.buffer:
                self.kept["images"][place], self.kept["labels"][place] = image, label
            self.kept["seen"] += 1

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Up to n different kept images, float [n, 1, H, W], and their labels [n]; none before anything was seen."""
        full = min(int(self.kept["seen"]), self.buffer)
        rows = torch.randperm(full, generator=self.generator)[:n]
        device = next(self.learner.parameters()).device
        if not full:
            return torch.empty(0), torch.empty(0, dtype=torch.long)
        return self.kept["images"][rows].to(device).float() / 255, self.kept["labels"][rows].to(device)


class Replay(Reservoir):
    """Learns from the batch and from as many kept images."""

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        old, old_labels = self.sample(len(images))
        if not len(old):
            yield from super().parts(images, labels)
            return
        logits = self.learner(torch.cat([images, old]))
        loss = F.cross_entropy(logits, torch.cat([labels, old_labels]))
        yield Part(loss, {"accuracy": right(logits[: len(labels)], labels)})
