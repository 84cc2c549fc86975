"""Links and hyperedges: typed, validated, closed instead of deleted."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import and_, insert, select, update

from nestmem.store.engine import Transaction, seqs_of
from nestmem.store.errors import StoreError
from nestmem.store.model import LINK_TYPES, check_number, check_one_of, check_text, make_id
from nestmem.store.rows import need_items
from nestmem.store.schema import hyperedge, link, member
from nestmem.store.writes import cut, tie


def add_link(change: Transaction, src: str, dst: str, type: str, weight: float, evidence: str) -> None:
    """Tie two current items. The same tie twice is one tie; another weight or evidence replaces it."""
    check_one_of("type", type, LINK_TYPES)
    check_number("weight", weight)
    check_text("evidence", evidence, 10_000)
    if src == dst:
        raise ValueError(f"dst: expected another item than src, got {dst!r} twice")
    ends = need_items(change.everywhere, [src, dst], "link")
    a, b = ends[src], ends[dst]
    if type == "supersedes":
        raise ValueError("type: supersedes is made by supersede() alone")
    if type == "derived_from":
        seqs = seqs_of(change.conn, [src, dst])
        if (a.born, seqs.get(src, 0)) < (b.born, seqs.get(dst, 0)):
            raise ValueError(f"dst: an item cannot be derived from a later one ({dst})")
    if type == "contains":
        if a.level <= b.level:
            raise ValueError(f"src: a parent lies above its child, got level {a.level} over level {b.level}")
        if (a.namespace, a.root) != (b.namespace, b.root):
            raise ValueError(
                f"src: a parent has its child's root, got {a.namespace}/{a.root} over {b.namespace}/{b.root}"
            )
        inside = select(link.c.src).where(link.c.dst == dst, link.c.type == "contains", link.c.died.is_(None))
        parent = change.conn.execute(inside).scalar()
        if parent not in (None, src):
            raise StoreError(f"dst: item {dst} is already inside {parent}; unlink it first")
    same = and_(link.c.src == src, link.c.dst == dst, link.c.type == type)
    before = change.conn.execute(select(link).where(same, link.c.died.is_(None))).first()
    if before is not None:
        if (before.weight, before.evidence) == (float(weight), evidence):
            return
        cut(change, same)
    tie(change, (src, a.level), (dst, b.level), type, float(weight), evidence)
    change.changed([src, dst])


def remove_link(change: Transaction, src: str, dst: str, type: str) -> None:
    """Close a tie; closing what is not there is nothing."""
    check_one_of("type", type, LINK_TYPES)
    if type in ("supersedes", "derived_from"):
        raise ValueError(f"type: {type} is history and stays")
    if cut(change, and_(link.c.src == src, link.c.dst == dst, link.c.type == type)):
        change.changed([src, dst])


def relate(change: Transaction, kind: str, members: Mapping[str, str], description: str | None) -> str:
    """A relation of two or more items, each with its role. The same relation twice is one."""
    check_text("kind", kind, empty=False)
    if not isinstance(members, Mapping) or len(members) < 2:
        raise ValueError("members: expected a mapping from at least two ids to roles")
    for role in members.values():
        check_text("role", role)
    there = need_items(change.everywhere, [*members, *([description] if description else [])], "members")
    if len(change.everywhere) > 1 and len({(i.namespace, i.root) for i in there.values()}) > 1:
        raise ValueError("members: on shards, a relation stays within one subtree (one namespace and root)")
    given = ("hyperedge", kind, sorted(members.items()), description)
    ident = make_id(0, *given)
    before = change.conn.execute(select(hyperedge.c.died).where(hyperedge.c.id == ident)).first()
    if before is not None and before.died is None:
        return ident
    if before is not None:  # closed once: this is another one
        ident = make_id(0, *given, change.generation)
    row = dict(id=ident, kind=kind, description=description, recorded_at=change.now, born=change.generation)
    change.conn.execute(insert(hyperedge).values(**row))
    change.conn.execute(insert(member), [dict(edge=ident, item=i, role=r) for i, r in members.items()])
    change.changed([ident])
    return ident


def unrelate(change: Transaction, ident: str) -> None:
    """Close a relation."""
    closing = update(hyperedge).where(hyperedge.c.id == ident, hyperedge.c.died.is_(None))
    if change.conn.execute(closing.values(died=change.generation, superseded_at=change.now)).rowcount:
        change.changed([ident])
