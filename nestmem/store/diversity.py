"""Not five times the same: maximal marginal relevance (Carbonell and Goldstein 1998).

    next = argmax_i  (1 - d) s_i / s_1  -  d max_{j chosen} cos(v_i, v_j)          s_1: the best score; d: diversity

d = 0 is the order of the scores. An item without a vector in the space is like no other. Equal texts are folded before.
Legend: N candidates, in the order of their scores; D dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from sqlalchemy import select
from torch import Tensor

from nestmem.store.engine import chunks
from nestmem.store.rows import need_space, spaces, unpack
from nestmem.store.schema import item, vector
from nestmem.store.shards import Source

POOL = 5  # candidates for each place


def spread_out(
    sources: Sequence[Source],
    order: Sequence[str],
    scores: Mapping[str, float],
    space: str,
    many: int,
    diversity: float,
) -> list[str]:
    """`many` of the ids in `order`, each chosen for its score and for being unlike those before it."""
    if not order:
        return []
    rows, best = unit_vectors(sources, order, space), scores[order[0]]
    relevance = torch.tensor([scores[ident] for ident in order], dtype=torch.double)
    relevance = relevance / best if best > 0 else relevance
    like = torch.zeros(len(order), dtype=torch.double)  # to the most alike of those chosen
    free = torch.ones(len(order), dtype=torch.bool)
    chosen: list[str] = []
    while len(chosen) < min(many, len(order)):
        value = ((1 - diversity) * relevance - diversity * like).mul(1e6).round().masked_fill(~free, -torch.inf)
        place = int(value.argmax())  # the first of equals
        chosen.append(order[place])
        free[place] = False
        alike = rows @ rows[place]
        like = alike if len(chosen) == 1 else torch.maximum(like, alike)
    return chosen


def unit_vectors(sources: Sequence[Source], ids: Sequence[str], space: str) -> Tensor:
    """Vectors of items [N, D] made one long, in double precision; zeros where an item has none."""
    found: dict[str, Tensor] = {}
    for source in sources:
        row, of = need_space(spaces(source.conn), space)
        query = select(item.c.id, vector.c.blob).join(vector, vector.c.seq == item.c.seq).where(vector.c.space == row)
        for piece in chunks(ids):
            rows = source.conn.execute(query.where(item.c.id.in_(piece))).all()
            found |= {r.id: v for r, v in zip(rows, unpack([r.blob for r in rows], of.dim))}
    none = torch.zeros(of.dim)
    return torch.nn.functional.normalize(torch.stack([found.get(i, none) for i in ids]).double(), dim=-1)
