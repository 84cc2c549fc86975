"""`nestmem eval RUN trials=N [split=val|test horizon=H]`: what a run that learns to act does in trials of tasks it never met.

The newest checkpoint is asked, so a run that is not finished can be, too. Tasks with a goal are played as the test plays them,
without its controls: some episodes to adapt in, then those that are scored; where there are several tasks, also for each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from algos import goal_trials, jobs
from algos.rl2 import RL2Problem
from algos.text_run import options
from nestmem.errors import UserError
from nestmem.probes import Interval, jsonable

console = Console()


def evaluate(run: str, given: Sequence[str]) -> dict[str, Any]:
    """Numbers over `trials` trials of a split, the same tasks every time; `horizon`: steps of an episode, 0: as in training."""
    asked = options("eval", given, {"trials": 0, "split": "test", "horizon": 0})
    trials, split, horizon = asked["trials"], asked["split"], asked["horizon"]
    if trials < 1 or horizon < 0:
        raise UserError(f"trials, horizon: expected whole numbers of at least 1, got {trials} and {horizon}")
    if split not in ("val", "test"):
        raise UserError(f"split: expected val or test, got {split!r}")
    trainer = jobs.restored(jobs.stored_config(Path(run)))
    problem = trainer.problem
    if not isinstance(problem, RL2Problem):
        raise UserError(
            f"{run}: trials= asks runs of algo=rl2 or algo=maml_rl; this one has algo={trainer.config.algo.name}"
        )
    goal = problem.env.success is not None and not problem.env.revisits
    if horizon and not goal:
        raise UserError(
            f"horizon: only tasks with a goal can go on for longer; this run has env={trainer.config.env.name}"
        )
    for note in trainer.notes:
        console.print(f"{note}; step {trainer.step} is used instead")
    if goal:
        numbers = goal_trials.protocol(problem, split, trials, horizon)
    else:
        numbers = problem.judge(split, trials, thorough=False).details["numbers"]
    table = Table(title=f"{run} at step {trainer.step}, {trials} trials of {split}")
    for column in ("", "mean", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in numbers.items():
        bounds = f"{value.low:.4g} to {value.high:.4g}" if isinstance(value, Interval) else ""
        table.add_row(name, f"{value.mean if bounds else value:.4g}", bounds)
    console.print(table)
    found: dict[str, Any] = jsonable(
        {"run": run, "step": trainer.step, "trials": trials, "split": split, "numbers": numbers}
    )
    return found
