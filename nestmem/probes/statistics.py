"""Intervals. A number without one is not a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# 97.5 % quantiles of Student's t for 1..30 degrees of freedom; above, the normal one is close enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


class Interval(NamedTuple):
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
    half = (_T[n - 2] if n <= 31 else 1.96) * float(values.std(ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n)
