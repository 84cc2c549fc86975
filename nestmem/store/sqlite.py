"""The embedded engine: one SQLite file is the only truth; words in FTS5; readers never wait for the writer.

WAL with synchronous=FULL: what was acknowledged survives a power cut. Freed pages are overwritten (secure_delete).
Beside `memory.db` lie its `-wal` and `-shm`, the two lock files `.users` and `.writer`, and `.cache/` (`cache.py`).
"""

from __future__ import annotations

import os
import re
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Connection, event, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from nestmem.durable import sync
from nestmem.store.engine import Engine
from nestmem.store.errors import StoreError
from nestmem.store.locks import FileLock, WriterLock
from nestmem.store.prepared import driver
from nestmem.store.schema import SCHEMA_VERSION, item, meta, metadata

WORDS = "CREATE VIRTUAL TABLE words USING fts5(text, content='item', content_rowid='seq', tokenize='unicode61')"
QUERY_WORDS = 64  # distinct words of a query that count
_fts = sa.table("words", sa.column("rowid"), sa.column("text"))


class SQLite(Engine):
    """The engine on the file `path`, made if it is not there. `timeout`: seconds to wait for another writer."""

    def __init__(self, path: Path, clock: Callable[[], float], actor: str, timeout: float, read_only: bool):
        super().__init__(clock, actor)
        self.path, self.name, self.timeout, self.read_only = path, path.name, timeout, read_only
        self.folder = None if read_only else path.with_name(path.name + ".cache")
        self._check_place()
        self._users = FileLock(self._beside(".users"))
        self._writer = WriterLock(self._beside(".writer"), timeout)
        self._pid = os.getpid()
        unclean = self._enter()
        try:
            self._pool = self._connect()
            with nullcontext() if read_only else self._writer.held():
                self._prepare(unclean)
        except BaseException:
            self.close()
            raise

    # Opening and closing.

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _check_place(self) -> None:
        """Say what is wrong with the place before anything is made there."""
        folder = self.path.resolve().parent
        if self.path.name == ":memory:":
            raise StoreError("url: a store lives in a file, got ':memory:'")
        if self.path.is_dir():
            raise StoreError(f"{self.path}: expected a file, got a folder")
        if not folder.is_dir():
            raise StoreError(f"{self.path}: the folder {folder} does not exist")
        if self.read_only:
            if not self.path.exists():
                raise StoreError(f"{self.path}: no store here")
        elif not os.access(folder, os.W_OK) or (self.path.exists() and not os.access(self.path, os.W_OK)):
            raise StoreError(f"{self.path}: no permission to write here; open it with read_only=True")
        if self.path.exists():
            self._check_header()

    def _check_header(self) -> None:
        """Refuse what is not SQLite, and a file shorter than its own header says."""
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            head = file.read(100)
        if not head:
            raise StoreError(f"{self.path}: an empty file, not a store; delete it to begin a new one")
        if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
            raise StoreError(f"{self.path}: not a SQLite file, or its start is damaged; restore a snapshot")
        (page,) = struct.unpack(">H", head[16:18])
        (changed, pages) = struct.unpack(">II", head[24:32])
        (valid_for,) = struct.unpack(">I", head[92:96])
        log = self._beside("-wal")
        settled = not log.exists() or log.stat().st_size == 0  # else a crashed checkpoint may still be completed
        if settled and changed == valid_for and size < pages * (65536 if page == 1 else page):
            raise StoreError(f"{self.path}: damaged: {size:,} bytes are left of {pages * page:,}; restore a snapshot")

    def _enter(self) -> bool:
        """Join the users of the file. True if the last of them did not close it."""
        log = self._beside("-wal")
        if self.read_only:
            return False
        alone = self._users.acquire()
        unclean = alone and log.exists() and log.stat().st_size > 0
        if not self._users.acquire(shared=True, timeout=self.timeout):
            raise StoreError(f"{self.name}: being restored by another process; try again")
        return unclean

    def _connect(self) -> sa.Engine:
        mode = "ro" if self.read_only else "rwc"
        uri = f"file:{quote(str(self.path.resolve()))}?mode={mode}"
        if self.read_only and not self._beside("-wal").exists() and not os.access(self.path.resolve().parent, os.W_OK):
            uri += "&immutable=1"  # SQLite could not make its -shm here, and nobody writes

        def connect() -> sqlite3.Connection:
            raw = sqlite3.connect(uri, uri=True, timeout=self.timeout, isolation_level=None, check_same_thread=False)
            settings = [
                "synchronous=FULL",
                "foreign_keys=ON",
                "secure_delete=ON",
                "cell_size_check=ON",
                "temp_store=MEMORY",
                "cache_size=-32768",  # KiB, as far as they are used
            ]
            for setting in settings + ([] if self.read_only else ["journal_mode=WAL"]):
                raw.execute(f"PRAGMA {setting}")
            return raw

        pool = sa.create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=8, max_overflow=24)

        @event.listens_for(pool, "begin")
        def begin(conn: Connection) -> None:
            # The driver would begin late and never for reads; a writer takes the lock at once, not half-way.
            driver(conn).execute("BEGIN IMMEDIATE" if conn.get_execution_options().get("write") else "BEGIN")

        return pool

    def _prepare(self, unclean: bool) -> None:
        """Make the tables in a new file; see that an old one is a store of this version, and whole if it was left
        open.
        """
        with self.sentences():
            with self.connection(write=False) as conn, conn.begin():
                tables = set(conn.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars())
                if "meta" in tables:
                    version = conn.execute(select(meta.c.value).where(meta.c.name == "schema")).scalar()
                    if version != str(SCHEMA_VERSION):
                        raise StoreError(
                            f"{self.name}: schema {version}, but this nestmem reads schema {SCHEMA_VERSION}"
                        )
                elif tables:
                    raise StoreError(
                        f"{self.name}: a database of something else (tables: {', '.join(sorted(tables)[:4])})"
                    )
                if unclean and (wrong := self.check(conn)):
                    raise StoreError(f"{self.name}: damaged ({wrong[0]}); restore a snapshot")
            if not tables:
                if self.read_only:
                    raise StoreError(f"{self.name}: not a nestmem store")
                with self.connection(write=True) as conn, conn.begin():
                    metadata.create_all(conn)
                    conn.exec_driver_sql(WORDS)
                    conn.execute(sa.insert(meta).values(name="schema", value=str(SCHEMA_VERSION)))

    def close(self) -> None:
        if hasattr(self, "_pool") and self._pid == os.getpid():
            if self.read_only:
                self._pool.dispose()
            else:
                with self._writer.held():  # the last connection to close checkpoints
                    self._pool.dispose()
        self._writer.close()
        self._users.close()

    def connection(self, *, write: bool) -> Connection:
        if self._pid != os.getpid():  # a SQLite connection must not be used across a fork
            self._pool.dispose(close=False)
            self._writer.close()
            self._writer = WriterLock(self._beside(".writer"), self.timeout)
            self._pid = os.getpid()
        return self._pool.connect().execution_options(write=write)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._writer.held():
            yield

    @contextmanager
    def sentences(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            cause = getattr(error, "orig", None) or error
            raise StoreError(f"{self.name}: {sentence(str(cause), self.timeout)}") from error
        except UnicodeDecodeError as error:  # in what SQLite says of a damaged schema
            raise StoreError(f"{self.name}: {sentence('malformed', self.timeout)}") from error
        except OSError as error:
            raise StoreError(f"{self.name}: {error.strerror or error}") from error

    # Words.

    def index_words(self, conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
        if rows:
            driver(conn).executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", rows)

    def unindex_words(self, conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
        if rows:
            conn.exec_driver_sql("INSERT INTO words(words, rowid, text) VALUES ('delete', ?, ?)", list(rows))

    def indexed(self, conn: Connection) -> set[int]:
        return set(conn.exec_driver_sql("SELECT id FROM words_docsize").scalars())

    def rebuild_words(self, conn: Connection, rows: Iterable[tuple[int, str]]) -> None:
        conn.exec_driver_sql("DROP TABLE words")
        conn.exec_driver_sql(WORDS)
        self.index_words(conn, list(rows))

    def words(
        self, conn: Connection, query: str, where: sa.ColumnElement[bool], limit: int
    ) -> list[tuple[int, str, float]]:
        if not (match := match_any(query)):
            return []
        score: sa.Label[float] = sa.literal_column("bm25(words)").label("score")
        hits = select(_fts.c.rowid, score).where(sa.text("words MATCH :match").bindparams(match=match)).cte("hits")
        found = (
            select(item.c.seq, item.c.id, hits.c.score)
            .join(hits, hits.c.rowid == item.c.seq)
            .where(where)
            .order_by(hits.c.score, item.c.id)
            .limit(limit)
        )
        return [(row.seq, row.id, -row.score) for row in conn.execute(found)]

    def words_among(self, texts: Sequence[tuple[int, str]], query: str) -> dict[int, float]:
        # The same tokenizer and the same formula, by indexing the texts on the side.
        if not (match := match_any(query)):
            return {}
        with sqlite3.connect(":memory:") as side:
            side.execute("CREATE VIRTUAL TABLE words USING fts5(text, tokenize='unicode61')")
            side.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", texts)
            rows = side.execute("SELECT rowid, bm25(words) FROM words WHERE words MATCH ?", (match,)).fetchall()
        side.close()
        return {seq: -score for seq, score in rows}

    # Files.

    def check(self, conn: Connection) -> list[str]:
        try:
            wrong = [row[0] for row in conn.exec_driver_sql("PRAGMA integrity_check(5)")]
        except DBAPIError as error:
            return [str(error.orig)]
        return [] if wrong == ["ok"] else wrong

    def copy_to(self, path: Path) -> None:
        """A consistent copy of everything into the new file `path`, durable."""
        with self.sentences(), self.connection(write=False) as conn:
            source = conn.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            target = sqlite3.connect(path)
            try:
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
            finally:
                target.close()
        sync(path)
        sync(path.resolve().parent)

    def compact(self) -> None:
        with self.exclusive(), self.sentences():
            with self.connection(write=True) as conn:
                raw = conn.connection.driver_connection
                assert isinstance(raw, sqlite3.Connection)
                # A deleted word stays in FTS5's segments as a mark until they are merged into one.
                raw.execute("INSERT INTO words(words) VALUES ('optimize')")
                raw.execute("VACUUM")
                busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise StoreError(
                    f"{self.name}: erased, but a reader holds old pages; close it, then open the store again"
                )

    def size(self) -> int:
        files = [self.path, self._beside("-wal")]
        return sum(f.stat().st_size for f in files if f.exists())


def match_any(query: str) -> str:
    """An FTS5 expression for any word of the query. Every word is quoted, so nothing in it is syntax."""
    words = list(dict.fromkeys(re.findall(r"\w+", query.lower())))[:QUERY_WORDS]
    return " OR ".join(f'"{word}"' for word in words)


def sentence(cause: str, timeout: float) -> str:
    """What SQLite's message means for a person."""
    low = cause.lower()
    if "locked" in low or "busy" in low:
        return f"locked by another program for {timeout:g} s; try again"
    if "full" in low:
        return "the disk is full; nothing was written"
    if "disk i/o" in low:
        return "the disk refused to read or write (full, over a limit, or failing); nothing was written"
    if "readonly" in low or "unable to open" in low:
        return "no permission to write here"
    if "malformed" in low or "not a database" in low or "corrupt" in low:
        return "damaged; run `nestmem store verify`, and restore a snapshot"
    return f"refused by the database ({cause})"
