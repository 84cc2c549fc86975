"""Writing to a store: items, what ties them, their use. Every call is one transaction on each shard it concerns, durable
when it returns, and one generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, insert, select

from nestmem.store import removal, ties, use, versions, writes
from nestmem.store.consolidate import Consolidated, consolidate
from nestmem.store.engine import Engine, Transaction
from nestmem.store.errors import StoreError
from nestmem.store.model import METRICS, WORK, New, Written, check_one_of, check_text
from nestmem.store.policies import Policy
from nestmem.store.reader import Reader
from nestmem.store.rows import get_items, spaces
from nestmem.store.schema import meta
from nestmem.store.schema import snapshot as snapshots
from nestmem.store.schema import space as space_table


class Erased(NamedTuple):
    """Ids emptied, derived ones included, and snapshots that still hold what was in them."""

    ids: tuple[str, ...]
    snapshots: tuple[str, ...]
    generation: int


class Writer(Reader):
    """What changes a store."""

    # Items.

    def space(self, name: str, dim: int, *, metric: str = "cosine", encoder: str = "") -> None:
        """Declare a vector space. The same again is nothing; another dim, metric or encoder is a ValueError."""
        check_text("name", name, empty=False)
        check_text("encoder", encoder)
        check_one_of("metric", metric, METRICS)
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= 65536:
            raise ValueError(f"dim: expected 1 to 65536, got {dim!r}")
        for engine in self._shards.engines:
            if dim > engine.longest:
                raise ValueError(f"dim: expected at most {engine.longest:,} on {engine.name}, got {dim}")
        given = (name, dim, metric, encoder)
        with self._shards.write("space") as writing:
            for change in writing.changes.values():
                if name in (known := spaces(change.conn)):
                    if (there := tuple(known[name][1])) != given:
                        raise ValueError(
                            f"space: {name!r} is {there[1:]}, got {given[1:]}; give a new encoder a new name"
                        )
                    continue
                change.conn.execute(insert(space_table).values(name=name, dim=dim, metric=metric, encoder=encoder))
                change.changed([name])

    def put(self, text: str | New, **fields: Any) -> Written:
        """Put one item: a text with any fields of `New`. Doing it again is nothing, so a call whose answer was lost
        is repeated.
        """
        return self.put_many([text if isinstance(text, New) and not fields else as_new(text, fields)])

    def put_many(self, items: Sequence[New | str]) -> Written:
        """Put several items, all or none, in one transaction."""
        news = [self._settled(as_new(i, {})) for i in items]
        if not news:
            return Written((), self.generation)
        places = [self._shards.place(new.namespace or "", new.root) for new in news]
        with self._shards.write("put", {*places, *self._key_places(news)}) as writing:
            ids = [""] * len(news)
            for place, change in writing.changes.items():
                mine = [n for n in range(len(news)) if places[n] == place]
                made = writes.put(self._shards.engines[place], change, [news[n] for n in mine])
                for n, ident in zip(mine, made):
                    ids[n] = ident
        return Written(tuple(ids), writing.generation)

    def _key_places(self, news: Sequence[New]) -> set[int]:
        """The shards that guard the keys given: writers of one key meet there, whatever subtree each writes to."""
        return {self._shards.place(new.namespace or "", f"key {new.key}") for new in news if new.key is not None}

    def _settled(self, new: New) -> New:
        if new.namespace is None:
            return replace(new, namespace=self.namespace)
        check_text("namespace", new.namespace)
        if new.namespace.startswith(WORK) and new.namespace != self.namespace:  # it would be forgotten with time
            raise ValueError(f"namespace: {new.namespace!r} is a session's; open it with session()")
        return new

    def supersede(self, ident: str, text: str | New, **fields: Any) -> Written:
        """Replace an item by a new version in its place; the old one becomes history.

        With `event_from` the world changed then (the old version still held before: `Filter(valid_at=...)` finds it);
        without, the old one was wrong.
        """
        new = as_new(text, fields)
        check_text("id", ident)
        (place,) = self._shards.holding([ident])
        with self._shards.write("supersede", [place]) as writing:
            made = versions.supersede(self._shards.engines[place], writing.changes[place], ident, new)
        return Written((made,), writing.generation)

    def forget(self, ids: Sequence[str] | str) -> Written:
        """Hide items; `remember` shows them again, and the past still has them."""
        return self._each("forget", removal.forget, as_ids(ids))

    def remember(self, ids: Sequence[str] | str) -> Written:
        """Show forgotten items again."""
        return self._each("remember", removal.remember, as_ids(ids))

    def _each(
        self, op: str, act: Callable[[Engine, Transaction, Sequence[str]], object], ids: tuple[str, ...]
    ) -> Written:
        """Do something to items where they lie."""
        split = self._shards.holding(ids)
        with self._shards.write(op, split) as writing:
            for place, mine in split.items():
                act(self._shards.engines[place], writing.changes[place], mine)
        return Written(ids, writing.generation)

    def erase(self, ids: Sequence[str] | str) -> Erased:
        """Remove the content of items for good, from all versions, the past and the files, and of everything derived
        from them.

        Rows stay, empty, so that history still adds up. What was derived is made again by the next `consolidate`,
        without them.
        Snapshots and exports are not touched: the registered snapshots that still hold the content are named in the
        answer.
        """
        given = as_ids(ids)
        with self._read() as conns:
            if missing := [i for i in given if not any(get_items(conn, [i], any_state=True) for conn in conns)]:
                raise StoreError(f"ids: no item {missing[0]!r}")
            doomed = _doomed(conns, given)
        self._shards.intend(doomed)  # between the commits of two shards a crash would leave half of it
        return self._erase(doomed)

    def _erase(self, ids: Sequence[str]) -> Erased:
        with self._shards.write("erase") as writing:
            changes = writing.changes
            doomed = _doomed([change.conn for change in changes.values()], ids)
            for place, change in changes.items():
                removal.erase(self._shards.engines[place], change, sorted({*doomed, *ids}))
                if change.ids:
                    change.conn.execute(sa.delete(meta).where(meta.c.name == "compact"))
                    change.conn.execute(insert(meta).values(name="compact", value="due"))
            listed = select(snapshots.c.path, snapshots.c.recorded_at)
            holding = sorted({(r.recorded_at, r.path) for c in changes.values() for r in c.conn.execute(listed)})
        self._shards.intend([])
        self._shards.finish_erasure()
        still = tuple(path for _, path in holding if Path(path).exists())
        return Erased(tuple(doomed), still, writing.generation)

    # Ties and use.

    def link(self, src: str, dst: str, type: str, *, weight: float = 1.0, evidence: str = "") -> Written:
        """Tie two items; `contains` needs src above dst in the same subtree, and dst in nothing else."""
        check_text("src", src)
        (place,) = self._shards.holding([src])
        with self._shards.write("link", [place]) as writing:
            ties.add_link(writing.changes[place], src, dst, type, weight, evidence)
        return Written((src, dst), writing.generation)

    def unlink(self, src: str, dst: str, type: str) -> Written:
        """Close a tie; the past still has it."""
        check_text("src", src)
        (place,) = self._shards.holding([src])
        with self._shards.write("unlink", [place]) as writing:
            ties.remove_link(writing.changes[place], src, dst, type)
        return Written((src, dst), writing.generation)

    def relate(self, kind: str, members: Mapping[str, str], *, description: str | None = None) -> Written:
        """A hyperedge: `members` maps ids to roles; `description` is the id of an item that says it. Returns the
        edge's id.
        """
        place = min(self._shards.holding([i for i in members if isinstance(i, str)][:1]), default=0)
        with self._shards.write("relate", [place]) as writing:
            made = ties.relate(writing.changes[place], kind, members, description)
        return Written((made,), writing.generation)

    def unrelate(self, edge: str) -> Written:
        with self._shards.write("relate") as writing:
            for change in writing.changes.values():
                ties.unrelate(change, edge)
        return Written((edge,), writing.generation)

    def touch(self, ids: Sequence[str] | str, *, useful: bool = False) -> Written:
        """Note that items were retrieved; `useful` strengthens them, the more the longer they had not been."""
        return self._each("touch", lambda _, change, mine: use.touch(change, mine, useful, self.retention), as_ids(ids))

    def decay_tick(self, *, namespace: str | None = None, capacity: int | None = None, prune: bool = False) -> use.Tick:
        """Age a namespace to the clock's time. With a capacity, forget what is least worth keeping down to it; with
        `prune`, forget experience (level `PROC`) that was retrieved often and seldom useful.
        """
        if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 0):
            raise ValueError(f"capacity: expected a number of items, got {capacity!r}")
        with self._shards.write("decay") as writing:
            where = [(self._shards.engines[place], change) for place, change in writing.changes.items()]
            tick = use.decay_tick(where, namespace or self.namespace, self.retention, capacity, prune)
        return tick._replace(generation=writing.generation)

    def consolidate(
        self, policy: Policy, *, namespace: str | None = None, roots: Sequence[str] | None = None, dry_run: bool = False
    ) -> Consolidated:
        """Make what a policy derives from the items of each subtree. Interrupted, it goes on where it was; a second
        run is nothing.
        """
        if isinstance(roots, str):
            raise ValueError("roots: expected a sequence of names, got a string")
        return consolidate(self._shards, policy, namespace or self.namespace, roots, dry_run=dry_run)


def _doomed(conns: Sequence[Connection], ids: Sequence[str]) -> list[str]:
    """What `erase` empties: items, their versions, and everything that rests on them, on any shard."""
    doomed: set[str] = set()
    front = set(ids)
    while front:
        found = {i for conn in conns for i in removal.rests_on(conn, sorted(front))}
        front, doomed = found - doomed, doomed | found
    return sorted(doomed)


def as_new(text: str | New, fields: Mapping[str, Any]) -> New:
    if unknown := set(fields) - set(New.__dataclass_fields__):
        raise ValueError(f"put: no field {min(unknown)!r}; known: {', '.join(New.__dataclass_fields__)}")
    if isinstance(text, New):
        return replace(text, **fields) if fields else text
    return New(text, **fields)


def as_ids(ids: Sequence[str] | str) -> tuple[str, ...]:
    given = (ids,) if isinstance(ids, str) else tuple(ids)
    if not given:
        raise ValueError("ids: expected at least one id, got none")
    for ident in given:
        check_text("ids", ident)
    return given
