"""Scenes as communities of a graph: items that resemble each other, wherever they stand in time.

An edge where the cosine exceeds `threshold` (.2 in Bi-Mem, arXiv 2601.06490, whose vectors are sentence embeddings; .5
here, since others are denser); each item then takes the label that weighs most among its neighbours, again and again
(label propagation, Raghavan et al. 2007). The published order is random and so is the result: here items go in order of
time, ties to the smallest label, until nothing changes or `rounds` are over.
Legend: N items, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem.store.model import Item
from nestmem.store.policies import Derived, Summarise, above, medoid


def communities(vectors: Tensor, threshold: float = 0.5, rounds: int = 20) -> list[int]:
    """A label for each of the vectors [N, D]: the index of one of its community."""
    rows = F.normalize(vectors.float(), dim=-1)
    weights = rows @ rows.T
    weights = torch.where(weights > threshold, weights, torch.zeros(())).fill_diagonal_(0)
    labels = list(range(len(vectors)))
    neighbours = [row.nonzero()[:, 0].tolist() for row in weights]
    for _ in range(rounds):
        changed = False
        for i, near in enumerate(neighbours):
            votes: dict[int, float] = {}
            for j in near:
                votes[labels[j]] = votes.get(labels[j], 0.0) + round(float(weights[i, j]), 5)
            if votes:
                best = min(votes, key=lambda label: (-round(votes[label], 4), label))
                changed |= best != labels[i]
                labels[i] = best
        if not changed:
            break
    return labels


@dataclass(frozen=True)
class Communities:
    """`Communities("words")`: an item above each community of at least `smallest` items of a subtree."""

    space: str
    threshold: float = 0.5
    smallest: int = 2
    rounds: int = 20
    summarise: Summarise = field(default=medoid, repr=False)
    name: str = "communities"
    source: int = 0

    def __post_init__(self) -> None:
        if not -1 <= self.threshold < 1 or self.smallest < 2 or self.rounds < 1:
            raise ValueError("communities: expected threshold in [-1, 1), smallest >= 2 and rounds >= 1")

    def config(self) -> dict[str, Any]:
        limits = [self.threshold, self.smallest, self.rounds]
        return {"space": self.space, "limits": limits, "summarise": self.summarise.__qualname__}

    def derive(self, items: Sequence[Item], vectors: Tensor) -> list[Derived]:
        groups: dict[int, list[int]] = {}
        for place, label in enumerate(communities(vectors, self.threshold, self.rounds)):
            groups.setdefault(label, []).append(place)
        large = [members for members in groups.values() if len(members) >= self.smallest]
        return [above(members, items, vectors, self.source + 1) for members in large]

    def describe(self, members: Sequence[Item], vectors: Tensor) -> str:
        return self.summarise(members, vectors)
