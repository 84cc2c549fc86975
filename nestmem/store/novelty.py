"""Predict and calibrate: keep only what what is known does not predict already.

    nearest   novelty(e) = 1 - max_j cosine(e, K_j)
    ridge     novelty(e) = |e - K^T a| / |e|,  a = argmin |e - K^T a|^2 + ridge |a|^2

The second is what no mixture of the known explains. An item is new if its novelty exceeds the threshold. Nemori
(arXiv 2508.03341) has a language model predict an episode and keeps the gap; here the prediction is made of vectors.
With as many known items as dimensions the ridge form calls everything known: use it where there are fewer.
Legend: N known items, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoveltyGate:
    """`NoveltyGate(threshold=0.35)`. mode: "nearest" or "ridge"."""

    threshold: float = 0.35
    mode: str = "nearest"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.mode not in ("nearest", "ridge"):
            raise ValueError(f"mode: expected nearest or ridge, got {self.mode!r}")
        if self.threshold < 0 or self.ridge <= 0:
            raise ValueError(f"novelty: expected threshold >= 0 and ridge > 0, got {self.threshold} and {self.ridge}")

    def novelty(self, vector: Tensor, known: Tensor) -> float:
        """Of a vector [D] given the known [N, D]: 0 if it is among them, 1 if nothing is known."""
        if len(known) == 0:
            return 1.0
        if self.mode == "nearest":
            return float(1 - torch.cosine_similarity(known, vector[None], dim=-1).max())
        rows, target = torch.nn.functional.normalize(known.double(), dim=-1), vector.double()
        system = rows @ rows.T + self.ridge * torch.eye(len(rows), dtype=torch.double)
        explained = rows.T @ torch.linalg.solve(system, rows @ target)
        return float((target - explained).norm() / target.norm().clamp_min(1e-12))

    def passes(self, vector: Tensor, known: Tensor) -> bool:
        return self.novelty(vector, known) > self.threshold
