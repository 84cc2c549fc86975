"""Recurring streams at equal state bytes: claims recurrence-gap-*, recurrence-new*, recurrence-savings, first-visit-omniglot
and forgetting-omniglot-alphabets.

    python -m benchmarks.drift train STREAM METHOD SEED [OPTION=VALUE...]   one run into runs/drift; goes on if interrupted
    python -m benchmarks.drift train all SEEDS                              what is not there yet, seeds 0..SEEDS-1
    python -m benchmarks.drift alphabets                                    finished runs of bindings on A, B, ..., A, B, ...
    python -m benchmarks.drift collect                                      rows and docs/drift.png from every run there

Streams: bindings (experiment=recurring) and rules (experiment=shared_rules), with Omniglot's evaluation classes. One embedding
serves all runs. Sizes were chosen by bytes of state; every row has them, and the parameters. Alphabets: three rounds through
all 20 of the evaluation part, five characters each, on which nothing was trained; see envs.bindings.Alphabets.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos import figures, jobs
from algos.embedding import image_sets
from algos.visits import MIDDLES, Record, VisitProblem
from benchmarks.results import row, save
from envs.bindings import Alphabets
from envs.tasks import alphabet
from nestmem.probes import Interval, geometric_ratio, mean_interval

ROOT = Path("runs/drift")
EXPERIMENTS = {"bindings": "recurring", "rules": "shared_rules"}
STEPS = {"bindings": 15, "rules": 20}  # of a visit
COUNT, ROUNDS, STREAMS = 20, 3, 64  # alphabets, visits to each, streams judged
OURS, MARGIN = "nested", "nested minus the best flat"
LSTM = ["memory=lstm", "trainer.lr=2e-3"]

# Title, options, and by stream the size that makes the state about as large as the nested one.
METHODS: dict[str, tuple[str, list[str], dict[str, list[str]]]] = {
    OURS: ("nested: LSTM, slots, tensor product", [], {}),
    "lstm-episodic": (
        "LSTM + episodic, 8-bit keys",
        ["memory.slow=none"],
        {"bindings": ["memory.slots=79"], "rules": ["memory.slots=51"]},
    ),
    "episodic-8": (
        "episodic, 8-bit keys",
        ["memory=episodic", "memory.key_bits=8"],
        {"bindings": ["memory.slots=82", "memory.threshold=0.5"], "rules": ["memory.slots=54", "memory.threshold=0.8"]},
    ),
    "episodic": (
        "episodic, fp32 keys",
        ["memory=episodic"],
        {"bindings": ["memory.slots=24", "memory.threshold=0.5"], "rules": ["memory.slots=16", "memory.threshold=0.8"]},
    ),
    "slow": (  # fewer bytes, since random features beyond the products do not help
        "slow only (tensor product, written every step)",
        ["memory=tensor_product"],
        {"bindings": ["memory.bits=8", "memory.ridge=4"], "rules": ["memory.key_code=8"]},
    ),
    "lstm": ("LSTM carried", LSTM, {"bindings": ["memory.hidden=617"], "rules": ["memory.hidden=392"]}),
    "lstm-reset": (
        "LSTM reset at every visit",
        LSTM,
        {
            "bindings": ["memory.hidden=617", "memory.reset_every=15"],
            "rules": ["memory.hidden=392", "memory.reset_every=20"],
        },
    ),
}


def train(stream: str, method: str, seed: int, extra: list[str]) -> None:
    run = ROOT / f"{stream}-{method}-s{seed}"
    if (run / "result.json").exists():
        return
    if any((run / "checkpoints").glob("step-*")):
        jobs.train([f"resume={run}"])
    else:
        jobs.train([*overrides(stream, method), f"seed={seed}", f"run={run}", *extra])


def overrides(stream: str, method: str) -> list[str]:
    _, options, sizes = METHODS[method]
    tuned = not any(option.startswith("memory=") for option in options)
    return [
        f"experiment={EXPERIMENTS[stream] if tuned else stream}",
        *options,
        *sizes.get(stream, []),
        "trainer.threads=1",
    ]


def alphabets() -> None:
    """Every finished run of bindings on alphabets that come round, into RUN/alphabets.json."""
    names = [alphabet(name) for name in image_sets("omniglot")["test"].names]
    groups = torch.tensor([sorted(set(names)).index(name) for name in names])
    for run in sorted(ROOT.glob("bindings-*-s[0-9]")):
        target = run / "alphabets.json"
        if target.exists() or not (run / "result.json").exists():
            continue
        config = jobs.stored_config(run)
        problem = jobs.restored(config).problem
        assert isinstance(problem, VisitProblem)
        features, env = problem.streams["test"].features, config.env
        source = Alphabets(
            features, groups, seed=config.seed, count=COUNT, rounds=ROUNDS, ways=env.ways, shots=env.shots,
            cue_size=env.cue_size, cue_noise=env.cue_noise,
        )  # fmt: skip
        problem.streams["alphabets"], problem.starts["alphabets"] = source, source.generator.get_state()
        numbers = alphabet_numbers(problem.evaluate("alphabets", STREAMS))
        target.write_text(json.dumps({"seed": config.seed, "numbers": numbers}, indent=1))


def alphabet_numbers(record: Record) -> dict[str, float]:
    """In percent. Accuracy on the last image of each character, the best round; first guesses of the last round; the loss
    from the one to the other; and accuracy over all steps of first visits and of returns."""
    right = np.stack(np.split(100.0 * record.correct, ROUNDS, axis=1))  # [rounds, B, alphabets, T]
    seen = np.stack(np.split(record.seen, ROUNDS, axis=1))
    learned = max(float(r[s == s.max()].mean()) for r, s in zip(right, seen, strict=True))
    final = float(right[-1][seen[-1] == 0].mean())
    whole = {"first visit": float(right[0].mean()), "return": float(right[1:].mean())}
    return {"learned": learned, "final": final, "forgetting": learned - final} | whole


def collect() -> None:
    rows: list[dict[str, Any]] = []
    lines = {}
    for stream in EXPERIMENTS:
        found = {method: results(stream, method) for method in METHODS}
        found = {method: each for method, each in found.items() if each}
        for method, each in found.items():
            rows += method_rows(stream, method, each)
            title = METHODS[method][0]
            if stream == "bindings":
                lines[title] = points(each)
        rows += margin_rows(stream, found) + ratio_rows(stream, found)
    found = {method: results("bindings", method, "alphabets.json") for method in METHODS}
    found = {method: each for method, each in found.items() if each}
    rows += alphabet_rows(found)
    save("drift", rows)
    figures.lines(lines, "visits since a context was last here", "first guesses right, %").savefig("docs/drift.png")


def results(stream: str, method: str, name: str = "result.json") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(ROOT.glob(f"{stream}-{method}-s[0-9]/{name}"))]


def by_seed(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Results of the same seed, which are on the same streams."""
    known = {result["seed"]: result for result in other}
    return [(result, known[result["seed"]]) for result in one if result["seed"] in known]


def over_seeds(each: list[dict[str, Any]], name: str) -> Interval:
    return mean_interval([result["numbers"][name]["mean"] for result in each])


def points(each: list[dict[str, Any]]) -> list[list[float]]:
    intervals = [(middle, over_seeds(each, f"gap/{gap}")) for gap, middle in MIDDLES.items()]
    return [[middle, i.mean, i.low if i.n > 1 else i.mean, i.high if i.n > 1 else i.mean] for middle, i in intervals]


def claims(stream: str) -> dict[str, str]:
    """Claims about a stream, and the numbers of a result that they are about."""
    return {f"recurrence-gap-{gap}-{stream}": f"gap/{gap}" for gap in MIDDLES} | {
        f"recurrence-{name}-{stream}": name for name in ("new0", "new1")
    }


def method_rows(stream: str, method: str, each: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy by gap and on new tasks: mean over the seeds, each on 128 streams of its own."""
    title, wanted = METHODS[method][0], claims(stream)
    facts = {
        "wall_s": round(sum(result["seconds"] for result in each) / len(each)),
        "params": each[0]["parameters"],
        "state_bytes": each[0]["state_bytes"],
    }
    rows = []
    for claim, name in wanted.items():
        i = over_seeds(each, name)
        low, high = (i.low, i.high) if i.n > 1 else (None, None)
        note = f"{each[0]['step']} updates; floor {each[0]['numbers']['floor: striking out used labels']:.1f}"
        rows.append(row(claim, title, i.mean, low=low, high=high, n=i.n, unit="%", note=note, **facts))
    for name in (n for n in each[0]["numbers"] if n.startswith("lesion") and method == OURS):
        i = over_seeds([result for result in each if name in result["numbers"]], name)
        low, high = (i.low, i.high) if i.n > 1 else (None, None)
        what = name.removeprefix("lesion, ret0: ")
        rows.append(row(f"recurrence-lesion-{stream}", f"{title}; {what}", i.mean, low=low, high=high, n=i.n, unit="%"))
    return rows


def margin_rows(stream: str, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Nested minus the flat method that is best at this very claim, seed by seed."""
    rows = []
    if OURS not in found or len(found) == 1:
        return rows
    for claim, name in claims(stream).items():
        best = max((m for m in found if m != OURS), key=lambda m: over_seeds(found[m], name).mean)
        pairs = by_seed(found[OURS], found[best])
        i = mean_interval([a["numbers"][name]["mean"] - b["numbers"][name]["mean"] for a, b in pairs])
        low, high = (i.low, i.high) if i.n > 1 else (None, None)
        note = f"best flat: {METHODS[best][0]}"
        rows.append(row(claim, MARGIN, i.mean, low=low, high=high, n=i.n, unit="points", note=note))
    return rows


def alphabet_rows(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Forgetting (best minus final), what it is the difference of, and nested minus the flat method that forgets least."""
    claims = {f"alphabets-{name.replace(' ', '-')}": name for name in ("first visit", "return", "learned", "final")}
    claims["forgetting-omniglot-alphabets"] = "forgetting"
    rows = []
    for method, each in found.items():
        for claim, name in claims.items():
            i = mean_interval([result["numbers"][name] for result in each])
            low, high = (i.low, i.high) if i.n > 1 else (None, None)
            size = results("bindings", method)[0]["state_bytes"]
            rows.append(row(claim, METHODS[method][0], i.mean, low=low, high=high, n=i.n, unit="%", state_bytes=size))
    if OURS in found and len(found) > 1:
        means = {m: mean_interval([r["numbers"]["forgetting"] for r in each]).mean for m, each in found.items()}
        best = min((m for m in found if m != OURS), key=means.__getitem__)
        pairs = by_seed(found[OURS], found[best])
        i = mean_interval([a["numbers"]["forgetting"] - b["numbers"]["forgetting"] for a, b in pairs])
        low, high = (i.low, i.high) if i.n > 1 else (None, None)
        note = f"best flat: {METHODS[best][0]}"
        rows.append(
            row("forgetting-omniglot-alphabets", MARGIN, i.mean, low=low, high=high, n=i.n, unit="points", note=note)
        )
    return rows


def ratio_rows(stream: str, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Steps to 90 %, flat over nested, by seed. A visit that never gets there counts one step more than it has."""
    rows = []
    for method, each in found.items():
        if method == OURS or OURS not in found:
            continue
        for claim, name in (("recurrence-savings", "returns"), ("first-visit", "first visits")):
            pairs = [
                (steps(flat, name, stream), steps(ours, name, stream)) for flat, ours in by_seed(each, found[OURS])
            ]
            ratio = geometric_ratio([a for (a, _), _ in pairs], [b for _, (b, _) in pairs], paired=True)
            missed = sum(not reached for pair in pairs for _, reached in pair)
            note = f"steps {', '.join(f'{a:g}/{b:g}' for (a, _), (b, _) in pairs)}"
            note += f"; {missed} never got there" if missed else ""
            low, high = (ratio.low, ratio.high) if ratio.n > 1 else (None, None)
            rows.append(
                row(f"{claim}-omniglot", f"{METHODS[method][0]}, {stream}", ratio.mean, low=low, high=high, n=ratio.n,
                    unit="x", note=note)
            )  # fmt: skip
    return rows


def steps(result: dict[str, Any], name: str, stream: str) -> tuple[float, bool]:
    value = result["numbers"][f"steps to 90 %, {name}"]
    return (value, True) if isinstance(value, float | int) else (STEPS[stream] + 1, False)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", "all", seeds]:
            for seed in range(int(seeds)):
                for stream in EXPERIMENTS:
                    for method in METHODS:
                        train(stream, method, seed, [])
        case ["train", stream, method, seed, *extra]:
            train(stream, method, int(seed), extra)
        case ["alphabets"]:
            alphabets()
        case ["collect"]:
            collect()
        case _:
            sys.exit(__doc__)
