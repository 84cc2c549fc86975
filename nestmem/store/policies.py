"""What consolidation makes of the items of one subtree. A policy is pure: the same items in the same order give the
same answer.

`PyramidMerge` (pyramid.py): spans over spans. `PredictCalibrate` (novelty.py): facts that the earlier ones do not
predict. Text is made without a language model, from the member nearest to the middle; a callback may write a better
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nestmem.store.model import Item
from nestmem.store.novelty import NoveltyGate
from nestmem.store.pyramid import Pyramid

Summarise = Callable[[Sequence[Item], Tensor], str]  # members and their vectors [N, D] to a text


class Derived(NamedTuple):
    """An item that should exist: made of `members` (indices into the items given), which it contains if `contains`.

    Its text is asked for later (`Policy.describe`), and only if the item is not there yet.
    """

    level: int
    kind: str
    members: tuple[int, ...]
    vector: Tensor
    digest: Mapping[str, Any]
    contains: bool


class Policy(Protocol):
    """`name` marks what it wrote; `config` is what its answer depends on; `source` the level it reads, with vectors
    in `space`.
    """

    name: str
    space: str
    source: int

    def config(self) -> dict[str, Any]: ...

    def derive(self, items: Sequence[Item], vectors: Tensor) -> list[Derived]: ...

    def describe(self, members: Sequence[Item], vectors: Tensor) -> str: ...


def medoid(members: Sequence[Item], vectors: Tensor) -> str:
    """The text of the member whose vector is nearest to the mean; the first of equals."""
    rows = torch.nn.functional.normalize(vectors, dim=-1)
    return members[int((rows @ rows.mean(0)).mul(1e5).round().argmax())].text


def digest_of(members: Sequence[Item]) -> dict[str, Any]:
    """What counting questions need: how many, and from when to when."""
    begins = [i.event_from if i.event_from is not None else i.recorded_at for i in members]
    ends = [i.event_to if i.event_to is not None else b for i, b in zip(members, begins)]
    return {"count": len(members), "from": min(begins), "to": max(ends)}


def above(members: Sequence[int], items: Sequence[Item], vectors: Tensor, level: int) -> Derived:
    """A summary of some of the items [N] with vectors [N, D]: it contains them and lies at their mean."""
    places = list(members)
    digest = digest_of([items[m] for m in places])
    return Derived(level, "summary", tuple(places), vectors[places].mean(0), digest, True)


@dataclass(frozen=True)
class PyramidMerge:
    """Older spans grow wider: at most `capacities[g]` items stand free at level g (the verbatim items below always
    stay).
    """

    space: str
    capacities: tuple[int, ...] = (32, 16, 8)
    summarise: Summarise = field(default=medoid, repr=False)
    name: str = "pyramid"
    source: int = 0

    def config(self) -> dict[str, Any]:
        return {"space": self.space, "capacities": list(self.capacities), "summarise": self.summarise.__qualname__}

    def derive(self, items: Sequence[Item], vectors: Tensor) -> list[Derived]:
        pyramid = Pyramid(self.capacities)
        for row in vectors:
            pyramid.add(row)
        found = []
        for level, entries in enumerate(pyramid.groups[1:], self.source + 1):
            for entry in entries:
                members = [items[m] for m in entry.members]
                found.append(Derived(level, "summary", entry.members, entry.vector, digest_of(members), True))
        return found

    def describe(self, members: Sequence[Item], vectors: Tensor) -> str:
        return self.summarise(members, vectors)


@dataclass(frozen=True)
class PredictCalibrate:
    """A fact for each item that the facts before it do not predict; it does not contain the item, it is derived from
    it.
    """

    space: str
    gate: NoveltyGate = field(default_factory=NoveltyGate)
    name: str = "calibrate"
    source: int = 0

    def config(self) -> dict[str, Any]:
        return {"space": self.space, "gate": [self.gate.mode, self.gate.threshold, self.gate.ridge]}

    def derive(self, items: Sequence[Item], vectors: Tensor) -> list[Derived]:
        known: list[int] = []
        for place, row in enumerate(vectors):
            if self.gate.passes(row, vectors[known]):
                known.append(place)
        level = self.source + 1
        return [Derived(level, "fact", (p,), vectors[p], digest_of([items[p]]), False) for p in known]

    def describe(self, members: Sequence[Item], vectors: Tensor) -> str:
        return members[0].text
