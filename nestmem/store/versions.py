"""Versions of an item: `supersede` closes one and opens the next in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from nestmem.store.engine import Engine, Transaction, chunks, seqs_of
from nestmem.store.model import TEXT_LIMIT, Item, New, check_number, check_text, content_hash
from nestmem.store.rows import get_items, need_items, spaces
from nestmem.store.schema import item, link
from nestmem.store.writes import Row, add, cut, new_id, prepare, tie


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
    made = to or new_id(change, new, old.version + 1)
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
