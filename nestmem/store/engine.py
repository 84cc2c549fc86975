"""What the store asks of a database, and one way of writing for all of them: a transaction that becomes a generation.

A subclass (`sqlite.py`, `postgres.py`) says how to connect, how to search words, and how to compact its files.
Everything else in this package is SQLAlchemy Core on the tables of `schema.py`, the same for every engine. A store
may lie on several engines (`shards.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, func, insert, select
from torch import Tensor

from nestmem.store import points
from nestmem.store.errors import StoreError
from nestmem.store.model import Space, dumps
from nestmem.store.prepared import Prepared
from nestmem.store.schema import item, journal

_last = Prepared(select(journal.c.generation, journal.c.hash).order_by(journal.c.generation.desc()).limit(1))
_entry = Prepared(insert(journal), [column.name for column in journal.c])


@dataclass
class Transaction:
    """An open write: `conn`, the generation it will become, and the time it is. Nothing `changed` means no commit.

    everywhere: connections to all shards of the store, this one first; alone, it is the only one.
    """

    conn: Connection
    op: str
    generation: int
    now: float
    actor: str
    everywhere: Sequence[Connection] = ()
    ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.everywhere = self.everywhere or (self.conn,)

    def changed(self, ids: Iterable[str]) -> None:
        self.ids += ids


def last_commit(conn: Connection) -> tuple[int, str]:
    """The current generation and the hash that stamps it; (0, "") for a new store."""
    for generation, stamp in _last(conn):
        return generation, stamp
    return 0, ""


def chain(before: str, *entry: object) -> str:
    """The hash of a journal row: of the hash of the row before it, and of its own columns in order."""
    return hashlib.sha256(dumps([before, *entry]).encode()).hexdigest()


class Engine:
    """A database that holds a store. `name` is what messages call it; `folder` is where its side files go, if it has
    any.
    """

    name: str
    folder: Path | None = None
    read_only: bool = False
    longest: int = 65_536  # numbers in a vector
    compares: bool = False  # whether it ranks vectors itself (`nearest`); else the caller scans them (`cache.py`)

    def __init__(self, clock: Callable[[], float], actor: str) -> None:
        self.clock, self.actor = clock, actor

    # What a subclass gives.

    def connection(self, *, write: bool) -> Connection:
        """A new connection whose transaction sees one generation; with `write` it is the only writer."""
        raise NotImplementedError

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held around every write and everything that rearranges files."""
        raise NotImplementedError
        yield

    @contextmanager
    def sentences(self) -> Iterator[None]:
        """Turns the driver's errors into one sentence each."""
        raise NotImplementedError
        yield

    def index_words(self, conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
        """Make texts, given as (seq, text), findable."""
        raise NotImplementedError

    def unindex_words(self, conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
        raise NotImplementedError

    def indexed(self, conn: Connection) -> set[int]:
        """The seqs of texts that are findable."""
        raise NotImplementedError

    def rebuild_words(self, conn: Connection, rows: Iterable[tuple[int, str]]) -> None:
        raise NotImplementedError

    def words(
        self, conn: Connection, query: str, where: sa.ColumnElement[bool], limit: int
    ) -> list[tuple[int, str, float]]:
        """The best `limit` of the indexed items that meet `where`, as (seq, id, BM25 score), best first."""
        raise NotImplementedError

    def words_among(self, texts: Sequence[tuple[int, str]], query: str) -> dict[int, float]:
        """The same scores for texts that are not, or no longer, indexed."""
        raise NotImplementedError

    def check(self, conn: Connection) -> list[str]:
        """What the database finds wrong with its own files."""
        raise NotImplementedError

    def nearest(
        self, conn: Connection, where: sa.ColumnElement[bool], space: int, of: Space, query: Tensor, limit: int
    ) -> list[tuple[int, str, float]]:
        """The best `limit` of the vectors of a space whose items meet `where`, as (seq, id, similarity), ties by id."""
        raise NotImplementedError

    def compact(self) -> None:
        """Rewrite the files so that nothing of what was deleted is left in them."""
        raise NotImplementedError

    def size(self) -> int:
        """Bytes on disk."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    # What all share.

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection on which every statement sees the same generation."""
        with self.sentences(), self.connection(write=False) as conn, conn.begin():
            yield conn

    @contextmanager
    def write(self, op: str) -> Iterator[Transaction]:
        """A transaction: all of it or nothing. It adds one row to the journal if it changed anything."""
        if self.read_only:
            raise StoreError(f"{self.name}: opened read-only, so {op} is refused")
        with self.exclusive(), self.sentences(), self.connection(write=True) as conn:
            with conn.begin():
                points.reach(f"{op}:begin")
                before, stamp = last_commit(conn)
                change = Transaction(conn, op, before + 1, self.clock(), self.actor)
                yield change
                before = change.generation - 1
                if change.ids:
                    payload = hashlib.sha256(dumps(sorted(change.ids)).encode()).hexdigest()
                    entry = (change.generation, op, self.actor, len(change.ids), float(change.now), payload)
                    columns = ("generation", "op", "actor", "ids", "recorded_at", "payload")
                    _entry(conn, **dict(zip(columns, entry)), hash=chain(stamp, *entry))
                else:
                    change.generation = before
                points.reach(f"{op}:written")
            points.reach(f"{op}:committed")


def chunks(values: Sequence[Any], size: int = 500) -> Iterator[Sequence[Any]]:
    """Pieces small enough for one statement's parameters."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def seqs_of(conn: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Row numbers of items by id; ids that are not there are left out."""
    found: dict[str, int] = {}
    for piece in chunks(ids):
        found |= {r.id: r.seq for r in conn.execute(select(item.c.id, item.c.seq).where(item.c.id.in_(piece)))}
    return found


def count(conn: Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    return int(conn.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def open_engine(
    url: str | os.PathLike[str], clock: Callable[[], float], actor: str, timeout: float, read_only: bool
) -> Engine:
    """A path, sqlite:///PATH, or a PostgreSQL URL as libpq knows it."""
    given = os.fspath(url)
    scheme, colon, rest = given.partition("://")
    if scheme in ("postgresql", "postgres") and colon:
        from nestmem.store.postgres import Postgres

        return Postgres(given, clock, actor, timeout, read_only)
    from nestmem.store.sqlite import SQLite

    if not colon:
        return SQLite(Path(given), clock, actor, timeout, read_only)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return SQLite(Path(rest[1:]), clock, actor, timeout, read_only)
    shown = given if "@" not in given else f"{scheme}://..."  # it may hold a password
    raise ValueError(f"url: expected a path, sqlite:///PATH or postgresql://HOST/DATABASE, got {shown!r}")
