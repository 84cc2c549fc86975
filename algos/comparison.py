"""What several runs of several memories say together: interquartile means, probability of improvement, a verdict in words.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice": interquartile means with
stratified bootstrap intervals over seeds. Everything is read from the runs' result.json; see `algos.report` for its keys, and

    axes: {"adaptation" or "retention": {value, what}}, higher being better

for what the verdict is about.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from algos import figures
from algos.report import STYLE, number, table
from nestmem import __version__
from nestmem.errors import UserError
from nestmem.probes import Interval, bootstrap_interval, mean_interval, probability_of_improvement

FEWEST = 3  # with two seeds a bootstrap interval is a point as often as not
Results = dict[str, list[dict[str, Any]]]  # by memory, one for each seed
Rows = list[tuple[str, ...]]


class Comparison(NamedTuple):
    """Tables as rows of text, the first being the head; the verdict in words."""

    table: Rows
    axes: dict[str, Rows]
    verdict: str


def write(folder: Path, title: str, runs: dict[str, list[Path]]) -> tuple[Path, Comparison]:
    """Write compare.html and compare.json into `folder`."""
    results: Results = {label: [_load(run) for run in each] for label, each in runs.items()}
    found = summarise(results)
    page = folder / "compare.html"
    try:
        page.write_text(_page(title, results, found), encoding="utf-8")
        (folder / "compare.json").write_text(json.dumps(found._asdict(), indent=1))
    except OSError as error:
        raise UserError(f"compare: cannot write to {folder} ({error.strerror})") from None
    return page, found


def summarise(results: Results) -> Comparison:
    """The tables and the verdict; the first memory is the one on trial."""
    first = next(iter(results))
    measure = f"{results[first][0]['measure']}, {results[first][0].get('unit', '%')}"
    low = results[first][0].get("lower_is_better", False)
    head = ("memory", measure, f"P({first} better)", "parameters", "state bytes", "training, s", "seeds")
    rows = [head]
    for label, each in results.items():
        rows.append(
            (
                label, *_against(results, label, lambda r: r["score"], low),
                f"{each[0]['parameters']:,}", f"{each[0]['state_bytes']:,}",
                f"{np.mean([r['seconds'] for r in each]):.0f}", str(len(each)),
            )
        )  # fmt: skip
    axes: dict[str, Rows] = {}
    told: dict[str, dict[str, str]] = {}  # by axis and rival: above, below or not told apart
    for axis in results[first][0].get("axes", {}):
        axes[axis] = [("memory", results[first][0]["axes"][axis]["what"], f"P({first} better)")]
        told[axis] = {}
        for label in results:
            axes[axis].append((label, *_against(results, label, _value(axis))))
            if label != first:
                told[axis][label] = _told(_improvement(results, label, _value(axis)))
    return Comparison(rows, axes, verdict(first, told))


def verdict(first: str, told: dict[str, dict[str, str]]) -> str:
    """One paragraph: what each axis says, and whether the hypothesis (better on both axes than every rival) holds here."""
    if not told:
        return (
            "This experiment measures neither adaptation nor retention by itself, so it says nothing on the hypothesis."
        )
    sentences = []
    for axis, rivals in told.items():
        groups: dict[str, list[str]] = {}
        for label, word in rivals.items():
            groups.setdefault(word, []).append(label)
        said = "; ".join(f"{word} {', '.join(labels)}" for word, labels in groups.items())
        sentences.append(f"On {axis}, {first} is {said}.")
    words = {axis: set(rivals.values()) for axis, rivals in told.items()}
    missing = [axis for axis in ("adaptation", "retention") if axis not in words]
    if any("below" in each for each in words.values()):
        sentences.append("The hypothesis that it beats every flat memory on both axes is contradicted here.")
    elif all(each == {"above"} for each in words.values()):
        held = "holds here" if not missing else f"holds as far as measured: nothing here measures {missing[0]}"
        sentences.append(f"The hypothesis that it beats every flat memory on both axes {held}.")
    else:
        sentences.append(
            "The hypothesis that it beats every flat memory on both axes is not supported here: a null result."
        )
    return " ".join(sentences)


def _value(axis: str) -> Callable[[dict[str, Any]], Any]:
    return lambda result: result["axes"][axis]["value"]


def _against(
    results: Results, label: str, value: Callable[[dict[str, Any]], Any], low: bool = False
) -> tuple[str, str]:
    """Interquartile mean of a memory, and the probability that the first one is better; `low`: that it is lower."""
    values = [value(r) for r in results[label]]
    if any(isinstance(v, str) or v is None for v in values):
        return str(next(v for v in values if isinstance(v, str) or v is None)), ""
    mean = bootstrap_interval(values)
    shown = f"{mean.mean:.2f}" if mean.n == 1 else f"{mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
    better = None if label == next(iter(results)) else _improvement(results, label, value, low)
    return shown, "" if better is None else f"{better.mean:.2f} [{better.low:.2f}, {better.high:.2f}]"


def _improvement(
    results: Results, label: str, value: Callable[[dict[str, Any]], Any], low: bool = False
) -> Interval | None:
    ours, theirs = ([value(r) for r in each] for each in (next(iter(results.values())), results[label]))
    if any(isinstance(v, str) or v is None for v in (*ours, *theirs)):
        return None
    return probability_of_improvement(theirs, ours) if low else probability_of_improvement(ours, theirs)


def _told(better: Interval | None) -> str:
    if better is None:
        return "not to be compared with"
    if better.n < FEWEST:
        return f"not to be told apart, with fewer than {FEWEST} seeds, from"
    return "above" if better.low > 0.5 else "below" if better.high < 0.5 else "not to be told apart from"


def _load(run: Path) -> dict[str, Any]:
    try:
        result = json.loads((run / "result.json").read_text())
        result["score"], result["measure"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run}: result.json cannot be read ({type(error).__name__}: {error})") from None
    return dict(result)


def _lines(results: Results) -> dict[str, tuple[str, str, str, dict[str, list[list[float]]]]]:
    """Captions, axes and points of every line, averaged over the seeds with Student's interval."""
    first = next(iter(results.values()))[0]
    found = {key: (line["caption"], line["x"], line["y"]) for key, line in first.get("lines", {}).items()}
    lines = {}
    for key, texts in found.items():
        points = {}
        for label, each in results.items():
            tables = [r["lines"][key]["points"] for r in each if key in r.get("lines", {})]
            points[label] = [_mean_point(same) for same in zip(*tables, strict=False)]
        lines[key] = (*texts, {label: p for label, p in points.items() if p})
    if "curve" in first:
        curves = {
            label: [_mean_point([[i, *r["curve"][i]] for r in each]) for i in range(len(each[0]["curve"]))]
            for label, each in results.items()
        }
        caption = f"Accuracy on new classes against {first['point']} seen"
        lines["adaptation"] = (caption, f"{first['point']} seen", "accuracy, %", curves)
    return lines


def _mean_point(points: Sequence[Sequence[float]]) -> list[float]:
    mean = mean_interval([p[1] for p in points])
    low, high = (mean.low, mean.high) if mean.n > 1 else points[0][2:4]
    return [points[0][0], mean.mean, low, high]


def _page(title: str, results: Results, found: Comparison) -> str:
    parts = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(found.verdict)}</p>",
        table(found.table[0], found.table[1:]),
    ]
    for axis, rows in found.axes.items():
        parts.append(f"<h2>{html.escape(axis)}</h2>{table(rows[0], rows[1:])}")
    names = list(dict.fromkeys(key for each in results.values() for key in each[0].get("numbers", {})))
    if names:
        rows = [
            (key, *(_over_seeds([r.get("numbers", {}).get(key) for r in each]) for each in results.values()))
            for key in names
        ]
        parts.append(f"<h2>numbers, mean over seeds</h2>{table(('', *results), rows)}")
    for caption, x, y, points in _lines(results).values():
        buffer = io.BytesIO()
        figures.lines(points, x, y).savefig(buffer, format="png")
        image = base64.b64encode(buffer.getvalue()).decode()
        parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    note = f"Interquartile means over seeds, 95 % bootstrap intervals. nestmem {__version__}."
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>nestmem: {html.escape(title)}</title>'
        f"<style>{STYLE}</style>{''.join(parts)}<p>{note}</p></html>"
    )


def _over_seeds(values: list[Any]) -> str:
    """Mean over seeds of a number (or of the middle of an interval); where one is undefined, its reason."""
    plain = [v["mean"] if isinstance(v, dict) and "mean" in v else v for v in values]
    if any(not isinstance(v, int | float) for v in plain):
        return number(next((v for v in plain if isinstance(v, str)), None))
    mean = mean_interval(plain)
    return number({"mean": mean.mean, "low": mean.low if mean.n > 1 else None, "high": mean.high})
