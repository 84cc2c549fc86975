"""Claims bayes-gain-a, -b, -c, interchange-diagonal, -off-diagonal, -index, on the stream of three timescales; and
decodability-contrast, own level minus the others, which does not tell a trained hierarchy from an untrained one.

    python -m benchmarks.timescales train [SEEDS] [METHOD...]  runs into runs/timescales (goes on if interrupted), 5 seeds
    python -m benchmarks.timescales collect                    rows from the runs there

All methods have some 17,700 parameters and as many updates; state bytes are shown, and differ. Test streams are drawn from
each run's seed and never trained on; every run has its own. Episodic memories begin anew every 16 updates: one that is never
emptied keeps slots of an encoder long gone, learns to read those, and does worse than nothing from an empty memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from algos import jobs
from benchmarks.results import row, save
from nestmem.probes import mean_interval

ROOT = Path("runs/timescales")
SEEDS = 5
METHODS: dict[str, tuple[list[str], str]] = {
    "nested": ([], "nested (LSTM reset every 4, leaky 16, leaky 256)"),
    "lstm": (["memory=lstm", "algo.width=35"], "flat LSTM"),
    "untrained": (["trainer.steps=0"], "nested, untrained"),
    "frozen": (["algo.frozen=true"], "nested, levels random, decoder trained"),
    "chrono": (["memory=lstm", "memory.chrono=1000", "algo.width=35"], "flat LSTM, chrono initialisation"),
    "episodic": (["memory=episodic", "algo.width=50", "env.restart=16"], "flat episodic, 64 slots"),
}
READ = {
    "gain a": "bayes-gain-a",
    "gain b": "bayes-gain-b",
    "gain c": "bayes-gain-c",
    "interchange diagonal": "interchange-diagonal",
    "interchange off-diagonal": "interchange-off-diagonal",
    "interchange index": "interchange-index",
}


def train(seeds: int, methods: list[str]) -> None:
    for seed in range(seeds):
        for method in methods:
            run = ROOT / f"{method}-s{seed}"
            if (run / "result.json").exists():
                continue
            if run.exists():
                jobs.train([f"resume={run}"])
            else:
                jobs.train(["experiment=timescales", *METHODS[method][0], f"seed={seed}", f"run={run}"])


def collect() -> None:
    rows: list[dict[str, Any]] = []
    for method, (_, title) in METHODS.items():
        results = [json.loads(path.read_text()) for path in sorted(ROOT.glob(f"{method}-s[0-9]/result.json"))]
        if results:
            for name, claim in READ.items():
                values = [result["numbers"][name] for result in results]
                if not any(isinstance(value, str) for value in values):  # undefined where nothing was learned
                    rows.append(summary(claim, title, [value["mean"] for value in values], results))
            rows.append(summary("decodability-contrast", title, [contrast(result) for result in results], results))
    save("timescales", rows)


def contrast(result: dict[str, Any]) -> float:
    """Mean over variables of the decodability from their own level, minus that from the other levels."""
    values, own = np.array(result["matrices"]["decodability"]["values"]), result["own"]
    held = values[own, range(len(own))]
    return float((held - (values.sum(0) - held) / (len(values) - 1)).mean())


def summary(claim: str, title: str, each: list[float], results: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: mean over the seeds with its interval."""
    mean, first = mean_interval(each), results[0]
    seconds = sum(result["seconds"] for result in results) / len(results)
    note = f"seeds {', '.join(f'{value:.3f}' for value in each)}; {first['n']} streams each; {first['step']} updates"
    return row(
        claim,
        title,
        mean.mean,
        low=mean.low if mean.n > 1 else None,
        high=mean.high if mean.n > 1 else None,
        n=len(results),
        unit="fraction",
        wall_s=round(seconds),
        params=first["parameters"],
        state_bytes=first["state_bytes"],
        note=note,
    )


if __name__ == "__main__":
    if sys.argv[1] == "train":
        chosen = [argument for argument in sys.argv[2:] if not argument.isdigit()]
        numbers = [int(argument) for argument in sys.argv[2:] if argument.isdigit()]
        train(*numbers or [SEEDS], chosen or list(METHODS))
    else:
        collect()
