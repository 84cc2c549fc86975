"""Claims store-savings-*: what a store keeps between two processes, on recurring streams of Omniglot.

    python -m benchmarks.store_savings train SEEDS     one nested memory with a store for each seed, in runs/store_savings
    python -m benchmarks.store_savings measure         every seed that is trained, in six conditions, into its run's sessions.json
    python -m benchmarks.store_savings collect         rows from what was measured

Streams of 72 visits to characters of the evaluation classes (experiment=recurring) are cut into two sessions; a session begins
with an empty memory. Judged is the second one: first guesses at contexts that the first one met, by the n-th visit of the session.

    warm             the store that the first session wrote
    second process   the same in a process of its own, as a person would: nestmem eval RUN session=2 store=memory.db
    cleared          after all its items were forgotten
    cold             a store in which nothing ever was
    no store         the nested memory of benchmarks.drift, trained without one (train bindings nested SEED)
    never ended      the cold one, its state carried over from the first session: no process ended

In training a session ends every 24 visits (env.session), so that the gate knows what a store is good for; that number and all
others were set before anything was measured, and nothing was tried on evaluation classes. The store serves all streams of a seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from algos import jobs
from algos.sessions import evaluate
from benchmarks import drift
from benchmarks.results import row, save
from nestmem.probes import Interval, mean_interval
from nestmem.store import Store

ROOT = Path("runs/store_savings")
STREAMS, SESSION = 16, 24
CONDITIONS = ("warm", "second process", "cleared", "cold", "no store", "never ended")
MEASURES = {  # claim: contexts, number, unit
    "store-savings-visit-1": ("known, visit 1", "after 0 shots", "%"),
    "store-savings-visit-2": ("known, visit 2", "after 0 shots", "%"),
    "store-savings-visit-3": ("known, visit 3", "after 0 shots", "%"),
    "store-savings-one-shot": ("known, visit 1", "after 1 shots", "%"),
    "store-savings-shots": ("known, visit 1", "shots to 90 %", "shots"),
    "store-savings-steps": ("known, visit 1", "steps to 90 %", "steps"),
    "store-savings-new": ("new", "after 1 shots", "%"),
}
CONTRASTS = {  # first guesses at the first visit: one condition minus another
    "store-savings-warm": ("warm", "cold"),
    "store-savings-none": ("warm", "no store"),
    "store-savings-cleared": ("cleared", "cold"),
    "store-savings-second-process": ("second process", "warm"),
    "store-savings-carried": ("warm", "never ended"),
}


def train(seed: int) -> None:
    run = ROOT / f"s{seed}"
    if (run / "result.json").exists():
        return
    if any((run / "checkpoints").glob("step-*")):
        jobs.train([f"resume={run}"])
        return
    store = ROOT / f"training-s{seed}.db"
    store.parent.mkdir(parents=True, exist_ok=True)
    options = [f"memory.store={store}", f"env.session={SESSION}", f"trainer.test_tasks={STREAMS}", "trainer.threads=1"]
    jobs.train(["experiment=recurring", *options, f"seed={seed}", f"run={run}"])


def measure(seed: int) -> dict[str, dict[str, Any]]:
    """What each condition says of the second session."""
    run, flat = str(ROOT / f"s{seed}"), drift.ROOT / f"bindings-nested-s{seed}"
    second = ["session=2", f"streams={STREAMS}"]
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        memory, empty = Path(folder) / "memory.db", Path(folder) / "empty.db"
        evaluate(run, ["session=1", f"streams={STREAMS}", f"store={memory}"])
        found["warm"] = evaluate(run, [*second, f"store={memory}", "write=false"])
        target = Path(folder) / "second.json"
        command = ["eval", run, *second, f"store={memory}", "write=false", "--json", str(target)]
        subprocess.run([sys.executable, "-m", "nestmem.cli", *command], check=True, stdout=subprocess.DEVNULL)
        found["second process"] = json.loads(target.read_text())
        with Store(memory) as store:
            store.forget([item.id for item in store.items()])
        found["cleared"] = evaluate(run, [*second, f"store={memory}", "write=false"])
        found["cold"] = evaluate(run, [*second, f"store={empty}", "write=false"])
        found["never ended"] = evaluate(run, [*second, f"store={empty}", "write=false", "carry=true"])
        if (flat / "result.json").exists():
            found["no store"] = evaluate(str(flat), second)
    return {condition: found[condition] for condition in CONDITIONS if condition in found}


def number(result: dict[str, Any], contexts: str, name: str) -> float | None:
    """A number of a result; None where it is undefined."""
    value = result["numbers"][contexts].get(name)
    value = value["mean"] if isinstance(value, dict) else value
    return float(value) if isinstance(value, int | float) else None


def rows_of(seeds: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for claim, (contexts, name, unit) in MEASURES.items():
        for condition in CONDITIONS:
            values = [number(each[condition], contexts, name) for each in seeds if condition in each]
            if known := [value for value in values if value is not None]:
                visits = [each[condition]["numbers"][contexts]["visits"] for each in seeds if condition in each]
                note = f"{min(visits)} to {max(visits)} visits a seed"
                note += f"; undefined in {len(values) - len(known)}" if len(known) < len(values) else ""
                rows.append(row(claim, condition, n=len(known), unit=unit, note=note, **_spread(known)))
    contexts, name, _ = MEASURES["store-savings-visit-1"]
    for claim, (one, other) in CONTRASTS.items():
        pairs = [
            (number(each[one], contexts, name), number(each[other], contexts, name))
            for each in seeds
            if one in each and other in each
        ]
        values = [a - b for a, b in pairs if a is not None and b is not None]
        if values:
            rows.append(row(claim, f"{one} minus {other}", n=len(values), unit="points", **_spread(values)))
    return rows


def _spread(values: list[float]) -> dict[str, Any]:
    found: Interval = mean_interval(values)
    return {"value": found.mean} | ({"low": found.low, "high": found.high} if found.n > 1 else {})


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["train", seeds]:
            for seed in range(int(seeds)):
                train(seed)
        case ["measure"]:
            for result in sorted(ROOT.glob("s[0-9]/result.json")):
                target = result.with_name("sessions.json")
                if not target.exists():
                    target.write_text(json.dumps(measure(int(result.parent.name[1:])), indent=1))
        case ["collect"]:
            found = [json.loads(path.read_text()) for path in sorted(ROOT.glob("s[0-9]/sessions.json"))]
            save("store_savings", rows_of(found))
        case _:
            sys.exit(__doc__)
