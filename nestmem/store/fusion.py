"""How rankings become one score: by ranks, or as a sum of what is on one scale.

Reciprocal rank fusion, the default (Cormack, Clarke and Buettcher 2009):
    score(i) = sum over channels c of  w_c / (k + rank_c(i))        rank from 1
A channel that does not know i adds nothing. Only ranks count, so channels need no common scale. k = 60 as published
there; a smaller k trusts first places more.

A calibrated sum (as FinMem, arXiv 2311.13743, and Park et al., arXiv 2304.03442, add up recency, importance and similarity):
    score(i) = w_s cos(q, i) + w_r R_i + w_i importance_i + w_u (useful_i + 1) / (retrievals_i + 2)
All four lie within one unit; the last is the mean of a Beta posterior, so what was never retrieved counts one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Part(NamedTuple):
    """What a channel gave to a score, and the rank in it (0: it does not rank)."""

    rank: int
    part: float


class Standing(NamedTuple):
    """What an item is by itself, whatever is asked: what decay left of it, its importance, and how useful it was."""

    left: float = 1.0
    importance: float = 0.5
    utility: float = 0.5


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


@dataclass(frozen=True)
class CalibratedSum:
    """`search(vector=..., space=..., fusion=CalibratedSum())`: the `depth` most similar items by the sum above.

    It ranks by one similarity of the metric cosine, so the question is a vector alone. Weights are for calibrating on
    questions of one's own.
    """

    similarity: float = 1.0
    retention: float = 0.2
    importance: float = 0.2
    utility: float = 0.2
    depth: int = 200

    def __post_init__(self) -> None:
        weights = (self.similarity, self.retention, self.importance, self.utility)
        if min(weights) < 0 or not sum(weights) or self.depth < 1:
            raise ValueError(f"fusion: expected weights >= 0, one of them > 0, and depth >= 1, got {self}")

    def parts(self, rank: int, similarity: float, standing: Standing) -> dict[str, Part]:
        """What each term gives to the score of an item."""
        return {
            "dense": Part(rank, self.similarity * similarity),
            "retention": Part(0, self.retention * standing.left),
            "importance": Part(0, self.importance * standing.importance),
            "utility": Part(0, self.utility * standing.utility),
        }
