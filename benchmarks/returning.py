"""Goals that come back under a barcode, by RL^2: claims recurrence-savings-rl and first-visit-rl.

    nestmem compare experiment=ml1_recurring memories=nested_kept,lstm,eplstm seeds=3      the arm, some 12 minutes a run
    nestmem compare experiment=reach_recurring memories=nested_kept,lstm,eplstm seeds=3    the point, some 5
    python -m benchmarks.returning                                                         rows of the runs that are finished

Steps to the goal, of 75, 75 where it is never met; mean of the test's goals in each run, interval over seeds, or over trials if
there is one. Ratios are of steps of the flat memory over the nested one's, seed by seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from algos import jobs
from benchmarks.results import common, merged, paired_ratio, recipe, save, seeded

WORLDS = {"ml1_recurring": "arm", "reach_recurring": "point"}
TITLES = {
    "nested_kept": "RL2, nested: LSTM, kept fast weights",
    "lstm": "RL2, LSTM",
    "eplstm": "RL2, episodic LSTM",
}
FIRST, SECOND = "steps to the goal on the first visit", "steps to the goal on the second visit"
CLAIMS = {
    "rl-steps-first-visit": (FIRST, "steps"),
    "rl-steps-second-visit": (SECOND, "steps"),
    "rl-steps-saved": ("steps to the goal saved by the second visit", "steps"),
    "rl-returning-any": ("success at any step, %", "percent"),
    "rl-returning-final": ("success at the last step, %", "percent"),
}
RATIOS = {"first-visit-rl": FIRST, "recurrence-savings-rl": SECOND}


def collect() -> None:
    rows: list[dict[str, Any]] = []
    for experiment, world in WORLDS.items():
        found: dict[str, dict[str, Any]] = {}
        for memory, title in TITLES.items():
            runs = sorted(path.parent for path in Path(f"runs/compare-{experiment}/{memory}").glob("s*/result.json"))
            if runs:
                found[memory] = results = {run.name[1:]: json.loads((run / "result.json").read_text()) for run in runs}
                made_by = common(recipe(jobs.stored_config(run), results[run.name[1:]]["step"]) for run in runs)
                rows += method_rows(f"{title}, {world}", results, made_by)
        ours = found.pop("nested_kept", {})
        for memory, flat in found.items():
            seeds = sorted(ours.keys() & flat.keys())
            for claim, name in RATIOS.items() if seeds else ():
                over, under = ([each[s]["numbers"][name]["mean"] for s in seeds] for each in (flat, ours))
                rows.append(paired_ratio(claim, f"{memory} over nested, {world}", over, under))
    save("returning", merged("returning", rows))


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
