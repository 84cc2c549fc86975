"""Further channels of a search, asked for by name (`search(also=...)`); each ranks by what the first ones found.

entities    BM25 of the names, numbers and quotations in the question alone
levels      dense, level by level, each weighed by how sure it is (MemGAS, arXiv 2505.19549, with normalised entropy):
            w_g = 1 - H_g / log N_g,  H_g of softmax(similarities / 0.2);  it takes the place of the dense channel
hopfield    dense with the question completed by what is stored (SuperLocalMemory V3.3, arXiv 2604.04514, beta = 16)
spreading   activation along ties from the ten best (as in SYNAPSE, arXiv 2601.02744, three steps):
            a <- (1 - 0.5) a + 0.8 sum_i a_i w_ij / sum_j w_ij      at most 30 ties of an item, heaviest first
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from sqlalchemy import and_, or_, select
from torch import Tensor

from nestmem.store import channels
from nestmem.store.channels import Scope, Scored
from nestmem.store.engine import chunks
from nestmem.store.formulas import complete, granularity_weights
from nestmem.store.rows import alive, need_space, spaces, unpack
from nestmem.store.schema import item, link, vector
from nestmem.store.shards import Source

ALSO = ("entities", "levels", "hopfield", "spreading")
SILENT = ("supersedes", "contradicts")  # ties along which nothing spreads
PATTERNS, SEEDS, STEPS, FAN, LOSS, GAIN = 200, 10, 3, 30, 0.5, 0.8


def names(text: str) -> str:
    """The names (capitalised, not at the beginning of a sentence), numbers and quotations in a text."""
    found = re.findall(r"[\"“«]([^\"”»]+)[\"”»]", text)
    found += re.findall(r"\d[\d.,:/-]*\d|\d", text)
    found += re.findall(r"(?<![.!?…]\s)(?<!^)\b[A-ZÀ-ÖØ-Þ]\w*", text)
    found += re.findall(r"\b[A-Z]{2,}\b|\b[A-Z]\w*(?=\s+[A-Z])", text)
    return " ".join(dict.fromkeys(found))


def levels(
    sources: Sequence[Source], scope: Scope, query: Tensor, space: str, depth: int
) -> tuple[dict[str, Scored], dict[str, float]]:
    """A dense ranking for each level, and how much each is trusted; together the weights are as many as levels."""
    there: set[int] = set()
    for source in sources:
        there |= set(source.conn.execute(select(item.c.level).where(scope.clause).distinct()).scalars())
    found: dict[str, Scored] = {}
    for level in sorted(there):
        within = Scope(scope.namespace, scope.at, scope.where.at_levels([level]))
        rows = channels.merged([channels.dense(source, within, query, space, depth) for source in sources], depth)
        if rows:
            found[f"dense/{'proc' if level < 0 else f'L{level}'}"] = rows
    if not found:
        return {}, {}
    trust = granularity_weights([torch.tensor([score for _, _, score in rows[:30]]) for rows in found.values()])
    return found, {name: len(found) * float(weight) for name, weight in zip(found, trust)}


def hopfield(sources: Sequence[Source], scope: Scope, query: Tensor, space: str, near: Scored, depth: int) -> Scored:
    """A dense ranking by the question as the stored items complete it."""
    patterns: list[Tensor] = []
    for source in sources:
        row, of = need_space(spaces(source.conn), space)
        for piece in chunks([ident for _, ident, _ in near[:PATTERNS]]):
            query_ = select(vector.c.blob).join(item, item.c.seq == vector.c.seq)
            blobs = source.conn.execute(query_.where(vector.c.space == row, item.c.id.in_(piece)).order_by(item.c.id))
            patterns.append(unpack(list(blobs.scalars()), of.dim))
    joined = torch.nn.functional.normalize(torch.cat(patterns) if patterns else torch.zeros(0, 1), dim=-1)
    if not len(joined):
        return []
    completed = complete(joined, torch.nn.functional.normalize(query.float(), dim=-1))
    return channels.merged([channels.dense(source, scope, completed, space, depth) for source in sources], depth)


def spreading(sources: Sequence[Source], scope: Scope, seeds: Mapping[str, float], depth: int) -> Scored:
    """Items that meet the filter by the activation that reaches them from `seeds`."""
    total = sum(seeds.values()) or 1.0
    active = {ident: value / total for ident, value in seeds.items()}
    ties: dict[str, list[tuple[str, float]]] = {}
    for _ in range(STEPS):
        fresh = sorted(set(active) - set(ties))
        ties |= {ident: [] for ident in fresh}
        for source in sources:
            for piece in chunks(fresh):
                ends = or_(link.c.src.in_(piece), link.c.dst.in_(piece))
                where = and_(ends, alive(link, scope.at), link.c.type.not_in(SILENT), link.c.weight > 0)
                for row in source.conn.execute(select(link.c.src, link.c.dst, link.c.weight).where(where)):
                    for here, there in ((row.src, row.dst), (row.dst, row.src)):
                        if here in ties and here in fresh:
                            ties[here].append((there, row.weight))
        passed: dict[str, float] = {ident: (1 - LOSS) * value for ident, value in active.items()}
        for ident in sorted(active):
            heaviest = sorted(ties[ident], key=lambda tie: (-tie[1], tie[0]))[:FAN]
            weight = sum(w for _, w in heaviest)
            for there, w in heaviest:
                passed[there] = passed.get(there, 0.0) + GAIN * active[ident] * w / weight
        active = passed
    found: Scored = []
    for source in sources:
        for piece in chunks(sorted(active)):
            rows = source.conn.execute(select(item.c.seq, item.c.id).where(scope.clause, item.c.id.in_(piece)))
            found += [(row.seq, row.id, round(active[row.id], 9)) for row in rows]
    return sorted(found, key=lambda row: (-row[2], row[1]))[:depth]
