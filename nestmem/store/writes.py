"""Writing items: put, supersede, forget, remember, erase. Each is one transaction; each checks everything first."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
import torch
from sqlalchemy import Connection, and_, bindparam, delete, insert, or_, select, update

from nestmem.store.engine import Engine, Transaction, chunks, seqs_of
from nestmem.store.errors import StoreError
from nestmem.store.model import (
    AUTO,
    TEXT_LIMIT,
    Item,
    New,
    Space,
    check_new,
    check_number,
    check_text,
    content_hash,
    dumps,
    make_id,
)
from nestmem.store.prepared import Prepared
from nestmem.store.rows import (
    COLUMNS,
    LASTING,
    check_vector,
    checksum,
    get_items,
    need_items,
    need_space,
    pack,
    spaces,
    to_item,
    unpack,
)
from nestmem.store.schema import dynamics, hidden, hyperedge, item, link, member, vector


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
        ident = ids[place] if ids else _new_id(change, new, version)
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


def _new_id(change: Transaction, new: New, version: int) -> str:
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
        _unhide(engine, change, [(there.seq, get_items(change.conn, [there.id], any_state=True)[there.id])])


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


def supersede(engine: Engine, change: Transaction, ident: str, new: New, *, to: str | None = None) -> str:
    """Close an item and open its next version under the same key, in its place in the tree. Returns the new id.

    With `event_from` the world changed then, and the old version stays true before it; without, the old one was a
    mistake.
    """
    conn = change.conn
    if to is None and (done := _already(conn, ident, new)) is not None:
        return done
    old = need_items(conn, [ident], "id")[ident]
    known = spaces(conn)
    fields: dict[str, Any] = dict(key=old.key, namespace=old.namespace, root=old.root, level=old.level)
    for name, value in fields.items():
        if getattr(new, name) not in (None, value, New.__dataclass_fields__[name].default):
            raise ValueError(f"{name}: a new version keeps the old one's ({value!r}), got {getattr(new, name)!r}")
    fields["kind"] = new.kind or old.kind
    if old.level != 0 and not new.parents and not new.prior:
        fields["parents"] = _grounds_now(change, ident)
        fields["prior"] = not fields["parents"]
    new, blobs = prepare(replace(new, **fields), known)
    since = check_number("event_from", new.event_from) if new.event_from is not None else None
    begin = old.event_from if old.event_from is not None else old.recorded_at
    if since is not None and since < begin:
        raise ValueError(f"event_from: expected at least {begin:g}, where the old version begins, got {since:g}")
    retire(engine, change, [old], closed=since)
    made = to or _new_id(change, new, old.version + 1)
    add(engine, change, [Row(new, made, old.version + 1, blobs)])
    tie(change, (made, old.level), (old.id, old.level), "supersedes")
    moving = and_(link.c.type == "contains", link.c.died.is_(None), or_(link.c.src == old.id, link.c.dst == old.id))
    for row in conn.execute(select(link).where(moving)).all():
        cut(change, link.c.seq == row.seq)
        src = (made, old.level) if row.src == old.id else (row.src, row.src_level)
        dst = (made, old.level) if row.dst == old.id else (row.dst, row.dst_level)
        tie(change, src, dst, "contains", row.weight, row.evidence)
    return made


def _already(conn: Connection, ident: str, new: New) -> str | None:
    """The current item that has replaced `ident` with this very text: the same call was made before."""
    after = (
        select(item.c.id).join(link, link.c.src == item.c.id).where(link.c.dst == ident, link.c.type == "supersedes")
    )
    same = item.c.content_hash == content_hash(check_text("text", new.text, TEXT_LIMIT, empty=False))
    return conn.execute(after.where(same, item.c.died.is_(None))).scalar()


def retire(engine: Engine, change: Transaction, items: Sequence[Item], *, closed: float | None = None) -> None:
    """Close the rows of current items: they become history."""
    seqs = seqs_of(change.conn, [i.id for i in items])
    values = dict(died=change.generation, superseded_at=change.now, ended="superseded", event_closed=closed)
    for piece in chunks(list(seqs.values())):
        change.conn.execute(update(item).where(item.c.seq.in_(piece)).values(**values))
    engine.unindex_words(change.conn, [(seqs[i.id], i.text) for i in items])
    change.changed(seqs)


def cut(change: Transaction, where: sa.ColumnElement[bool]) -> int:
    """Close the current links that meet `where`; how many."""
    closing = update(link).where(where, link.c.died.is_(None))
    return change.conn.execute(closing.values(died=change.generation, superseded_at=change.now)).rowcount


def _grounds_now(change: Transaction, ident: str) -> list[str]:
    """The current versions of what an item was derived from."""
    made_from = select(link.c.dst).where(link.c.src == ident, link.c.type == "derived_from")
    before = change.conn.execute(made_from).scalars().all()
    then, now = item.alias("then"), item.alias("now")
    same = and_(now.c.namespace == then.c.namespace, now.c.key == then.c.key, now.c.died.is_(None))
    found: dict[str, Item] = {}
    for conn in change.everywhere:
        query = select(now.c.id).join(then, same).where(then.c.id.in_(before))
        found |= get_items(conn, conn.execute(query).scalars().all())
    return sorted(found)


def forget(engine: Engine, change: Transaction, ids: Sequence[str], reason: str = "asked") -> None:
    """Hide items from every reading of the present; `remember` undoes it. Forgetting twice is the same as once."""
    there = get_items(change.conn, ids, any_state=True)
    if missing := [i for i in ids if i not in there or there[i].died is not None]:
        raise StoreError(f"ids: no current item {missing[0]!r}")
    now = get_items(change.conn, ids)
    seqs = seqs_of(change.conn, list(now))
    if now:
        rows = [dict(seq=s, born=change.generation, reason=reason, recorded_at=change.now) for s in seqs.values()]
        change.conn.execute(insert(hidden), rows)
        engine.unindex_words(change.conn, [(seqs[i.id], i.text) for i in now.values()])
        change.changed(now)


def remember(engine: Engine, change: Transaction, ids: Sequence[str]) -> None:
    """Show forgotten items again."""
    there = get_items(change.conn, ids, any_state=True)
    if missing := [i for i in ids if i not in there or there[i].died is not None]:
        raise StoreError(f"ids: no current item {missing[0]!r}; what is superseded or erased does not come back")
    now = get_items(change.conn, ids)
    back = [i for i in dict.fromkeys(ids) if i not in now]
    seqs = seqs_of(change.conn, back)
    _unhide(engine, change, [(seqs[i], there[i]) for i in back])


def _unhide(engine: Engine, change: Transaction, rows: Sequence[tuple[int, Item]]) -> None:
    for seq, each in rows:
        change.conn.execute(
            update(hidden).where(hidden.c.seq == seq, hidden.c.died.is_(None)).values(died=change.generation)
        )
        change.changed([each.id])
    engine.index_words(change.conn, [(seq, each.text) for seq, each in rows])


def rests_on(conn: Connection, ids: Sequence[str]) -> set[str]:
    """Ids here of the items in `ids` (which may lie on other shards), of all their versions, and of everything that
    rests on them; but not what is erased already.
    """
    found: set[str] = set()
    front = list(ids)
    while front:
        family = dict(get_items(conn, front, any_state=True))
        for each in list(family.values()):
            where = and_(
                item.c.namespace == each.namespace, item.c.key == each.key, item.c.ended.is_distinct_from("erased")
            )
            family |= {row.id: to_item(row) for row in conn.execute(select(*COLUMNS).where(where))}
        found |= {i for i, v in family.items() if v.ended != "erased"}
        derived: set[str] = set()
        for piece in chunks(sorted({*front, *family})):
            where = and_(link.c.dst.in_(piece), link.c.type == "derived_from")
            derived |= set(conn.execute(select(link.c.src).where(where)).scalars())
        front = [i for i, v in get_items(conn, sorted(derived - found), any_state=True).items() if v.ended != "erased"]
    return found


def erase(engine: Engine, change: Transaction, ids: Sequence[str]) -> None:
    """Empty the rows of items that lie here, and cut every tie that names one of `ids`, wherever that lies."""
    conn = change.conn
    doomed = {i: each for i, each in get_items(conn, ids, any_state=True).items() if each.ended != "erased"}
    seqs = seqs_of(conn, list(doomed))
    indexed = engine.indexed(conn)
    engine.unindex_words(conn, [(seqs[i], v.text) for i, v in doomed.items() if seqs[i] in indexed])
    for ident, each in doomed.items():
        empty: dict[str, Any] = dict(
            text="", digest=None, key=f"erased:{ident}", content_hash=content_hash(""), source="", start=None,
            stop=None, source_hash="", writer="", run="", call_path="", event_from=None, event_to=None, ended="erased",
            died=each.died or change.generation, superseded_at=each.superseded_at or change.now, event_closed=None,
        )  # fmt: skip
        row = {**each.__dict__, **empty}
        row |= {name: int(row[name]) for name in ("pinned", "prior", "taint")}
        conn.execute(update(item).where(item.c.seq == seqs[ident]).values(**empty, checksum=checksum(row)))
    edges: set[str] = set()
    for piece in chunks(list(ids)):
        conn.execute(delete(link).where(or_(link.c.src.in_(piece), link.c.dst.in_(piece))))
        edges |= set(conn.execute(select(member.c.edge).where(member.c.item.in_(piece))).scalars())
        edges |= set(conn.execute(select(hyperedge.c.id).where(hyperedge.c.description.in_(piece))).scalars())
    for piece in chunks(sorted(edges)):
        conn.execute(delete(member).where(member.c.edge.in_(piece)))
        conn.execute(delete(hyperedge).where(hyperedge.c.id.in_(piece)))
    for piece in chunks(list(seqs.values())):
        for table in (vector, dynamics, hidden):
            conn.execute(delete(table).where(table.c.seq.in_(piece)))
    change.changed(doomed)
