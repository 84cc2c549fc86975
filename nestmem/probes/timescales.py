"""Timescales of recorded traces: how long a level remembers, what can be read from it, when it is used, how it changes.

None of these says which level the model *relies on*: clocks alone give an untrained hierarchy the same timescales and the
same linear decodability as a trained one. For that there is `interchange_matrix`; for what was learned at all, `gain_fraction`.
Legend: B streams, T steps, N units, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestmem.probes.exponential import fit_decay
from nestmem.probes.statistics import Interval, mean_interval, ratio_interval
from nestmem.probes.value import Undefined

Array = NDArray[np.float64]


def autocorrelation(trace: ArrayLike) -> Array | Undefined:
    """Autocorrelation [T // 2] by lag from 0 of a trace [T], [T, N] or [B, T, N], averaged over streams and moving units.

    Means are taken over all streams and steps: one short stream's own mean would swallow what is slower than it.
    """
    x = _trace(trace)
    x = x - x.mean((0, 1))
    power = (x**2).mean((0, 1))
    moving = power > 1e-12 * (1e-300 + (_trace(trace) ** 2).mean((0, 1)))
    if not moving.any():
        return Undefined("the trace is constant")
    x, steps = x[..., moving] / np.sqrt(power[moving]), x.shape[1]
    spectrum = np.abs(np.fft.rfft(x, 2 * steps, axis=1)) ** 2  # padded: no wrapping round
    covariance = np.fft.irfft(spectrum.mean((0, 2)))[: max(steps // 2, 1)]
    unbiased = covariance / (steps - np.arange(len(covariance)))
    found: Array = unbiased / unbiased[0]
    return found


def intrinsic_timescale(trace: ArrayLike) -> float | Undefined:
    """Steps in which the autocorrelation of a trace [T], [T, N] or [B, T, N] falls to 1/e: fit of a exp(-lag / tau).

    Fitted on lags from 1 (white noise on top of a slow trace shows at lag 0 alone and goes into a) to the end of the
    initial positive sequence (Geyer 1992: until the sum of two neighbouring lags is negative), beyond which there is noise.
    Undefined for constants, for what at lag 1 is white noise or oscillates, and above a tenth of the trace's length, where
    the estimate is far too short.
    """
    x = _trace(trace)
    rho = autocorrelation(x)
    if isinstance(rho, Undefined):
        return rho
    if len(rho) < 8:
        return Undefined(f"{x.shape[1]} steps are too few, 16 are needed")
    if rho[1] <= 2 / (x.shape[0] * x.shape[1]) ** 0.5:
        return Undefined("no positive autocorrelation at lag 1: shorter than a step, or it oscillates")
    pairs = rho[1 : len(rho) - 1 : 2] + rho[2 : len(rho) : 2]
    negative = np.flatnonzero(pairs <= 0)
    last = max(4, 1 + 2 * int(negative[0]) if len(negative) else len(rho))
    fit = fit_decay(np.arange(1, min(last, len(rho))), rho[1:last])
    if isinstance(fit, Undefined):
        return fit
    if fit.timescale > x.shape[1] / 10:
        return Undefined(f"longer than a tenth of the {x.shape[1]} steps recorded")
    return fit.timescale


def decodability(
    levels: Mapping[str, ArrayLike], variables: Mapping[str, ArrayLike], *, held_out: float = 0.25, ridge: float = 1e-3
) -> dict[str, dict[str, float | Undefined]]:
    """How well a linear readout of a level [B, T, N] tells a variable [B, T]: 0 at chance, 1 perfect; by level and variable.

    Ridge regression on standardised units, fitted on the first streams, scored on the last `held_out` share: whole
    streams, since neighbouring steps of one stream share the value of a slow variable. Integers are classes (one-hot
    targets): (accuracy - that of the commonest class) / (1 - that); floats: R^2.
    It does not discriminate by itself: always print it beside an untrained model of the same clocks.
    """
    features = {name: _trace(level) for name, level in levels.items()}
    streams = {x.shape[0] for x in features.values()} | {np.asarray(v).shape[0] for v in variables.values()}
    if len(streams) != 1 or (count := streams.pop()) < 2:
        raise ValueError("levels, variables: expected the same streams, at least two, in all of them")
    test = min(max(1, round(held_out * count)), count - 1)
    found: dict[str, dict[str, float | Undefined]] = {}
    for level, x in features.items():
        seen = x[:-test].reshape(-1, x.shape[-1])
        mean, scale = seen.mean(0), seen.std(0) + 1e-12
        design = [_with_bias((part.reshape(-1, x.shape[-1]) - mean) / scale) for part in (x[:-test], x[-test:])]
        gram = design[0].T @ design[0] + ridge * len(seen) * np.eye(x.shape[-1] + 1)
        found[level] = {
            name: _score(design, gram, np.asarray(v)[:-test].reshape(-1), np.asarray(v)[-test:].reshape(-1))
            for name, v in variables.items()
        }
    return found


def steps_since(switch: ArrayLike) -> NDArray[np.int64]:
    """Steps since the last switch, [B, T] from bool [B, T]: 0 at a switch, -1 before a stream's first one."""
    flags = np.asarray(switch, dtype=bool)
    steps = np.arange(flags.shape[1])
    last = np.maximum.accumulate(np.where(flags, steps, -1), axis=1)
    return np.where(last < 0, -1, steps - last)


def gate_usage(
    gates: ArrayLike, since: ArrayLike, *, bins: Sequence[int] = (0, 1, 2, 4, 8, 16, 32, 64)
) -> dict[str, list[Interval] | Undefined]:
    """Mean weight of each level by steps since the last switch: gates [B, T, L], since [B, T] (`steps_since`).

    bins: the first step of each bin, the last one open. Intervals over streams, one per level.
    """
    weights, after = np.asarray(gates, dtype=np.float64), np.asarray(since)
    if weights.ndim != 3 or after.shape != weights.shape[:2]:
        raise ValueError(f"gates, since: expected [B, T, L] and [B, T], got {weights.shape} and {after.shape}")
    found: dict[str, list[Interval] | Undefined] = {}
    for low, high in zip(bins, [*bins[1:], None], strict=True):
        name = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        rows = (after >= low) & (after < (np.inf if high is None else high))
        used = [weights[b][rows[b]].mean(0) for b in range(len(rows)) if rows[b].any()]
        levels = [mean_interval(level) for level in np.stack(used, -1)] if used else []
        found[name] = levels or Undefined(f"no step lies {name} after a switch")
    return found


class Spectrum(NamedTuple):
    """Share of update energy by period: `share[k]` is at periods from 2^(k+1) to below 2^(k+2) steps, the last also beyond.

    energy: mean squared change a step, summed over units. period: geometric mean over the shares' octaves, in steps.
    """

    periods: list[int]
    share: list[float]
    energy: float
    period: float


def update_spectrum(trace: ArrayLike) -> Spectrum | Undefined:
    """Power of the state changes x_t - x_{t-1} of a trace [T], [T, N] or [B, T, N] by octaves of their period.

    Shares sum to one (Parseval). A level that jumps at rare ticks is spread over all frequencies, since a jump holds them
    all: the spectrum tells smooth slow change from fast change, not how rare a change is.
    """
    x = _trace(trace)
    if x.shape[1] < 5:
        return Undefined(f"{x.shape[1]} steps are too few, 5 are needed")
    change = np.diff(x, axis=1)
    energy = float((change**2).mean((0, 1)).sum())
    if energy <= 1e-24 * float((x**2).mean((0, 1)).sum()):
        return Undefined("the state does not change")
    power = (np.abs(np.fft.rfft(change, axis=1)) ** 2).sum((0, 2))
    power[1 : (change.shape[1] + 1) // 2] *= 2  # the negative frequencies; 0 and the highest have none
    bands = int(np.log2(change.shape[1]))
    frequency = np.fft.rfftfreq(change.shape[1])
    octave = np.full(len(power), bands - 1)
    octave[1:] = np.clip(np.floor(np.log2(1 / frequency[1:]) + 1e-9) - 1, 0, bands - 1)
    share = np.bincount(octave, power, bands) / power.sum()
    middle = 2 ** float((share * (np.arange(bands) + 1.5)).sum())
    return Spectrum([2 ** (k + 1) for k in range(bands)], share.tolist(), energy, middle)


def gain_fraction(baseline: ArrayLike, model: ArrayLike, bayes: ArrayLike) -> Interval | Undefined:
    """Share of what is knowable that a model knows: (baseline - model) / (baseline - Bayes), negative log-likelihoods [B].

    One number a stream (or one in all), on the same streams; baseline: knowing nothing, ln(values) where marginals are
    uniform; Bayes: the exact filter. Fieller's interval, paired by stream. Undefined where there is nothing to gain.
    """
    nothing, ours, exact = (np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (baseline, model, bayes))
    nothing, ours, exact = np.broadcast_arrays(nothing, ours, exact)
    gain = ratio_interval(nothing - ours, nothing - exact, paired=True)
    if isinstance(gain, Undefined):
        return Undefined(
            f"the exact filter gains nothing over the baseline ({float((nothing - exact).mean()):.3g} nats)"
        )
    return gain


def _trace(trace: ArrayLike) -> Array:
    x = np.asarray(trace, dtype=np.float64)
    if x.ndim not in (1, 2, 3) or not x.size or not np.isfinite(x).all():
        raise ValueError(f"trace: expected finite numbers [T], [T, N] or [B, T, N], got shape {x.shape}")
    return x.reshape(1, -1, 1) if x.ndim == 1 else x[None] if x.ndim == 2 else x


def _with_bias(x: Array) -> Array:
    return np.concatenate([x, np.ones((len(x), 1))], 1)


def _score(
    design: list[Array], gram: Array, train: NDArray[np.generic], test: NDArray[np.generic]
) -> float | Undefined:
    classes = np.issubdtype(train.dtype, np.integer) or train.dtype == bool
    values = np.unique(train)
    if len(values) < 2 or len(np.unique(test)) < 2:
        return Undefined("the variable has a single value in the streams fitted or in those held out")
    target = (train[:, None] == values).astype(np.float64) if classes else train[:, None].astype(np.float64)
    answer = design[1] @ np.linalg.solve(gram, design[0].T @ target)
    if classes:
        common = float((test == values[target.sum(0).argmax()]).mean())
        return (float((values[answer.argmax(-1)] == test).mean()) - common) / (1 - common)
    truth = test.astype(np.float64)
    return 1 - float(((answer[:, 0] - truth) ** 2).mean()) / float(truth.var())
