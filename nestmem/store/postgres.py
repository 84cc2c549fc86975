"""The distributed engine: PostgreSQL with the extension pgvector, one database for each shard (`shards.py`).

Readers see one snapshot (REPEATABLE READ); writers take turns by an advisory lock that lives as long as their
transaction. Vectors are compared on the server, exactly, so a client holds none of them. Words: `lexicon.py`.
Tables lie in the first schema of the search path, so several stores fit in one database
(`?options=-csearch_path%3Dmine,public`).

Servers that stand in for each other are one URL, `postgresql://a,b/db?target_session_attrs=read-write`, as libpq
knows it. A promoted standby is on a new timeline: an engine that has seen it refuses the old one, should it come back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psycopg
import sqlalchemy as sa
from pgvector.psycopg import register_vector
from psycopg.adapt import Loader
from psycopg.types import TypeInfo
from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool
from torch import Tensor

from nestmem.store.block import DIGITS
from nestmem.store.engine import Engine
from nestmem.store.errors import StoreError
from nestmem.store.lexicon import Lexicon, scores
from nestmem.store.model import Space
from nestmem.store.schema import SCHEMA_VERSION, item, meta, metadata, vector

LOCK = "SELECT pg_advisory_xact_lock(hashtext('nestmem'), hashtext(current_schema()))"
TIMELINE = """SELECT CASE WHEN pg_is_in_recovery() THEN 0
              ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END"""


class _Bytes(Loader):
    """A vector as float32 bytes, little endian."""

    def load(self, data: bytes | bytearray | memoryview) -> bytes:
        return np.fromstring(bytes(data)[1:-1].decode(), dtype="<f4", sep=",").tobytes()


class Postgres(Engine):
    """The engine on a database, in which the tables are made if they are not there. `timeout`: seconds to wait for
    another writer, and for a server to answer.
    """

    longest = 16_000  # of a pgvector
    compares = True

    def __init__(self, url: str, clock: Callable[[], float], actor: str, timeout: float, read_only: bool):
        super().__init__(clock, actor)
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise ValueError(f"url: expected postgresql://HOST/DATABASE ({str(error).strip()})") from None
        self.name = f"{given.get('host', 'localhost')}/{given.get('dbname', '')}"  # never the password
        self.url, self.timeout, self.read_only = url, timeout, read_only
        self._several = "," in str(given.get("host", ""))
        self._timeline = 0
        self._pid = os.getpid()
        self._lexicon = Lexicon()
        self._pool = sa.create_engine(
            "postgresql+psycopg://", creator=self._connect, poolclass=QueuePool, pool_size=8, max_overflow=24,
            pool_pre_ping=True,
        )  # fmt: skip
        sa.event.listen(self._pool, "begin", _take_turn)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        try:
            raw = psycopg.connect(self.url, connect_timeout=max(10, int(self.timeout)))
        except psycopg.OperationalError as error:
            raise StoreError(f"{self.name}: {unreachable(str(error))}; nothing was written") from error
        try:
            raw.autocommit = True
            if self._several:
                row = raw.execute(TIMELINE).fetchone()
                seen = row[0] if row is not None and isinstance(row[0], int) else 0
                if 0 < seen < self._timeline:
                    raise StoreError(f"{self.name}: this server was replaced by another one; take it out of service")
                self._timeline = max(seen, self._timeline)
            info = TypeInfo.fetch(raw, "vector")
            if info is None and not self.read_only:
                raw.execute("CREATE EXTENSION IF NOT EXISTS vector")
                info = TypeInfo.fetch(raw, "vector")
            if info is None:
                raise StoreError(f"{self.name}: the extension vector (pgvector) is not installed in this database")
            register_vector(raw)
            raw.adapters.register_loader(info.oid, _Bytes)
            # What is acknowledged is durable, whatever the server's default; stricter settings stay.
            raw.execute(
                "SELECT set_config('lock_timeout', %s, false), set_config('synchronous_commit',"
                " CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
                " ELSE current_setting('synchronous_commit') END, false)",
                [f"{max(1, int(1000 * self.timeout))}ms"],
            )
            raw.autocommit = False
        except BaseException:
            raw.close()
            raise
        return raw

    def _prepare(self) -> None:
        with self.sentences():
            with self.connection(write=False) as conn, conn.begin():
                if (ready := self._made(conn)) or self.read_only:
                    if not ready:
                        raise StoreError(f"{self.name}: no store here")
                    return
            with self.connection(write=True) as conn, conn.begin():
                if not self._made(conn):  # else another process was faster
                    metadata.create_all(conn, checkfirst=False)
                    self._lexicon.make(conn)
                    conn.execute(sa.insert(meta).values(name="schema", value=str(SCHEMA_VERSION)))

    def _made(self, conn: Connection) -> bool:
        """Whether the tables are here; a StoreError if others have their names."""
        here = set(sa.inspect(conn).get_table_names()) & set(metadata.tables)
        if not here:
            return False
        if here < set(metadata.tables):
            raise StoreError(f"{self.name}: a database of something else (tables: {', '.join(sorted(here)[:4])})")
        version = conn.execute(select(meta.c.value).where(meta.c.name == "schema")).scalar()
        if version != str(SCHEMA_VERSION):
            raise StoreError(f"{self.name}: schema {version}, but this nestmem reads schema {SCHEMA_VERSION}")
        return True

    def close(self) -> None:
        if self._pid == os.getpid():
            self._pool.dispose()

    def connection(self, *, write: bool) -> Connection:
        if self._pid != os.getpid():  # a connection must not be used across a fork
            self._pool.dispose(close=False)
            self._pid = os.getpid()
        conn = self._pool.connect()
        level = "READ COMMITTED" if write else "REPEATABLE READ"  # a writer sees what was committed before its turn
        return conn.execution_options(isolation_level=level, postgresql_readonly=not write, write=write)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield  # the lock is taken inside the transaction, so that it ends with it whatever happens

    @contextmanager
    def sentences(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, psycopg.Error) as error:
            cause = getattr(error, "orig", None) or error
            raise StoreError(f"{self.name}: {sentence(cause, self.timeout)}") from error
        except OSError as error:
            raise StoreError(f"{self.name}: {error.strerror or error}") from error

    # Vectors.

    def nearest(
        self, conn: Connection, where: sa.ColumnElement[bool], space: int, of: Space, query: Tensor, limit: int
    ) -> list[tuple[int, str, float]]:
        sign, shift, operator = {"cosine": (-1, 1, "<=>"), "dot": (-1, 0, "<#>"), "l2": (-1, 0, "<->")}[of.metric]
        distance = vector.c.blob.op(operator, return_type=sa.Float(53))(query.numpy().tobytes())
        # Rounded as the scan of the other engine rounds, so that equal is equal everywhere.
        score = (sa.func.round((shift + sign * distance) * 10**DIGITS) / 10**DIGITS).label("score")
        found = (
            select(item.c.seq, item.c.id, score)
            .join(vector, vector.c.seq == item.c.seq)
            .where(vector.c.space == space, where)
            .order_by(sa.desc("score"), item.c.id)
            .limit(limit)
        )
        return [(row.seq, row.id, float(row.score)) for row in conn.execute(found)]

    # Words.

    def index_words(self, conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
        self._lexicon.add(conn, rows)

    def unindex_words(self, conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
        self._lexicon.remove(conn, [seq for seq, _ in rows])

    def indexed(self, conn: Connection) -> set[int]:
        return self._lexicon.seqs(conn)

    def rebuild_words(self, conn: Connection, rows: Iterable[tuple[int, str]]) -> None:
        self._lexicon.clear(conn)
        self._lexicon.add(conn, list(rows))

    def words(
        self, conn: Connection, query: str, where: sa.ColumnElement[bool], limit: int
    ) -> list[tuple[int, str, float]]:
        return self._lexicon.search(conn, query, where, limit)

    def words_among(self, texts: Sequence[tuple[int, str]], query: str) -> dict[int, float]:
        return scores(texts, query)

    # Files.

    def check(self, conn: Connection) -> list[str]:
        broken = "SELECT sum(checksum_failures) FROM pg_stat_database WHERE datname = current_database()"
        failures = conn.exec_driver_sql(broken).scalar()
        return [f"{failures} pages failed their checksum"] if failures else []

    def compact(self) -> None:
        """Rewrite the tables, and what the planner remembers of them. The write-ahead log keeps the old bytes until
        the server recycles it.
        """
        with self.sentences(), self._pool.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            try:
                for name in [*metadata.tables, "lexicon"]:
                    conn.exec_driver_sql(f'VACUUM (FULL, ANALYZE) "{name}"')
            except DBAPIError as error:
                if isinstance(error.orig, psycopg.errors.LockNotAvailable):
                    raise StoreError(
                        f"{self.name}: erased, but a reader holds old pages; close it, then open the store again"
                    ) from error
                raise

    def size(self) -> int:
        with self.read() as conn:
            names = ", ".join(f"('{name}')" for name in [*metadata.tables, "lexicon"])
            query = f"SELECT sum(pg_total_relation_size(quote_ident(n)::regclass)) FROM (VALUES {names}) AS t(n)"
            return int(conn.exec_driver_sql(query).scalar_one())


def _take_turn(conn: Connection) -> None:
    if conn.get_execution_options().get("write"):
        conn.exec_driver_sql(LOCK)


def sentence(cause: BaseException, timeout: float) -> str:
    """What the server's message means for a person."""
    said = str(cause).strip()
    if isinstance(cause, psycopg.errors.LockNotAvailable):
        return f"another process has been writing for {timeout:g} s; try again"
    if isinstance(cause, psycopg.errors.DiskFull) or "could not extend file" in said:
        return "the server's disk is full; nothing was written"
    if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
        return "the server only reads (a standby?); nothing was written"
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return "no permission to do this in the database"
    if isinstance(cause, psycopg.OperationalError):
        return "the connection was lost; make the call again, a write that was done is not done twice"
    return f"refused by the database ({said.splitlines()[0] if said else type(cause).__name__})"


def unreachable(said: str) -> str:
    """Why there is no connection."""
    low = said.lower()
    if "password" in low or "authentication" in low or 'role "' in low:
        return "the server refuses this user"
    if "does not exist" in low:
        return "the server has no such database"
    if "starting up" in low or "shutting down" in low or "recovery" in low:
        return "the server is starting or stopping; try again"
    if "too many" in low or "slots" in low:
        return "the server has no connection to spare; try again"
    return "no server answers"
