"""Vectors in memory: an exact scan over a matrix that can be thrown away at any time.

One block per (namespace, space): rows of what is visible now, stamped with the generation it shows and the hash of
the journal up to it. A newer generation brings it up to date with what changed since; a stamp that is not in the
journal (another file was put in this one's place) rebuilds it. On disk a block is a safetensors file under
`memory.db.cache/`, written to the side, made durable and renamed; one that is stale, cut short or altered is ignored.
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
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy import ColumnElement, Connection, and_, or_, select
from torch import Tensor

from nestmem.durable import sync
from nestmem.store import points
from nestmem.store.engine import chunks, last_commit
from nestmem.store.model import Space
from nestmem.store.rows import unpack, visible
from nestmem.store.schema import hidden, item, journal, vector

Array = np.ndarray[Any, Any]
WASTE = 0.25  # share of dead rows at which a block is packed
DIGITS = 6  # scores are rounded, so that the order does not depend on how a product was split up


class Block:
    """The vectors of one namespace in one space. Rows are appended; a dead row stays until the block is packed."""

    def __init__(self, space: Space, seqs: Array, ids: Array, levels: Array, matrix: Tensor, stamp: tuple[int, str]):
        self.space, self.stamp = space, stamp
        self.seqs, self.ids, self.levels = seqs, ids, levels  # each [N]
        self._rows = matrix  # [N or more, D]
        self.alive = np.ones(len(seqs), dtype=bool)

    def __len__(self) -> int:
        return int(self.alive.sum())

    @property
    def matrix(self) -> Tensor:
        return self._rows[: len(self.seqs)]

    def replace(self, gone: Array, seqs: Array, ids: Array, levels: Array, matrix: Tensor) -> None:
        """Drop rows by seq, then append."""
        if len(gone):
            self.alive &= ~np.isin(self.seqs, gone)
        if self.alive.sum() < (1 - WASTE) * len(self.alive):
            self._rows = self._rows[: len(self.seqs)][torch.from_numpy(self.alive)]
            self.seqs, self.ids, self.levels = (column[self.alive] for column in (self.seqs, self.ids, self.levels))
            self.alive = self.alive[self.alive]
        start, stop = len(self.seqs), len(self.seqs) + len(seqs)
        if stop > len(self._rows):  # doubling, so that appending stays cheap
            self._rows = torch.cat([self.matrix, matrix.new_empty(max(stop, 64), self.space.dim)])
        self._rows[start:stop] = matrix
        self.seqs, self.ids = np.concatenate([self.seqs, seqs]), np.concatenate([self.ids, ids])
        self.levels = np.concatenate([self.levels, levels])
        self.alive = np.concatenate([self.alive, np.ones(len(seqs), dtype=bool)])

    def best(
        self, query: Tensor, limit: int, levels: Sequence[int] | None, among: Array | None
    ) -> list[tuple[int, str, float]]:
        """The `limit` rows nearest to `query` [D] as (seq, id, similarity), ties by id. `among`: only these seqs."""
        mask = self.alive.copy()
        if levels is not None:
            mask &= np.isin(self.levels, np.asarray(list(levels)))
        if among is not None:
            mask &= np.isin(self.seqs, among)
        rows = np.flatnonzero(mask)
        if not len(rows) or limit < 1:
            return []
        dense = len(rows) > 0.5 * len(mask)  # scoring everything beats gathering rows
        matrix = self.matrix if dense else self.matrix[torch.from_numpy(rows)]
        scores = similarity(matrix, query, self.space.metric).numpy()
        scores = np.round(scores[rows] if dense else scores, DIGITS)
        return top(scores, self.seqs[rows], self.ids[rows], limit)


def top(scores: Array, seqs: Array, ids: Array, limit: int) -> list[tuple[int, str, float]]:
    """The highest scores, ties by id, in full order."""
    if len(scores) > limit:
        kept = np.flatnonzero(scores >= -np.partition(-scores, limit - 1)[limit - 1])  # all that tie with the last
    else:
        kept = np.arange(len(scores))
    order = kept[np.lexsort((ids[kept], -scores[kept]))][:limit]
    return [(int(seqs[i]), ids[i].decode(), float(scores[i])) for i in order]


def prepared(matrix: Tensor, metric: str) -> Tensor:
    """Rows as the scan wants them: for cosine of length one."""
    return torch.nn.functional.normalize(matrix, dim=-1) if metric == "cosine" else matrix


def similarity(matrix: Tensor, query: Tensor, metric: str) -> Tensor:
    """Of prepared rows [N, D] to a query [D]: cosine, dot product, or minus the distance. Higher is nearer."""
    scores: Tensor
    if metric == "l2":
        scores = -torch.linalg.vector_norm(matrix - query, dim=-1)
    else:
        scores = matrix @ prepared(query, metric)
    return scores


def load(conn: Connection, space: int, of: Space, where: ColumnElement[bool]) -> tuple[Array, Array, Array, Tensor]:
    """(seqs, ids, levels, prepared matrix) of the vectors of items that meet `where`."""
    columns = select(item.c.seq, item.c.id, item.c.level, vector.c.blob).join(vector, vector.c.seq == item.c.seq)
    rows = conn.execute(columns.where(vector.c.space == space, where).order_by(item.c.seq)).all()
    seqs = np.array([r.seq for r in rows], dtype=np.int64)
    ids = np.array([r.id.encode() for r in rows], dtype="S32")
    levels = np.array([r.level for r in rows], dtype=np.int16)
    return seqs, ids, levels, prepared(unpack([r.blob for r in rows], of.dim), of.metric)


class VectorCache:
    """Blocks by (namespace, space), built on first use. `folder` None: in memory alone."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._blocks: dict[tuple[str, str], Block] = {}
        self._lock = threading.Lock()

    def block(self, conn: Connection, namespace: str, space: int, of: Space) -> Block:
        """The block as of the generation that `conn` sees. The caller holds `lock` while it uses it."""
        now = last_commit(conn)
        held = self._blocks.get((namespace, of.name)) or self._from_disk(namespace, of)
        if held is None or not known(conn, held.stamp) or held.stamp[0] > now[0]:
            held = Block(of, *load(conn, space, of, and_(item.c.namespace == namespace, visible(None))), stamp=now)
        elif held.stamp != now:
            self._catch_up(conn, held, namespace, space, now)
        self._blocks[namespace, of.name] = held
        return held

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
            parts = []
            for piece in chunks(sorted(changed)):
                where = and_(item.c.namespace == namespace, item.c.seq.in_(piece), visible(None))
                parts.append(load(conn, space, held.space, where))
            seqs, ids, levels, matrices = zip(*parts)
            held.replace(
                np.array(sorted(changed)),
                np.concatenate(seqs),
                np.concatenate(ids),
                np.concatenate(levels),
                torch.cat(matrices),
            )
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
                parts = {name: file.get_tensor(name) for name in ("seqs", "ids", "levels", "matrix")}
            if about.get("space") != describe(of) or about.get("checksum") != digest(parts, about.get("stamp", "")):
                return None
            seqs, ids, levels = (parts[n].numpy() for n in ("seqs", "ids", "levels"))
            generation, stamp = json.loads(about["stamp"])
            if not len(seqs) == len(ids) == len(levels) == len(parts["matrix"]):
                return None
            return Block(of, seqs, ids.reshape(-1).view("S32"), levels, parts["matrix"], (generation, stamp))
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
                "levels": torch.from_numpy(held.levels[held.alive]),
                "matrix": held.matrix[live].contiguous(),
            }
            stamp = json.dumps(held.stamp)
            about = {"space": describe(held.space), "stamp": stamp, "checksum": digest(parts, stamp)}
            aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                path.parent.mkdir(exist_ok=True)
                save_file(parts, aside, metadata=about)
                sync(aside)
                points.reach("cache:written")
                os.replace(aside, path)
                points.reach("cache:renamed")
            except (OSError, SafetensorError):
                aside.unlink(missing_ok=True)

    def drop(self) -> None:
        """Forget all blocks, in memory and on disk."""
        self._blocks.clear()
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("*.safetensors*"):
                path.unlink(missing_ok=True)


def known(conn: Connection, stamp: tuple[int, str]) -> bool:
    """Whether this database has the past that a block was built from."""
    if stamp[0] == 0:
        return stamp[1] == ""
    return conn.execute(select(journal.c.hash).where(journal.c.generation == stamp[0])).scalar() == stamp[1]


def describe(of: Space) -> str:
    return json.dumps([of.name, of.dim, of.metric, of.encoder])


def digest(parts: dict[str, Tensor], stamp: str) -> str:
    """A checksum over the bytes of all parts and the stamp."""
    total = zlib.crc32(stamp.encode())
    for name in sorted(parts):
        flat = parts[name].contiguous().view(-1).numpy()
        total = zlib.crc32(flat.view(np.uint8).data, total)
    return f"{total:08x}"
