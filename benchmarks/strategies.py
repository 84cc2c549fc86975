"""Claims forgetting-omniglot and continual-STREAM: strategies against forgetting on three streams of tasks.

    python -m benchmarks.strategies train [STRATEGY...]   three seeds of each stream into runs/strategies (skips what is there)
    python -m benchmarks.strategies collect               write the results and the tables in docs/continual.md

Streams: ten alphabets of glyphs, ten of Omniglot's evaluation part (both class-incremental; the latter also with an encoder that
has seen the background part), five permutations of MNIST (domain-incremental). A seed is an order of the tasks (but for the
permutations), of the images and new weights; for glyphs and permutations new ones too. Strengths were chosen on other glyphs and
on other permutations and drawings of digits (env.part=val env.seed=100); those of Omniglot are those of glyphs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from algos import build
from algos.config import configure
from algos.trainer import Trainer
from benchmarks.results import load, row, save
from nestmem.probes import mean_interval

ROOT = Path("runs/strategies")
DOCUMENT = Path("docs/continual.md")
BEGIN, END = "<!-- results: strategies -->", "<!-- end: strategies -->"
SEEDS = (0, 1, 2)
QUIET = ["trainer.eval_every=100000", "trainer.checkpoint_every=100000", "trainer.keep=1"]
ENCODER = "runs/prototypes"  # nestmem train experiment=omniglot_prototypes run=runs/prototypes: 30 other alphabets
STREAMS = {
    "glyphs": ["experiment=continual_glyphs"],
    "permuted": ["experiment=permuted_mnist"],
    "omniglot": ["experiment=continual_alphabets"],
    "omniglot-pretrained": ["experiment=continual_alphabets", f"algo.encoder={ENCODER}"],
}
METHODS: dict[str, list[str]] = {
    "finetune": [],
    "frozen": ["algo.strategy=finetune", "algo.freeze=true"],
    "ewc": [],
    "si": [],
    "lwf": [],
    "agem": [],
    "replay": [],
    "expandable": [],
    "joint": [],
    "means": [],
    "episodic": ["algo.strategy=memory", "memory=episodic", "memory.slots=400"],
    "surprise": [
        "algo.strategy=memory", "memory=episodic", "memory.slots=400", "memory.write_when=surprise", "memory.threshold=0.5",
    ],
    "nested": ["algo.strategy=memory", "memory=nested", "memory.slots=400", "memory.period=100"],
}  # fmt: skip
TITLES = {
    "frozen": "finetune, encoder fixed",
    "means": "means, encoder fixed",
    "episodic": "episodic memory of 400 slots, encoder fixed",
    "surprise": "episodic memory of 400 slots, written on surprise",
    "nested": "nested memory of 400 slots, encoder fixed",
}
# By stream, where the strategy's own strength is not the one chosen.
STRENGTHS: dict[str, dict[str, float]] = {"glyphs": {"si": 1000.0}, "omniglot": {"si": 1000.0}}
# A fully connected encoder has no block to add, and the pretrained one normalises by running statistics.
LEFT_OUT = {
    "glyphs": {"frozen"},
    "permuted": {"expandable", "frozen"},
    "omniglot": {"frozen"},
    "omniglot-pretrained": {"ewc", "si", "lwf", "agem", "expandable"},
}


def train(method: str, stream: str, seed: int) -> None:
    run = ROOT / f"{stream}-{method}-s{seed}"
    if (run / "result.json").exists() or method in LEFT_OUT.get(stream, ()):
        return
    options = [*STREAMS[stream], *QUIET, f"seed={seed}", f"run={run}"]
    options += [f"env.seed={seed}"] if not stream.startswith("omniglot") else []
    options += METHODS[method] or [f"algo.strategy={method}"]
    if method in STRENGTHS.get(stream, {}):
        options.append(f"algo.strength={STRENGTHS[stream][method]}")
    started = time.perf_counter()
    config = configure(options)
    result = Trainer(config, build.problem(config)).fit()
    print(f"{run.name}: {result['score']:.1f} %, {time.perf_counter() - started:.0f} s", flush=True)


def collect() -> None:
    rows: list[dict[str, Any]] = []
    for stream in STREAMS:
        for method in METHODS:
            results = [json.loads(path.read_text()) for path in sorted(ROOT.glob(f"{stream}-{method}-s*/result.json"))]
            title = TITLES.get(method, method)
            if not results:  # what was measured before stays
                mine = (f"continual-{stream}", f"forgetting-{stream}")
                rows += [r for r in load("strategies") if r["method"] == title and r["claim"] in mine]
                continue
            scores = [result["score"] for result in results]
            lost = [result["numbers"]["forgetting"] for result in results]
            measured = {f"continual-{stream}": scores}
            if not any(isinstance(value, str) for value in lost):
                measured[f"forgetting-{stream}"] = [100 * value for value in lost]
            for claim, values in measured.items():
                mean = mean_interval(values)
                rows.append(
                    row(
                        claim, title, mean.mean, n=mean.n, unit="%" if claim.startswith("continual") else "points",
                        low=mean.low if mean.n > 1 else None, high=mean.high if mean.n > 1 else None,
                        wall_s=round(sum(result["seconds"] for result in results) / mean.n, 1),
                        state_bytes=results[0]["state_bytes"], params=results[0]["parameters"],
                        note=f"seeds {', '.join(f'{value:.1f}' for value in values)}",
                    )
                )  # fmt: skip
    save("strategies", rows)
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each method; mean and, of three seeds on, half of the interval."""
    claims = [f"{what}-{stream}" for stream in STREAMS for what in ("continual", "forgetting")]
    head = [f"{stream}: {what}" for stream in STREAMS for what in ("accuracy, %", "forgetting, points")]
    lines = [
        "| strategy | " + " | ".join([*head, "kept beside the weights, kB"]) + " |",
        "|---" * (len(head) + 2) + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = {r["claim"]: r for r in rows if r["method"] == method}
        cells = [cell(mine[claim]) if claim in mine else "" for claim in claims]
        kept = sorted({round(r["state_bytes"] / 1000) for r in mine.values()})
        lines.append(
            f"| {method} | " + " | ".join([*cells, " to ".join(map(str, dict.fromkeys([kept[0], kept[-1]])))]) + " |"
        )
    return "\n".join(lines)


def cell(r: dict[str, Any]) -> str:
    spread = f" ± {(r['high'] - r['low']) / 2:.1f}" if r["n"] > 2 else ""
    return f"{r['value']:.1f}{spread}" + (f" (n = {r['n']})" if r["n"] != len(SEEDS) else "")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["train"]:
        for name in arguments[1:]:
            if name not in METHODS:
                raise SystemExit(f"strategies: no strategy {name!r}; known: {', '.join(METHODS)}")
        for seed in SEEDS:
            for stream in STREAMS:
                for method in arguments[1:] or METHODS:
                    train(method, stream, seed)
    elif arguments == ["collect"]:
        collect()
    else:
        raise SystemExit("strategies: expected train [STRATEGY...] or collect")


if __name__ == "__main__":
    main(sys.argv[1:])
