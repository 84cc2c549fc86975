"""One self-contained page about one run or several: what it adapts to, how fast, what holds it, against what.

Beside the score, a result may hold, in `result.json`:
    curve, point, chance: accuracy against shots or inner steps; gates, levels: which level answers
    lines: {key: {caption, x, y, points: [[x, mean, low, high], ...]}}: drawn for all runs together; log: true for a log axis
    matrices: {key: {caption, y, rows, x, columns, values}}: a heat map for each run
    bars: {key: {caption, y, columns, groups: {name: values}}}: groups of bars for each run
    numbers: {name: number, interval or why it is undefined}: a table
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from algos import figures, logs
from nestmem import __version__
from nestmem.errors import UserError

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } figure { display: inline-block; margin: 0 1rem 1rem 0 }
img { max-width: 100% } figcaption { color: #555; font-size: .9rem } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
"""


class Run(NamedTuple):
    name: str
    path: Path
    result: dict[str, Any]
    scalars: list[dict[str, Any]]


def report(paths: Iterable[Path]) -> Path:
    """Write report.html and its PNGs into `report/` of the first run; baselines of a run are included. Returns the page."""
    paths = list(paths)
    runs = [run for path in paths for run in _load(path)]
    folder = paths[0] / "report"
    try:
        folder.mkdir(exist_ok=True)
        page = folder / "report.html"
        page.write_text(_page(runs, _figures(runs, folder)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"report: cannot write to {folder} ({error.strerror})") from None
    return page


def _load(path: Path) -> list[Run]:
    if not (path / "result.json").is_file():
        raise UserError(f"{path}: no result.json here; expected the folder of a finished run")
    found = []
    for place in [path, *sorted(p.parent for p in path.glob("baselines/*/result.json"))]:
        try:
            result = json.loads((place / "result.json").read_text())
            result["score"], result["measure"]
            name = result["memory"] if result["memory"] != "none" else result["algo"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{place}: result.json cannot be read ({type(error).__name__}: {error})") from None
        found.append(Run(name, place, result, logs.rows(place)))
    return found


def _figures(runs: list[Run], folder: Path) -> dict[str, str]:
    """Captions and images (base64), each also saved as a PNG."""
    named = dict(zip(_names(runs), runs, strict=True))
    first = runs[0].result
    made: dict[str, tuple[str, Figure]] = {}
    if curves := {n: tuple(zip(*r.result["curve"], strict=True)) for n, r in named.items() if "curve" in r.result}:
        caption = f"Accuracy on new classes against {first['point']} seen (test, 95 % band)"
        made["adaptation"] = caption, figures.adaptation(curves, first["point"], first["chance"])
    for key, line in first.get("lines", {}).items():
        points = {n: r.result["lines"][key]["points"] for n, r in named.items() if key in r.result.get("lines", {})}
        made[key] = line["caption"], figures.lines(points, line["x"], line["y"], line.get("log", False))
    seconds = {n: _against_time(run) for n, run in named.items()}
    measure = f"{first['measure']}, {first.get('unit', '%')}"
    made["learning"] = (
        f"Validation {first['measure']} against training time",
        figures.learning(seconds, "seconds of training", measure),
    )
    for name, run in named.items():
        if run.result.get("gates"):
            figure = figures.gates(run.result["gates"], run.result["levels"], run.result["point"])
            made[f"gates-{name}"] = (f"{name}: which level answers (mean gate over test queries)", figure)
        for key, m in run.result.get("matrices", {}).items():
            figure = figures.matrix(m["values"], m["rows"], m["columns"], m["y"], m["x"])
            made[f"{key}-{name}"] = f"{name}: {m['caption']}", figure
        for key, b in run.result.get("bars", {}).items():
            made[f"{key}-{name}"] = f"{name}: {b['caption']}", figures.bars(b["groups"], b["columns"], b["y"])
    images = {}
    for file, (caption, figure) in made.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / f"{file}.png").write_bytes(buffer.getvalue())
        images[caption] = base64.b64encode(buffer.getvalue()).decode()
    return images


def _against_time(run: Run) -> list[tuple[float, float]]:
    """(seconds, score) pairs of the validations."""
    seconds = {row["step"]: row["value"] for row in run.scalars if row["tag"] == "time/seconds"}
    score = {row["step"]: row["value"] for row in run.scalars if row["tag"] == f"val/{run.result['measure']}"}
    return [(seconds[step], score[step]) for step in sorted(set(seconds) & set(score))]


def _names(runs: list[Run]) -> list[str]:
    """Names of the runs, told apart by seed and then by number where they repeat."""
    names: list[str] = []
    for run in runs:
        name = run.name
        if sum(other.name == run.name for other in runs) > 1:
            name = f"{run.name} (seed {run.result['seed']})"
        names.append(name if name not in names else f"{name} #{len(names)}")
    return names


def _page(runs: list[Run], images: dict[str, str]) -> str:
    first = runs[0].result
    env = first["env"]
    sizes = f", {env['ways']} ways, {env['shots']} shots" if "point" in first else ""
    title = html.escape(f"{env['name']}{sizes}")
    columns = (
        "memory",
        f"{first['measure']}, {first.get('unit', '%')}",
        "95 % interval",
        "parameters",
        "state bytes",
        "training, s",
    )
    rows = [
        (
            name, f"{r['score']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}",
            f"{r['parameters']:,}", f"{r['state_bytes']:,}", f"{r['seconds']:.0f}",
        )
        for name, r in zip(_names(runs), (run.result for run in runs), strict=True)
    ]  # fmt: skip
    plots = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, data in images.items()
    )
    config = html.escape((runs[0].path / "config.yaml").read_text()) if (runs[0].path / "config.yaml").is_file() else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>nestmem: {title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><p>{first['n']} test {first['counted']}, of a part never trained on. nestmem {__version__}.</p>"
        f"{table(columns, rows)}{_numbers(runs)}{plots}<h2>Configuration</h2><pre>{config}</pre></html>"
    )


def _numbers(runs: list[Run]) -> str:
    """What a problem measures beside its score, a column for each run; a metric that is undefined says why."""
    names = list(dict.fromkeys(key for run in runs for key in run.result.get("numbers", {})))
    if not names:
        return ""
    rows = [(key, *(number(run.result.get("numbers", {}).get(key)) for run in runs)) for key in names]
    return table(("", *_names(runs)), rows)


def number(value: Any) -> str:
    match value:
        case {"mean": float(mean), "low": low, "high": high}:
            return f"{mean:.3g}" if low is None else f"{mean:.3g} [{low:.3g}, {high:.3g}]"
        case int() | float():
            return f"{value:.3g}"
    return "" if value is None else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
