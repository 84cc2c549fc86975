"""Episodes: where a stream of items is cut.

    dip       before item i if the similarity of the windows on its two sides is below mean - gamma std of all of them
    surprise  before item i if its distance to what came before, 1 - cos(v_i, mean of the last w), exceeds
              mean + gamma std of all such distances (as EM-LLM does with a model's surprise, arXiv 2407.09450)

Nemori (arXiv 2508.03341) cuts where a language model says so or after 25 messages; the vectors and `longest` stand in.
A cut by topic is the dip of vectors that say what the topic is. Nothing shorter than `shortest` is cut off.
Legend: N items, D dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem.store.model import Item
from nestmem.store.policies import Derived, Summarise, above, medoid


def boundaries(vectors: Tensor, mode: str = "dip", window: int = 3, gamma: float = 1.0) -> list[int]:
    """Indices [N, D] before which a stream is cut, in order."""
    many = len(vectors)
    if many < 3:
        return []
    rows = F.normalize(vectors, dim=-1)
    scores = []
    for i in range(1, many):
        before = rows[max(0, i - window) : i].mean(0)
        after = rows[i : i + window].mean(0) if mode == "dip" else rows[i]
        scores.append(1 - float(F.cosine_similarity(before, after, dim=0)))
    odd = torch.tensor(scores)
    limit = odd.mean() + gamma * odd.std(correction=0)
    cuts = []
    for i in range(1, many):
        left = odd[i - 2] if i > 1 else -1.0
        right = odd[i] if i < many - 1 else -1.0
        peak = odd[i - 1] >= left and odd[i - 1] > right  # a change shows as long as the windows see both sides
        if odd[i - 1] > limit and peak:
            cuts.append(i)
    return cuts


@dataclass(frozen=True)
class Episodes:
    """`Episodes("words")`: an item above each episode of a subtree. The last, which may go on, is made when it is closed.

    mode: "dip" or "surprise". shortest, longest: items of an episode.
    """

    space: str
    mode: str = "dip"
    window: int = 3
    gamma: float = 1.0
    shortest: int = 2
    longest: int = 25
    summarise: Summarise = field(default=medoid, repr=False)
    name: str = "episodes"
    source: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("dip", "surprise"):
            raise ValueError(f"mode: expected dip or surprise, got {self.mode!r}")
        if self.window < 1 or not 1 <= self.shortest <= self.longest:
            raise ValueError("episodes: expected window >= 1 and 1 <= shortest <= longest")

    def config(self) -> dict[str, Any]:
        limits = [self.window, self.gamma, self.shortest, self.longest]
        return {"space": self.space, "mode": self.mode, "limits": limits, "summarise": self.summarise.__qualname__}

    def spans(self, vectors: Tensor) -> list[tuple[int, int]]:
        """The closed episodes of a stream as (first, end)."""
        cuts, begin = [0], 0
        wanted = set(boundaries(vectors, self.mode, self.window, self.gamma))
        for i in range(1, len(vectors)):
            if (i in wanted and i - begin >= self.shortest) or i - begin >= self.longest:
                cuts.append(i)
                begin = i
        return list(itertools.pairwise(cuts))

    def derive(self, items: Sequence[Item], vectors: Tensor) -> list[Derived]:
        return [above(range(*span), items, vectors, self.source + 1) for span in self.spans(vectors)]

    def describe(self, members: Sequence[Item], vectors: Tensor) -> str:
        return self.summarise(members, vectors)
