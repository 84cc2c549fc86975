"""Consolidation: make what a policy says should exist, one subtree at a time, each in one transaction.

The policy reads the items of a subtree as of one generation, outside any lock. The transaction then checks that they
are still the same, publishes the new items with their links and retires the policy's old ones; otherwise it computes
again. Ids are made from the members, and what was seen is noted with what was made of it: a run after a crash finds
its own work and does the rest; a second run does nothing, and asks no policy to think again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, insert, select
from torch import Tensor

from nestmem.store.engine import Engine, Transaction, last_commit
from nestmem.store.model import Item, New, dumps, make_id
from nestmem.store.policies import Derived, Policy
from nestmem.store.rows import COLUMNS, IN_TIME, need_space, spaces, to_item, unpack, visible
from nestmem.store.schema import item, job, link, vector
from nestmem.store.shards import Shards
from nestmem.store.versions import retire
from nestmem.store.writes import Row, add, cut, keys, prepare, tie

TRIES = 3


class Consolidated(NamedTuple):
    """Ids made, ids that were right already, ids retired, and the subtrees that changed (or would, in a dry run)."""

    created: tuple[str, ...]
    kept: tuple[str, ...]
    retired: tuple[str, ...]
    roots: tuple[str, ...]
    generation: int


@dataclass
class Plan:
    """What one subtree needs. settled: its items are those of last time. job: where that is noted, and what to note."""

    root: str
    inputs: tuple[str, ...]
    job: dict[str, Any]
    settled: bool
    make: list[tuple[Row, Derived]]
    members: dict[str, tuple[str, ...]]
    kept: list[str]
    retire: list[Item]


def consolidate(
    shards: Shards, policy: Policy, namespace: str, roots: Sequence[str] | None, *, dry_run: bool
) -> Consolidated:
    """Bring every subtree (or the named ones) to what the policy says, except those whose items are as they were."""
    with shards.read() as sources:
        every: dict[str, int] = {}
        for n, source in enumerate(sources):
            need_space(spaces(source.conn), policy.space)
            for about in (item.c.level == policy.source, item.c.writer == _writer(policy)):
                there = select(item.c.root).where(item.c.namespace == namespace, about, visible(None)).distinct()
                every |= dict.fromkeys(source.conn.execute(there).scalars(), n)
        generation = max(last_commit(source.conn)[0] for source in sources)
    done: list[Plan] = []
    for root in sorted(r for r in every if roots is None or r in roots):
        n = every[root]
        engine, plan = shards.engines[n], None
        for _ in range(TRIES):
            with engine.read() as conn:
                plan = make_plan(conn, policy, namespace, root)
            if dry_run or plan.settled:
                break
            with shards.write("consolidate", [n]) as writing:
                change = writing.changes[n]
                same = inputs(change.conn, policy, namespace, root)[0] == plan.inputs
                if same:
                    publish(engine, change, policy, plan)
            if same:
                generation = writing.generation
                break
        else:  # somebody writes faster than the policy thinks: think under the lock
            with shards.write("consolidate", [n]) as writing:
                plan = make_plan(writing.changes[n].conn, policy, namespace, root)
                publish(engine, writing.changes[n], policy, plan)
            generation = writing.generation
        done.append(plan)
    return Consolidated(
        created=tuple(row.id for plan in done for row, _ in plan.make),
        kept=tuple(ident for plan in done for ident in plan.kept),
        retired=tuple(old.id for plan in done for old in plan.retire),
        roots=tuple(plan.root for plan in done if plan.make or plan.retire),
        generation=generation,
    )


def _writer(policy: Policy) -> str:
    return f"consolidate:{policy.name}"


def inputs(conn: Connection, policy: Policy, namespace: str, root: str) -> tuple[tuple[str, ...], list[Item], Tensor]:
    """What the policy reads: ids, items and vectors [N, D], in order of time."""
    row, of = need_space(spaces(conn), policy.space)
    wanted = and_(item.c.namespace == namespace, item.c.root == root, item.c.level == policy.source, visible(None))
    query = (
        select(*COLUMNS, vector.c.blob).join(vector, vector.c.seq == item.c.seq).where(vector.c.space == row, wanted)
    )
    rows = conn.execute(query.order_by(*IN_TIME)).all()
    items = [to_item(r) for r in rows]
    return tuple(i.id for i in items), items, unpack([r.blob for r in rows], of.dim)


def make_plan(conn: Connection, policy: Policy, namespace: str, root: str) -> Plan:
    ids, items, vectors = inputs(conn, policy, namespace, root)
    config = hashlib.sha256(dumps(policy.config()).encode()).hexdigest()[:16]
    mine = and_(item.c.namespace == namespace, item.c.root == root, item.c.writer == _writer(policy), visible(None))
    old = [to_item(r) for r in conn.execute(select(*COLUMNS).where(mine).order_by(item.c.seq))]
    seen = hashlib.sha256(dumps([config, ids]).encode()).hexdigest()
    note = dict(id=make_id(0, "job", policy.name, namespace, root), kind=policy.name, inputs=seen)
    plan = Plan(root, ids, note, False, [], {}, [], [])
    if conn.execute(select(job.c.inputs).where(job.c.id == note["id"])).scalar() == seen:
        plan.settled, plan.kept = True, [i.id for i in old]
        return plan
    wanted = policy.derive(items, vectors) if items else []
    news: list[New] = []
    for each in wanted:
        members = [items[m] for m in each.members]
        made_of = hashlib.sha256(dumps([config, each.level, [m.id for m in members]]).encode()).hexdigest()[:32]
        digest = each.digest
        new = New(
            "unsaid", key=f"{policy.name}:{made_of}", level=each.level, kind=each.kind, namespace=namespace, root=root,
            vectors={policy.space: each.vector} if bool(each.vector.any()) else {}, parents=[m.id for m in members],
            digest=digest, event_from=digest.get("from"), event_to=digest.get("to"), writer=_writer(policy),
            importance=max(m.importance for m in members), confidence=min(m.confidence for m in members),
            trust=min(m.trust for m in members),
        )  # fmt: skip
        news.append(new)
    held = keys(conn, news)
    known = spaces(conn)
    for new, each in zip(news, wanted):
        there = held.get((namespace, new.key or ""))
        if there is not None and there.id is not None:
            plan.kept.append(there.id)  # forgotten ones too: what a person forgot is not made again
            continue
        version = 1 + (there.version if there else 0)
        members = [items[m] for m in each.members]
        text = policy.describe(members, vectors[list(each.members)])  # only now: it may be dear
        complete, blobs = prepare(replace(new, text=text), known)
        newest = max(m.recorded_at for m in members)
        plan.make.append(
            (Row(complete, make_id(int(newest * 1000), new.key, namespace, version), version, blobs), each)
        )
    plan.retire = [i for i in old if i.id not in set(plan.kept)]
    for each_old in plan.retire:
        made_from = select(link.c.dst).where(link.c.src == each_old.id, link.c.type == "derived_from")
        plan.members[each_old.id] = tuple(conn.execute(made_from).scalars())
    return plan


def publish(engine: Engine, change: Transaction, policy: Policy, plan: Plan) -> None:
    """Retire the old, write the new, tie them: new over its members, new over what it replaces. Note what was seen."""
    change.conn.execute(delete(job).where(job.c.id == plan.job["id"]))
    change.conn.execute(insert(job).values(**plan.job, generation=change.generation))
    if plan.retire:
        retire(engine, change, plan.retire)
        for old in plan.retire:
            cut(change, and_(link.c.src == old.id, link.c.type == "contains"))
            cut(change, and_(link.c.dst == old.id, link.c.type == "contains"))
    add(engine, change, [row for row, _ in plan.make])
    for row, made in plan.make:
        if made.contains:
            for member in row.new.parents:
                inside = select(link.c.seq).where(
                    link.c.dst == member, link.c.type == "contains", link.c.died.is_(None)
                )
                if change.conn.execute(inside).first() is None:  # a place given by hand stays
                    tie(change, (row.id, row.new.level), (member, policy.source), "contains")
    for old in plan.retire:
        heirs = [
            row
            for row, _ in plan.make
            if set(row.new.parents) & set(plan.members[old.id]) and row.new.level >= old.level
        ]
        for row in heirs[:1]:
            tie(change, (row.id, row.new.level), (old.id, old.level), "supersedes")
