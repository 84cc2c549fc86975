"""The store: memory that outlives the process.

    store = Store("memory.db")
    store.space("words", dim=128)
    one = store.put("The key is under the mat.", vectors={"words": v})
    store.search("where is the key", vector=q, space="words").texts

Every write is one transaction that is durable when the call returns, and one generation that can be read for ever
after.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, insert, select

from nestmem.store import compaction, snapshot, ties, transfer, use, verify, writes
from nestmem.store.consolidate import Consolidated, consolidate
from nestmem.store.engine import Engine, Transaction, count, open_engine
from nestmem.store.errors import StoreError
from nestmem.store.model import METRICS, New, Written, check_number, check_one_of, check_text
from nestmem.store.plain import fingerprint
from nestmem.store.policies import Policy
from nestmem.store.reader import Reader, newest
from nestmem.store.retention import Retention
from nestmem.store.rows import get_items, spaces, visible
from nestmem.store.schema import dynamics, hidden, item, meta
from nestmem.store.schema import snapshot as snapshots
from nestmem.store.schema import space as space_table
from nestmem.store.shards import Shards


class Erased(NamedTuple):
    """Ids emptied, derived ones included, and snapshots that still hold what was in them."""

    ids: tuple[str, ...]
    snapshots: tuple[str, ...]
    generation: int


class Diff(NamedTuple):
    """Ids that came, were superseded, were hidden (forgotten), came back, or were erased between two generations."""

    added: tuple[str, ...]
    superseded: tuple[str, ...]
    forgotten: tuple[str, ...]
    remembered: tuple[str, ...]
    erased: tuple[str, ...]


class Store(Reader):
    """`Store("memory.db")` in a SQLite file, `Store("postgresql://host/database")` on a server, or `Store([url, ...])`
    (also "url;url") on several of either, its shards. Made if it is not there; threads and processes may share it.

    namespace: where puts and searches go unless they say otherwise. clock: Unix seconds; every time the store notes
    comes from it.
    timeout: seconds to wait for another writer. actor: who the journal says it was. index: "usearch" for an
    approximate index beside large spaces of files (approximate.py); searches under a filter stay exact.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        namespace: str = "default",
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
        timeout: float = 30.0,
        actor: str = "",
        read_only: bool = False,
        index: str = "",
    ):
        check_text("namespace", namespace, empty=False)
        check_text("actor", actor)
        check_number("timeout", timeout, low=0)
        engines: list[Engine] = []
        try:
            for each in split_url(url):
                engines.append(open_engine(each, clock, actor, timeout, read_only))
            check_index(index, engines)
            super().__init__(Shards(engines, index), namespace, retention or Retention(), None)
            with contextlib.suppress(StoreError):  # a reader in the way: the next opening tries again
                if begun := self._shards.intended():
                    self._erase(begun)
                self._shards.finish_erasure()
        except BaseException:
            for engine in engines:
                engine.close()
            raise

    @property
    def read_only(self) -> bool:
        return self._shards.read_only

    def __deepcopy__(self, memo: dict[int, object]) -> Store:
        return self  # a copy of what uses a store uses the same one

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the vector cache and let go of the files. Nothing is lost without it."""
        self._shards.close()

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
        return self.put_many([text if isinstance(text, New) and not fields else _new(text, fields)])

    def put_many(self, items: Sequence[New | str]) -> Written:
        """Put several items, all or none, in one transaction."""
        news = [self._settled(_new(i, {})) for i in items]
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
        return replace(new, namespace=self.namespace) if new.namespace is None else new

    def supersede(self, ident: str, text: str | New, **fields: Any) -> Written:
        """Replace an item by a new version in its place; the old one becomes history.

        With `event_from` the world changed then (the old version still held before: `Filter(valid_at=...)` finds it);
        without, the old one was wrong.
        """
        new = _new(text, fields)
        check_text("id", ident)
        (place,) = self._shards.holding([ident])
        with self._shards.write("supersede", [place]) as writing:
            made = writes.supersede(self._shards.engines[place], writing.changes[place], ident, new)
        return Written((made,), writing.generation)

    def forget(self, ids: Sequence[str] | str) -> Written:
        """Hide items; `remember` shows them again, and the past still has them."""
        return self._each("forget", writes.forget, _ids(ids))

    def remember(self, ids: Sequence[str] | str) -> Written:
        """Show forgotten items again."""
        return self._each("remember", writes.remember, _ids(ids))

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
        given = _ids(ids)
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
                writes.erase(self._shards.engines[place], change, sorted({*doomed, *ids}))
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
        return self._each("touch", lambda _, change, mine: use.touch(change, mine, useful, self.retention), _ids(ids))

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

    # The whole.

    def snapshot(self, path: str | os.PathLike[str]) -> Written:
        """Copy the store as it is into a new file PATH with its manifest PATH.json. Returns the manifest's hash and
        the generation.
        """
        target = Path(path)
        manifest, hash_ = snapshot.take(self._shards, target)
        if not self._shards.read_only:
            with self._shards.write("snapshot", [0]) as writing:
                change = writing.changes[0]
                where = snapshots.c.path == str(target.resolve())
                change.conn.execute(sa.delete(snapshots).where(where))
                row = dict(path=str(target.resolve()), generation=manifest["generation"], manifest_hash=hash_)
                change.conn.execute(insert(snapshots).values(**row, recorded_at=change.now))
                change.changed([hash_])
        return Written((hash_,), int(manifest["generation"]))

    def export(self, folder: str | os.PathLike[str]) -> Written:
        """Write everything, with its history, into a new folder of JSON lines and tensors that any engine can
        import.
        """
        return Written((), int(transfer.export(self._shards, Path(folder))["generation"]))

    def import_(self, folder: str | os.PathLike[str]) -> Written:
        """Fill this store, which must be empty, from an export."""
        return Written((), transfer.import_(self._shards, Path(folder)))

    def diff(self, before: int, after: int | None = None) -> Diff:
        """What happened after generation `before`, up to `after` (by default now). Erased ids are listed under erased
        alone.
        """
        last = self.generation if after is None else after
        for name, value in (("before", before), ("after", last)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= self.generation:
                raise ValueError(f"{name}: expected a generation from 0 to {self.generation}, got {value!r}")

        def ids(*where: sa.ColumnElement[bool]) -> tuple[str, ...]:
            query = select(item.c.id).where(*where).order_by(item.c.seq)
            return tuple(ident for conn in conns for ident in conn.execute(query).scalars())

        def within(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
            return sa.and_(column > before, column <= last)

        there = sa.or_(item.c.ended.is_(None), item.c.ended != "erased")
        with self._read() as conns:
            return Diff(
                added=ids(within(item.c.born), there),
                superseded=ids(within(item.c.died), item.c.ended == "superseded"),
                forgotten=ids(item.c.seq.in_(select(hidden.c.seq).where(within(hidden.c.born)))),
                remembered=ids(item.c.seq.in_(select(hidden.c.seq).where(within(hidden.c.died)))),
                erased=ids(within(item.c.died), item.c.ended == "erased"),
            )

    def compact(self, before: int | None = None) -> Written:
        """Let go of what was superseded or forgotten up to generation `before` (by default all of it), and shrink the
        files. `as_of` reaches back no further, and what was forgotten by then cannot be remembered. Returns its ids.
        """
        last = self.generation
        at = last if before is None else before
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at <= last:
            raise ValueError(f"before: expected a generation from 0 to {last}, got {before!r}")
        with self._shards.write("compact") as writing:
            gone = sorted(compaction.leaving([change.conn for change in writing.changes.values()], at))
            for change in writing.changes.values():
                compaction.remove(change, gone, at)
                if change.ids:
                    compaction.note(change.conn, max(at, compaction.horizon(change.conn)))
                    change.conn.execute(sa.delete(meta).where(meta.c.name == "compact"))
                    change.conn.execute(insert(meta).values(name="compact", value="due"))
        self._shards.finish_erasure()
        return Written(tuple(gone), writing.generation)

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Rows and a hash per table: equal for equal stores."""
        with self._read() as conns:
            return fingerprint(conns)

    def verify(self) -> verify.Report:
        """Check everything that must hold; changes nothing."""
        return verify.verify(self._shards)

    def repair(self) -> list[str]:
        """Rebuild the word index and the vector cache. What was put is never touched: damage there needs a snapshot."""
        for cache in self._shards.caches:
            cache.drop()
        return [*verify.repair(self._shards), "vector cache dropped"]

    def stats(self) -> dict[str, Any]:
        """Counts and sizes: items by namespace, level and state; rows by table; generation; bytes."""
        place = (item.c.namespace, item.c.level)
        by = select(*place, sa.func.count()).where(visible(None)).group_by(*place)
        state = select(dynamics.c.state, sa.func.count()).join(item, item.c.seq == dynamics.c.seq)
        levels: Counter[tuple[str, int]] = Counter()
        states: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        with self._read() as conns:
            for conn in conns:
                levels.update({(r[0], int(r[1])): int(r[2]) for r in conn.execute(by)})
                states.update(dict(conn.execute(state.where(visible(None)).group_by(dynamics.c.state)).tuples().all()))
                rows.update({table.name: count(conn, table) for table in verify.TALLY})
            states["active"] = levels.total() - sum(n for s, n in states.items() if s != "active")
            return dict(
                generation=newest(conns), items=levels.total(), shards=len(conns),
                levels=[(*at, n) for at, n in sorted(levels.items())], states=dict(states), rows=dict(rows),
                spaces={name: list(of)[1:] for name, (_, of) in spaces(conns[0]).items()},
                bytes=sum(engine.size() for engine in self._shards.engines),
            )  # fmt: skip


def _doomed(conns: Sequence[Connection], ids: Sequence[str]) -> list[str]:
    """What `erase` empties: items, their versions, and everything that rests on them, on any shard."""
    doomed: set[str] = set()
    front = set(ids)
    while front:
        found = {i for conn in conns for i in writes.rests_on(conn, sorted(front))}
        front, doomed = found - doomed, doomed | found
    return sorted(doomed)


def restore(path: str | os.PathLike[str], url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> int:
    """Put a snapshot in place of the store at `url`. Returns the generation it holds.

    A SQLite file is replaced as a whole (nobody may have it open), and kept beside the new one. On servers and shards
    all rows are replaced, in one transaction each.
    """
    given = [os.fspath(u) for u in split_url(url)]
    if len(given) == 1 and "://" not in (file := given[0].removeprefix("sqlite:///")):
        return int(snapshot.restore_file(Path(path), Path(file))["generation"])
    with Store(given, actor="restore") as store:
        return snapshot.restore_rows(store._shards, Path(path))  # noqa: SLF001


def split_url(
    url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[str | os.PathLike[str]]:
    """The addresses of the shards of a store: a list of them, or "url;url"."""
    found: list[str | os.PathLike[str]] = []
    found += os.fspath(url).split(";") if isinstance(url, str | os.PathLike) else url
    if not found or not all(isinstance(u, str | os.PathLike) and os.fspath(u) for u in found):
        raise ValueError(f"url: expected a path or URL, or a list of them, got {url!r}")
    if len({os.fspath(u) for u in found}) < len(found):
        raise ValueError("url: expected different shards, got one twice")
    return found


def check_index(index: str, engines: Sequence[Engine]) -> None:
    """That the approximate index asked for can be had."""
    check_one_of("index", index, ("", "usearch"))
    if index and any(engine.compares for engine in engines):
        raise ValueError("index: expected none on PostgreSQL, which ranks vectors itself")
    if index and importlib.util.find_spec("usearch") is None:
        raise ValueError("index: usearch is not installed; pip install 'nestmem[index]'")


def _new(text: str | New, fields: Mapping[str, Any]) -> New:
    if unknown := set(fields) - set(New.__dataclass_fields__):
        raise ValueError(f"put: no field {min(unknown)!r}; known: {', '.join(New.__dataclass_fields__)}")
    if isinstance(text, New):
        return replace(text, **fields) if fields else text
    return New(text, **fields)


def _ids(ids: Sequence[str] | str) -> tuple[str, ...]:
    given = (ids,) if isinstance(ids, str) else tuple(ids)
    if not given:
        raise ValueError("ids: expected at least one id, got none")
    for ident in given:
        check_text("ids", ident)
    return given


__all__ = ["Diff", "Erased", "Store", "StoreError", "restore"]
