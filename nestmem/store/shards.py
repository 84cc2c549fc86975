"""Where a store lies: one database, or several that share the subtrees among them.

An item goes to the shard with the highest hash of (shard, namespace, root): rendezvous hashing (Thaler and
Ravishankar 1998). So a subtree, its vectors and its tree commit in one place; with one shard more, only the subtrees
that move to it move at all. Each shard knows its own name and those of the others, so their order, and the addresses
they have today, do not matter, and a missing one is noticed.

A write locks the shards it changes, in order, and reads the others. Its generation is one more than the newest on any
shard. It commits shard after shard: an error before the first commit undoes all; a crash between two commits leaves
the first, and the same call made again does the rest. Two writers on different shards may share a generation.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, insert, select

from nestmem.store import points
from nestmem.store.cache import VectorCache
from nestmem.store.engine import Engine, Transaction, chunks, last_commit
from nestmem.store.errors import StoreError
from nestmem.store.schema import item, meta


class Source(NamedTuple):
    """A shard that is being read."""

    engine: Engine
    cache: VectorCache
    conn: Connection


class Writing(NamedTuple):
    """An open write: the transaction on each shard that may change, by its place."""

    changes: dict[int, Transaction]

    @property
    def generation(self) -> int:
        return max(change.generation for change in self.changes.values())


class Shards:
    """`Shards([engine, ...])`. Everything a `Store` does passes through `read` and `write`."""

    names: tuple[str, ...]
    engines: tuple[Engine, ...]

    def __init__(self, engines: Sequence[Engine], index: str = ""):
        self.engines = tuple(engines)
        self.clock = engines[0].clock
        self.read_only = engines[0].read_only
        self.name = ", ".join(engine.name for engine in engines)
        named = zip(self._introduce(), engines)
        # Everybody has them in the same order, and locks them in it, so that no two writers wait for each other.
        self.names, self.engines = zip(*sorted(named, key=lambda pair: pair[0]))
        self.caches = tuple(VectorCache(engine.folder, index) for engine in self.engines)

    def __len__(self) -> int:
        return len(self.engines)

    def _introduce(self) -> tuple[str, ...]:
        """The lasting names of the shards; shards of a new store are given theirs."""
        noted = [self._noted(engine) for engine in self.engines]
        family = ",".join(sorted(name for name, _ in noted if name))
        if len(self) == 1:
            if noted[0][1] not in ("", noted[0][0]) and not self.read_only:
                many = noted[0][1].count(",") + 1
                raise StoreError(f"{self.name}: one of {many} shards; open them together, or this one read-only")
            return (noted[0][0],)
        if not any(names for _, names in noted) and not self.read_only:
            if any(self._generation(engine) for engine in self.engines):
                raise StoreError(f"{self.name}: a store by itself; export it and import it into new shards")
            made = [name or secrets.token_hex(8) for name, _ in noted]
            family = ",".join(sorted(made))
            for engine, name in zip(self.engines, made):
                with engine.exclusive(), engine.sentences(), engine.connection(write=True) as conn, conn.begin():
                    conn.execute(sa.delete(meta).where(meta.c.name.in_(["shard", "shards"])))
                    conn.execute(insert(meta), [dict(name="shard", value=name), dict(name="shards", value=family)])
            return tuple(made)
        for engine, (name, names) in zip(self.engines, noted):
            if names != family or not name:
                raise StoreError(f"{engine.name}: not of one store with the other {len(self) - 1} shards given")
        return tuple(name for name, _ in noted)

    def _noted(self, engine: Engine) -> tuple[str, str]:
        with engine.read() as conn:
            noted = dict(conn.execute(select(meta.c.name, meta.c.value)).tuples().all())
        return noted.get("shard", ""), noted.get("shards", "")

    def _generation(self, engine: Engine) -> int:
        with engine.read() as conn:
            return last_commit(conn)[0]

    def place(self, namespace: str, root: str) -> int:
        """The shard of a subtree."""
        if len(self) == 1:
            return 0
        return max(
            range(len(self)),
            key=lambda n: hashlib.sha256(f"{self.names[n]}\0{namespace}\0{root}".encode()).digest(),
        )

    @contextmanager
    def read(self) -> Iterator[list[Source]]:
        """All shards, each as of one generation."""
        with ExitStack() as stack:
            yield [Source(e, c, stack.enter_context(e.read())) for e, c in zip(self.engines, self.caches)]

    @contextmanager
    def write(self, op: str, places: Iterable[int] | None = None) -> Iterator[Writing]:
        """A write to the given shards (by default all): all of it or nothing."""
        if len(self) == 1:
            with self.engines[0].write(op) as change:
                yield Writing({0: change})
            return
        chosen = sorted(set(range(len(self)) if places is None else places))
        with ExitStack() as stack:
            changes = {n: stack.enter_context(self.engines[n].write(op)) for n in chosen}
            conns = {n: change.conn for n, change in changes.items()}
            for n in set(range(len(self))) - set(chosen):
                conns[n] = stack.enter_context(self.engines[n].read())
            newest = max(last_commit(conn)[0] for conn in conns.values())
            now = max(change.now for change in changes.values())
            for n, change in changes.items():
                change.generation, change.now = newest + 1, now
                change.everywhere = [change.conn, *(conn for m, conn in conns.items() if m != n)]
            yield Writing(changes)

    def holding(self, ids: Sequence[str]) -> dict[int, list[str]]:
        """Ids by the shard that has them. Ids that no shard has go to the first, which will say so."""
        if len(self) == 1:
            return {0: list(ids)}
        found: dict[str, int] = {}
        with self.read() as sources:
            for n, source in enumerate(sources):
                for piece in chunks(ids):
                    there = source.conn.execute(select(item.c.id).where(item.c.id.in_(piece))).scalars()
                    found |= dict.fromkeys(there, n)
        split: dict[int, list[str]] = {}
        for ident in ids:
            split.setdefault(found.get(ident, 0), []).append(ident)
        return split

    def intend(self, ids: Sequence[str]) -> None:
        """Note on the first of several shards what is about to be erased on all of them; none: it is done."""
        engine = self.engines[0]
        if len(self) > 1:
            with engine.exclusive(), engine.sentences(), engine.connection(write=True) as conn, conn.begin():
                conn.execute(sa.delete(meta).where(meta.c.name == "erase"))
                if ids:
                    conn.execute(insert(meta).values(name="erase", value=json.dumps(list(ids))))

    def intended(self) -> list[str]:
        """What was about to be erased when the process ended."""
        if len(self) == 1 or self.read_only:
            return []
        with self.engines[0].read() as conn:
            noted = conn.execute(select(meta.c.value).where(meta.c.name == "erase")).scalar()
        return list(json.loads(noted)) if noted else []

    def finish_erasure(self) -> None:
        """Rewrite the files of shards where an erasure was committed and this was not done yet."""
        for engine, cache in zip(self.engines, self.caches):
            with engine.read() as conn:
                due = conn.execute(select(meta.c.value).where(meta.c.name == "compact")).first() is not None
            if due and not engine.read_only:
                cache.drop()
                engine.compact()
                points.reach("erase:compacted")
                with engine.exclusive(), engine.sentences(), engine.connection(write=True) as conn, conn.begin():
                    conn.execute(sa.delete(meta).where(meta.c.name == "compact"))

    def close(self) -> None:
        for engine, cache in zip(self.engines, self.caches):
            cache.save()
            engine.close()
