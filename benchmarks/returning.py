"""Goals that come back under a barcode, by RL^2: claims recurrence-savings-rl and first-visit-rl.

    nestmem compare experiment=ml1_recurring memories=nested_kept,lstm,eplstm seeds=3      the arm, some 12 minutes a run
    nestmem compare experiment=reach_recurring memories=nested_kept,lstm,eplstm seeds=3    the point, some 5
    python -m benchmarks.returning                                                         rows of the runs that are finished

Steps to the goal, of 75, 75 where it is never met; mean of the test's goals in each run, interval over seeds, or over trials if
there is one. Ratios are of steps of the flat memory over the nested one's, seed by seed. Beside them, the fewest steps there can
be: of who knows the goal and heads for it as fast as can be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from algos import jobs
from algos.goal_trials import steps_to_goal
from benchmarks.results import common, merged, paired_ratio, recipe, row, save, seeded
from envs.meta_world import MetaWorld
from envs.reach import Reach
from envs.trials import Array
from nestmem.probes import mean_interval

WORLDS = {"ml1_recurring": "arm", "reach_recurring": "point"}
TITLES = {
    "nested_kept": "RL2, nested: LSTM, kept fast weights",
    "lstm": "RL2, LSTM",
    "eplstm": "RL2, episodic LSTM",
}
CLAIMS = {
    "rl-steps-first-visit": ("steps to the goal on the first visit", "steps"),
    "rl-steps-second-visit": ("steps to the goal on the second visit", "steps"),
    "rl-steps-saved": ("steps to the goal saved by the second visit", "steps"),
    "rl-returning-any": ("success at any step, %", "percent"),
    "rl-returning-final": ("success at the last step, %", "percent"),
}
RATIOS = {"first-visit-rl": "rl-steps-first-visit", "recurrence-savings-rl": "rl-steps-second-visit"}
GOALS, GAIN = 50, 20.0  # of the test; an action per metre of way left: full speed but for the last five centimetres


def knowing(world: str) -> dict[str, Any]:
    """A row of one who knows every goal and heads for it."""
    arm = world == "arm"
    env: Any = (MetaWorld if arm else Reach)(GOALS, episodes=1, horizon=75, split="test")
    env.reset(seed=0)
    met: list[Array] = []
    for _ in range(env.steps):
        goals = np.array([env.task(i).vector[-3:] for i in env.rows]) if arm else env.goal
        actions = np.zeros((GOALS, *env.single_action_space.shape), np.float32)
        actions[:, :3] = (GAIN * (goals - (env.seen[:, :3] if arm else env.hand))).clip(-1, 1)
        env.step(actions)
        met.append(env.success.copy())
    steps = mean_interval(steps_to_goal(np.stack(met, 1), env.episodes)[:, 0])
    bounds = {"low": steps.low, "high": steps.high, "n": GOALS, "unit": "steps", "note": "interval over goals"}
    return row("rl-steps-first-visit", f"who knows the goal, {world}", steps.mean, **bounds)


def collect() -> None:
    rows: list[dict[str, Any]] = []
    for experiment, world in WORLDS.items():
        rows.append(knowing(world))
        for memory, title in TITLES.items():
            runs = sorted(path.parent for path in Path(f"runs/compare-{experiment}/{memory}").glob("s*/result.json"))
            if runs:
                results = {run.name[1:]: json.loads((run / "result.json").read_text()) for run in runs}
                made_by = common(recipe(jobs.stored_config(run), results[run.name[1:]]["step"]) for run in runs)
                rows += method_rows(f"{title}, {world}", results, made_by)
    rows = merged("returning", rows)
    save("returning", merged("returning", rows + ratios(rows)))


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of flat over nested, of the seeds that both have."""
    each = {(r["claim"], r["method"]): r.get("each", {}) for r in rows}
    found = []
    for world in WORLDS.values():
        for memory in ("lstm", "eplstm"):
            for claim, steps in RATIOS.items():
                flat, ours = (each.get((steps, f"{TITLES[m]}, {world}"), {}) for m in (memory, "nested_kept"))
                if seeds := sorted(flat.keys() & ours.keys()):
                    over, under = [flat[s] for s in seeds], [ours[s] for s in seeds]
                    found.append(paired_ratio(claim, f"{memory} over nested, {world}", over, under))
    return found


def method_rows(title: str, results: dict[str, Any], made_by: str) -> list[dict[str, Any]]:
    one, rows = next(iter(results.values())), []
    size = {
        "params": one["parameters"],
        "state_bytes": one["state_bytes"],
        "wall_s": round(sum(result["seconds"] for result in results.values()) / len(results)),
    }
    for claim, (name, unit) in CLAIMS.items():
        numbers = {seed: result["numbers"][name] for seed, result in results.items()}
        bounds = {"low": numbers[min(numbers)]["low"], "high": numbers[min(numbers)]["high"], "over": "trials"}
        each = {seed: number["mean"] for seed, number in numbers.items()}
        note = f"after {one['step']} updates"
        rows.append(seeded("returning", claim, title, each, made_by, unit=unit, note=note, **bounds, **size))
    return rows


if __name__ == "__main__":
    collect()
