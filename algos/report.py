"""One self-contained page about one run or several: what it adapts to, how fast, what holds it, against what."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable
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
            name = result["memory"] if result["memory"] != "none" else result["algo"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{place}: result.json cannot be read ({type(error).__name__}: {error})") from None
        found.append(Run(name, place, result, logs.rows(place)))
    return found


def _figures(runs: list[Run], folder: Path) -> dict[str, str]:
    """Captions and images (base64), each also saved as a PNG."""
    first = runs[0].result
    names = _names(runs)
    curves = {n: tuple(zip(*run.result["curve"], strict=True)) for n, run in zip(names, runs, strict=True)}
    seconds = {n: _against_time(run) for n, run in zip(names, runs, strict=True)}
    made: dict[str, tuple[str, Figure]] = {
        "adaptation": (
            f"Accuracy on new classes against {first['point']} seen (test, 95 % band)",
            figures.adaptation(curves, first["point"], 100 / first["env"]["ways"]),
        ),
        "learning": ("Validation accuracy against training time", figures.learning(seconds, "seconds of training")),
    }
    for name, run in zip(names, runs, strict=True):
        if run.result["gates"]:
            figure = figures.gates(run.result["gates"], run.result["levels"], run.result["point"])
            made[f"gates-{name}"] = (f"{name}: which level answers (mean gate over test queries)", figure)
    images = {}
    for file, (caption, figure) in made.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        (folder / f"{file}.png").write_bytes(buffer.getvalue())
        images[caption] = base64.b64encode(buffer.getvalue()).decode()
    return images


def _against_time(run: Run) -> list[tuple[float, float]]:
    """(seconds, accuracy) pairs of the validations."""
    seconds = {row["step"]: row["value"] for row in run.scalars if row["tag"] == "time/seconds"}
    accuracy = {row["step"]: row["value"] for row in run.scalars if row["tag"] == "val/accuracy"}
    return [(seconds[step], accuracy[step]) for step in sorted(set(seconds) & set(accuracy))]


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
    env = runs[0].result["env"]
    title = f"{env['name']}, {env['ways']} ways, {env['shots']} shots"
    head = "".join(
        f"<th>{c}</th>" for c in ("memory", "accuracy, %", "95 % interval", "parameters", "state bytes", "training, s")
    )
    body = ""
    for name, run in zip(_names(runs), runs, strict=True):
        r = run.result
        cells = (
            html.escape(name), f"{r['accuracy']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}",
            f"{r['parameters']:,}", f"{r['state_bytes']:,}", f"{r['seconds']:.0f}",
        )  # fmt: skip
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    plots = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, data in images.items()
    )
    config = html.escape((runs[0].path / "config.yaml").read_text()) if (runs[0].path / "config.yaml").is_file() else ""
    tasks = runs[0].result["tasks"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>nestmem: {title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><p>{tasks} test tasks of classes never trained on; queries answered after the last of the "
        f"{runs[0].result['point']} seen. nestmem {__version__}.</p>"
        f"<table><tr>{head}</tr>{body}</table>{plots}<h2>Configuration</h2><pre>{config}</pre></html>"
    )
