"""Claims omniglot-5w1s and omniglot-20w1s: accuracy on real test characters, and against wall time.

    python -m benchmarks.omniglot train METHOD SEED   one run into runs/omniglot (an hour or less; goes on if interrupted)
    python -m benchmarks.omniglot collect             test every run there on 1,200 tasks per seed, write the results

Test classes are those of the Vinyals list with its rotations (1,692); the rows "unrotated" use the 423 characters alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from algos import jobs, logs
from benchmarks.results import row, save
from nestmem.probes import mean_interval

ROOT = Path("runs/omniglot")
TASKS = 1200
METHODS: dict[str, tuple[list[str], list[int], str]] = {
    "nested": (["experiment=omniglot", "trainer.threads=1"], [5, 20], "black box, nested memory"),
    "lstm": (["experiment=omniglot_lstm", "trainer.threads=1"], [5], "black box, flat LSTM"),
    "lstm-20w": (
        ["experiment=omniglot_lstm", "trainer.threads=1", "env.ways=20", "trainer.steps=1000"],
        [20],
        "black box, flat LSTM",
    ),
    "maml": (["experiment=omniglot_maml", "trainer.threads=1"], [5], "MAML, strided conv-4"),
    "maml-20w": (
        [
            "experiment=omniglot_maml",
            "trainer.threads=1",
            "env.ways=20",
            "algo.rate=0.1",
            "trainer.tasks=8",
            "trainer.chunk=8",
        ],
        [20],
        "MAML, strided conv-4",
    ),
}
PUBLISHED = {
    5: [
        ("MAML", 98.7, "Finn et al. 2017"),
        ("MAML++", 99.47, "Antoniou et al. 2019"),
        ("prototypes", 98.8, "Snell et al. 2017"),
    ],
    20: [
        ("MAML", 95.8, "Finn et al. 2017"),
        ("MAML++", 97.65, "Antoniou et al. 2019"),
        ("prototypes", 96.0, "Snell et al. 2017"),
    ],
}


def train(method: str, seed: str, extra: list[str]) -> None:
    run = ROOT / f"{method}-s{seed}"
    if run.exists():
        jobs.train([f"resume={run}"])
    else:
        jobs.train([*METHODS[method][0], "baselines=[]", f"seed={seed}", f"run={run}", *extra])


def collect() -> None:
    rows: list[dict[str, Any]] = []
    for method, (_, ways, title) in METHODS.items():
        runs = sorted(p.parent for p in ROOT.glob(f"{method}-s[0-9]/result.json"))
        for way in ways if runs else []:
            for rotated in (True, False):
                results = [
                    jobs.evaluate(str(run), [f"ways={way}", f"tasks={TASKS}", "queries=5"], rotated) for run in runs
                ]
                over_seeds = mean_interval([r["accuracy"] for r in results])
                seconds = mean_interval([logs_seconds(run) for run in runs]).mean
                each = ", ".join(f"{r['accuracy']:.2f}" for r in results)
                note = f"seeds {each}; one thread each, {TASKS} tasks per seed"
                name = title if rotated else f"{title}, unrotated test characters"
                rows.append(
                    row(
                        f"omniglot-{way}w1s",
                        name,
                        over_seeds.mean,
                        low=over_seeds.low,
                        high=over_seeds.high,
                        n=len(runs),
                        unit="%",
                        wall_s=round(seconds),
                        params=results[0]["parameters"],
                        state_bytes=results[0]["state_bytes"],
                        note=note,
                    )
                )
        for run in runs:
            rows += wall_time(run, title)
    for way, published in PUBLISHED.items():
        rows += [
            row(f"omniglot-{way}w1s", f"published: {m}", v, n=0, unit="%", note=source) for m, v, source in published
        ]
    save("omniglot", rows)


def logs_seconds(run: Path) -> float:
    return max(r["value"] for r in logs.rows(run) if r["tag"] == "time/seconds")


def wall_time(run: Path, title: str) -> list[dict[str, Any]]:
    """The validation curve of one run: accuracy at its own ways against seconds of training."""
    scalars = logs.rows(run)
    seconds = {r["step"]: r["value"] for r in scalars if r["tag"] == "time/seconds"}
    return [
        row(
            f"omniglot-wall-time-{run.name}",
            title,
            r["value"],
            n=1,
            unit="% (training classes held as validation)",
            wall_s=round(seconds[r["step"]]),
        )
        for r in scalars
        if r["tag"] == "val/accuracy"
    ]


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        collect()
