"""Interchange: which level does a prediction follow? Swap one level's read for that of another stream, and count.

For level l and variable v, among the steps where host and donor streams differ in v, swap[l, v] is the share on which the
prediction of v, made with level l's read taken from the donor, agrees with the donor. What it says that linear decodability
does not: the model *relies on* this level for this variable. It says nothing about variables the model has not learned,
so gains (`gain_fraction`) go with it:
    index = mean over v of gain_v * (swap[own(v), v] - mean over other levels of swap[l, v])
An untrained model has index 0, a perfect hierarchy 1.
Legend: L levels, B streams, T steps, V variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestmem.probes.statistics import Interval
from nestmem.probes.value import Undefined

Array = NDArray[np.float64]
LEARNED = 0.3  # below this gain the entries of a variable are noise and not read


@dataclass(frozen=True)
class Interchange:
    """swap[l][v]; own[v], the level of each variable; mean diagonal and off-diagonal over learned variables; the index."""

    swap: list[list[Interval | Undefined]]
    own: list[int]
    gains: list[float]
    diagonal: Interval | Undefined
    off_diagonal: Interval | Undefined
    index: Interval | Undefined


def interchange_matrix(
    swapped: ArrayLike,
    host: ArrayLike,
    donor: ArrayLike,
    gains: Sequence[float],
    *,
    own: Sequence[int] | None = None,
    where: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interchange:
    """The matrix, its reading and its index, with 95 % bootstrap intervals over streams (percentiles).

    swapped [L, B, T, V]: predicted values with level l's read from the donor. host, donor [B, T, V]: the values that hold
    in the two streams: of the hidden variables (a model's own errors then lower the entries), or the model's predictions
    on each stream by itself (only the routing is then measured). gains [V]: clipped to 0..1; they enter the index as
    they are, and below .3 a variable is left out of diagonal and off-diagonal. own [V]: the level each variable should
    be held by, fixed in advance; None takes the best assignment, each level used once, as for the unit groups of a flat
    model, which flatters. where [B, T] or [B, T, V]: steps that count (say, where host and donor agree in a variable
    that scrambles the others). The interval of the index treats the gains as known: over seeds, take `mean_interval` of
    the indices.
    """
    taken, ours, theirs = np.asarray(swapped), np.asarray(host), np.asarray(donor)
    if taken.ndim != 4 or ours.shape != taken.shape[1:] or theirs.shape != ours.shape:
        raise ValueError(
            f"swapped, host, donor: expected [L, B, T, V], [B, T, V], [B, T, V], got {taken.shape}, {ours.shape}, "
            f"{theirs.shape}"
        )
    levels, streams, _, variables = taken.shape
    gain = np.clip(np.asarray(gains, dtype=np.float64), 0, 1)
    if gain.shape != (variables,) or np.isnan(gain).any():
        raise ValueError(f"gains: expected a number for each of {variables} variables, got {list(gains)}")
    if own is not None and (len(own) != variables or not all(0 <= level < levels for level in own)):
        raise ValueError(f"own: expected one of {levels} levels for each of {variables} variables, got {list(own)}")

    counted = ours != theirs
    if where is not None:
        allowed = np.asarray(where, dtype=bool)
        counted = counted & (allowed if allowed.ndim == 3 else allowed[..., None])
    total = counted.sum(1).astype(np.float64)  # [B, V]
    follows = ((taken == theirs) & counted).sum(2).astype(np.float64)  # [L, B, V]
    # Streams drawn with replacement, as how often each is drawn; row 0 is the sample itself.
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([np.ones((1, streams)), rng.multinomial(streams, [1 / streams] * streams, resamples)])
    with np.errstate(invalid="ignore", divide="ignore"):
        swap = np.einsum("rb,lbv->rlv", drawn, follows) / (drawn @ total)[:, None]  # nan where nothing differs

    chosen = list(own) if own is not None else _best(swap[0], gain)
    held = swap[:, chosen, np.arange(variables)]  # [R, V]
    elsewhere = (swap.sum(1) - held) / (levels - 1) if levels > 1 else np.zeros_like(held)
    known = gain >= LEARNED
    unlearned = Undefined(f"no variable was learned: every gain is below {LEARNED}")
    same = [v for v in range(variables) if total[:, v].sum() == 0]
    no_step = Undefined(f"host and donor never differ in variable {', '.join(map(str, same))}")
    index = no_step if same else _interval((gain * (held - elsewhere)).mean(1), streams)
    readable = not (set(same) & set(np.flatnonzero(known).tolist()))
    none = unlearned if not known.any() else None if readable else no_step
    return Interchange(
        swap=[
            [
                Undefined("host and donor never differ in it") if v in same else _interval(swap[:, level, v], streams)
                for v in range(variables)
            ]
            for level in range(levels)
        ],
        own=chosen,
        gains=gain.tolist(),
        diagonal=none or _interval(held[:, known].mean(1), streams),
        off_diagonal=none
        or (_interval(elsewhere[:, known].mean(1), streams) if levels > 1 else Undefined("there is one level only")),
        index=index,
    )


def _best(swap: Array, gain: Array) -> list[int]:
    """The assignment of distinct levels to variables with the largest index."""
    levels, variables = swap.shape
    if levels < variables:
        raise ValueError(
            f"own: expected it to be given, since {levels} levels cannot each hold one of {variables} variables"
        )
    known = np.nan_to_num(swap)
    elsewhere = (known.sum(0) - known) / max(levels - 1, 1)
    worth = gain * (known - elsewhere)
    return list(
        max(
            itertools.permutations(range(levels), variables),
            key=lambda rows: float(worth[list(rows), np.arange(variables)].sum()),
        )
    )


def _interval(draws: Array, n: int) -> Interval:
    """The first draw is the sample itself; one stream says nothing about others."""
    if n == 1:
        return Interval(float(draws[0]), float("-inf"), float("inf"), 1)
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high), n)
