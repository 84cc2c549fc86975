"""What the reads of a store level find: from which of the store's levels, how old it is, or nothing.

    with Hits(level) as hits:
        memory(x)
    hits.by_level(), hits.by_age()

A query hits the item most alike to it, by cos(q, key) cos(q_cue, cue), if that is over HIT. What a row gathered in earlier
sessions of this process competes with what is in the store and is counted as its own.
Legend: B rows, T steps, N stored items, S gathered ones.
"""

from __future__ import annotations

import math
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nestmem.store.model import Item
from nestmem.store.retention import DAY
from nestmem.store.rows import Filter

if TYPE_CHECKING:
    from nestmem.store.level import StoreLevel

HIT = 0.5
AGES = {
    "< 1 minute": 60.0,
    "< 1 hour": 3600.0,
    "< 1 day": DAY,
    "< 1 week": 7 * DAY,
    "< 1 month": 30 * DAY,
    "older": math.inf,
}
OWN, MISS = "this run", "nothing alike"


class Table(NamedTuple):
    """How many items there are of each kind, and how often a read hit one."""

    items: dict[str, int]
    hits: dict[str, int]


class Hits:
    """Counts while it is entered. `stored` [N]: hits of each item; `own`: of gathered ones; `missed`."""

    def __init__(self, level: StoreLevel):
        self.level = level
        self.stored, self.own, self.missed = torch.zeros(len(level.ids), dtype=torch.long), 0, 0

    def __enter__(self) -> Hits:
        self.level.hits = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.level.hits = None

    @torch.no_grad()
    def count(self, key: Tensor, cue: Tensor, state: Any) -> None:
        """Queries by key [B, (T,) K] and cue [B, (T,) C], asked of the level with a state."""
        best, which = key.new_full(key.shape[:-1], HIT), torch.full(key.shape[:-1], -1, device=key.device)
        if len(self.stored):
            alike = _alike(key @ self.level.keys.mT, cue @ self.level.cues.mT, cue).max(-1)
            which = torch.where(alike.values > best, alike.indices, which)
            best = torch.maximum(alike.values, best)
        own = torch.zeros_like(which, dtype=torch.bool)
        if state is not None:
            mine, context = (torch.einsum("b...k,bsk->b...s", a, b) for a, b in ((key, state.keys), (cue, state.cues)))
            shown = state.shown if key.dim() == 2 else state.shown[:, None]
            own = _alike(mine, context, cue).masked_fill(~shown, -1.0).amax(-1) > best
        hit = which[~own & (which >= 0)]
        self.stored += hit.cpu().bincount(minlength=len(self.stored))
        self.own += int(own.sum())
        self.missed += own.numel() - int(own.sum()) - len(hit)

    @cached_property
    def items(self) -> list[Item]:
        """What the level reads, in the order of `stored`."""
        past = self.level.store.as_of(generation=int(self.level.generation))
        known = {item.id: item for item in past.items(Filter(kinds=["result"]))}
        return [known[ident] for ident in self.level.ids]

    @cached_property
    def ages(self) -> list[float]:
        """Of each item, in seconds, by the store's clock."""
        now = self.level.store._shards.clock()  # noqa: SLF001  (of this package)
        return [now - item.recorded_at for item in self.items]

    def by_level(self) -> Table:
        """By the level of the store that an item is on."""
        names = [f"L{item.level}" if item.level >= 0 else "procedural" for item in self.items]
        return self._table(names, sorted({*names}) or ["L0"])

    def by_age(self) -> Table:
        return self._table([next(name for name, limit in AGES.items() if age < limit) for age in self.ages], list(AGES))

    def days(self) -> dict[str, float]:
        """Mean age of the items, and of those that were hit, once for each hit; what there is none of is left out."""
        age, hits = torch.tensor(self.ages) / DAY, int(self.stored.sum())
        found = {"items": float(age.mean())} if len(age) else {}
        return found | ({"hits": float((age * self.stored).sum()) / hits} if hits else {})

    def _table(self, names: list[str], kinds: list[str]) -> Table:
        items, hits = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
        for name, many in zip(names, self.stored.tolist(), strict=True):
            items[name] += 1
            hits[name] += many
        return Table(items, hits | {OWN: self.own, MISS: self.missed})


def _alike(key: Tensor, context: Tensor, cue: Tensor) -> Tensor:
    """Cosines of key and cue [..., N] as one number; where there is no cue, the key's."""
    return key.relu() * context.relu() if cue.shape[-1] else key
