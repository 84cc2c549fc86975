"""Use and decay: counting retrievals, strengthening what was useful, ageing by an injected clock, making room.

The rule is a `Retention`. A tick at an equal clock changes nothing. It deletes nothing either, unless a capacity is
given: then what is least worth keeping is forgotten (which `remember` undoes), never a pinned item, nor one on which
a derived item rests alone. Sessions (`session.py`) that nobody wrote to for long are forgotten as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, func, insert, select, update

from nestmem.store.engine import Engine, Transaction, chunks, seqs_of
from nestmem.store.model import PROC, WORK, Dynamics
from nestmem.store.removal import forget
from nestmem.store.retention import DAY, Retention, harmful, utility_bound
from nestmem.store.rows import get_dynamics, need_items, visible
from nestmem.store.schema import dynamics, item, link


class Tick(NamedTuple):
    """What a tick did: items by their state now, ids that changed state, ids forgotten: to make room, or with a session."""

    states: dict[str, int]
    moved: tuple[str, ...]
    forgotten: tuple[str, ...]
    generation: int


def touch(change: Transaction, ids: Sequence[str], useful: bool, policy: Retention) -> None:
    """Count a retrieval of each item; if it was useful, strengthen it by how much had faded."""
    items = need_items(change.conn, ids, "ids")
    seqs = seqs_of(change.conn, list(items))
    before = get_dynamics(change.conn, list(seqs.values()))
    for ident, seq in seqs.items():
        old = before.get(seq, Dynamics())
        new = old._replace(retrievals=old.retrievals + 1, last_access=max(change.now, old.last_access or change.now))
        if useful:
            since = items[ident].recorded_at if old.last_useful is None else old.last_useful
            left = policy.retention(change.now - since, items[ident].level, old.strength)
            strength = policy.strengthened(old.strength, left)
            new = new._replace(
                useful=old.useful + 1, strength=strength, last_useful=max(change.now, since), state="active"
            )
        _write(change, seq, new, seq in before)
    change.changed(seqs)


def _write(change: Transaction, seq: int, values: Dynamics, exists: bool) -> None:
    row: dict[str, Any] = values._asdict()
    if exists:
        change.conn.execute(update(dynamics).where(dynamics.c.seq == seq).values(**row))
    else:
        change.conn.execute(insert(dynamics).values(seq=seq, **row))


def decay_tick(
    shards: Sequence[tuple[Engine, Transaction]],
    namespace: str,
    policy: Retention,
    capacity: int | None,
    prune: bool = False,
) -> Tick:
    """Bring states up to `change.now`; with a capacity, forget down to it; with `prune`, experience that does harm."""
    columns = (item.c.seq, item.c.id, item.c.level, item.c.recorded_at, item.c.pinned)
    query = select(*columns).where(item.c.namespace == namespace, visible(None)).order_by(item.c.seq)
    worth: dict[str, float] = {}
    present: list[set[str]] = []
    states: dict[str, int] = {}
    moved: list[str] = []
    bad: list[str] = []
    for _, change in shards:
        rows = change.conn.execute(query).all()
        present.append({row.id for row in rows})
        uses = get_dynamics(change.conn, [row.seq for row in rows])
        before = len(moved)
        for row in rows:
            old = uses.get(row.seq, Dynamics())
            since = row.recorded_at if old.last_useful is None else old.last_useful
            left, state = policy.place(change.now - since, row.level, old.strength, old.state)
            if row.pinned:
                left, state = 1.0, "active"
            if not row.pinned:
                worth[row.id] = left * (1 + utility_bound(old.useful, old.retrievals))
            if row.level == PROC and harmful(old.useful, old.retrievals):
                bad.append(row.id)
            states[state] = states.get(state, 0) + 1
            if state != old.state:
                _write(change, row.seq, old._replace(state=state), row.seq in uses)
                moved.append(row.id)
        change.changed(moved[before:])
    out: list[str] = []
    every = set().union(*present)
    if prune:
        out += [ident for ident in bad if ident in worth]
    if capacity is not None and len(every) - len(out) > capacity:
        kept = {ident: value for ident, value in worth.items() if ident not in set(out)}
        out += _least([change for _, change in shards], kept, len(every) - len(out) - capacity, every - set(out))
    if out:
        for (engine, change), mine in zip(shards, present):
            forget(engine, change, [ident for ident in out if ident in mine], reason="capacity")
    return Tick(states, tuple(moved), (*out, *_end_sessions(shards, policy.work)), 0)


def _end_sessions(shards: Sequence[tuple[Engine, Transaction]], days: float) -> list[str]:
    """Forget the sessions whose last write is so many days ago. Ids of what was in them."""
    last: dict[str, float] = {}
    scratch = and_(func.substr(item.c.namespace, 1, len(WORK)) == WORK, visible(None))
    for _, change in shards:
        query = select(item.c.namespace, func.max(item.c.recorded_at)).where(scratch).group_by(item.c.namespace)
        for namespace, at in change.conn.execute(query):
            last[namespace] = max(at, last.get(namespace, at))
    out: list[str] = []
    for engine, change in shards:
        over = [namespace for namespace, at in last.items() if change.now - at >= days * DAY]
        gone = select(item.c.id).where(item.c.namespace.in_(over), visible(None)).order_by(item.c.seq)
        ids = list(change.conn.execute(gone).scalars()) if over else []
        forget(engine, change, ids, reason="time")
        out += ids
    return out


def _least(changes: Sequence[Transaction], worth: dict[str, float], many: int, present: set[str]) -> list[str]:
    """Up to `many` ids of least worth, such that everything derived that stays still rests on something that stays."""
    rests: dict[str, set[str]] = {}
    carries: dict[str, set[str]] = {}
    for piece in chunks(sorted(present)):
        where = and_(link.c.src.in_(piece), link.c.type == "derived_from", link.c.died.is_(None))
        for change in changes:
            for row in change.conn.execute(select(link.c.src, link.c.dst).where(where)):
                if row.dst in present:
                    rests.setdefault(row.src, set()).add(row.dst)
                    carries.setdefault(row.dst, set()).add(row.src)
    out: list[str] = []
    for ident in sorted(worth, key=lambda i: (worth[i], i)):
        if len(out) == many:
            break
        if any(rests[above] == {ident} for above in carries.get(ident, ())):
            continue
        for above in carries.get(ident, ()):
            rests[above].discard(ident)
        for below in rests.pop(ident, ()):
            carries[below].discard(ident)
        out.append(ident)
    return out
