"""`nestmem eval RUN trials=N [split=val|test horizon=H drift=D]`: what a run that learned to act does in new tasks.

The newest checkpoint is asked, so a run that is not finished can be, too. Trials are judged as in the test, without its controls;
where a benchmark has several tasks, each alone, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
    """Numbers over `trials` trials of a split, the same tasks every time. horizon: steps of an episode; drift: how far tasks move;
    both as in training if they are not given."""
    asked = options("eval", given, {"trials": 0, "split": "test", "horizon": 0, "drift": 0.0})
    trials, split = asked["trials"], asked["split"]
    changes = {name: asked[name] for name in ("horizon", "drift") if any(a.startswith(f"{name}=") for a in given)}
    if trials < 1:
        raise UserError(f"trials: expected a whole number of at least 1, got {trials}")
    if split not in ("val", "test"):
        raise UserError(f"split: expected val or test, got {split!r}")
    trainer = jobs.restored(jobs.stored_config(Path(run)))
    problem, env = trainer.problem, trainer.config.env
    if not isinstance(problem, RL2Problem):
        raise UserError(
            f"{run}: trials= asks runs of algo=rl2 or algo=maml_rl; this one has algo={trainer.config.algo.name}"
        )
    if missing := next((name for name in changes if name not in env), None):
        raise UserError(f"{missing}: this run is of env={env.name}, which has no such option")
    for note in trainer.notes:
        console.print(f"{note}; step {trainer.step} is used instead")
    problem.make_env = partial(problem.make_env, **changes)
    if problem.env.success is None or problem.env.revisits:
        numbers = problem.judge(split, trials, thorough=False).details["numbers"]
    else:
        numbers = goal_trials.protocol(problem, split, trials)
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
