"""What must hold in a store, checked against every row; and repair, which rebuilds what can be derived and never
touches the rest.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, func, or_, select

from nestmem.store.engine import Engine, chain, count, last_commit
from nestmem.store.model import content_hash
from nestmem.store.rows import checksum, visible
from nestmem.store.schema import dynamics, hidden, hyperedge, item, job, journal, link, member, snapshot, space, vector
from nestmem.store.shards import Shards

TALLY = (item, vector, link, hyperedge, hidden, dynamics, snapshot, job)


class Report(NamedTuple):
    """Problems in one sentence each (none: `clean`), and how many rows were looked at."""

    problems: tuple[str, ...]
    rows: int

    @property
    def clean(self) -> bool:
        return not self.problems


def verify(shards: Shards) -> Report:
    """Look at everything; change nothing."""
    with shards.read() as sources:
        problems = [f"database: {wrong}" for s in sources for wrong in s.engine.check(s.conn)]
        if problems:  # nothing read from a damaged file means anything
            return Report(tuple(problems), 0)
        conns = [source.conn for source in sources]
        rows = sum(count(conn, table) for conn in conns for table in (*TALLY, journal, space, member))
        for source in sources:
            for check in (_journal, _items, _vectors, _words, _erased, _counters):
                problems += _read(check, source.conn, source.engine)
        for across in (_ties, _grounds, _places):
            problems += _read(across, conns, shards)
    return Report(tuple(problems), rows)


def _read(check: Callable[..., list[str]], *where: object) -> list[str]:
    """What a check finds. In a damaged file a column may hold what it never should: bytes for text, a text for a number."""
    try:
        return check(*where)
    except (TypeError, ValueError, AttributeError) as error:
        return [f"{check.__name__.strip('_')}: a row is not of its kind ({error})"]


def repair(shards: Shards) -> list[str]:
    """Rebuild the word index where it is not what the items say. What else there is to say."""
    done = []
    for engine in shards.engines:
        with engine.read() as conn:
            wrong = _words(conn, engine)
        if wrong:
            with engine.exclusive(), engine.sentences(), engine.connection(write=True) as conn, conn.begin():
                rows = conn.execute(select(item.c.seq, item.c.text).where(visible(None)).order_by(item.c.seq))
                engine.rebuild_words(conn, [(r.seq, r.text) for r in rows])
            done.append("word index rebuilt")
    return done


def _journal(conn: Connection, engine: Engine) -> list[str]:
    before = ""  # a shard has not all generations; that none was taken out shows in the chain
    for row in conn.execute(select(journal).order_by(journal.c.generation)):
        if row.hash != chain(before, row.generation, row.op, row.actor, row.ids, row.recorded_at, row.payload):
            return [f"journal: generation {row.generation} is not what its hash says"]
        before = row.hash
    return []


def _items(conn: Connection, engine: Engine) -> list[str]:
    newest, problems = last_commit(conn)[0], []
    for row in conn.execute(select(item)):
        values: dict[str, Any] = dict(row._mapping)  # noqa: SLF001
        if checksum(values) != row.checksum:
            problems.append(f"item {row.id}: a column changed that never should (checksum)")
        elif content_hash(row.text) != row.content_hash:
            problems.append(f"item {row.id}: the text is not the one that was put (hash)")
        if row.born > newest or (row.died or 0) > newest:
            problems.append(f"item {row.id}: it belongs to a generation that is not in the journal")
    return problems


def _vectors(conn: Connection, engine: Engine) -> list[str]:
    problems = []
    query = select(vector, space.c.dim, item.c.id).join(space, space.c.seq == vector.c.space)
    for row in conn.execute(query.join(item, item.c.seq == vector.c.seq)):
        if len(row.blob) != 4 * row.dim or zlib.crc32(row.blob) != row.checksum:
            problems.append(f"vector of item {row.id}: not what was put (checksum)")
    return problems


def _words(conn: Connection, engine: Engine) -> list[str]:
    there, due = engine.indexed(conn), set(conn.execute(select(item.c.seq).where(visible(None))).scalars())
    if there == due:
        return []
    return [f"word index: {len(due - there)} items are missing and {len(there - due)} are too many; run repair"]


def _ties(conns: Sequence[Connection], shards: Shards) -> list[str]:
    """Both ends exist, levels are theirs, new supersedes old; a relation has two members or more."""
    problems = []
    columns = select(item.c.id, item.c.level, item.c.born, item.c.seq)
    ends = {r.id: (r.level, (r.born, r.seq)) for conn in conns for r in conn.execute(columns)}
    for row in (row for conn in conns for row in conn.execute(select(link))):
        src, dst = ends.get(row.src), ends.get(row.dst)
        if src is None or dst is None:
            problems.append(f"link {row.src} {row.type} {row.dst}: an end is missing")
        elif (src[0], dst[0]) != (row.src_level, row.dst_level):
            problems.append(f"link {row.src} {row.type} {row.dst}: the levels are not those of its ends")
        elif row.type in ("supersedes", "derived_from") and src[1] <= dst[1]:
            problems.append(f"link {row.src} {row.type} {row.dst}: it points at something later")
    members = func.count(member.c.item)
    few = (
        select(hyperedge.c.id)
        .outerjoin(member, member.c.edge == hyperedge.c.id)
        .group_by(hyperedge.c.id)
        .having(members < 2)
    )
    lonely = [ident for conn in conns for ident in conn.execute(few).scalars()]
    return problems + [f"hyperedge {ident}: fewer than two members" for ident in lonely]


def _grounds(conns: Sequence[Connection], shards: Shards) -> list[str]:
    """Every derived item reaches a verbatim one, unless it was declared to come from outside."""
    below: dict[str, list[str]] = {}
    ties = select(link.c.src, link.c.dst).where(link.c.type == "derived_from")
    for tie in (tie for conn in conns for tie in conn.execute(ties)):
        below.setdefault(tie.src, []).append(tie.dst)
    columns = select(item.c.id, item.c.level, item.c.prior, item.c.ended, item.c.born).order_by(item.c.seq)
    rows = sorted((row for conn in conns for row in conn.execute(columns)), key=lambda row: row.born)
    grounded = {r.id for r in rows if r.level == 0 or r.prior}
    problems = []
    for row in rows:  # what an item is derived from stands before it
        if row.id not in grounded:
            if any(d in grounded for d in below.get(row.id, ())):
                grounded.add(row.id)
            elif row.ended != "erased":
                problems.append(f"item {row.id}: derived (level {row.level}), but it rests on no verbatim item")
    return problems


def _places(conns: Sequence[Connection], shards: Shards) -> list[str]:
    """Every subtree lies on its shard, and a key has one current version on all of them."""
    problems = []
    held: dict[tuple[str, str], int] = {}
    for n, conn in enumerate(conns if len(conns) > 1 else ()):
        for row in conn.execute(select(item.c.namespace, item.c.root).distinct()):
            if shards.place(row.namespace, row.root) != n:
                problems.append(f"subtree {row.namespace}/{row.root}: on the wrong shard")
        for row in conn.execute(select(item.c.namespace, item.c.key).where(item.c.died.is_(None))):
            if held.setdefault((row.namespace, row.key), n) != n:
                problems.append(f"key {row.key!r}: current on two shards")
    return problems


def _erased(conn: Connection, engine: Engine) -> list[str]:
    gone = select(item.c.seq).where(item.c.ended == "erased")
    problems = []
    full = and_(item.c.ended == "erased", or_(item.c.text != "", item.c.digest.is_not(None), item.c.source != ""))
    if count(conn, item, full):
        problems.append("erased items: some still have content")
    for table in (vector, dynamics, hidden):
        if count(conn, table, table.c.seq.in_(gone)):
            problems.append(f"erased items: some still have rows in {table.name}")
    return problems


def _counters(conn: Connection, engine: Engine) -> list[str]:
    wrong = count(conn, dynamics, or_(dynamics.c.useful > dynamics.c.retrievals, dynamics.c.strength < 1))
    return [f"dynamics: {wrong} rows with impossible counters"] if wrong else []
