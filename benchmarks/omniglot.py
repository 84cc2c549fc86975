"""Claims omniglot-5w1s and omniglot-20w1s: accuracy on real test characters, and against wall time.

    python -m benchmarks.omniglot train METHOD SEED   one run into runs/omniglot (an hour or less; goes on if interrupted)
    python -m benchmarks.omniglot collect             test every run there on 600 tasks per seed; rows of methods without
                                                      a run there stay as they were

Test classes are those of the Vinyals list with its rotations (1,692); "unrotated" rows use the 423 characters alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos import checkpoint, figures, jobs
from algos.trainer import Trainer
from benchmarks.results import load, row, save
from nestmem.probes import mean_interval

ROOT = Path("runs/omniglot")
TASKS = 600
METHODS: dict[str, tuple[list[str], list[int], str]] = {
    "nested": (["experiment=omniglot", "trainer.threads=1"], [5, 20], "black box, nested memory"),
    "lstm": (["experiment=omniglot_lstm", "trainer.threads=1", "trainer.steps=2000"], [5], "black box, flat LSTM"),
    "lstm-20w": (
        ["experiment=omniglot_lstm", "trainer.threads=1", "env.ways=20", "trainer.steps=500"],
        [20],
        "black box, flat LSTM",
    ),
    "maml": (["experiment=omniglot_maml", "trainer.threads=1", "trainer.steps=400"], [5], "MAML, strided conv-4"),
    "maml-20w": (
        [
            "experiment=omniglot_maml",
            "trainer.threads=1",
            "env.ways=20",
            "algo.rate=0.1",
            "trainer.tasks=8",
            "trainer.chunk=8",
            "trainer.steps=1000",
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
    """Test what has been trained. The last weights count; the checkpoints on the way show accuracy against wall time."""
    rows: list[dict[str, Any]] = []
    before = load("omniglot")
    for method, (_, ways, title) in METHODS.items():
        runs = sorted(p.parent for p in ROOT.glob(f"{method}-s[0-9]/result.json"))
        if not runs:
            claims = [f"omniglot-{way}w1s{suffix}" for way in ways for suffix in ("", "-wall-time")]
            rows += [r for r in before if r["claim"] in claims and r["method"].removesuffix(", unrotated") == title]
            continue
        for rotated in (True, False):
            trainers = [restored(run, rotated) for run in runs]
            name = title if rotated else f"{title}, unrotated"
            rows += [tested(runs, trainers, way, name) for way in ways]
        trainer = restored(runs[0], rotated=True)
        folders = sorted((runs[0] / "checkpoints").glob("step-*"))
        for folder in folders[:: max(1, len(folders) // 6)]:
            trainer.restore(checkpoint.read_one(folder))
            rows += [
                row(f"omniglot-{way}w1s-wall-time", title, float(np.mean(accuracy(trainer, way, 100))), n=1, unit="%",
                    wall_s=round(trainer.seconds))
                for way in ways
            ]  # fmt: skip
    for way, published in PUBLISHED.items():
        rows += [
            row(f"omniglot-{way}w1s", f"published: {m}", v, n=0, unit="%", note=source) for m, v, source in published
        ]
    save("omniglot", rows)
    draw(rows)


def tested(runs: list[Path], trainers: list[Trainer], way: int, name: str) -> dict[str, Any]:
    """One row: mean over the seeds with its interval, each seed on its own tasks."""
    each = [float(np.mean(accuracy(trainer, way, TASKS))) for trainer in trainers]
    mean, summary = mean_interval(each), json.loads((runs[0] / "result.json").read_text())
    note = f"seeds {', '.join(f'{value:.2f}' for value in each)}; {TASKS} tasks each; trained on one of two busy cores"
    return row(
        f"omniglot-{way}w1s",
        name,
        mean.mean,
        low=mean.low,
        high=mean.high,
        n=len(runs),
        unit="%",
        wall_s=round(float(np.mean([trainer.seconds for trainer in trainers]))),
        params=summary["parameters"],
        state_bytes=summary["state_bytes"],
        note=note,
    )


def restored(run: Path, rotated: bool) -> Trainer:
    config = jobs.stored_config(run)
    trainer = jobs.restored(config)
    if rotated:
        trainer.problem.sets["test"] = trainer.problem.sets["test"].rotated()
    torch.set_num_threads(os.cpu_count() or 1)  # training took one core a run, testing may take all
    return trainer


def accuracy(trainer: Trainer, ways: int, tasks: int) -> np.ndarray:
    """Percent of the queries of each test task answered right after its support set."""
    outcome = trainer.problem.evaluate("test", tasks, ways=ways, shots=1, queries=5)
    return 100 * outcome.accuracy[:, -1].numpy()


def draw(rows: list[dict[str, Any]]) -> None:
    """docs/omniglot.png: test accuracy against seconds of training, of the first seed of each method."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        if r["claim"].endswith("-wall-time"):
            curves.setdefault(f"{r['claim'].split('-')[1]}: {r['method']}", []).append((r["wall_s"], r["value"]))
    figures.learning(curves, "seconds of training on one core", "test accuracy, %").savefig("docs/omniglot.png")


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        collect()
