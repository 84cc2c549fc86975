"""Reading a store as it is, or as it was at a generation: get, search, tree, evidence, links. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select
from torch import Tensor

from nestmem.store.channels import Scope
from nestmem.store.compaction import horizon
from nestmem.store.engine import chunks, last_commit, seqs_of
from nestmem.store.errors import StoreError
from nestmem.store.fusion import CalibratedSum, ReciprocalRank
from nestmem.store.model import (
    LINK_TYPES,
    Budget,
    Dynamics,
    Evidence,
    Found,
    Hyperedge,
    Item,
    Link,
    Space,
    check_number,
    check_one_of,
    check_text,
    content_hash,
)
from nestmem.store.retention import Retention
from nestmem.store.rows import (
    COLUMNS,
    Filter,
    alive,
    get_dynamics,
    get_items,
    in_time,
    need_items,
    need_space,
    spaces,
    to_item,
    unpack,
    visible,
)
from nestmem.store.schema import hyperedge, item, journal, link, member, vector
from nestmem.store.search import Question, search
from nestmem.store.shards import Shards


class Reader:
    """A store at one generation; `at` None: always the newest. Times are Unix seconds."""

    def __init__(self, shards: Shards, namespace: str, retention: Retention, at: int | None):
        self._shards, self._at = shards, at
        self.namespace, self.retention = namespace, retention

    @contextmanager
    def _read(self) -> Iterator[list[Connection]]:
        """A connection to each shard."""
        with self._shards.read() as sources:
            yield [source.conn for source in sources]

    @property
    def generation(self) -> int:
        """The number of the last commit seen."""
        if self._at is not None:
            return self._at
        with self._read() as conns:
            return newest(conns)

    def get(self, ident: str) -> Item:
        """An item by id; StoreError if it is not there (at this generation)."""
        with self._read() as conns:
            return need_items(conns, [ident], "id", self._at)[ident]

    def find(self, key: str, *, namespace: str | None = None) -> Item | None:
        """The current item under a key, or None."""
        check_text("key", key)
        where = and_(item.c.namespace == (namespace or self.namespace), item.c.key == key, visible(self._at))
        with self._read() as conns:
            return next(iter(_items(conns, where)), None)

    def history(self, key: str, *, namespace: str | None = None) -> list[Item]:
        """All versions under a key, oldest first, as known at this generation."""
        check_text("key", key)
        where = and_(item.c.namespace == (namespace or self.namespace), item.c.key == key)
        if self._at is not None:
            where = and_(where, item.c.born <= self._at)
        with self._read() as conns:
            return sorted(_items(conns, where), key=lambda i: i.version)

    def items(self, where: Filter | None = None, *, namespace: str | None = None) -> list[Item]:
        """All items that meet a filter, in the order they were recorded."""
        scope = Scope(namespace or self.namespace, self._at, (where or Filter()).check())
        with self._read() as conns:
            return sorted(_items(conns, scope.clause), key=lambda i: i.born)

    def vector(self, ident: str, space: str) -> Tensor:
        """An item's vector in a space, `[dim]`, as it was put."""
        with self._read() as conns:
            conn, seq = self._at_home(conns, ident)
            row, of = need_space(spaces(conn), space)
            blob = conn.execute(select(vector.c.blob).where(vector.c.seq == seq, vector.c.space == row)).scalar()
            if blob is None:
                raise StoreError(f"vector: item {ident} has none in space {space!r}")
            return unpack([blob], of.dim)[0]

    def vectors(
        self, space: str, *, where: Filter | None = None, namespace: str | None = None
    ) -> tuple[list[str], Tensor]:
        """The ids of the items that have a vector in a space and meet a filter, sorted, and the vectors `[N, dim]`."""
        scope = Scope(namespace or self.namespace, self._at, (where or Filter()).check())
        found: list[tuple[str, bytes]] = []
        with self._read() as conns:
            for conn in conns:
                row, of = need_space(spaces(conn), space)
                query = select(item.c.id, vector.c.blob).join(vector, vector.c.seq == item.c.seq)
                rows = conn.execute(query.where(vector.c.space == row, scope.clause))
                found += [(row.id, row.blob) for row in rows]
        found.sort()
        return [ident for ident, _ in found], unpack([blob for _, blob in found], of.dim)

    def stamp(self) -> str:
        """A hash of everything up to this generation: equal stamps, equal pasts."""
        last = select(journal.c.hash).where(journal.c.generation <= self.generation)
        last = last.order_by(journal.c.generation.desc()).limit(1)
        with self._read() as conns:
            return "".join(conn.execute(last).scalar() or "" for conn in conns)

    def spaces(self) -> dict[str, Space]:
        with self._read() as conns:
            return {name: of for name, (_, of) in spaces(conns[0]).items()}

    def namespaces(self) -> list[str]:
        with self._read() as conns:
            return sorted({n for conn in conns for n in conn.execute(select(item.c.namespace).distinct()).scalars()})

    def dynamics(self, ident: str) -> Dynamics:
        """What use has done to an item. Always of now: counters have no history."""
        with self._read() as conns:
            conn, seq = self._at_home(conns, ident)
            return get_dynamics(conn, [seq]).get(seq, Dynamics())

    def search(
        self,
        text: str | None = None,
        *,
        vector: Tensor | None = None,
        space: str | None = None,
        near: float | None = None,
        k: int = 10,
        where: Filter | None = None,
        namespace: str | None = None,
        budget: Budget | None = None,
        fusion: ReciprocalRank | CalibratedSum | None = None,
        decay: bool = False,
        distinct: bool = True,
        diversity: float = 0.0,
        explain: bool = False,
        also: Sequence[str] = (),
    ) -> Found:
        """The k best items by words (`text`), meaning (`vector` `[dim]` in `space`) and time (`near`), whichever are
        given.

        where: what is searched at all. decay: weigh by retention (what was useful lately comes first). distinct: fold
        items of the same text. diversity: 0 to 1, how much those that are alike give way to others (diversity.py).
        fusion: how scores come about (fusion.py). explain: ranks per channel and the path in the tree. also: further
        channels, any of "entities", "levels", "hopfield", "spreading" (associations.py). Equal scores are ordered by id.
        """
        summed = isinstance(fusion, CalibratedSum)  # decay is one of its terms
        ask = Question(
            scope=Scope(namespace or self.namespace, self._at, where or Filter()),
            text=text, vector=vector, space=space, near=near, k=k, budget=budget or Budget(),
            fusion=fusion or ReciprocalRank(), retention=self.retention if decay or summed else None, distinct=distinct,
            explain=explain, now=self._shards.clock(), also=tuple(also), diversity=diversity,
        )  # fmt: skip
        with self._shards.read() as sources:
            generation = newest([source.conn for source in sources]) if self._at is None else self._at
            return search(sources, ask, generation)

    # What ties items.

    def links(self, ident: str, type: str | None = None) -> list[Link]:
        """Links that begin or end at an item."""
        if type is not None:
            check_one_of("type", type, LINK_TYPES)
        with self._read() as conns:
            need_items(conns, [ident], "id", self._at)
            where = and_(or_(link.c.src == ident, link.c.dst == ident), alive(link, self._at))
            if type is not None:
                where = and_(where, link.c.type == type)
            query = select(link).where(where).order_by(link.c.seq)
            rows = sorted((row for conn in conns for row in conn.execute(query)), key=lambda row: row.born)
            return [Link(r.src, r.dst, r.type, r.weight, r.evidence, r.born, r.died) for r in rows]

    def children(self, ident: str) -> list[Item]:
        """What an item contains, in order of events, then of recording."""
        return self._across(ident, "contains", down=True)

    def parents(self, ident: str) -> list[Item]:
        """What contains an item: one item at most."""
        return self._across(ident, "contains", down=False)

    def roots(self, *, namespace: str | None = None) -> list[Item]:
        """Items that nothing visible contains."""
        above = select(item.c.id).where(visible(self._at)).correlate(None)
        inside = select(link.c.dst).where(link.c.type == "contains", alive(link, self._at), link.c.src.in_(above))
        where = and_(item.c.namespace == (namespace or self.namespace), visible(self._at), item.c.id.not_in(inside))
        with self._read() as conns:
            return sorted(_items(conns, where), key=in_time)

    def _across(self, ident: str, type: str, *, down: bool) -> list[Item]:
        near, far = (link.c.src, link.c.dst) if down else (link.c.dst, link.c.src)
        tied = select(far).where(near == ident, link.c.type == type, alive(link, self._at))
        with self._read() as conns:
            need_items(conns, [ident], "id", self._at)
            return sorted(_items(conns, and_(item.c.id.in_(tied), visible(self._at))), key=in_time)

    def hyperedges(self, ident: str) -> list[Hyperedge]:
        """The relations an item takes part in."""
        with self._read() as conns:
            conn, _ = self._at_home(conns, ident)
            mine = select(member.c.edge).where(member.c.item == ident)
            found = []
            for row in conn.execute(
                select(hyperedge).where(hyperedge.c.id.in_(mine), alive(hyperedge, self._at))
            ).all():
                roles = {m.item: m.role for m in conn.execute(select(member).where(member.c.edge == row.id))}
                found.append(Hyperedge(row.id, row.kind, roles, row.description, row.born, row.died))
            return found

    def evidence(self, ident: str) -> list[Evidence]:
        """The verbatim spans that an item rests on, itself if it is one; also those that were superseded since."""
        with self._read() as conns:
            start = need_items(conns, [ident], "id", self._at)[ident]
            seen: dict[str, Item] = {}
            front = [start]
            while front:
                seen |= {i.id: i for i in front}
                below: set[str] = set()
                above = [each.id for each in front if each.level != 0]
                for conn in conns:
                    for piece in chunks(above):
                        rests = select(link.c.dst).where(link.c.src.in_(piece), link.c.type == "derived_from")
                        below |= set(conn.execute(rests).scalars())
                wanted = sorted(below - set(seen))
                found = [i for conn in conns for i in get_items(conn, wanted, any_state=True).values()]
                front = [i for i in found if i.ended != "erased"]
            spans = sorted((i for i in seen.values() if i.level == 0), key=lambda i: (i.source, i.start or 0, i.id))
            return [
                Evidence(i.id, i.text, i.source, i.start, i.stop, content_hash(i.text) == i.content_hash) for i in spans
            ]

    # Other times.

    def as_of(self, *, generation: int | None = None, time: float | None = None) -> Reader:
        """The store as it was at a generation, or at a time by its clock."""
        if (generation is None) == (time is None):
            raise ValueError("as_of: expected either a generation or a time")
        with self._read() as conns:
            last, first = newest(conns), max(horizon(conn) for conn in conns)
            if time is not None:
                past = select(func.max(journal.c.generation)).where(journal.c.recorded_at <= check_number("time", time))
                generation = max(conn.execute(past).scalar() or 0 for conn in conns)
        if isinstance(generation, bool) or not isinstance(generation, int) or not first <= generation <= last:
            raise ValueError(f"generation: expected {first} to {last}, got {generation!r}")
        return Reader(self._shards, self.namespace, self.retention, generation)

    def journal(self, last: int = 20) -> list[dict[str, Any]]:
        """The last commits, newest first: generation, op, actor, how many items, when."""
        query = select(journal).order_by(journal.c.generation.desc()).limit(last)
        with self._read() as conns:
            rows = [dict(row._mapping) for conn in conns for row in conn.execute(query)]  # noqa: SLF001
        rows = sorted(rows, key=lambda row: -row["generation"])[:last]
        return [{n: v for n, v in row.items() if n != "hash"} for row in rows]

    def _at_home(self, conns: list[Connection], ident: str) -> tuple[Connection, int]:
        """The connection to the shard that an item lies on, and its row number there."""
        need_items(conns, [ident], "id", self._at)
        return next((conn, seq) for conn in conns for seq in seqs_of(conn, [ident]).values())


def newest(conns: Sequence[Connection]) -> int:
    """The last generation on any shard."""
    return max(last_commit(conn)[0] for conn in conns)


def _items(conns: Sequence[Connection], where: ColumnElement[bool]) -> list[Item]:
    """Items that meet `where`, each shard's in the order they were recorded."""
    query = select(*COLUMNS).where(where).order_by(item.c.seq)
    return [to_item(row) for conn in conns for row in conn.execute(query)]
