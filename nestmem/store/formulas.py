"""Small published formulas that are wrong or unusable as printed, corrected; `literal=True` gives the printed form.

MemGAS (arXiv 2505.19549): weights of granularities by entropy. Hopfield completion as in SuperLocalMemory V3.3 (arXiv
2604.04514) and its distance between quantised copies (FRQAD). The others of this kind stand beside their subject:
`retention.py` (hours, HEMA's sign) and `pyramid.py` (the cascade).
Legend: G granularities, N items of each, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def granularity_weights(similarities: Sequence[Tensor], *, temperature: float = 0.2, literal: bool = False) -> Tensor:
    """Trust in each granularity by how peaked its similarities are: 1 - H / log N, normalised to sum 1.

    similarities: G tensors [N_g] of a query to the items of one granularity. Fewer than two items say nothing: weight
    by 1. Literally 1 - H: with more than e items H passes 1, so a flat distribution outweighs a sharp one.
    """
    if not similarities:
        raise ValueError("similarities: expected at least one granularity, got none")
    weights = []
    for values in similarities:
        p = torch.softmax(values.double() / temperature, 0)
        entropy = -(p * p.clamp_min(1e-300).log()).sum()
        n = len(values)
        weights.append(torch.ones((), dtype=torch.double) if n < 2 else 1 - entropy / (1.0 if literal else math.log(n)))
    stacked = torch.stack(weights)
    total = stacked.sum()
    if not literal and total < 1e-12:
        return torch.full_like(stacked, 1 / len(stacked))
    return stacked / total


def complete(patterns: Tensor, query: Tensor, *, beta: float = 16.0, literal: bool = False) -> Tensor:
    """One step of modern Hopfield retrieval: X^T softmax(beta X q), patterns [N, D] and query [D] of length one.

    Literally beta = 1 / sqrt(D): similarities of unit vectors then differ by less than the temperature, and the
    answer is the mean of everything stored.
    """
    if literal:
        beta = 1 / math.sqrt(patterns.shape[-1])
    return torch.softmax(beta * (patterns @ query), 0) @ patterns


def copy_distance(a: Tensor, b: Tensor, bits_a: int, bits_b: int) -> Tensor:
    """FRQAD: Fisher-Rao distance of two vectors [D] whose coordinates are Gaussians, wider the fewer bits they have."""

    def spread(x: Tensor, bits: int) -> Tensor:
        return (2 - 1.95 * x.abs() / x.abs().max()) * math.sqrt(32 / bits)

    s, t = spread(a, bits_a), spread(b, bits_b)
    gap = ((a - b) ** 2 + 2 * (s - t) ** 2) / (4 * s * t)
    return (math.sqrt(2) * torch.acosh(1 + gap)).square().sum().sqrt()


def rank_copies(
    query: Tensor, vectors: Sequence[Tensor], bits: Sequence[int], items: Sequence[str], *, literal: bool = False
) -> list[int]:
    """Places of vectors, best first, where some are quantised copies: `items` names what each is a copy of.

    Items are ranked by the cosine of their best copy; FRQAD decides only between copies of one item. Literally FRQAD
    ranks everything, and puts an unrelated vector of 32 bits before a relevant one of 4.
    """
    distance = [float(copy_distance(query, v, 32, b)) for v, b in zip(vectors, bits)]
    if literal:
        return sorted(range(len(vectors)), key=lambda i: distance[i])
    cosine = [float(torch.cosine_similarity(query, v, dim=0)) for v in vectors]
    best = {name: max(c for c, other in zip(cosine, items) if other == name) for name in set(items)}
    return sorted(range(len(vectors)), key=lambda i: (-best[items[i]], items[i], distance[i]))
