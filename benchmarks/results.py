"""The format of results: rows under the ids of claims, with the command, commit, date and machine that made them."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nestmem.probes import geometric_ratio, mean_interval

FOLDER = Path(__file__).parent / "results"


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    # Instructions decide the order of sums, and with it the last digits that a long training makes large.
    return f"{os.cpu_count()}-core CPU, {torch.backends.cpu.get_cpu_capability()}"


def row(
    claim: str,
    method: str,
    value: float,
    *,
    unit: str,
    n: int,
    low: float | None = None,
    high: float | None = None,
    wall_s: float | None = None,
    state_bytes: int | None = None,
    params: int | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One row of a claim; `n` counts seeds or trials (0: a published number, its source in `note`)."""
    return {
        "claim": claim, "method": method, "value": value, "low": low, "high": high, "n": n, "unit": unit,
        "wall_s": wall_s, "state_bytes": state_bytes, "params": params, "note": note,
    }  # fmt: skip


def seeded(
    name: str, claim: str, method: str, each: dict[str, float], recipe: str, over: str = "", **rest: Any
) -> dict[str, Any]:
    """A row over seeds: `each`, the value of every seed, together with those that results/NAME.json holds of the same recipe and
    whose runs are not at hand any more. `rest` is as in `row`; with a single seed its low and high are the interval, `over` trials
    or whatever it is, which the note says."""
    for r in load(name):
        if recipe and (r["claim"], r["method"], r.get("recipe")) == (claim, method, recipe):
            each = r["each"] | each
    mean = mean_interval(list(each.values()))
    if mean.n > 1:
        rest |= {"low": mean.low, "high": mean.high}
    elif over:
        rest["note"] = "; ".join(filter(None, [rest.get("note"), f"interval over {over}"]))
    return row(claim, method, mean.mean, n=mean.n, **rest) | {"recipe": recipe, "each": dict(sorted(each.items()))}


def paired_ratio(claim: str, method: str, over: list[float], under: list[float]) -> dict[str, Any]:
    """A row of the geometric mean of over[i] / under[i], seed by seed."""
    i = geometric_ratio(over, under, paired=True)
    low, high = (i.low, i.high) if i.n > 1 else (None, None)
    return row(claim, method, i.mean, low=low, high=high, n=i.n, unit="ratio")


def recipe(config: DictConfig, step: int) -> str:
    """A short name of what a run of `step` updates was trained with: the same for all its seeds, and however it is tested."""
    found: Any = OmegaConf.to_container(config)
    for key in ("run", "seed", "baselines"):
        found.pop(key, None)
    for key in ("threads", "eval_every", "eval_tasks", "test_tasks", "checkpoint_every", "keep"):
        found["trainer"].pop(key, None)
    if start := found["algo"].get("start"):
        found["algo"]["start"] = re.sub(r"-s\d+$", "", Path(start).name)
    return hashlib.sha256(json.dumps([found, step], sort_keys=True).encode()).hexdigest()[:12]


def common(recipes: Iterable[str]) -> str:
    """The recipe of all runs, or none where they differ, as unfinished ones do: these add up with nothing."""
    found = set(recipes)
    return found.pop() if len(found) == 1 else ""


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write results/NAME.json and print the rows."""
    top = FOLDER.parent.parent
    commit = _git(top, "rev-parse", "--short", "HEAD")
    changed = _git(top, "status", "--porcelain", "--", "nestmem", "envs", "algos", "configs")
    script = Path(sys.argv[0])
    result = {
        "script": f"benchmarks/{script.name}",
        "command": " ".join(["python -m", f"benchmarks.{script.stem}", *sys.argv[1:]]),
        "commit": commit + ("+changes" if changed else ""),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for r in rows:
        interval = f" [{r['low']:.4g}, {r['high']:.4g}]" if r["low"] is not None else ""
        print(f"{r['claim']:36} {r['method']:44} {r['value']:.6g}{interval} {r['unit']} (n={r['n']})")
    return path


def load(name: str) -> list[dict[str, Any]]:
    """The rows that results/NAME.json holds, none if it is not there yet."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def merged(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows`, and those that results/NAME.json holds of other claims and methods; what rests there on more seeds stays."""
    before = {(r["claim"], r["method"]): r for r in load(name)}
    fresh = {(r["claim"], r["method"]): r for r in rows}
    better = {key: r for key, r in fresh.items() if key not in before or r["n"] >= before[key]["n"]}
    return list({**fresh, **before, **better}.values())


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=folder).stdout.strip()
