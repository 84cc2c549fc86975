"""Intervals. A number without one is not a result.

Over a few seeds, Student's (`mean_interval`, `geometric_ratio`) and Fieller's (`ratio_interval`) intervals keep their 95 %
if the values are roughly normal. The stratified bootstrap (Agarwal et al. 2021, "Deep reinforcement learning at the edge
of the statistical precipice") asks for no shape and takes any statistic, but is too narrow for few runs: on normal
values, five runs of one task cover the mean 84 times in a hundred (the interquartile mean 91), ten runs of three tasks
92 (94).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestmem.probes.value import Undefined

Array = NDArray[np.float64]

# 97.5 % quantiles of Student's t for 1..30 degrees of freedom; above, the normal one is close enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


class Interval(NamedTuple):
    """A value (`mean`, or whatever statistic the function names), its 95 % interval, and the `n` units behind it."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean of independent values with its 95 % interval after Student; one value alone has an unbounded one."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values: expected a non-empty list of numbers, got shape {values.shape}")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, float("-inf"), float("inf"), 1)
    half = _t(n - 1) * float(values.std(ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


def over_runs(values: Sequence[float | Undefined]) -> Interval | Undefined:
    """`mean_interval` of one metric over runs; undefined as soon as one of them is, so that no run drops out unseen."""
    missing = [value for value in values if isinstance(value, Undefined)]
    if missing:
        return Undefined(f"in {len(missing)} of {len(values)} runs: {missing[0].reason}")
    return mean_interval([float(value) for value in values])


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: of all scores together (runs and tasks), without the lowest and the highest quarter.

    As in rliable, a quarter of n scores is n // 4 of them.
    """
    flat = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    cut = len(flat) // 4
    return float(flat[cut : len(flat) - cut].mean())


def bootstrap_interval(
    scores: ArrayLike, statistic: Callable[[Array], float] = iqm, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """A statistic of scores [runs, tasks] (or [runs]), its interval by percentiles of the stratified bootstrap.

    Runs are drawn with replacement within each task, independently of the other tasks. One run alone: unbounded.
    """
    table = _table("scores", scores)
    value = float(statistic(table))
    if len(table) == 1:
        return Interval(value, float("-inf"), float("inf"), 1)
    rng = np.random.default_rng(seed)
    low, high = np.percentile([statistic(_resample(table, rng)) for _ in range(resamples)], [2.5, 97.5])
    return Interval(value, float(low), float(high), len(table))


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """How probable it is that a run of ours [runs, tasks] scores higher than one of theirs [runs', tasks] on a task.

    P = mean over tasks of P(ours > theirs) + P(ours = theirs) / 2, over all pairs of runs (Mann-Whitney's U over the
    number of pairs), with the stratified bootstrap's interval. Above 1/2 is better for us; higher scores are better.
    """
    x, y = _table("ours", ours), _table("theirs", theirs)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"theirs: expected {x.shape[1]} tasks as in ours, got {y.shape[1]}")
    value, n = _share_above(x, y), min(len(x), len(y))
    if n == 1:
        return Interval(value, 0.0, 1.0, 1)
    rng = np.random.default_rng(seed)
    drawn = [_share_above(_resample(x, rng), _resample(y, rng)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high), n)


def ratio_interval(over: ArrayLike, under: ArrayLike, *, paired: bool = False) -> Interval | Undefined:
    """mean(over) / mean(under) of two samples with Fieller's 95 % interval; either may be of any sign.

    paired: values belong together (the same seed, the same interleaved round), so what they share cancels.
    Undefined where the mean below the line cannot be told from zero: the ratio could then be anything.
    """
    a, b = np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1 or not len(a) or not len(b):
        raise ValueError(f"over, under: expected two non-empty lists of numbers, got shapes {a.shape} and {b.shape}")
    if paired and len(a) != len(b):
        raise ValueError(f"under: expected {len(a)} values, as many as above the line, got {len(b)}")
    n = min(len(a), len(b))
    above, below = float(a.mean()), float(b.mean())
    if n == 1:
        if below == 0:
            return Undefined("the value below the line is zero")
        return Interval(above / below, float("-inf"), float("inf"), 1)
    t = _t(n - 1)
    shared = t**2 * float(np.cov(a, b)[0, 1]) / n if paired else 0.0
    p = above * below - shared
    q = above**2 - t**2 * float(a.var(ddof=1)) / len(a)
    r = below**2 - t**2 * float(b.var(ddof=1)) / len(b)
    if r <= 0:
        return Undefined(f"the mean below the line, {below:.3g} of {len(b)}, cannot be told from zero")
    half = max(p**2 - q * r, 0.0) ** 0.5
    return Interval(above / below, (p - half) / r, (p + half) / r, n)


def geometric_ratio(over: ArrayLike, under: ArrayLike, *, paired: bool = False) -> Interval:
    """Ratio of the geometric means of two samples of positive numbers (times, steps), Student's interval of its logarithm.

    paired: then it is the geometric mean of the ratios, over[i] / under[i]. Halved and doubled weigh the same.
    """
    a, b = np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1 or not (a > 0).all() or not (b > 0).all() or not len(a) or not len(b):
        raise ValueError(f"over, under: expected two lists of positive numbers, got shapes {a.shape} and {b.shape}")
    if paired and len(a) != len(b):
        raise ValueError(f"under: expected {len(a)} values, as many as above the line, got {len(b)}")
    n, middle = min(len(a), len(b)), float(np.log(a).mean() - np.log(b).mean())
    if n == 1:
        return Interval(float(np.exp(middle)), 0.0, float("inf"), 1)
    if paired:
        variance = float((np.log(a) - np.log(b)).var(ddof=1)) / n
    else:
        variance = float(np.log(a).var(ddof=1)) / len(a) + float(np.log(b).var(ddof=1)) / len(b)
    half = _t(n - 1) * variance**0.5
    value, low, high = np.exp([middle, middle - half, middle + half])
    return Interval(float(value), float(low), float(high), n)


def _t(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else 1.96


def _table(name: str, scores: ArrayLike) -> Array:
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size:
        raise ValueError(f"{name}: expected [runs, tasks] or [runs], got shape {table.shape}")
    return table


def _resample(table: Array, rng: np.random.Generator) -> Array:
    runs, tasks = table.shape
    return table[rng.integers(runs, size=(runs, tasks)), np.arange(tasks)]


def _share_above(x: Array, y: Array) -> float:
    return float(((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])).mean())
