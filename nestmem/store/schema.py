"""Tables, for any SQL engine: what SQLite and PostgreSQL both understand, and the rules a database can keep by itself.

Rows of truth are never changed in place: they are born in one generation and die in another, so every past generation
can be read. Exceptions: `dynamics` (counters of use), and erasure, which empties a row. `seq` is a row number local
to one database; what crosses machines (links, exports) uses ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from nestmem.store.model import KINDS, LINK_TYPES, METRICS, PROC, STATES, TOP_LEVEL

SCHEMA_VERSION = 2
metadata = MetaData()
Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column called INTEGER


class Pgvector(UserDefinedType[object]):
    """The column type of the PostgreSQL extension pgvector, of any dimension."""

    cache_ok = True

    def get_col_spec(self, **options: object) -> str:
        return "vector"


class Floats(TypeDecorator[bytes]):
    """A vector as the bytes of float32, little endian; on PostgreSQL a `vector`, whose distances the server knows."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind: TypeEngine[Any] = Pgvector() if dialect.name == "postgresql" else LargeBinary()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> object:
        return value if value is None or dialect.name != "postgresql" else np.frombuffer(value, dtype="<f4")


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(v) for v in values)})", name=f"{column}_known")


def _current(name: str, *columns: Column[object] | str, where: str = "died IS NULL") -> Index:
    return Index(name, *columns, unique=True, sqlite_where=text(where), postgresql_where=text(where))


meta = Table("meta", metadata, Column("name", String, primary_key=True), Column("value", Text, nullable=False))

journal = Table(
    "journal",
    metadata,
    Column("generation", Serial, primary_key=True, autoincrement=False),
    Column("op", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("ids", Integer, nullable=False),  # how many were concerned
    Column("recorded_at", Float(53), nullable=False),
    Column("payload", String(64), nullable=False),  # hash of those ids
    Column("hash", String(64), nullable=False),  # of the row before and of this one: stamps a generation's whole past
)

space = Table(
    "space",
    metadata,
    Column("seq", Serial, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("dim", Integer, CheckConstraint("dim > 0"), nullable=False),
    Column("metric", String, _one_of("metric", METRICS), nullable=False),
    Column("encoder", String, nullable=False),
)

item = Table(
    "item",
    metadata,
    Column("seq", Serial, primary_key=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("namespace", String, nullable=False),
    Column("root", String, nullable=False),
    Column("level", SmallInteger, CheckConstraint(f"level BETWEEN {PROC} AND {TOP_LEVEL}"), nullable=False),
    Column("kind", String, _one_of("kind", KINDS), nullable=False),
    Column("key", String, nullable=False),
    Column("version", Integer, CheckConstraint("version > 0"), nullable=False),
    Column("text", Text, nullable=False),
    Column("digest", Text),
    Column("content_hash", String(64), nullable=False),
    Column("source", String, nullable=False),
    Column("start", BigInteger),
    Column("stop", BigInteger),
    Column("source_hash", String, nullable=False),
    Column("event_from", Float(53)),
    Column("event_to", Float(53)),
    Column("event_closed", Float(53)),  # when the world moved on to the next version; null if this one was a mistake
    Column("recorded_at", Float(53), nullable=False),
    Column("superseded_at", Float(53)),
    Column("born", BigInteger, nullable=False),
    Column("died", BigInteger, CheckConstraint("died > born")),
    Column("ended", String, CheckConstraint("ended IN ('superseded', 'erased')")),
    Column("importance", Float(53), CheckConstraint("importance BETWEEN 0 AND 1"), nullable=False),
    Column("confidence", Float(53), CheckConstraint("confidence BETWEEN 0 AND 1"), nullable=False),
    Column("trust", Float(53), CheckConstraint("trust BETWEEN 0 AND 1"), nullable=False),
    Column("pinned", SmallInteger, nullable=False),
    Column("prior", SmallInteger, nullable=False),
    Column("taint", SmallInteger, nullable=False),
    Column("writer", String, nullable=False),
    Column("run", String, nullable=False),
    Column("call_path", String, nullable=False),
    Column("checksum", BigInteger, nullable=False),  # CRC-32 of what must not change
    UniqueConstraint("id", "level"),
    CheckConstraint("(died IS NULL) = (ended IS NULL)", name="an_end_has_a_reason"),
    _current("item_current", "namespace", "key"),
    Index("item_key", "namespace", "key"),
    Index("item_place", "namespace", "root", "level"),
    Index("item_born", "born"),
    Index("item_died", "died"),
)

hidden = Table(  # forgotten from `born` until `died`
    "hidden",
    metadata,
    Column("seq", Serial, ForeignKey("item.seq"), primary_key=True, autoincrement=False),
    Column("born", BigInteger, primary_key=True, autoincrement=False),
    Column("died", BigInteger, CheckConstraint("died > born")),
    Column("reason", String, nullable=False),
    Column("recorded_at", Float(53), nullable=False),
    _current("hidden_current", "seq"),
    Index("hidden_born", "born"),
    Index("hidden_died", "died"),
)

vector = Table(  # not called after itself: PostgreSQL would take the name for pgvector's type
    "embedding",
    metadata,
    Column("seq", Serial, ForeignKey("item.seq"), primary_key=True, autoincrement=False),
    Column("space", Serial, ForeignKey("space.seq"), primary_key=True, autoincrement=False),
    Column("born", BigInteger, nullable=False),
    Column("blob", Floats, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Index("vector_born", "born"),
)

dynamics = Table(
    "dynamics",
    metadata,
    Column("seq", Serial, ForeignKey("item.seq"), primary_key=True, autoincrement=False),
    Column("strength", Float(53), CheckConstraint("strength > 0"), nullable=False),
    Column("retrievals", BigInteger, CheckConstraint("retrievals >= 0"), nullable=False),
    Column("useful", BigInteger, CheckConstraint("useful BETWEEN 0 AND retrievals"), nullable=False),
    Column("last_access", Float(53)),
    Column("last_useful", Float(53)),
    Column("state", String, _one_of("state", STATES), nullable=False),
)

link = Table(  # lies where its src lies; dst may be on another machine, so only src has a foreign key
    "link",
    metadata,
    Column("seq", Serial, primary_key=True),
    Column("src", String(32), nullable=False),
    Column("src_level", SmallInteger, nullable=False),
    Column("dst", String(32), nullable=False),
    Column("dst_level", SmallInteger, nullable=False),
    Column("type", String, _one_of("type", LINK_TYPES), nullable=False),
    Column("weight", Float(53), nullable=False),
    Column("evidence", Text, nullable=False),
    Column("recorded_at", Float(53), nullable=False),
    Column("superseded_at", Float(53)),
    Column("born", BigInteger, nullable=False),
    Column("died", BigInteger, CheckConstraint("died > born")),
    ForeignKeyConstraint(["src", "src_level"], ["item.id", "item.level"]),
    CheckConstraint("src <> dst", name="no_link_to_itself"),
    CheckConstraint("type <> 'contains' OR src_level > dst_level", name="a_parent_is_above_its_child"),
    _current("link_current", "src", "dst", "type"),
    _current("one_parent", "dst", where="died IS NULL AND type = 'contains'"),
    Index("link_src", "src", "type"),
    Index("link_dst", "dst", "type"),
)

hyperedge = Table(
    "hyperedge",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String, nullable=False),
    Column("description", String(32), ForeignKey("item.id")),
    Column("recorded_at", Float(53), nullable=False),
    Column("superseded_at", Float(53)),
    Column("born", BigInteger, nullable=False),
    Column("died", BigInteger, CheckConstraint("died > born")),
)

member = Table(
    "member",
    metadata,
    Column("edge", String(32), ForeignKey("hyperedge.id"), primary_key=True),
    Column("item", String(32), ForeignKey("item.id"), primary_key=True),
    Column("role", String, nullable=False),
    Index("member_item", "item"),
)

job = Table(  # what consolidation has seen of a subtree
    "job",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String, nullable=False),
    Column("inputs", String(64), nullable=False),  # hash of the items and the configuration it last saw
    Column("generation", BigInteger, nullable=False),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("path", String, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("manifest_hash", String(64), nullable=False),
    Column("recorded_at", Float(53), nullable=False),
)
