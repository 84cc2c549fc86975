"""Adjacent-pair pyramid: recent things one by one, older ones in ever wider spans, rare ones kept apart.

Groups g = 0, 1, ... hold at most c_g entries in order of time. When a group overflows, its most similar adjacent pair
is merged (mean of the two vectors, weighted by how many leaves each spans) into the next group, which may overflow in
turn; in the last group the pair is merged in place. Similarity is cosine; of equal pairs the oldest goes.

After the pyramid memory bank of OVBench (arXiv 2501.00584), whose code moves the earlier of the pair on without
merging and does not recurse: what leaves the second group is lost, and the third stays empty. `literal=True` does
that.
Legend: N leaves, D dimension, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """A span of leaves: their indices in order, and the mean of their vectors [D]."""

    members: tuple[int, ...]
    vector: Tensor


class Pyramid:
    """`Pyramid([8, 4, 4])`: add vectors [D] in order of time; `groups` holds what is kept, finest first."""

    def __init__(self, capacities: Sequence[int], *, literal: bool = False):
        if not capacities or any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in capacities):
            raise ValueError(f"capacities: expected whole numbers of at least 1, got {list(capacities)}")
        self.capacities, self.literal = tuple(capacities), literal
        self.groups: list[list[Entry]] = [[] for _ in capacities]
        self.seen = 0

    def add(self, vector: Tensor) -> None:
        self._insert(0, Entry((self.seen,), vector.detach()))
        self.seen += 1

    def _insert(self, group: int, entry: Entry) -> None:
        entries = self.groups[group]
        entries.append(entry)
        entries.sort(key=lambda e: e.members[0])
        if len(entries) <= self.capacities[group]:
            return
        at = most_similar([e.vector for e in entries])
        last = group + 1 == len(self.capacities)
        if self.literal:
            moved = entries.pop(at)
            if group == 0 and not last:
                following = self.groups[1]
                following.append(moved)
                following.sort(key=lambda e: e.members[0])
                if len(following) > self.capacities[1]:
                    following.pop(most_similar([e.vector for e in following]))
            return
        pair = (entries[at], entries[at + 1]) if len(entries) > 1 else (entries[0],)
        del entries[at : at + len(pair)]
        self._insert(group if last else group + 1, merged(pair))


def most_similar(vectors: Sequence[Tensor]) -> int:
    """The index of the earlier of the most similar neighbours."""
    if len(vectors) < 2:
        return 0
    rows = torch.nn.functional.normalize(torch.stack(list(vectors)), dim=-1)
    return int(
        (rows[1:] * rows[:-1]).sum(-1).mul(1e5).round().argmax()
    )  # rounded: equal pairs are equal on every machine


def merged(pair: Sequence[Entry]) -> Entry:
    members = tuple(sorted(m for e in pair for m in e.members))
    return Entry(members, sum((e.vector * len(e.members) for e in pair), torch.zeros(())) / len(members))
