"""Averaged gradient episodic memory: no step may, to first order, make the kept images worse.

Chaudhry et al. 2019 (Efficient lifelong learning with A-GEM): with g the gradient on the batch at hand and r that on a sample of
the kept images,
    if g . r < 0:   g -= (g . r) / (r . r) r
The images are kept in a reservoir, so no boundary is needed. What the optimizer makes of g is its own affair: the promise holds
for plain gradient descent, not for Adam's rescaled steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from algos.problem import Part
from algos.strategies.replay import Reservoir


class AGem(Reservoir):
    """The gradient of the batch, without what would undo the kept images."""

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        yield from super().parts(images, labels)
        kept, kept_labels = self.sample(len(images))
        if len(kept):
            self.project(kept, kept_labels)

    def project(self, images: Tensor, labels: Tensor) -> None:
        """Change `.grad` so that it does not oppose the gradient on these images."""
        parameters = [p for p in self.trained().values() if p.grad is not None]
        reference = torch.autograd.grad(F.cross_entropy(self.learner(images), labels), parameters)
        dot = sum(float((p.grad * r).sum()) for p, r in zip(parameters, reference, strict=True))
        norm = sum(float(r.square().sum()) for r in reference)
        if dot < 0:
            for p, r in zip(parameters, reference, strict=True):
                p.grad -= dot / norm * r
