"""The figures of a run, for TensorBoard and the report alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float], Sequence[float]]  # mean, low, high


def adaptation(curves: Mapping[str, Curve], point: str, chance: float) -> Figure:
    """Accuracy in percent against the amount of adaptation, one line per method with its 95 % band."""
    figure, axes = _figure()
    for name, (mean, low, high) in curves.items():
        axes.plot(range(len(mean)), mean, marker="o", label=name)
        axes.fill_between(range(len(mean)), low, high, alpha=0.2)
    axes.axhline(chance, color="grey", linestyle=":", label="chance")
    longest = max((len(mean) for mean, _, _ in curves.values()), default=1)
    axes.set(xlabel=f"{point} seen", ylabel="accuracy, %", xticks=range(longest), ylim=(0, 101))
    axes.legend()
    return figure


def gates(weights: Sequence[Sequence[float]], levels: Sequence[str], point: str) -> Figure:
    """Mean gate of each level (rows) at each amount of adaptation (columns)."""
    figure, axes = _figure(height=1.0 + 0.6 * len(levels))
    columns = list(zip(*weights, strict=True))
    axes.imshow(columns, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    for row, values in enumerate(columns):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set(xlabel=f"{point} seen", xticks=range(len(weights)), yticks=range(len(levels)), yticklabels=levels)
    return figure


def lines(curves: Mapping[str, Sequence[Sequence[float]]], x: str, y: str, log: bool = False) -> Figure:
    """One line per method through points (x, mean, low, high), with its 95 % band where there is one: of a single value the
    ends are infinite, and words in a result that was written. log: x in powers of ten."""
    figure, axes = _figure()
    for name, points in curves.items():
        at, mean, *ends = zip(*points, strict=True)
        axes.plot(at, mean, marker="o", label=name)
        low, high = ([_end(e, m) for e, m in zip(end, mean, strict=True)] for end in ends)
        axes.fill_between(at, low, high, alpha=0.2)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear")
    axes.legend()
    return figure


def _end(end: Any, mean: float) -> float:
    return float(end) if isinstance(end, int | float) and math.isfinite(end) else mean


def matrix(
    values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], y: str, x: str
) -> Figure:
    """Numbers in 0..1 as a heat map; None is left blank."""
    figure, axes = _figure(height=1.2 + 0.4 * len(rows))
    shown = [[float("nan") if v is None else v for v in row] for row in values]
    axes.imshow(shown, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    if len(rows) * len(columns) <= 150:  # beyond that the numbers would cover each other
        for i, row in enumerate(shown):
            for j, value in enumerate(row):
                if value == value:
                    color = "white" if value < 0.6 else "black"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes.set(xlabel=x, ylabel=y, xticks=range(len(columns)), yticks=range(len(rows)))
    axes.set_xticklabels(columns, rotation=0 if len(columns) < 7 else 60, ha="center" if len(columns) < 7 else "right")
    axes.set_yticklabels(rows)
    return figure


def bars(groups: Mapping[str, Sequence[float]], columns: Sequence[str], y: str) -> Figure:
    """Groups of bars side by side in every column."""
    figure, axes = _figure()
    width = 0.8 / len(groups)
    for n, (name, values) in enumerate(groups.items()):
        axes.bar([at - 0.4 + (n + 0.5) * width for at in range(len(columns))], values, width, label=name)
    axes.set(ylabel=y, xticks=range(len(columns)))
    axes.set_xticklabels(columns, rotation=20 if len(columns) > 4 else 0)
    axes.legend()
    return figure


def learning(curves: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> Figure:
    """The score against training time or updates."""
    figure, axes = _figure()
    for name, points in curves.items():
        axes.plot([p[0] for p in points], [p[1] for p in points], marker=".", label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.legend()
    return figure


def _figure(height: float = 3.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, height), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
