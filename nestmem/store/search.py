"""Finding items: filter first, rank by several channels (`channels.py`), fuse them into one order (`fusion.py`), ties
by id.

Items of the same text are folded into the best of them, and with `diversity` those that are alike give way (`diversity.py`).
Where that leaves too few, the channels are asked for more: there are never fewer than k results while k items match.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from torch import Tensor

from nestmem.store import associations, channels
from nestmem.store.associations import ALSO
from nestmem.store.channels import Scope, Scored
from nestmem.store.diversity import POOL, spread_out
from nestmem.store.engine import chunks
from nestmem.store.fusion import CalibratedSum, Part, ReciprocalRank, Standing
from nestmem.store.model import Budget, Dynamics, Found, Hit, Item, Rank, check_number, check_one_of
from nestmem.store.retention import Retention
from nestmem.store.rows import get_dynamics, get_items, need_space, spaces
from nestmem.store.schema import item, link
from nestmem.store.shards import Source

FIRST = ("dense", "words", "time")


@dataclass(frozen=True)
class Question:
    """A search, with everything settled. `now` is when it is asked, for decay."""

    scope: Scope
    text: str | None
    vector: Tensor | None
    space: str | None
    near: float | None
    k: int
    budget: Budget
    fusion: ReciprocalRank | CalibratedSum
    retention: Retention | None
    distinct: bool
    explain: bool
    now: float
    also: Sequence[str] = ()
    diversity: float = 0.0

    def check(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k: expected a whole number of at least 1, got {self.k!r}")
        if (self.vector is None) != (self.space is None):
            raise ValueError("vector: expected together with space, the name of the space it lies in")
        if self.text is None and self.vector is None and self.near is None:
            raise ValueError("search: expected a text, a vector with its space, or a time to be near")
        if self.text is not None and not isinstance(self.text, str):
            raise ValueError(f"text: expected a string, got {type(self.text).__name__}")
        if self.near is not None:
            check_number("near", self.near)
        for name, value in self.budget._asdict().items():
            if value is not None:
                check_number(f"budget.{name}", value, low=0)
        for name in self.also:
            check_one_of("also", name, ALSO)
            if name in ("levels", "hopfield") and self.vector is None:
                raise ValueError(f"also: {name} needs a vector with its space")
            if name == "entities" and self.text is None:
                raise ValueError("also: entities needs a text")
        if check_number("diversity", self.diversity, 0, 1) and self.vector is None:
            raise ValueError("diversity: needs a vector with its space")
        if isinstance(self.fusion, CalibratedSum) and (self.text is not None or self.near is not None or self.also):
            raise ValueError("fusion: CalibratedSum ranks by a vector alone, without text, near or also")
        self.scope.where.check()


def search(sources: Sequence[Source], ask: Question, generation: int) -> Found:
    ask.check()
    deadline = None if ask.budget.ms is None else time.monotonic() + ask.budget.ms / 1000
    limit = ask.k if ask.budget.items is None else min(ask.k, ask.budget.items)
    wanted = POOL * limit if ask.diversity else limit
    alone = (
        sum(given is not None for given in (ask.vector, ask.text, ask.near)) == 1
        and ask.retention is None
        and not ask.also
    )
    depth = 2 * wanted if alone else max(ask.fusion.depth, wanted)  # one ranking by itself has nothing to reorder
    while True:
        rankings, trust, late = _ask(sources, ask, depth, deadline)
        parts, decays = _parts(sources, ask, rankings, trust)
        scores = {i: decays[i] * sum(p.part for p in by.values()) for i, by in parts.items()}
        order = sorted(scores, key=lambda i: (-round(scores[i], 12), i))
        items, kept = first_of_each_text(sources, order, wanted, ask.distinct)
        if len(kept) >= wanted or late or all(len(rows) < depth for rows in rankings.values()):
            break
        depth *= 4
    if ask.diversity and ask.space is not None:
        kept = spread_out(sources, kept, scores, ask.space, limit, ask.diversity)
    stopped = "ms" if late else "exhausted" if len(kept) < limit else "k" if limit == ask.k else "items"
    hits: list[Hit] = []
    size = 0
    for ident in kept:
        size += len(items[ident].text.encode())
        if ask.budget.bytes is not None and size > ask.budget.bytes:
            stopped = "bytes"
            break
        why = _ranks(rankings, parts[ident]) if ask.explain else {}
        hits.append(
            Hit(items[ident], scores[ident], why, decays[ident], path_to(sources, ident) if ask.explain else ())
        )
    return Found(tuple(hits), generation, stopped)


def _ask(
    sources: Sequence[Source], ask: Question, depth: int, deadline: float | None
) -> tuple[dict[str, Scored], dict[str, float], bool]:
    """Rankings by channel, what trust some have, and whether time ran out before all were asked. One is always asked."""
    found: dict[str, Scored] = {}
    trust: dict[str, float] = {}
    given = {"dense": ask.vector, "words": ask.text, "time": ask.near} | dict.fromkeys(ask.also, ask.also)
    near: Scored = []
    for channel in (name for name, value in given.items() if value is not None):
        if found and deadline is not None and time.monotonic() > deadline:
            return found, trust, True
        if channel in FIRST:
            rows = channels.merged([_one(source, channel, ask, depth) for source in sources], depth)
            near = rows if channel == "dense" else near
            if channel != "dense" or "levels" not in ask.also:
                found[channel] = rows
            continue
        if channel == "entities" and ask.text is not None:
            asked = associations.names(ask.text)
            found[channel] = channels.merged([channels.words(s, ask.scope, asked, depth) for s in sources], depth)
        elif channel == "spreading":
            assert isinstance(ask.fusion, ReciprocalRank)  # `check` refuses a sum of similarities here
            parts = ask.fusion.fuse({c: [ident for _, ident, _ in rows] for c, rows in found.items()}, trust)
            scores = {ident: sum(p.part for p in by.values()) for ident, by in parts.items()}
            best = sorted(scores, key=lambda ident: (-scores[ident], ident))[: associations.SEEDS]
            found[channel] = associations.spreading(sources, ask.scope, {i: scores[i] for i in best}, depth)
        elif ask.vector is not None and ask.space is not None:
            if channel == "levels":
                by_level, trust = associations.levels(sources, ask.scope, ask.vector, ask.space, depth)
                found |= by_level
            else:
                found[channel] = associations.hopfield(sources, ask.scope, ask.vector, ask.space, near, depth)
    return found, trust, False


def _one(source: Source, channel: str, ask: Question, depth: int) -> Scored:
    """What one channel finds on one shard."""
    if channel == "dense":
        assert ask.vector is not None and ask.space is not None
        return channels.dense(source, ask.scope, ask.vector, ask.space, depth)
    if channel == "words":
        assert ask.text is not None
        return channels.words(source, ask.scope, ask.text, depth)
    assert ask.near is not None
    return channels.near(source, ask.scope, ask.near, depth)


def _parts(
    sources: Sequence[Source], ask: Question, rankings: Mapping[str, Scored], trust: Mapping[str, float]
) -> tuple[dict[str, dict[str, Part]], dict[str, float]]:
    """What each channel gives to the score of each item found, and what decay multiplies that with."""
    found = {channel: [ident for _, ident, _ in rows] for channel, rows in rankings.items()}
    if isinstance(ask.fusion, CalibratedSum):
        if need_space(spaces(sources[0].conn), ask.space or "")[1].metric != "cosine":
            raise ValueError(f"fusion: CalibratedSum needs a space of the metric cosine, got {ask.space!r}")
        worth = standings(sources, found["dense"], ask.retention, ask.now)
        ranked = enumerate(rankings["dense"], 1)
        parts = {ident: ask.fusion.parts(rank, score, worth[ident]) for rank, (_, ident, score) in ranked}
        return parts, dict.fromkeys(parts, 1.0)  # decay is a term of the sum
    parts = ask.fusion.fuse(found, trust)
    if ask.retention is None:
        return parts, dict.fromkeys(parts, 1.0)
    return parts, {i: each.left for i, each in standings(sources, list(parts), ask.retention, ask.now).items()}


def _ranks(rankings: Mapping[str, Scored], parts: Mapping[str, Part]) -> dict[str, Rank]:
    """With each channel's own score; what does not rank has its part alone."""
    return {c: Rank(p.rank, rankings[c][p.rank - 1][2] if p.rank else p.part, p.part) for c, p in parts.items()}


def first_of_each_text(
    sources: Sequence[Source], order: Sequence[str], limit: int, distinct: bool
) -> tuple[dict[str, Item], list[str]]:
    """The first `limit` ids, which differ in text if `distinct`; and the items seen on the way."""
    kept: list[str] = []
    items: dict[str, Item] = {}
    seen: set[str] = set()
    for piece in [order[:limit], *chunks(order[limit:])]:
        for source in sources:
            items |= get_items(source.conn, piece, any_state=True)
        for ident in piece:
            text = items[ident].content_hash if distinct else ident
            if text not in seen:
                seen.add(text)
                kept.append(ident)
        if len(kept) >= limit:
            break
    return items, kept[:limit]


def standings(
    sources: Sequence[Source], ids: Sequence[str], policy: Retention | None, now: float
) -> dict[str, Standing]:
    """What items are by themselves at time `now`, by id; without a policy nothing fades."""
    found: dict[str, Standing] = {}
    columns = (item.c.id, item.c.seq, item.c.level, item.c.recorded_at, item.c.pinned, item.c.importance)
    for piece in chunks(ids):
        for source in sources:
            rows = source.conn.execute(select(*columns).where(item.c.id.in_(piece))).all()
            uses = get_dynamics(source.conn, [row.seq for row in rows])
            for row in rows:
                use = uses.get(row.seq, Dynamics())
                since = row.recorded_at if use.last_useful is None else max(use.last_useful, row.recorded_at)
                left = 1.0
                if policy is not None and not row.pinned:
                    left = policy.retention(now - since, row.level, use.strength)
                found[row.id] = Standing(left, row.importance, (use.useful + 1) / (use.retrievals + 2))
    return found


def path_to(sources: Sequence[Source], ident: str) -> tuple[str, ...]:
    """Ids from the top of the tree down to an item, by current containment."""
    path = [ident]
    while True:
        up = select(link.c.src).where(link.c.dst == path[0], link.c.type == "contains", link.c.died.is_(None))
        parent = next((p for p in (source.conn.execute(up).scalar() for source in sources) if p is not None), None)
        if parent is None or parent in path:
            return tuple(path)
        path.insert(0, parent)
