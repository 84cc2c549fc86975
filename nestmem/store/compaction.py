"""Compaction: let go of the past below a horizon, so that a store that is written to for years does not grow for ever.

What was superseded or forgotten before the horizon is removed, with its vectors, counters and ties, unless something that
stays was made of it: evidence is never lost. The journal stays whole, so the chain of hashes does; a generation below the
horizon can no longer be read. What is visible now, and what anybody may still `remember`, is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, delete, insert, or_, select

from nestmem.store.engine import Transaction, chunks
from nestmem.store.schema import dynamics, hidden, hyperedge, item, link, member, meta, vector

NAME = "horizon"


def horizon(conn: Connection) -> int:
    """The oldest generation that can be read."""
    noted = conn.execute(select(meta.c.value).where(meta.c.name == NAME)).scalar()
    return 0 if noted is None else int(noted)


def note(conn: Connection, generation: int) -> None:
    conn.execute(delete(meta).where(meta.c.name == NAME))
    if generation:
        conn.execute(insert(meta).values(name=NAME, value=str(generation)))


def leaving(conns: Sequence[Connection], before: int) -> set[str]:
    """Ids of items, on all shards, that nobody sees from generation `before` on and nothing that stays was made of."""
    gone: set[str] = set()
    veiled = select(hidden.c.seq).where(hidden.c.died.is_(None), hidden.c.born <= before)
    for conn in conns:
        gone |= set(conn.execute(select(item.c.id).where(or_(item.c.died <= before, item.c.seq.in_(veiled)))).scalars())
    above: dict[str, set[str]] = {}  # what each was made into
    for conn in conns:
        for row in conn.execute(select(link.c.src, link.c.dst).where(link.c.type == "derived_from")):
            if row.dst in gone:
                above.setdefault(row.dst, set()).add(row.src)
    while held := {ident for ident in gone if above.get(ident, set()) - gone}:
        gone -= held
    return gone


def remove(change: Transaction, ids: Sequence[str], before: int) -> None:
    """Remove the rows of items that lie here, every tie to any of `ids`, and ties that were closed before the horizon."""
    conn = change.conn
    edges: set[str] = set(conn.execute(select(hyperedge.c.id).where(hyperedge.c.died <= before)).scalars())
    seqs: list[int] = []
    for piece in chunks(ids):
        conn.execute(delete(link).where(or_(link.c.src.in_(piece), link.c.dst.in_(piece))))
        edges |= set(conn.execute(select(member.c.edge).where(member.c.item.in_(piece))).scalars())
        edges |= set(conn.execute(select(hyperedge.c.id).where(hyperedge.c.description.in_(piece))).scalars())
        rows = conn.execute(select(item.c.seq, item.c.id).where(item.c.id.in_(piece))).all()
        seqs += [row.seq for row in rows]
        change.changed(row.id for row in rows)
    old = sa.and_(link.c.died <= before, link.c.type != "supersedes")
    conn.execute(delete(link).where(old))
    for piece in chunks(sorted(edges)):
        conn.execute(delete(member).where(member.c.edge.in_(piece)))
        conn.execute(delete(hyperedge).where(hyperedge.c.id.in_(piece)))
    for piece in chunks(seqs):
        for table in (vector, dynamics, hidden, item):
            conn.execute(delete(table).where(table.c.seq.in_(piece)))
    conn.execute(delete(hidden).where(hidden.c.died <= before))
