"""Channels of a search: rankings of the items that meet a filter, by meaning, by words, and by time.

    dense   exact scan of one vector space: cosine, dot product or minus the distance
    words   BM25 over the texts, any word of the query
    time    minus the seconds between the item's event and a point in time, 0 inside the event

Each returns the best `depth` of one shard as (seq, id, score), ties by id; `merged` joins those of all shards. The
present is answered from the vector cache (or by pgvector) and the word index; any other time from the rows themselves,
with the same scores. BM25 counts words in the whole of a shard, so on several the same text may score a little apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlalchemy import and_, func, select
from torch import Tensor

from nestmem.store.block import DIGITS, asked, similarity, top
from nestmem.store.cache import load
from nestmem.store.rows import Filter, check_vector, need_space, spaces, visible
from nestmem.store.schema import item
from nestmem.store.shards import Source

Scored = list[tuple[int, str, float]]


@dataclass(frozen=True)
class Scope:
    """What is searched: a namespace at a generation (None: now), under a filter."""

    namespace: str
    at: int | None
    where: Filter

    @property
    def present(self) -> bool:
        return self.at is None and self.where.valid_at is None

    @property
    def seen(self) -> sa.ColumnElement[bool]:
        return visible(self.at, self.where.valid_at)

    @property
    def clause(self) -> sa.ColumnElement[bool]:
        return and_(item.c.namespace == self.namespace, self.seen, self.where.clause())


def dense(source: Source, scope: Scope, vector: Tensor, space: str, depth: int) -> Scored:
    engine, cache, conn = source
    row, of = need_space(spaces(conn), space)
    query = check_vector(vector, of)
    if engine.compares:
        return engine.nearest(conn, scope.clause, row, of, query, depth)
    if scope.present:
        with cache.lock:
            block = cache.block(conn, scope.namespace, row, of)
            if scope.where.lasting:
                return block.best(query, depth, block.chosen(scope.where))
            return block.best(
                query, depth, block.among(conn.execute(select(item.c.seq).where(scope.clause)).scalars().all())
            )
    seqs, ids, _, matrix = load(conn, row, of, scope.clause)
    scores = np.round(similarity(matrix, asked(query, of.metric), of.metric).numpy(), DIGITS)
    return top(scores, seqs, ids, depth)


def words(source: Source, scope: Scope, text: str, depth: int) -> Scored:
    engine, _, conn = source
    if scope.present:
        return engine.words(conn, text, scope.clause, depth)
    # Scored among all that was visible then, as the index of that time would have, and only then filtered.
    then = conn.execute(select(item.c.seq, item.c.text).where(scope.seen)).all()
    scores = engine.words_among([(row.seq, row.text) for row in then], text)
    wanted = conn.execute(select(item.c.seq, item.c.id).where(scope.clause)).all()
    found = [(row.seq, row.id, scores[row.seq]) for row in wanted if row.seq in scores]
    return sorted(found, key=lambda f: (-f[2], f[1]))[:depth]


def near(source: Source, scope: Scope, moment: float, depth: int) -> Scored:
    begin = func.coalesce(item.c.event_from, item.c.recorded_at)
    end = func.coalesce(item.c.event_to, begin)
    gap = sa.case((begin > moment, begin - moment), (end < moment, moment - end), else_=0.0).label("gap")
    rows = source.conn.execute(
        select(item.c.seq, item.c.id, gap).where(scope.clause).order_by(gap, item.c.id).limit(depth)
    )
    return [(row.seq, row.id, -float(row.gap)) for row in rows]


def merged(of_shards: list[Scored], depth: int) -> Scored:
    """The best `depth` of the rankings of all shards."""
    if len(of_shards) == 1:
        return of_shards[0]
    return sorted((row for rows in of_shards for row in rows), key=lambda row: (-row[2], row[1]))[:depth]
