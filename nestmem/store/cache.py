"""Vectors in memory: an exact scan over a matrix that can be thrown away at any time.

One block per (namespace, space): rows of what is visible now, with what filters ask about, stamped with the
generation it shows and the hash of the journal up to it. A newer generation brings it up to date with what changed
since; a stamp that is not in the journal (another file was put in this one's place) rebuilds it. On disk a block is a
safetensors file under `memory.db.cache/`, written to the side, made durable and renamed; one that is stale, cut short
or altered is ignored.
The database stays the only truth.

Legend: N rows of a block, D dimension of the space.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, or_, select
from torch import Tensor

from nestmem.durable import sync
from nestmem.store import points
from nestmem.store.block import FACTS, TEXTS, Block, Rows, prepared
from nestmem.store.coarse import FEW
from nestmem.store.engine import chunks, last_commit
from nestmem.store.model import Space
from nestmem.store.prepared import Prepared
from nestmem.store.rows import unpack, visible
from nestmem.store.schema import hidden, item, journal, vector

if TYPE_CHECKING:
    from nestmem.store.approximate import Graph


def load(conn: Connection, space: int, of: Space, where: ColumnElement[bool]) -> Rows:
    """The vectors of items that meet `where`."""
    begin = func.coalesce(item.c.event_from, item.c.recorded_at)
    facts: list[ColumnElement[Any]] = [item.c[name] for name in FACTS if name not in ("begin", "end")]
    facts += [begin.label("begin"), func.coalesce(item.c.event_to, begin).label("end")]
    columns = select(item.c.seq, item.c.id, vector.c.blob, *facts).join(vector, vector.c.seq == item.c.seq)
    rows = conn.execute(columns.where(vector.c.space == space, where).order_by(item.c.seq)).all()
    seqs, ids, blobs, *more = zip(*rows) if rows else [()] * (3 + len(facts))
    named = dict(zip([name for name in FACTS if name not in ("begin", "end")] + ["begin", "end"], more))
    return Rows(
        np.array(seqs, dtype=np.int64),
        np.array([ident.encode() for ident in ids], dtype="S32"),
        {n: np.array(named[n], dtype=object if n in TEXTS else kind) for n, kind in FACTS.items()},
        prepared(unpack(blobs, of.dim), of.metric),
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """Several rows as one."""
    facts = {name: np.concatenate([part.facts[name] for part in parts]) for name in FACTS}
    seqs, ids = (np.concatenate(columns) for columns in ([p.seqs for p in parts], [p.ids for p in parts]))
    return Rows(seqs, ids, facts, torch.cat([part.matrix for part in parts]))


class VectorCache:
    """Blocks by (namespace, space), built on first use. `folder` None: in memory alone. index: "" or "usearch", beside
    large ones.
    """

    def __init__(self, folder: Path | None, index: str = ""):
        self.folder, self.index = folder, index
        self._blocks: dict[tuple[str, str], Block] = {}
        self._lock = threading.Lock()

    def block(self, conn: Connection, namespace: str, space: int, of: Space) -> Block:
        """The block as of the generation that `conn` sees. The caller holds `lock` while it uses it."""
        now = last_commit(conn)
        held = self._blocks.get((namespace, of.name)) or self._from_disk(namespace, of)
        if held is None or (held.stamp != now and (held.stamp[0] > now[0] or not known(conn, held.stamp))):
            held = Block(of, now)
            held.replace(held.seqs, load(conn, space, of, and_(item.c.namespace == namespace, visible(None))))
        elif held.stamp != now:
            self._catch_up(conn, held, namespace, space, now)
        if self.index and held.graph is None and len(held) > FEW:
            held.graph = self._graph(namespace, held)
        self._blocks[namespace, of.name] = held
        return held

    def _graph(self, namespace: str, held: Block) -> Graph:
        """The approximate index of a block: from its file if that is of this generation, or new."""
        from nestmem.store.approximate import Graph

        graph, path = Graph(held.space.dim, held.space.metric), self._file(namespace, held.space)
        if path is None or not graph.load(path.with_suffix(".usearch"), held.stamp):
            live = torch.from_numpy(held.alive)
            graph = Graph(held.space.dim, held.space.metric)
            graph.replace(held.seqs[:0], held.seqs[held.alive], held.matrix[live])
        return graph

    @property
    def lock(self) -> threading.Lock:
        return self._lock

    def _catch_up(self, conn: Connection, held: Block, namespace: str, space: int, now: tuple[int, str]) -> None:
        since = held.stamp[0]
        changed: set[int] = set()
        for table in (item, hidden, vector):
            newer = table.c.born > since
            where = newer if table is vector else or_(newer, table.c.died > since)
            changed |= set(conn.execute(select(table.c.seq).where(where)).scalars())
        if changed:
            mine = and_(item.c.namespace == namespace, visible(None))
            loaded = [load(conn, space, held.space, and_(mine, item.c.seq.in_(p))) for p in chunks(sorted(changed))]
            held.replace(np.array(sorted(changed), dtype=np.int64), joined(loaded))
        held.stamp = now

    # On disk.

    def _file(self, namespace: str, of: Space) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / (
            hashlib.sha256(json.dumps([namespace, of.name]).encode()).hexdigest()[:24] + ".safetensors"
        )

    def _from_disk(self, namespace: str, of: Space) -> Block | None:
        path = self._file(namespace, of)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                parts = {name: file.get_tensor(name) for name in ("seqs", "ids", "matrix", *FACTS)}
            sealed = about.get("stamp", "") + about.get("words", "")
            if about.get("space") != describe(of) or about.get("checksum") != digest(parts, sealed):
                return None
            if len({len(part) for part in parts.values()}) != 1:
                return None
            generation, stamp = json.loads(about["stamp"])
            held = Block(of, (generation, stamp))
            held.words = {name: {text: n for n, text in enumerate(json.loads(about["words"])[name])} for name in TEXTS}
            facts = {name: parts[name].numpy() for name in FACTS}
            ids = parts["ids"].numpy().reshape(-1).view("S32")
            held.replace(held.seqs, Rows(parts["seqs"].numpy(), ids, facts, parts["matrix"]))
            return held
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None  # a cache file that cannot be read is no cache file

    def save(self) -> None:
        """Write blocks to disk. A failure costs time at the next start and nothing else."""
        for (namespace, _), held in list(self._blocks.items()):
            path = self._file(namespace, held.space)
            if path is None or not len(held):
                continue
            live = torch.from_numpy(held.alive)
            ids = np.ascontiguousarray(held.ids[held.alive]).view(np.uint8).reshape(-1, 32)
            parts = {
                "seqs": torch.from_numpy(held.seqs[held.alive]),
                "ids": torch.from_numpy(ids.copy()),
                "matrix": held.matrix[live].contiguous(),
            }
            parts |= {name: torch.from_numpy(column[held.alive]) for name, column in held.facts.items()}
            stamp, words = json.dumps(held.stamp), json.dumps({name: list(known) for name, known in held.words.items()})
            about = {
                "space": describe(held.space),
                "stamp": stamp,
                "words": words,
                "checksum": digest(parts, stamp + words),
            }
            aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                path.parent.mkdir(exist_ok=True)
                save_file(parts, aside, metadata=about)
                sync(aside)
                points.reach("cache:written")
                os.replace(aside, path)
                points.reach("cache:renamed")
                if held.graph is not None:
                    held.graph.save(path.with_suffix(".usearch"), held.stamp)
            except (OSError, SafetensorError, RuntimeError):
                aside.unlink(missing_ok=True)

    def drop(self) -> None:
        """Forget all blocks, in memory and on disk."""
        self._blocks.clear()
        if self.folder is not None and self.folder.is_dir():
            for path in [*self.folder.glob("*.safetensors*"), *self.folder.glob("*.usearch*")]:
                path.unlink(missing_ok=True)


_hash = Prepared(select(journal.c.hash).where(journal.c.generation == bindparam("generation")))


def known(conn: Connection, stamp: tuple[int, str]) -> bool:
    """Whether this database has the past that a block was built from."""
    if stamp[0] == 0:
        return stamp[1] == ""
    return [row[0] for row in _hash(conn, generation=stamp[0])] == [stamp[1]]


def describe(of: Space) -> str:
    return json.dumps([of.name, of.dim, of.metric, of.encoder])


def digest(parts: dict[str, Tensor], stamp: str) -> str:
    """A checksum over the bytes of all parts and the stamp."""
    total = zlib.crc32(stamp.encode())
    for name in sorted(parts):
        flat = parts[name].contiguous().view(-1).numpy()
        total = zlib.crc32(flat.view(np.uint8).data, total)
    return f"{total:08x}"
