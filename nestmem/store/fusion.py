"""Reciprocal rank fusion: several rankings of the same things as one (Cormack, Clarke and Buettcher 2009).

    score(i) = sum over channels c of  w_c / (k + rank_c(i))        rank from 1

A channel that does not know i adds nothing. Only ranks count, so channels need no common scale. k = 60 as published
there; a smaller k trusts first places more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Part(NamedTuple):
    rank: int
    part: float


@dataclass(frozen=True)
class ReciprocalRank:
    """`ReciprocalRank(weights={"dense": 1.5})`: weights of channels, 1 where not named. depth: ranks that count per
    channel.
    """

    k: float = 60.0
    weights: Mapping[str, float] = field(default_factory=dict)
    depth: int = 200

    def __post_init__(self) -> None:
        if self.k < 0 or self.depth < 1:
            raise ValueError(f"fusion: expected k >= 0 and depth >= 1, got k={self.k}, depth={self.depth}")

    def fuse(
        self, rankings: Mapping[str, Sequence[str]], trust: Mapping[str, float] | None = None
    ) -> dict[str, dict[str, Part]]:
        """From ids in order, per channel, to each id's rank and part per channel. The score is the sum of parts.

        trust: what the weights of channels are multiplied by.
        """
        parts: dict[str, dict[str, Part]] = {}
        for channel, ids in rankings.items():
            weight = self.weights.get(channel, 1.0) * (trust or {}).get(channel, 1.0)
            for rank, ident in enumerate(ids, 1):
                parts.setdefault(ident, {})[channel] = Part(rank, weight / (self.k + rank))
        return parts
