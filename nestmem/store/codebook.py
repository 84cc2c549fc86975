"""A codebook over items, learned by moving averages (van den Oord et al. 2017; MBC, arXiv 2601.00756), as prototypes.

    n_k <- g n_k + (1 - g) [v goes to k],   m_k <- g m_k + (1 - g) v [v goes to k],   e_k = m_k / n_k
    a code used less than `dead` is set anew to the vector that is worst represented

Published codebooks change what old items mean when a code moves or is set anew. Here a prototype is an item made of the
items that chose it: when they change it is superseded, so every past codebook is a past of the store (`as_of`), and an
item is never decoded by a later one.
Legend: N items, K codes, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem.store.model import Item
from nestmem.store.policies import Derived, Summarise, digest_of, medoid


def learn(
    vectors: Tensor, codes: int, decay: float = 0.9, dead: float = 1e-2, passes: int = 3, renew: bool = True
) -> Tensor:
    """Codes [K, D] for unit vectors [N, D], the same for the same vectors. renew=False: dead codes stay, as in plain EMA."""
    rows = F.normalize(vectors.double(), dim=-1)
    book = rows[:: max(1, len(rows) // codes)][:codes].clone()
    counts, sums = torch.ones(len(book), dtype=torch.double), book.clone()
    for _ in range(passes):
        for row in rows:
            near = int((book @ row).mul(1e9).round().argmax())
            counts *= decay ** (1 / len(book))
            sums *= decay ** (1 / len(book))
            counts[near] += 1 - decay
            sums[near] += (1 - decay) * row
            book[near] = sums[near] / counts[near]
        if renew:
            for k in (counts < dead * counts.sum()).nonzero()[:, 0].tolist():
                worst = int((rows @ F.normalize(book, dim=-1).T).amax(1).mul(1e9).round().argmin())
                book[k] = sums[k] = rows[worst]
                counts[k] = 1.0
    return F.normalize(book, dim=-1).float()


def usage(chosen: Tensor, codes: int) -> float:
    """Perplexity of the codes that vectors chose: between 1 (all the same) and K."""
    p = torch.bincount(chosen, minlength=codes).double()
    p = p[p > 0] / p.sum()
    return float((-(p * p.log()).sum()).exp())


@dataclass(frozen=True)
class Prototypes:
    """`Prototypes("words", codes=64)`: an item of kind "prototype" for each code that items of a subtree chose."""

    space: str
    codes: int = 64
    decay: float = 0.9
    summarise: Summarise = field(default=medoid, repr=False)
    name: str = "prototypes"
    source: int = 0

    def __post_init__(self) -> None:
        if self.codes < 1 or not 0 < self.decay < 1:
            raise ValueError("prototypes: expected codes >= 1 and decay between 0 and 1")

    def config(self) -> dict[str, Any]:
        return {"space": self.space, "codes": [self.codes, self.decay], "summarise": self.summarise.__qualname__}

    def derive(self, items: Sequence[Item], vectors: Tensor) -> list[Derived]:
        book = learn(vectors, self.codes, self.decay)
        chosen = (F.normalize(vectors, dim=-1) @ book.T).mul(1e5).round().argmax(1).tolist()
        found = []
        for code in sorted(set(chosen)):
            members = tuple(place for place, c in enumerate(chosen) if c == code)
            digest = digest_of([items[m] for m in members])
            found.append(Derived(self.source + 1, "prototype", members, book[code], digest, False))
        return found

    def describe(self, members: Sequence[Item], vectors: Tensor) -> str:
        return self.summarise(members, vectors)
