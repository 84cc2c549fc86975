"""How fast a learner adapts, on a first visit and on a return. Records are curves [runs, steps], one run a seed or stream.

Steps count from 1: a level already reached at the first step took 1, so that a ratio of steps always exists. A run that
never gets there is *censored*: its true number is unknown but larger, no mean over such runs is formed, and a median only
where more than half of the runs got there.
Legend: N runs, T steps (or shots).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestmem.probes.statistics import Interval, geometric_ratio, mean_interval
from nestmem.probes.value import Undefined

Array = NDArray[np.float64]
GAPS = (5, 9, 14, 21, 31)  # 5-8, 9-13, 14-20, 21-30, 31+


class Reached(NamedTuple):
    """Steps until a level, by run: nan where it never was. `summary` is their mean with its interval."""

    steps: list[float]
    censored: int
    summary: Interval | Undefined
    median: float | Undefined


def steps_to(curves: ArrayLike, level: ArrayLike, *, window: int = 1) -> Reached:
    """First step (from 1) at which the mean of the last `window` values of a curve [N, T] is at or above `level`.

    level: one number for all or one per run. window: single steps of an accuracy are noisy, and noise reaches any
    level early; a step counts at the end of its window.
    """
    table = _curves(curves)
    if not 1 <= window <= table.shape[1]:
        raise ValueError(f"window: expected 1 to {table.shape[1]}, the steps of a run, got {window}")
    smooth = np.lib.stride_tricks.sliding_window_view(table, window, axis=1).mean(-1)  # [N, T - window + 1]
    levels = np.broadcast_to(np.asarray(level, dtype=np.float64), (len(table),))
    above = smooth >= levels[:, None] - 1e-12
    steps = np.where(above.any(1), above.argmax(1) + window, np.nan)
    censored = int(np.isnan(steps).sum())
    finite = levels[np.isfinite(levels)]
    lowest, highest = float(finite.min()), float(finite.max())
    wanted = f"{lowest:.3g}" if lowest == highest else f"{lowest:.3g} to {highest:.3g}"
    why = Undefined(f"{censored} of {len(steps)} runs never reached {wanted} in {table.shape[1]} steps")
    middle = float(np.median(np.where(np.isnan(steps), np.inf, steps)))
    return Reached(
        steps.tolist(), censored, why if censored else mean_interval(steps), middle if np.isfinite(middle) else why
    )


class Adaptation(NamedTuple):
    """Steps to a share of the final level; that final level; the area under the curve (mean level over all steps)."""

    reached: Reached | Undefined
    final: Interval
    area: Interval


def adaptation_speed(
    curves: ArrayLike, *, share: float = 0.9, floor: float = 0.0, tail: int = 5, window: int = 1
) -> Adaptation:
    """Adaptation speed of curves [N, T]: steps to floor + share * (final - floor), each run by its own final level.

    final: mean of the last `tail` steps. floor: the level of knowing nothing, e.g. chance. Undefined where the final
    level cannot be told from the floor: reaching 90 % of nothing is no speed; a single such run is censored. A method
    with a low final level reaches 90 % of it soon: to compare methods, use `steps_to` with one level for all, or look at
    the area too.
    """
    table = _curves(curves)
    if not 1 <= tail <= table.shape[1]:
        raise ValueError(f"tail: expected 1 to {table.shape[1]}, the steps of a run, got {tail}")
    finals = table[:, -tail:].mean(1)
    final, level = mean_interval(finals), area(table)
    low = final.low if len(finals) > 1 else final.mean
    if low <= floor:
        why = f"the final level, {final.mean:.3g} over {len(finals)} runs, cannot be told from the floor {floor:.3g}"
        return Adaptation(Undefined(why), final, level)
    wanted = np.where(finals > floor, floor + share * (finals - floor), np.inf)
    return Adaptation(steps_to(table, wanted, window=window), final, level)


def area(curves: ArrayLike) -> Interval:
    """Area under curves [N, T] over their length: the mean level over all steps."""
    return mean_interval(_curves(curves).mean(1))


def savings(first: ArrayLike, again: ArrayLike, level: float, *, window: int = 1) -> Interval | Undefined:
    """Savings on recurrence: steps to `level` on a first visit over steps on the return. Above 1, something was kept.

    first [N, T], again [N, T']: curves of the same N runs. The value is the geometric mean of the runs' ratios.
    Undefined with censored runs: name a level that both reach, or give the visits more steps.
    """
    learned, back = steps_to(first, level, window=window), steps_to(again, level, window=window)
    for visit, reached in (("first visits", learned), ("returns", back)):
        if isinstance(reached.summary, Undefined):
            return Undefined(f"{visit}: {reached.summary.reason}")
    return geometric_ratio(learned.steps, back.steps, paired=True)


def accuracy_by_gap(
    correct: ArrayLike, gap: ArrayLike, run: ArrayLike, *, bins: Sequence[int] = GAPS
) -> dict[str, Interval | Undefined]:
    """Accuracy by visits since a task was last seen, with intervals over runs.

    Flat records of first answers: correct [N] (bool or 0..1), gap [N] in visits (0 for a task never seen: the key
    "new"), run [N], the seed or stream of each. bins: the first gap of each bin, the last one open; shorter gaps than the
    first have a bin of their own. The mean is over runs, each run's own accuracy counting once.
    """
    hits, gaps, runs = np.asarray(correct, dtype=np.float64), np.asarray(gap), np.asarray(run)
    if hits.ndim != 1 or gaps.shape != hits.shape or runs.shape != hits.shape:
        raise ValueError(f"correct, gap, run: expected three [N], got {hits.shape}, {gaps.shape}, {runs.shape}")
    if (gaps < 0).any() or not bins or list(bins) != sorted(set(bins)) or bins[0] < 1:
        raise ValueError(f"gap, bins: expected gaps of at least 0 and rising bins from 1 on, got bins {list(bins)}")
    edges = [*([1] if bins[0] > 1 else []), *bins]
    table = {"new": gaps == 0}
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        name = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        table[name] = (gaps >= low) & (gaps < (np.inf if high is None else high))
    found: dict[str, Interval | Undefined] = {}
    for name, rows in table.items():
        if rows.any():
            found[name] = mean_interval([float(hits[rows & (runs == r)].mean()) for r in np.unique(runs[rows])])
        else:
            found[name] = Undefined(f"no record with a gap of {name}" if name != "new" else "no record of a new task")
    return found


def elimination_floor(ways: int) -> float:
    """Accuracy from only striking off labels already used, when each of `ways` classes has its own label: mean of 1/k.

    45.7 % in 5-way: the floor for retention wherever labels are a permutation. With independent labels it is 1 / ways.
    """
    return float(np.mean(1 / np.arange(1, ways + 1)))


def _curves(curves: ArrayLike) -> Array:
    table = np.asarray(curves, dtype=np.float64)
    if table.ndim != 2 or not table.size or np.isnan(table).any():
        raise ValueError(f"curves: expected numbers [runs, steps] without nan, got shape {table.shape}")
    return table
