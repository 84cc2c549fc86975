"""The least-squares fit of one exponential, for half-lives and timescales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nestmem.probes.value import Undefined


class Decay(NamedTuple):
    """y = amplitude * exp(-x / timescale)."""

    amplitude: float
    timescale: float


def fit_decay(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> Decay | Undefined:
    """Fit y [n] = amplitude * exp(-x / timescale) by weighted least squares over x >= 0 [n], both parameters free.

    For a given timescale the amplitude is a projection, so one number is searched: on a grid from a twentieth of the
    smallest step to a hundred times the range of x, then more finely around the best. No logarithm of y is taken: noise
    about zero stays harmless. Undefined where y does not decay within what was seen.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if x.shape != y.shape or x.shape != w.shape or x.ndim != 1:
        raise ValueError(f"y, weights: expected one number for each of x {x.shape}, got {y.shape} and {w.shape}")
    if len(set(x.tolist())) < 3:
        return Undefined(f"an exponential needs three points, got {len(set(x.tolist()))}")
    span, smallest = float(np.ptp(x)), float(np.diff(np.unique(x)).min())
    grid = np.geomspace(smallest / 20, span * 100, 200)
    for _ in range(4):
        shapes = np.exp(-(x - x.min()) / grid[:, None])  # [grid, n], from the first point on: none underflows to zero
        amplitudes = (w * y * shapes).sum(-1) / (w * shapes**2).sum(-1)
        errors = (w * (y - amplitudes[:, None] * shapes) ** 2).sum(-1)
        best = int(errors.argmin())
        timescale, amplitude = float(grid[best]), float(amplitudes[best])
        grid = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 50)
    if amplitude <= 0:
        return Undefined("nothing above the floor to decay from")
    if timescale > 10 * span:
        return Undefined(f"no decay within the {span:g} steps seen")
    if timescale < smallest / 5:
        return Undefined(f"gone within one interval of {smallest:g} steps")
    return Decay(amplitude * float(np.exp(x.min() / timescale)), timescale)
