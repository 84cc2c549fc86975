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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import insert, select

from nestmem.store import compaction, snapshot, transfer, verify
from nestmem.store.engine import Engine, count, open_engine
from nestmem.store.errors import StoreError
from nestmem.store.model import WORK, Written, check_number, check_one_of, check_text
from nestmem.store.plain import fingerprint
from nestmem.store.reader import newest
from nestmem.store.retention import Retention
from nestmem.store.rows import spaces, visible
from nestmem.store.schema import dynamics, hidden, item, meta
from nestmem.store.schema import snapshot as snapshots
from nestmem.store.session import Session
from nestmem.store.shards import Shards
from nestmem.store.writer import Writer


class Diff(NamedTuple):
    """Ids that came, were superseded, were hidden (forgotten), came back, or were erased between two generations."""

    added: tuple[str, ...]
    superseded: tuple[str, ...]
    forgotten: tuple[str, ...]
    remembered: tuple[str, ...]
    erased: tuple[str, ...]


class Store(Writer):
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
        if check_text("namespace", namespace, empty=False).startswith(WORK) and not read_only:
            raise ValueError(f"namespace: {namespace!r} is a session's; open it with session()")
        check_text("actor", actor)
        check_number("timeout", timeout, low=0)
        check_one_of("index", index, ("", "usearch"))
        if index and importlib.util.find_spec("usearch") is None:
            raise ValueError("index: usearch is not installed; pip install 'nestmem[index]'")
        engines: list[Engine] = []
        try:
            for each in split_url(url):
                engines.append(open_engine(each, clock, actor, timeout, read_only))
            if index and any(engine.compares for engine in engines):
                raise ValueError("index: expected none on PostgreSQL, which ranks vectors itself")
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

    def session(self, run: str) -> Session:
        """The scratch namespace of one run, made by its first write and forgotten when it is idle (session.py)."""
        return Session(self, run)

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
