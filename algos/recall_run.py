"""`nestmem eval RUN lengths=N,M [streams=S]`: how well a run that learned to recall answers on streams of any length.

What it learned from must be at hand, since test streams are drawn from the same words; memory does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from algos import jobs
from algos.recall import RecallProblem
from algos.text_run import options
from nestmem.errors import UserError
from nestmem.probes import mean_interval

console = Console()


def evaluate(run: str, given: Sequence[str]) -> dict[str, Any]:
    """Accuracy on `streams` new test streams of each of the `lengths`, in tokens (words of env=babilong)."""
    asked = options("eval", given, {"lengths": "", "streams": 100})
    if not all(part.isdigit() and int(part) for part in asked["lengths"].split(",")) or asked["streams"] < 1:
        raise UserError(
            "lengths, streams: expected whole numbers of at least 1, as in lengths=8192,131072 streams=100, got "
            f"{asked['lengths']!r} and {asked['streams']}"
        )
    trainer = jobs.restored(jobs.stored_config(Path(run)))
    problem = trainer.problem
    if not isinstance(problem, RecallProblem):
        raise UserError(f"{run}: lengths= asks runs of env=recall or env=babilong; this one has another env")
    table = Table(title=f"{run} at step {trainer.step}, {asked['streams']} streams of each length")
    for column in (problem.axis, "accuracy, %", "95 % interval"):
        table.add_column(column, justify="right")
    points = []
    for length in map(int, asked["lengths"].split(",")):
        found = mean_interval(problem.right("test", length, asked["streams"]))
        points.append([length, *found[:3]])
        table.add_row(f"{length:,}", f"{found.mean:.2f}", f"{found.low:.2f} to {found.high:.2f}")
    console.print(table)
    return {"run": run, "step": trainer.step, "streams": asked["streams"], "unit": "%", "points": points}
