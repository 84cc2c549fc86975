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
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy import ColumnElement, Connection, and_, func, or_, select
from torch import Tensor

from nestmem.durable import sync
from nestmem.store import points
from nestmem.store.engine import chunks, last_commit
from nestmem.store.model import Space
from nestmem.store.rows import Filter, unpack, visible
from nestmem.store.schema import hidden, item, journal, vector

Array = np.ndarray[Any, Any]
WASTE = 0.25  # share of dead rows at which a block is packed
TEXTS = ("kind", "root", "writer", "run")
FACTS: dict[str, Any] = {
    **dict.fromkeys(TEXTS, np.int32),
    **dict.fromkeys(("level", "taint", "pinned"), np.int16),
    **dict.fromkeys(("trust", "begin", "end"), np.float64),
}  # what a filter may ask of an item and never changes
DIGITS = 6  # scores are rounded, so that the order does not depend on how a product was split up


class Rows(NamedTuple):
    """Vectors with what is known of their items: `facts` are columns by name, texts or numbers."""

    seqs: Array  # [N]
    ids: Array  # [N]
    facts: dict[str, Array]  # each [N]
    matrix: Tensor  # [N, D] prepared


class Block:
    """The vectors of one namespace in one space. Rows are appended; a dead row stays until the block is packed.

    Texts among the facts are numbers, given by `words`, so that a filter is a few comparisons of whole columns.
    """

    def __init__(self, space: Space, stamp: tuple[int, str]):
        self.space, self.stamp = space, stamp
        self.seqs: Array = np.empty(0, dtype=np.int64)
        self.ids: Array = np.empty(0, dtype="S32")
        self.facts: dict[str, Array] = {name: np.empty(0, dtype=kind) for name, kind in FACTS.items()}
        self.words: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
        self._rows = torch.empty(0, space.dim)  # [N or more, D]
        self.alive = np.ones(0, dtype=bool)

    def __len__(self) -> int:
        return int(self.alive.sum())

    @property
    def matrix(self) -> Tensor:
        return self._rows[: len(self.seqs)]

    def replace(self, gone: Array, new: Rows) -> None:
        """Drop rows by seq, then append."""
        if len(gone):
            self.alive &= ~np.isin(self.seqs, gone)
        if self.alive.sum() < (1 - WASTE) * len(self.alive):
            self._rows = self._rows[: len(self.seqs)][torch.from_numpy(self.alive)]
            self.seqs, self.ids = self.seqs[self.alive], self.ids[self.alive]
            self.facts = {name: column[self.alive] for name, column in self.facts.items()}
            self.alive = self.alive[self.alive]
        start, stop = len(self.seqs), len(self.seqs) + len(new.seqs)
        if stop > len(self._rows):  # doubling, so that appending stays cheap
            room = stop if not start else max(stop, 64) + start
            grown = new.matrix.new_empty(room, self.space.dim)
            grown[:start] = self.matrix
            self._rows = grown
        self._rows[start:stop] = new.matrix
        self.seqs, self.ids = np.concatenate([self.seqs, new.seqs]), np.concatenate([self.ids, new.ids])
        for name, column in new.facts.items():
            if name in TEXTS and column.dtype.kind != "i":
                known = self.words[name]
                column = np.array([known.setdefault(text, len(known)) for text in column], dtype=np.int32)
            self.facts[name] = np.concatenate([self.facts[name], column])
        self.alive = np.concatenate([self.alive, np.ones(len(new.seqs), dtype=bool)])

    def chosen(self, where: Filter) -> Array:
        """Which rows [N] meet a filter of which everything is known here (`Filter.lasting`)."""
        mask = self.alive.copy()
        for name, values in (
            ("kind", where.kinds),
            ("root", where.roots),
            ("writer", where.writers),
            ("run", where.runs),
        ):
            if values is not None:
                mask &= _any_of(self.facts[name], [self.words[name].get(value, -1) for value in values])
        if where.levels is not None:
            mask &= _any_of(self.facts["level"], where.levels)
        if where.ids is not None:
            mask &= np.isin(self.ids, np.array([ident.encode() for ident in where.ids], dtype="S32"))
        if where.min_trust > 0:
            mask &= self.facts["trust"] >= where.min_trust
        for name, value in (("taint", where.tainted), ("pinned", where.pinned)):
            if value is not None:
                mask &= self.facts[name] == int(value)
        if where.event_between is not None:
            mask &= (self.facts["begin"] <= where.event_between[1]) & (self.facts["end"] >= where.event_between[0])
        return mask

    def best(self, query: Tensor, limit: int, mask: Array) -> list[tuple[int, str, float]]:
        """The `limit` rows of `mask` nearest to `query` [D] as (seq, id, similarity), ties by id."""
        rows = np.flatnonzero(mask)
        if not len(rows) or limit < 1:
            return []
        dense = len(rows) > 0.5 * len(mask)  # scoring everything beats gathering rows
        matrix = self.matrix if dense else self.matrix[torch.from_numpy(rows)]
        scores = similarity(matrix, query, self.space.metric).numpy()
        scores = np.round(scores[rows] if dense else scores, DIGITS)
        return top(scores, self.seqs[rows], self.ids[rows], limit)


def _any_of(column: Array, values: Sequence[int]) -> Array:
    if len(values) == 1:
        return np.asarray(column == values[0])
    return np.isin(column, np.asarray(list(values), dtype=column.dtype))


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
            held = Block(of, now)
            held.replace(held.seqs, load(conn, space, of, and_(item.c.namespace == namespace, visible(None))))
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
        gone = np.array(sorted(changed), dtype=np.int64)
        for piece in chunks(sorted(changed)):
            where = and_(item.c.namespace == namespace, item.c.seq.in_(piece), visible(None))
            held.replace(gone, load(conn, space, held.space, where))
            gone = gone[:0]
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
