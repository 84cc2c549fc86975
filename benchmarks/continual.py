"""Claims continual-N and continual-600-drop: hundreds of Omniglot classes, one image at a time.

    python -m benchmarks.continual train METHOD [OVERRIDE]...   oml, anml or pretrain, into runs/continual (goes on if
                                                                interrupted)
    python -m benchmarks.continual collect [METHOD=RUN]...      measure every finished run there, and runs from elsewhere
                                                                under a name of their own, these also with features over
                                                                nine shifts; rows of methods without a run stay
`random` is the encoder of OML before training, `scratch` the whole network of pretrain before it was. A measurement is
`nestmem sequential RUN`: what lies in RUN/sequential.json is read, and made anew only for a newer checkpoint. Encoders learn
from the first 763 background classes, the other 200 and their rotations choose the rates, and the 600 classes of a stream
are drawn from the evaluation part.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from algos import jobs
from algos.sequential_run import file_name, sequential
from benchmarks.results import load, row, save
from nestmem.probes import mean_interval

ROOT = Path("runs/continual")
TRAINED = ("oml", "anml", "pretrain")
TITLES = {
    "oml": "OML",
    "anml": "ANML",
    "pretrain": "pretrained",
    "random": "random features",
    "scratch": "scratch",
    "prototypes": "prototypes",
}
PATHS = {
    "means": "episodic, class means",
    "gaussian": "episodic, class Gaussians",
    "neighbours": "episodic, kept images",
    "gradient": "slow, online gradient",
    "cosine": "slow, online gradient read by cosine",
    "nested": "nested, slots and slow weights",
    "stored": "nested, slots, slow weights and a store",
    "network": "slow, online gradient of all layers",
}
POINTS = (10, 50, 100, 200, 400, 600)
EPOCHS = 5  # of the i.i.d. oracle
PLAIN = "means,gradient,cosine"
HEADS = {"oml": PLAIN, "anml": PLAIN, "pretrain": f"{PLAIN},network", "random": "means,gradient", "scratch": "network"}
NAMED = f"{PLAIN},gaussian,nested,stored"  # heads on runs from elsewhere
PUBLISHED = [
    ("ANML", 63.8, "Beaulieu et al. 2020; 64 to 66 in reruns of its code and in others' own"),
    ("OML in ANML's paper", 18.2, "Beaulieu et al. 2020; two last layers learn"),
    ("OML, last layer alone, in ANML's paper", 44.2, "Beaulieu et al. 2020"),
    ("OML after the repair of its inner loop", 55, "20,000 lessons of its authors' code, rerun in nupic.research"),
    ("GeMCL", 86.8, "Banayeeanzade et al. 2021, executed notebook"),
    ("prototypes, meta-trained", 83.7, "the same notebook"),
    ("best mix: features of PGLR, GeMCL's Gaussians", 87.8, "the same notebook"),
    ("pretrained, class means", 74.0, "the same notebook"),
    ("pretrained, online gradient", 25.7, "the same notebook"),
    ("random features, class means", 36.2, "the same notebook"),
    ("random features, online gradient", 0.44, "the same notebook"),
]
PUBLISHED_DROP = [
    ("ANML", 10, "Beaulieu et al. 2020; oracle of one epoch, 71.0"),
    ("OML in ANML's paper", 70.3, "Beaulieu et al. 2020"),
    ("OML, last layer alone, in ANML's paper", 27.2, "Beaulieu et al. 2020"),
    ("pretrained, all layers learn", 99, "Beaulieu et al. 2020"),
    ("from scratch, all layers learn", 99, "Beaulieu et al. 2020; below 3 % correct after 50 classes already"),
]


def train(method: str, extra: list[str]) -> None:
    run = ROOT / f"{method}-s0"
    if run.exists():
        jobs.train([f"resume={run}"])
    else:
        jobs.train([f"experiment=omniglot_{method}", "trainer.threads=1", "seed=0", f"run={run}", *extra])


def collect(named: dict[str, str]) -> None:
    """Measure what is there; the rows of every other method stay."""
    finished = [m for m in TRAINED if (ROOT / f"{m}-s0" / "result.json").is_file()]
    wanted = [(TITLES[m], ROOT / f"{m}-s0", "trained", 0, HEADS[m]) for m in finished]
    for name, method in (("random", "oml"), ("scratch", "pretrain")):
        if (ROOT / f"{method}-s0" / "config.yaml").is_file():
            wanted.append((TITLES[name], ROOT / f"{method}-s0", "random", 0, HEADS[name]))
    for method, run in named.items():
        title = TITLES.get(method, method)
        views = [(title, 0), (f"{title}, nine views", 1)]
        wanted += [(name, Path(run), "trained", shifts, NAMED) for name, shifts in views]
    rows = [r for r in load("continual") if r["n"] and r["method"].split(":")[0] not in {title for title, *_ in wanted}]
    for title, run, encoder, shifts, heads in wanted:
        result, trained = measure(run, encoder, shifts, heads)
        result["heads"] = {head: found for head, found in result["heads"].items() if head in heads.split(",")}
        result["iid"] = {head: found for head, found in result.get("iid", {}).items() if head in heads.split(",")}
        rows += measured(title, run, result, trained)
    rows += [row("continual-600", f"published: {m}", v, n=0, unit="%", note=source) for m, v, source in PUBLISHED]
    rows += [
        row("continual-600-drop", f"published: {m}", v, n=0, unit="%", note=source) for m, v, source in PUBLISHED_DROP
    ]
    save("continual", rows)


def measure(run: Path, encoder: str, shifts: int, heads: str) -> tuple[dict[str, Any], str]:
    """What `nestmem sequential` says of the newest checkpoint, asked now what it was not; and how far the training had come."""
    path = run / file_name(encoder, shifts)
    newest = (
        max(int(p.name.removeprefix("step-")) for p in run.glob("checkpoints/step-*")) if encoder == "trained" else 0
    )
    known = json.loads(path.read_text()) if path.is_file() else {}
    missing = [head for head in heads.split(",") if known.get("step") != newest or head not in known["heads"]]
    if missing:
        sequential(
            str(run),
            ["trajectories=10", f"oracle={EPOCHS}", f"heads={','.join(missing)}", f"encoder={encoder}", f"shifts={shifts}"],
        )  # fmt: skip
    steps = jobs.stored_config(run).trainer.steps
    return json.loads(path.read_text()), f"{newest} updates" if newest in (0, steps) else f"{newest} of {steps} updates"


def measured(title: str, run: Path, result: dict[str, Any], trained: str) -> list[dict[str, Any]]:
    summary = json.loads((run / "result.json").read_text()) if (run / "result.json").is_file() else {}
    about: dict[str, Any] = {"params": summary.get("parameters")}
    about["wall_s"] = round(summary["seconds"]) if result["step"] and summary else None
    rows = []
    for head, values in result["heads"].items():
        size = round(values["bytes_per_class"])
        for n in map(str, POINTS):
            if n not in values["held_out"]:
                continue
            found, learned = (mean_interval(values[kind][n]) for kind in ("held_out", "learned"))
            note = f"{trained}; {size} bytes per class; learned images {learned.mean:.1f}"
            if head in result["rates"]:
                note += f"; rate {result['rates'][head]:g}"
            rows.append(
                row(f"continual-{n}", f"{title}: {PATHS[head]}", found.mean, low=found.low, high=found.high, n=found.n,
                    unit="%", state_bytes=size * int(n), note=note, **about)
            )  # fmt: skip
    for head, iid in result.get("iid", {}).items():
        if "600" in result["heads"][head]["held_out"]:
            oracle = np.asarray(iid["held_out"])
            drop = mean_interval(100 * (1 - np.asarray(result["heads"][head]["held_out"]["600"]) / oracle))
            pace = f" at rate {iid['rate']:g}" if iid["rate"] else ""
            note = f"oracle {oracle.mean():.1f} after {result['oracle']} epochs{pace}; {trained}"
            rows.append(
                row("continual-600-drop", f"{title}: {PATHS[head]}", drop.mean, low=drop.low, high=drop.high, n=drop.n,
                    unit="%", note=note, **about)
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2], sys.argv[3:])
    else:
        collect(dict(argument.split("=", 1) for argument in sys.argv[2:]))
