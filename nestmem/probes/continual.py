"""What a stream of tasks leaves behind: metrics of the matrix R[i, j] = accuracy on task j at evaluation i.

In its usual form evaluation i takes place after training on task i, and R is [T, T]. Two generalisations: more evaluations
than tasks (every 100 steps, say; the worst case is then seen), and tasks never trained on. `learned[j]` is the row at the
end of task j's first training, by default j; -1 for a task that is only held out. NaN where nothing was measured.
Every metric is undefined, with the reason, where a number it needs is missing.
Legend: E evaluations, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestmem.probes.exponential import fit_decay
from nestmem.probes.value import Undefined

Array = NDArray[np.float64]
Learned = Sequence[int] | None


def average_accuracy(r: ArrayLike, learned: Learned = None) -> float | Undefined:
    """ACC (Lopez-Paz and Ranzato 2017): mean over trained tasks of R[last, j]."""
    r, learned_at = _checked(r, learned)
    return _mean(r[-1, learned_at >= 0], "accuracy at the last evaluation")


def backward_transfer(r: ArrayLike, learned: Learned = None) -> float | Undefined:
    """BWT (Lopez-Paz and Ranzato 2017): mean of R[last, j] - R[learned[j], j] over tasks learned before the last row."""
    r, learned_at = _checked(r, learned)
    old = _old(r, learned_at)
    return _mean(r[-1, old] - r[learned_at[old], old], "accuracy on an old task, when learned or at the end")


def forward_transfer(r: ArrayLike, baseline: ArrayLike | None, learned: Learned = None) -> float | Undefined:
    """FWT (Lopez-Paz and Ranzato 2017): mean of R[learned[j] - 1, j] - baseline[j] over tasks learned after the first row.

    baseline [T]: accuracy of an untrained model, each from its own initialisation; chance is not the same thing.
    With more than one evaluation a task, the row before `learned[j]` is inside its training: give one row a task.
    """
    r, learned_at = _checked(r, learned)
    if baseline is None:
        return Undefined("forward transfer needs the accuracy of an untrained model on each task")
    later = np.flatnonzero(learned_at >= 1)
    return _mean(
        r[learned_at[later] - 1, later] - _row("baseline", baseline, r)[later],
        "accuracy on a task before it was trained",
    )


def held_out_transfer(r: ArrayLike, baseline: ArrayLike | None, learned: Learned = None) -> float | Undefined:
    """Mean of R[last, j] - baseline[j] over the tasks that are never trained on (learned[j] = -1)."""
    r, learned_at = _checked(r, learned)
    if baseline is None:
        return Undefined("transfer needs the accuracy before training on each held-out task")
    held = learned_at < 0
    return _mean((r[-1] - _row("baseline", baseline, r))[held], "accuracy on a held-out task")


def forgetting(r: ArrayLike, learned: Learned = None) -> float | Undefined:
    """Mean over tasks learned before the last row of (max over all measured history) - (final accuracy).

    Our definition: the history includes the last row, so it is never negative. Chaudhry et al. 2018 leave that row out
    and can go below zero; where nothing improved at the end the two agree. A maximum of noisy numbers is biased upwards:
    compare methods on as many evaluations of equal size.
    """
    r, learned_at = _checked(r, learned)
    old = _old(r, learned_at)
    if not len(old):
        return Undefined("no task was learned before the last evaluation")
    if np.isnan(r[learned_at[old], old]).any():
        return Undefined("accuracy on an old task when it was learned was not measured")
    return _mean(np.nanmax(r[:, old], axis=0) - r[-1, old], "accuracy at the last evaluation")


def anytime_accuracy(r: ArrayLike, learned: Learned = None) -> float | Undefined:
    """Mean over evaluations of the mean accuracy on the tasks learned by then."""
    r, learned_at = _checked(r, learned)
    seen = (learned_at >= 0) & (learned_at <= np.arange(len(r))[:, None])  # [E, T]
    rows = [row[now] for row, now in zip(r, seen, strict=True) if now.any()]
    return _mean(np.array([row.mean() for row in rows]), "accuracy on a task already learned")


def minimum_accuracy(r: ArrayLike, learned: Learned = None) -> float | Undefined:
    """min-ACC (De Lange et al. 2023): mean over old tasks of the lowest accuracy at any evaluation after learning them.

    The paper evaluates at every update. Fewer rows miss dips between them, and the number is an upper bound.
    """
    r, learned_at = _checked(r, learned)
    return _lowest(r, learned_at, _old(r, learned_at))


def worst_case_accuracy(r: ArrayLike, learned: Learned = None) -> float | Undefined:
    """WC-ACC (De Lange et al. 2023): R[last, k] / T + (1 - 1 / T) * min-ACC, where k is the task learned last of T."""
    r, learned_at = _checked(r, learned)
    tasks = int((learned_at >= 0).sum())
    last = int(learned_at.argmax())
    current = float(r[-1, last])
    if np.isnan(current):
        return Undefined("accuracy on the last task was not measured")
    if tasks == 1:
        return current
    old = _old(r, learned_at)
    lowest = _lowest(r, learned_at, old[old != last])
    return lowest if isinstance(lowest, Undefined) else current / tasks + (1 - 1 / tasks) * lowest


class Retention(NamedTuple):
    """Accuracy by age (evaluations since the task was learned), tasks behind each, and the half-life of the decay."""

    ages: list[int]
    accuracy: list[float]
    tasks: list[int]
    half_life: float | Undefined


def retention_curve(r: ArrayLike, learned: Learned = None, *, floor: float = 0.0) -> Retention:
    """Mean over tasks of R[learned[j] + age, j]; the half-life is that of what exceeds `floor`, the level of knowing nothing."""
    r, learned_at = _checked(r, learned)
    by_age: dict[int, list[float]] = {}
    for j in np.flatnonzero(learned_at >= 0):
        for i in range(learned_at[j], len(r)):
            if not np.isnan(r[i, j]):
                by_age.setdefault(int(i - learned_at[j]), []).append(float(r[i, j]))
    ages = sorted(by_age)
    accuracy, tasks = [float(np.mean(by_age[age])) for age in ages], [len(by_age[age]) for age in ages]
    return Retention(ages, accuracy, tasks, half_life(ages, accuracy, floor=floor, weights=tasks))


def half_life(
    ages: ArrayLike, accuracy: ArrayLike, *, floor: float = 0.0, weights: ArrayLike | None = None
) -> float | Undefined:
    """Age at which accuracy - floor has halved: fit of accuracy = floor + a * 2^(-age / half-life), in units of age."""
    fit = fit_decay(ages, np.asarray(accuracy, dtype=np.float64) - floor, weights)
    return fit if isinstance(fit, Undefined) else fit.timescale * float(np.log(2))


def continual_metrics(
    r: ArrayLike, baseline: ArrayLike | None = None, learned: Learned = None, *, floor: float = 0.0
) -> dict[str, float | Undefined]:
    """All of the above by name, for a log or a report."""
    return {
        "acc": average_accuracy(r, learned),
        "bwt": backward_transfer(r, learned),
        "fwt": forward_transfer(r, baseline, learned),
        "held_out_transfer": held_out_transfer(r, baseline, learned),
        "forgetting": forgetting(r, learned),
        "anytime_acc": anytime_accuracy(r, learned),
        "min_acc": minimum_accuracy(r, learned),
        "wc_acc": worst_case_accuracy(r, learned),
        "half_life": retention_curve(r, learned, floor=floor).half_life,
    }


def _checked(r: ArrayLike, learned: Learned) -> tuple[Array, NDArray[np.int64]]:
    r = np.asarray(r, dtype=np.float64)
    if r.ndim != 2 or not r.size:
        raise ValueError(f"r: expected [evaluations, tasks], got shape {r.shape}")
    if learned is None and r.shape[0] != r.shape[1]:
        raise ValueError(f"learned: expected the row at which each task was learned, since r {r.shape} is not square")
    at = np.arange(r.shape[1]) if learned is None else np.asarray(learned, dtype=np.int64)
    if at.shape != r.shape[1:] or at.min() < -1 or at.max() >= len(r) or at.max() < 0:
        raise ValueError(
            f"learned: expected a row of {len(r)} (or -1) for each of {r.shape[1]} tasks, got {at.tolist()}"
        )
    return r, at


def _old(r: Array, learned_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tasks learned before the last row: those that can have been forgotten."""
    return np.flatnonzero((learned_at >= 0) & (learned_at < len(r) - 1))


def _lowest(r: Array, learned_at: NDArray[np.int64], tasks: NDArray[np.int64]) -> float | Undefined:
    return _mean(np.array([r[learned_at[j] + 1 :, j].min() for j in tasks]), "accuracy on an old task")


def _row(name: str, values: ArrayLike, r: Array) -> Array:
    row = np.asarray(values, dtype=np.float64)
    if row.shape != r.shape[1:]:
        raise ValueError(f"{name}: expected one number for each of {r.shape[1]} tasks, got shape {row.shape}")
    return row


def _mean(values: Array, what: str) -> float | Undefined:
    if not len(values):
        return Undefined(f"{what}: there is no such task")
    if np.isnan(values).any():
        return Undefined(f"{what} was not measured for {int(np.isnan(values).sum())} of {len(values)}")
    return float(values.mean())
