"""Association: which earlier items a new one belongs to, decided by two components instead of a threshold.

A mixture of two Gaussians is fitted to the similarities of an item to its 30 nearest earlier ones; those of the upper
component are tied to it as "similar" (MemGAS, arXiv 2505.19549). Thirty numbers are few: variances have a floor, and
where two components explain them no better than one (BIC), nothing stands out and nothing is tied.
Legend: N items, D dimension, M similarities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem.store import ties
from nestmem.store.model import Written
from nestmem.store.rows import Filter
from nestmem.store.store import Store

NEAREST, ROUNDS, FLOOR = 30, 50, 1e-4


def upper(similarities: Tensor) -> Tensor:
    """Which of the similarities [M] belong to the upper of two components: bool [M], none if there is but one."""
    x = similarities.double()
    many = len(x)
    nobody = torch.zeros(many, dtype=torch.bool)
    if many < 4 or float(x.std(correction=0)) < 1e-6:
        return nobody
    # Begin at the widest gap, so that the answer does not depend on chance.
    order = x.sort().values
    split = int((order[1:] - order[:-1]).argmax()) + 1
    belongs = torch.stack([x < order[split], x >= order[split]]).double()
    for _ in range(ROUNDS):
        weight = belongs.sum(1).clamp_min(1e-9)
        mean = (belongs * x).sum(1) / weight
        var = ((belongs * (x - mean[:, None]) ** 2).sum(1) / weight).clamp_min(FLOOR)
        log = (weight / many).log()[:, None] - 0.5 * (
            (2 * math.pi * var).log()[:, None] + (x - mean[:, None]) ** 2 / var[:, None]
        )
        belongs = log.softmax(0)
    two = float(log.logsumexp(0).sum())
    var_one = x.var(correction=0).clamp_min(FLOOR)
    one = float((-0.5 * ((2 * math.pi * var_one).log() + (x - x.mean()) ** 2 / var_one)).sum())
    if 2 * (two - one) <= 3 * math.log(many) or abs(float(mean[1] - mean[0])) < 2 * math.sqrt(float(var.max())):
        return nobody
    return belongs[int(mean.argmax())] > 0.5


def associate(store: Store, space: str, *, where: Filter | None = None) -> Written:
    """Tie the items that have no association yet to the earlier ones they belong to. A second run is nothing."""
    found = {i.id: i for i in store.items(where)}
    ids, matrix = store.vectors(space, where=where)
    row = {ident: n for n, ident in enumerate(ids)}
    order = [ident for ident in found if ident in row]
    rows = F.normalize(matrix[[row[ident] for ident in order]], dim=-1) if order else matrix
    made: list[tuple[str, str, float]] = []
    for n, ident in enumerate(order):
        if n and not any(tie.src == ident for tie in store.links(ident, "similar")):
            near = (rows[:n] @ rows[n]).topk(min(NEAREST, n))
            chosen = upper(near.values).tolist()
            made += [
                (ident, order[m], round(float(s), 6))
                for s, m, c in zip(near.values, near.indices.tolist(), chosen)
                if c
            ]
    if not made:
        return Written((), store.generation)
    shards = store._shards  # noqa: SLF001
    places = {ident: shards.place(found[ident].namespace, found[ident].root) for ident, _, _ in made}
    with shards.write("link", places.values()) as writing:
        for src, dst, weight in made:
            ties.add_link(writing.changes[places[src]], src, dst, "similar", weight, "association")
    return Written(tuple(dict.fromkeys(src for src, _, _ in made)), writing.generation)
