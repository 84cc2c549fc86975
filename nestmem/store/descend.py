"""From summaries down to the verbatim, only as far as needed: a question that a summary answers clearly stays there.

Ask the topmost level. If the best is not clearly the best, go on among what the best few were made of, level by level:
    unsure if  s_1 - s_2 < margin  or  H / log N > entropy,  H of softmax(s / 0.1) over the N similarities s found
HyMem (arXiv 2602.13933) and MM-Mem (2603.01455) have a language model judge whether a summary suffices; here it is the
similarities. Calibrate both limits on questions of your own: defaults stop at clear leads only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from sqlalchemy import select
from torch import Tensor

from nestmem.store.model import Budget, Found, check_number
from nestmem.store.reader import Reader
from nestmem.store.rows import Filter, visible
from nestmem.store.schema import item, link

TEMPERATURE = 0.1


class Descent(NamedTuple):
    """found: hits at the level where it ended. levels: those visited, highest first. why: "sure", "bottom" or "budget"."""

    found: Found
    levels: tuple[int, ...]
    why: str


def descend(
    store: Reader,
    vector: Tensor,
    space: str,
    *,
    text: str | None = None,
    k: int = 10,
    beam: int = 3,
    margin: float = 0.1,
    entropy: float = 0.9,
    budget: Budget | None = None,
) -> Descent:
    """Search from the highest level down. beam: how many of a level's best are opened. budget: of the whole descent in
    bytes of texts read; of each search in items and milliseconds.
    """
    check_number("margin", margin, 0)
    check_number("entropy", entropy, 0, 1)
    if beam < 1:
        raise ValueError(f"beam: expected at least 1, got {beam}")
    levels = sorted({i.level for i in store.items(Filter()) if i.level >= 0}, reverse=True) or [0]
    within: list[str] | None = None
    visited: list[int] = []
    read, limit = 0, budget.bytes if budget is not None else None
    each = None if budget is None else budget._replace(bytes=None)
    at = levels[0]
    while True:
        visited.append(at)
        where = Filter(levels=[at], ids=within)
        found = store.search(text, vector=vector, space=space, k=max(k, beam), where=where, budget=each, explain=True)
        read += sum(len(t.encode()) for t in found.texts)
        short = found._replace(hits=found.hits[:k])
        if at == 0 or not found.hits:
            return Descent(short, tuple(visited), "bottom")
        if limit is not None and read >= limit:
            return Descent(short, tuple(visited), "budget")
        if sure([hit.channels["dense"].score for hit in found.hits if "dense" in hit.channels], margin, entropy):
            return Descent(short, tuple(visited), "sure")
        below = made_of(store, list(found.ids[:beam]))
        lower = [level for level in set(below.values()) if level < at]
        if lower:
            at = max(lower)
            within = [ident for ident, level in below.items() if level == at]
        else:  # summaries of nothing that is still there: ask the next level as a whole
            at, within = max(level for level in [*levels, 0] if level < at), None


def sure(similarities: list[float], margin: float, entropy: float) -> bool:
    """Whether the first of these, in falling order, leads clearly."""
    if len(similarities) < 2:
        return bool(similarities)
    p = torch.softmax(torch.tensor(similarities, dtype=torch.double) / TEMPERATURE, 0)
    spread = float(-(p * p.clamp_min(1e-300).log()).sum()) / math.log(len(p))
    return similarities[0] - similarities[1] >= margin and spread <= entropy


def made_of(store: Reader, ids: list[str]) -> dict[str, int]:
    """What items were made of or contain, with its level."""
    found: dict[str, int] = {}
    tied = select(link.c.dst).where(link.c.src.in_(ids), link.c.type.in_(["derived_from", "contains"]))
    with store._read() as conns:  # noqa: SLF001
        below = {ident for conn in conns for ident in conn.execute(tied).scalars()}
        here = select(item.c.id, item.c.level).where(item.c.id.in_(below), visible(store._at))  # noqa: SLF001
        for conn in conns:
            found |= dict(conn.execute(here).tuples().all())
    return found
