"""Tasks that come back within a trial, each under a barcode that names it (after Ritter et al. 2018).

Legend: N trials, K tasks of a trial, R visits to each, b bits.
"""

from __future__ import annotations

import numpy as np

from envs.trials import Array
from nestmem.errors import UserError


def check_barcodes(name: str, bits: int, tasks: int) -> None:
    if bits > 20 or tasks > 2**bits:
        raise UserError(f"{name}: expected at most 20, and 2^bits barcodes for {tasks} tasks, got {bits}")


def rounds(rng: np.random.Generator, trials: int, tasks: int, visits: int) -> Array:
    """The task of every visit [N, K R]: each once in each round, in random order and never twice in a row."""
    each = np.tile(np.arange(tasks), (trials, 1))
    found = [rng.permuted(each, axis=1)]
    while len(found) < visits:
        following = rng.permuted(each, axis=1)
        while tasks > 1 and (again := following[:, 0] == found[-1][:, -1]).any():
            following[again] = rng.permuted(following[again], axis=1)
        found.append(following)
    return np.concatenate(found, 1)


def barcodes(rng: np.random.Generator, trials: int, tasks: int, bits: int) -> Array:
    """Numbers below 2^b [N, K], different ones in a trial."""
    codes = rng.integers(2**bits, size=(trials, tasks))
    while (same := (np.diff(np.sort(codes, 1), axis=1) == 0).any(1)).any():
        codes[same] = rng.integers(2**bits, size=(same.sum(), tasks))
    return codes


def spelled(codes: Array, bits: int) -> Array:
    """The bits of codes [N], 0 or 1: [N, b]."""
    return (codes[:, None] >> np.arange(bits) & 1).astype(np.int8)


def nth_visit(order: Array) -> Array:
    """How often the task of each visit was met before, from the task of each [N, K R]: [N, K R]."""
    return np.tril(order[:, :, None] == order[:, None], -1).sum(2)
