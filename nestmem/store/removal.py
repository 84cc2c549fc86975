"""Taking items away: forgetting hides them and can be undone, erasing empties them and everything that rests on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from nestmem.store.engine import Engine, Transaction, chunks, seqs_of
from nestmem.store.errors import StoreError
from nestmem.store.model import Item, content_hash
from nestmem.store.rows import COLUMNS, checksum, get_items, to_item
from nestmem.store.schema import dynamics, hidden, hyperedge, item, link, member, vector


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
    unhide(engine, change, [(seqs[i], there[i]) for i in back])


def unhide(engine: Engine, change: Transaction, rows: Sequence[tuple[int, Item]]) -> None:
    """Show items, given with their seqs, that are hidden."""
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
