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
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import insert, select

from nestmem.store import points, snapshot, ties, transfer, use, verify, writes
from nestmem.store.cache import VectorCache
from nestmem.store.consolidate import Consolidated, consolidate
from nestmem.store.engine import count, last_commit, open_engine
from nestmem.store.errors import StoreError
from nestmem.store.model import METRICS, New, Written, check_number, check_one_of, check_text
from nestmem.store.policies import Policy
from nestmem.store.reader import Reader
from nestmem.store.retention import Retention
from nestmem.store.rows import spaces, visible
from nestmem.store.schema import dynamics, hidden, item, meta
from nestmem.store.schema import snapshot as snapshots
from nestmem.store.schema import space as space_table


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
    """`Store("memory.db")`: a store in a SQLite file, made if it is not there. Threads and processes may share it.

    namespace: where puts and searches go unless they say otherwise. clock: Unix seconds; every time the store notes
    comes from it.
    timeout: seconds to wait for another writer. actor: who the journal says it was.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        namespace: str = "default",
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
        timeout: float = 30.0,
        actor: str = "",
        read_only: bool = False,
    ):
        check_text("namespace", namespace, empty=False)
        check_text("actor", actor)
        check_number("timeout", timeout, low=0)
        engine = open_engine(url, clock, actor, timeout, read_only)
        super().__init__(engine, VectorCache(engine.folder), namespace, retention or Retention(), None)
        try:
            with contextlib.suppress(StoreError):  # a reader in the way: the next opening tries again
                self._finish_erasure()
        except BaseException:
            engine.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the vector cache and let go of the files. Nothing is lost without it."""
        self._cache.save()
        self._engine.close()

    # Items.

    def space(self, name: str, dim: int, *, metric: str = "cosine", encoder: str = "") -> None:
        """Declare a vector space. The same again is nothing; another dim, metric or encoder is a ValueError."""
        check_text("name", name, empty=False)
        check_text("encoder", encoder)
        check_one_of("metric", metric, METRICS)
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= 65536:
            raise ValueError(f"dim: expected 1 to 65536, got {dim!r}")
        with self._engine.write("space") as change:
            if name in (known := spaces(change.conn)):
                is_, given = known[name][1], (name, dim, metric, encoder)
                if tuple(is_) != given:
                    raise ValueError(
                        f"space: {name!r} is {tuple(is_)[1:]}, got {given[1:]}; give a new encoder a new name"
                    )
                return
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
        with self._engine.write("put") as change:
            ids = writes.put(self._engine, change, news)
        return Written(tuple(ids), change.generation)

    def _settled(self, new: New) -> New:
        return replace(new, namespace=self.namespace) if new.namespace is None else new

    def supersede(self, ident: str, text: str | New, **fields: Any) -> Written:
        """Replace an item by a new version in its place; the old one becomes history.

        With `event_from` the world changed then (the old version still held before: `Filter(valid_at=...)` finds it);
        without, the old one was wrong.
        """
        new = _new(text, fields)
        with self._engine.write("supersede") as change:
            made = writes.supersede(self._engine, change, ident, new)
        return Written((made,), change.generation)

    def forget(self, ids: Sequence[str] | str) -> Written:
        """Hide items; `remember` shows them again, and the past still has them."""
        with self._engine.write("forget") as change:
            writes.forget(self._engine, change, _ids(ids))
        return Written(_ids(ids), change.generation)

    def remember(self, ids: Sequence[str] | str) -> Written:
        """Show forgotten items again."""
        with self._engine.write("remember") as change:
            writes.remember(self._engine, change, _ids(ids))
        return Written(_ids(ids), change.generation)

    def erase(self, ids: Sequence[str] | str) -> Erased:
        """Remove the content of items for good, from all versions, the past and the files, and of everything derived
        from them.

        Rows stay, empty, so that history still adds up. What was derived is made again by the next `consolidate`,
        without them.
        Snapshots and exports are not touched: the registered snapshots that still hold the content are named in the
        answer.
        """
        with self._engine.write("erase") as change:
            gone = writes.erase(self._engine, change, _ids(ids))
            holding = change.conn.execute(select(snapshots.c.path).order_by(snapshots.c.recorded_at)).scalars().all()
            if gone:
                change.conn.execute(sa.delete(meta).where(meta.c.name == "compact"))
                change.conn.execute(insert(meta).values(name="compact", value="due"))
        self._finish_erasure()
        return Erased(tuple(gone), tuple(p for p in holding if Path(p).exists()), change.generation)

    def _finish_erasure(self) -> None:
        """Rewrite the files if an erasure was committed and this was not done yet, perhaps because of a crash."""
        if self._engine.read_only:
            return
        with self._read() as conn:
            due = conn.execute(select(meta.c.value).where(meta.c.name == "compact")).first() is not None
        if due:
            self._cache.drop()
            self._engine.compact()
            points.reach("erase:compacted")
            with (
                self._engine.exclusive(),
                self._engine.sentences(),
                self._engine.connection(write=True) as conn,
                conn.begin(),
            ):
                conn.execute(sa.delete(meta).where(meta.c.name == "compact"))

    # Ties and use.

    def link(self, src: str, dst: str, type: str, *, weight: float = 1.0, evidence: str = "") -> Written:
        """Tie two items; `contains` needs src above dst in the same subtree, and dst in nothing else."""
        with self._engine.write("link") as change:
            ties.add_link(change, src, dst, type, weight, evidence)
        return Written((src, dst), change.generation)

    def unlink(self, src: str, dst: str, type: str) -> Written:
        """Close a tie; the past still has it."""
        with self._engine.write("unlink") as change:
            ties.remove_link(change, src, dst, type)
        return Written((src, dst), change.generation)

    def relate(self, kind: str, members: Mapping[str, str], *, description: str | None = None) -> Written:
        """A hyperedge: `members` maps ids to roles; `description` is the id of an item that says it. Returns the
        edge's id.
        """
        with self._engine.write("relate") as change:
            made = ties.relate(change, kind, members, description)
        return Written((made,), change.generation)

    def unrelate(self, edge: str) -> Written:
        with self._engine.write("relate") as change:
            ties.unrelate(change, edge)
        return Written((edge,), change.generation)

    def touch(self, ids: Sequence[str] | str, *, useful: bool = False) -> Written:
        """Note that items were retrieved; `useful` strengthens them, the more the longer they had not been."""
        with self._engine.write("touch") as change:
            use.touch(change, _ids(ids), useful, self.retention)
        return Written(_ids(ids), change.generation)

    def decay_tick(self, *, namespace: str | None = None, capacity: int | None = None) -> use.Tick:
        """Age a namespace to the clock's time. With a capacity, forget what is least worth keeping down to it."""
        if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 0):
            raise ValueError(f"capacity: expected a number of items, got {capacity!r}")
        with self._engine.write("decay") as change:
            tick = use.decay_tick(self._engine, change, namespace or self.namespace, self.retention, capacity)
        return tick._replace(generation=change.generation)

    def consolidate(
        self, policy: Policy, *, namespace: str | None = None, roots: Sequence[str] | None = None, dry_run: bool = False
    ) -> Consolidated:
        """Make what a policy derives from the items of each subtree. Interrupted, it goes on where it was; a second
        run is nothing.
        """
        if isinstance(roots, str):
            raise ValueError("roots: expected a sequence of names, got a string")
        return consolidate(self._engine, policy, namespace or self.namespace, roots, dry_run=dry_run)

    # The whole.

    def snapshot(self, path: str | os.PathLike[str]) -> Written:
        """Copy the store as it is into a new file PATH with its manifest PATH.json. Returns the manifest's hash and
        the generation.
        """
        target = Path(path)
        manifest, hash_ = snapshot.take(self._engine, target)
        if not self._engine.read_only:
            with self._engine.write("snapshot") as change:
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
        return Written((), int(transfer.export(self._engine, Path(folder))["generation"]))

    def import_(self, folder: str | os.PathLike[str]) -> Written:
        """Fill this store, which must be empty, from an export."""
        return Written((), transfer.import_(self._engine, Path(folder)))

    def diff(self, before: int, after: int | None = None) -> Diff:
        """What happened after generation `before`, up to `after` (by default now). Erased ids are listed under erased
        alone.
        """
        last = self.generation if after is None else after
        for name, value in (("before", before), ("after", last)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= self.generation:
                raise ValueError(f"{name}: expected a generation from 0 to {self.generation}, got {value!r}")

        def ids(*where: sa.ColumnElement[bool]) -> tuple[str, ...]:
            return tuple(conn.execute(select(item.c.id).where(*where).order_by(item.c.seq)).scalars())

        def within(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
            return sa.and_(column > before, column <= last)

        there = sa.or_(item.c.ended.is_(None), item.c.ended != "erased")
        with self._read() as conn:
            return Diff(
                added=ids(within(item.c.born), there),
                superseded=ids(within(item.c.died), item.c.ended == "superseded"),
                forgotten=ids(item.c.seq.in_(select(hidden.c.seq).where(within(hidden.c.born)))),
                remembered=ids(item.c.seq.in_(select(hidden.c.seq).where(within(hidden.c.died)))),
                erased=ids(within(item.c.died), item.c.ended == "erased"),
            )

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Rows and a hash per table: equal for equal stores."""
        with self._read() as conn:
            return snapshot.fingerprint(conn)

    def verify(self) -> verify.Report:
        """Check everything that must hold; changes nothing."""
        return verify.verify(self._engine)

    def repair(self) -> list[str]:
        """Rebuild the word index and the vector cache. What was put is never touched: damage there needs a snapshot."""
        self._cache.drop()
        return [*verify.repair(self._engine), "vector cache dropped"]

    def stats(self) -> dict[str, Any]:
        """Counts and sizes: items by namespace, level and state; rows by table; generation; bytes."""
        with self._read() as conn:
            place = (item.c.namespace, item.c.level)
            by = select(*place, sa.func.count()).where(visible(None)).group_by(*place).order_by(*place)
            states = select(dynamics.c.state, sa.func.count()).join(item, item.c.seq == dynamics.c.seq)
            moved: dict[str, int] = dict(
                conn.execute(states.where(visible(None)).group_by(dynamics.c.state)).tuples().all()
            )
            levels = [(n, int(level), int(c)) for n, level, c in conn.execute(by)]
            current = sum(c for *_, c in levels)
            moved["active"] = current - sum(c for s, c in moved.items() if s != "active")
            return dict(
                generation=last_commit(conn)[0], items=current, levels=levels, states=moved,
                rows={table.name: count(conn, table) for table in verify.TALLY},
                spaces={name: list(of)[1:] for name, (_, of) in spaces(conn).items()}, bytes=self._engine.size(),
            )  # fmt: skip


def restore(path: str | os.PathLike[str], url: str | os.PathLike[str]) -> int:
    """Put a snapshot in place of the SQLite store at `url`, which nobody may have open. Returns the generation it
    holds.
    """
    given = os.fspath(url).removeprefix("sqlite:///")
    if "://" in given:
        raise ValueError(f"url: expected a path or sqlite:///PATH, got {given!r}")
    return int(snapshot.restore_file(Path(path), Path(given))["generation"])


def _new(text: str | New, fields: Mapping[str, Any]) -> New:
    if unknown := set(fields) - set(New.__dataclass_fields__):
        raise ValueError(f"put: no field {min(unknown)!r}; known: {', '.join(New.__dataclass_fields__)}")
    return replace(text, **fields) if isinstance(text, New) else New(text, **fields)


def _ids(ids: Sequence[str] | str) -> tuple[str, ...]:
    given = (ids,) if isinstance(ids, str) else tuple(ids)
    if not given:
        raise ValueError("ids: expected at least one id, got none")
    for ident in given:
        check_text("ids", ident)
    return given


__all__ = ["Diff", "Erased", "Store", "StoreError", "restore"]
