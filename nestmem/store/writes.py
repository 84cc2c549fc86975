"""Writing items: new ones with their vectors, words and ties. Everything is checked before anything is written."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
import torch
from sqlalchemy import Connection, bindparam, insert, select, update

from nestmem.store.engine import Engine, Transaction, chunks
from nestmem.store.model import (
    AUTO,
    Item,
    New,
    Space,
    check_new,
    content_hash,
    dumps,
    make_id,
)
from nestmem.store.prepared import Prepared
from nestmem.store.removal import unhide
from nestmem.store.rows import (
    LASTING,
    check_vector,
    checksum,
    get_items,
    need_items,
    need_space,
    pack,
    spaces,
    unpack,
)
from nestmem.store.schema import hidden, item, link, vector


class Held(NamedTuple):
    """What is known of a key: its current item, if it has one, and the newest version there ever was."""

    id: str | None
    seq: int
    content_hash: str
    level: int
    version: int
    root: str


class Row(NamedTuple):
    """An item about to be written: `new` complete, its vectors as bytes by row number of their space."""

    new: New
    id: str
    version: int
    blobs: Mapping[int, bytes]


def put(engine: Engine, change: Transaction, news: Sequence[New], ids: Sequence[str] | None = None) -> list[str]:
    """Put items, all or none. `ids` fixes their ids (consolidation derives them from content)."""
    known = spaces(change.conn)
    made = [prepare(new, known) for new in news]
    held = keys(change.conn, [new for new, _ in made])
    for other in change.everywhere[1:]:  # automatic keys name their subtree, so they cannot be on two shards
        elsewhere = keys(other, [new for new, _ in made if not (new.key or "").startswith(AUTO)])
        if taken := [key for key, there in elsewhere.items() if there.id is not None]:
            raise ValueError(_moved(taken[0][1], elsewhere[taken[0]].root))
    found: list[str] = []
    rows: list[Row] = []
    more: list[dict[str, Any]] = []  # vectors that an item did not have yet
    for place, (new, blobs) in enumerate(made):
        there = held.get((new.namespace or "", new.key or ""))
        if there is not None and there.id is not None:
            _same(engine, change, there, new)
            found.append(there.id)
            fresh = _missing_vectors(change.conn, there, blobs)
            more += [_vector_row(there.seq, s, change.generation, blob) for s, blob in fresh.items()]
            change.changed([there.id] if fresh else [])
            continue
        version = 1 + (there.version if there else 0)
        ident = ids[place] if ids else new_id(change, new, version)
        rows.append(Row(new, ident, version, blobs))
        found.append(ident)
        held[new.namespace or "", new.key or ""] = Held(ident, 0, content_hash(new.text), new.level, version, new.root)
    add(engine, change, rows)
    _new_vector.each(change.conn, more)
    return found


def add(engine: Engine, change: Transaction, rows: Sequence[Row]) -> None:
    """Write new items with their vectors, words, and links to parents."""
    if not rows:
        return
    conn = change.conn
    parents = need_items(change.everywhere, list({p for row in rows for p in row.new.parents}), "parents")
    values = [_item_row(change, row, [parents[p] for p in row.new.parents]) for row in rows]
    seqs = {row[0]: row[1] for row in _new_item.each(conn, values)}
    vectors = [_vector_row(seqs[row.id], s, change.generation, b) for row in rows for s, b in row.blobs.items()]
    _new_vector.each(conn, vectors)
    engine.index_words(conn, [(seqs[row.id], row.new.text) for row in rows])
    change.changed(row.id for row in rows)
    for row in rows:
        for parent in dict.fromkeys(row.new.parents):
            tie(change, (row.id, row.new.level), (parent, parents[parent].level), "derived_from")


ITEM = (*LASTING, "checksum")
_new_item = Prepared(insert(item).returning(item.c.id, item.c.seq), ITEM)
_new_vector = Prepared(insert(vector), [column.name for column in vector.c])


def new_id(change: Transaction, new: New, version: int) -> str:
    return make_id(int(change.now * 1000), new.namespace, new.key, version, change.generation)


def _item_row(change: Transaction, row: Row, parents: Sequence[Item]) -> dict[str, Any]:
    new = row.new
    values: dict[str, Any] = dict(
        id=row.id, namespace=new.namespace, root=new.root, level=new.level, kind=new.kind, key=new.key,
        version=row.version, text=new.text, digest=None if new.digest is None else dumps(new.digest),
        content_hash=content_hash(new.text),
        source=new.source, start=new.start, stop=new.stop, source_hash=new.source_hash,
        event_from=_float(new.event_from), event_to=_float(new.event_to), recorded_at=float(change.now),
        born=change.generation, importance=float(new.importance), confidence=float(new.confidence),
        trust=float(new.trust), pinned=int(new.pinned), prior=int(new.prior),
        taint=int(new.taint or any(p.taint for p in parents)), writer=new.writer, run=new.run, call_path=new.call_path,
    )  # fmt: skip
    return values | {"checksum": checksum(values)}


def prepare(new: New, known: Mapping[str, tuple[int, Space]]) -> tuple[New, dict[int, bytes]]:
    """An item with its defaults, and its vectors as bytes by space; a ValueError if anything is wrong."""
    new = check_new(new)
    if not isinstance(new.vectors, Mapping):
        raise ValueError(f"vectors: expected a mapping from space to vector, got {type(new.vectors).__name__}")
    of = {name: need_space(known, name) for name in new.vectors}
    return new, {of[name][0]: pack(check_vector(v, of[name][1])) for name, v in new.vectors.items()}


def keys(conn: Connection, news: Sequence[New]) -> dict[tuple[str, str], Held]:
    """What is held under the keys of `news`, forgotten items included, by (namespace, key)."""
    found: dict[tuple[str, str], Held] = {}
    for namespace in {new.namespace or "" for new in news}:
        for piece in chunks([new.key for new in news if new.namespace == namespace]):
            given = {f"key{n}": key for n, key in enumerate(piece)}
            for key, died, ident, *about in _under(len(piece))(conn, namespace=namespace, **given):
                found[namespace, key] = Held(ident if died is None else None, *about)
    return found


@lru_cache(64)
def _under(many: int) -> Prepared:
    c = item.c
    keys = c.key.in_([bindparam(f"key{n}") for n in range(many)])
    held = select(c.key, c.died, c.id, c.seq, c.content_hash, c.level, c.version, c.root)
    return Prepared(held.where(c.namespace == bindparam("namespace"), keys).order_by(c.version))


def _same(engine: Engine, change: Transaction, there: Held, new: New) -> None:
    """An item that is put again. A forgotten one comes back; another text under the same key is a mistake."""
    if there.content_hash != content_hash(new.text) or there.level != new.level:
        raise ValueError(f"key: {new.key!r} already holds another text or level (item {there.id}); use supersede")
    if there.root != new.root:
        raise ValueError(_moved(new.key or "", there.root))
    if change.conn.execute(select(hidden.c.seq).where(hidden.c.seq == there.seq, hidden.c.died.is_(None))).first():
        assert there.id is not None
        unhide(engine, change, [(there.seq, get_items(change.conn, [there.id], any_state=True)[there.id])])


def _moved(key: str, root: str) -> str:
    return f"root: {key!r} stands in the subtree {root!r}; an item does not move to another"


def _missing_vectors(conn: Connection, there: Held, blobs: Mapping[int, bytes]) -> dict[int, bytes]:
    """The vectors an item has not got yet. Another vector in a space it has one in is a mistake, but for rounding."""
    if not blobs or not there.seq:
        return {}
    has = {r.space: r.blob for r in conn.execute(select(vector).where(vector.c.seq == there.seq))}
    for number in set(has) & set(blobs):
        old, new = unpack([has[number]], len(has[number]) // 4), unpack([blobs[number]], len(has[number]) // 4)
        if not torch.allclose(old, new, rtol=1e-3, atol=1e-4):
            raise ValueError(f"vectors: item {there.id} already has another vector in this space; use supersede")
    return {number: blob for number, blob in blobs.items() if number not in has}


def _vector_row(seq: int, space: int, generation: int, blob: bytes) -> dict[str, Any]:
    return dict(seq=seq, space=space, born=generation, blob=blob, checksum=zlib.crc32(blob))


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def tie(
    change: Transaction, src: tuple[str, int], dst: tuple[str, int], type: str, weight: float = 1.0, evidence: str = ""
) -> None:
    """A link that is not there yet; ends are (id, level)."""
    ends = dict(src=src[0], src_level=src[1], dst=dst[0], dst_level=dst[1])
    about = dict(type=type, weight=weight, evidence=evidence, recorded_at=change.now, born=change.generation)
    change.conn.execute(insert(link).values(**ends, **about))


def cut(change: Transaction, where: sa.ColumnElement[bool]) -> int:
    """Close the current links that meet `where`; how many."""
    closing = update(link).where(where, link.c.died.is_(None))
    return change.conn.execute(closing.values(died=change.generation, superseded_at=change.now)).rowcount
