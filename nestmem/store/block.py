"""The vectors of one namespace in one space, in memory, with what filters ask about: an exact scan.

Legend: N rows of a block, D dimension of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nestmem.store.coarse import FAST, FEW, Codes
from nestmem.store.model import Space
from nestmem.store.rows import Filter

if TYPE_CHECKING:
    from nestmem.store.approximate import Graph

Array = np.ndarray[Any, Any]
KEPT = 64  # filters whose rows are kept
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


class Part(NamedTuple):
    """Some rows of a block, and their codes if they are many."""

    rows: Array  # [n] of N
    codes: Codes | None


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
        self._codes = Codes(space.dim, space.metric)
        self._parts: dict[object, Part] = {}
        self._by_seq: Array | None = None
        self.graph: Graph | None = None  # an approximate index, if one is wanted

    def __len__(self) -> int:
        return int(self.alive.sum())

    @property
    def matrix(self) -> Tensor:
        return self._rows[: len(self.seqs)]

    def replace(self, gone: Array, new: Rows) -> None:
        """Drop rows by seq, then append."""
        self._parts.clear()
        self._by_seq = None
        if self.graph is not None:
            self.graph.replace(gone, new.seqs, new.matrix)
        if len(gone):
            self.alive &= ~np.isin(self.seqs, gone)
        if self.alive.sum() < (1 - WASTE) * len(self.alive):
            self._rows = self._rows[: len(self.seqs)][torch.from_numpy(self.alive)]
            self.seqs, self.ids = self.seqs[self.alive], self.ids[self.alive]
            self.facts = {name: column[self.alive] for name, column in self.facts.items()}
            self.alive = self.alive[self.alive]
            self._codes = Codes(self.space.dim, self.space.metric)
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

    def chosen(self, where: Filter) -> Part:
        """The rows that meet a filter of which everything is known here (`Filter.lasting`).

        Those asked for last are kept, up to as many rows as there are, until the block changes.
        """
        key = where.key
        part = self._parts.pop(key, None) or self._part(self._mask(where))
        self._parts[key] = part  # the newest last
        while len(self._parts) > 1 and (
            len(self._parts) > KEPT or sum(len(p.rows) for p in self._parts.values()) > len(self.seqs)
        ):
            del self._parts[next(iter(self._parts))]
        return part

    def among(self, seqs: Sequence[int]) -> Part:
        """The rows of these items."""
        return self._part(self.alive & np.isin(self.seqs, np.asarray(seqs, dtype=np.int64)))

    def best(self, query: Tensor, limit: int, part: Part) -> list[tuple[int, str, float]]:
        """The `limit` rows of `part` nearest to `query` [D] as (seq, id, similarity), ties by id."""
        rows, codes = part
        if not len(rows) or limit < 1:
            return []
        query = asked(query, self.space.metric)
        if self.graph is not None and len(rows) == len(self):
            rows = self._places(self.graph.near(query, limit))
        elif codes is not None and limit < len(rows):
            rows = rows[codes.maybe(query, limit)]
        matrix = self.matrix if len(rows) == len(self.seqs) else self._rows.index_select(0, torch.from_numpy(rows))
        scores = np.round(similarity(matrix, query, self.space.metric).numpy(), DIGITS)
        return top(scores, self.seqs[rows], self.ids[rows], limit)

    def _places(self, seqs: Array) -> Array:
        """Rows by seq: the living one, which came last."""
        if self._by_seq is None:
            self._by_seq = np.argsort(self.seqs, kind="stable")
        return np.asarray(self._by_seq[np.searchsorted(self.seqs, seqs, "right", sorter=self._by_seq) - 1])

    def _part(self, mask: Array) -> Part:
        rows = np.flatnonzero(mask)
        if not FAST or len(rows) <= FEW:
            return Part(rows, None)
        self._codes.follow(self.matrix)
        return Part(rows, self._codes if len(rows) == len(mask) else self._codes.of(torch.from_numpy(rows)))

    def _mask(self, where: Filter) -> Array:
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


def asked(query: Tensor, metric: str) -> Tensor:
    """A query [D] alike."""
    if metric != "cosine":
        return query
    return torch.from_numpy(query.numpy() / max(np.linalg.norm(query.numpy()), np.float32(1e-12)))


def similarity(matrix: Tensor, query: Tensor, metric: str) -> Tensor:
    """Of prepared rows [N, D] to a prepared query [D]: cosine, dot product, or minus the distance. Higher is nearer."""
    return -torch.linalg.vector_norm(matrix - query, dim=-1) if metric == "l2" else matrix @ query
