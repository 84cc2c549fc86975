"""MIRAS: the neural memory with another inner loss or another way to retain.

Behrouz et al. 2025 name four choices (architecture, inner loss, retention, inner algorithm) and three models; the network and
its chunks are those of titans.py, without momentum:
    moneta  loss sum |e|^p / p, p = 3; weights are the mirror image of an accumulator A, of the retention 1/2 ||W||_q^2, q = 4
    yaad    Huber loss: quadratic while ||e|| is below a learned threshold, then linear, so that outliers pull no harder
    memora  KL retention: rows of a weight matrix are probabilities, W <- softmax(log W - theta grad)
As printed, Moneta's weights are A / ||A||^(q - 2), which does not minimise the retention it is derived from: doubling A would
shrink W. The consistent mirror map, with 1/p' + 1/q = 1,
    W = sign(A) |A|^(p' - 1) / ||A||_{p'}^(p' - 2)
is the default here, the printed one an option. Steps inside a chunk add up in A (for Memora: in log W), and the weights that
are read change at chunk boundaries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nestmem.memory.base import Fields
from nestmem.memory.registry import register
from nestmem.memory.titans import NeuralMemory

SMOOTH = 1e-6  # |a| is sqrt(a^2 + SMOOTH), so that it has a derivative at 0
LARGE = 1e6  # an error beyond it counts as this: its powers would overflow in 32 bits


def huber(error: Tensor, threshold: Tensor) -> Tensor:
    """Gradient of the Huber loss of the error's norm [..., V]; `threshold` [..., 1]."""
    norm = (error.square().sum(-1, keepdim=True) + SMOOTH).sqrt()
    return error * (threshold / norm).clamp(max=1)


def power(p: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Gradient of sum |error|^p / p. For p = 2 the error itself."""

    def gradient(error: Tensor, threshold: Tensor) -> Tensor:
        if p == 2:
            return error
        error = error.clamp(-LARGE, LARGE)
        return error * (error.square() + SMOOTH) ** (p / 2 - 1)

    return gradient


def mirror(q: float) -> Callable[[Tensor], Tensor]:
    """The map from an accumulator [..., in, out] to the weights that the retention 1/2 ||W||_q^2 gives."""
    p = q / (q - 1)

    def weights(accumulator: Tensor) -> Tensor:
        size = accumulator.square() + SMOOTH
        norm = (size ** (p / 2)).sum((-2, -1), keepdim=True) ** (1 / p)
        return accumulator * size ** (p / 2 - 1) * norm ** (2 - p)

    return weights


def printed_mirror(q: float) -> Callable[[Tensor], Tensor]:
    """A / ||A||_q^(q - 2), as printed."""

    def weights(accumulator: Tensor) -> Tensor:
        norm = ((accumulator.square() + SMOOTH) ** (q / 2)).sum((-2, -1), keepdim=True) ** (1 / q)
        return accumulator / norm ** (q - 2)

    return weights


def probabilities(accumulator: Tensor) -> Tensor:
    """Rows of a weight matrix [..., in, out] that sum to 1 over `out`; a row of n moves n times less than its logits do."""
    return torch.softmax(accumulator.shape[-1] * accumulator, -1)


@register("moneta")
def moneta(
    d_model: int,
    fields: Fields | None = None,
    depth: int = 2,
    hidden: int = 0,
    chunk: int = 8,
    heads: int = 1,
    key_size: int = 0,
    p: float = 3.0,
    q: float = 4.0,
    printed: bool = False,
) -> NeuralMemory:
    """Moneta: a neural memory with an l_p inner loss and l_q retention."""
    for name, value, least in (("p", p, 1.0), ("q", q, 2.0)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    readout = None if q == 2 else printed_mirror(q) if printed else mirror(q)
    return NeuralMemory(
        d_model,
        fields,
        depth=depth,
        hidden=hidden,
        chunk=chunk,
        heads=heads,
        key_size=key_size,
        momentum=False,
        loss=power(p),
        readout=readout,
    )


@register("yaad")
def yaad(
    d_model: int,
    fields: Fields | None = None,
    depth: int = 2,
    hidden: int = 0,
    chunk: int = 8,
    heads: int = 1,
    key_size: int = 0,
) -> NeuralMemory:
    """Yaad: a neural memory with a Huber inner loss, robust against outliers."""
    return NeuralMemory(
        d_model,
        fields,
        depth=depth,
        hidden=hidden,
        chunk=chunk,
        heads=heads,
        key_size=key_size,
        momentum=False,
        loss=huber,
    )


@register("memora")
def memora(
    d_model: int,
    fields: Fields | None = None,
    depth: int = 2,
    hidden: int = 0,
    chunk: int = 8,
    heads: int = 1,
    key_size: int = 0,
) -> NeuralMemory:
    """Memora: a neural memory whose weights are probabilities, retained by their KL divergence."""
    return NeuralMemory(
        d_model,
        fields,
        depth=depth,
        hidden=hidden,
        chunk=chunk,
        heads=heads,
        key_size=key_size,
        momentum=False,
        readout=probabilities,
    )
