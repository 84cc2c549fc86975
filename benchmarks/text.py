"""Claims text-bpb, text-bpb-by-position, text-lesion, mqar-16x, needle-16x, babilong-qaN-LENGTH, forgetting-text,
recurrence-savings-text: long streams of text with a nested memory and with flat ones.

    python -m benchmarks.text train [PART...] [METHOD...] [SEED...]  runs into runs/text (goes on if interrupted); parts are books,
                                                                     mqar, needle, drift, tales, babilong1 to 3; 3 seeds
    python -m benchmarks.text far [NAME...]                          runs on BABILong asked at 32 k, 128 k and a million words
    python -m benchmarks.text collect                                rows from what is there; what has no run stays as it was

All methods of a part see the same bytes in the same order. Flat memories of books and drift have the nested model's parameters
within 2 %; state bytes are shown, and differ. Rates are those of the nested model, for all; nothing was tuned on test
documents.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from algos import figures, jobs, recall_run
from algos.text_drift import SLACK
from benchmarks.results import common, merged, recipe, row, save, seeded
from nestmem.probes import mean_interval

ROOT = Path("runs/text")
SEEDS = 3
NESTED = "nested (LSTM, fast weights, leaky, exact episodes, learning readout)"
FED = "nested (LSTM, fast weights)"
WINDOWS = ["memory=window", "memory.window=64", "memory.heads=4", "algo.layers=3"]
RECALLERS = {
    "nested": (["memory.decay=none", "memory.units=0"], FED),
    "lstm": (["memory=lstm", "memory.hidden=128"], "flat LSTM"),
    "window": (WINDOWS, "three windows of 64 tokens"),
    "lstm-longer": (["memory=lstm", "memory.hidden=128", "trainer.steps=3000"], "flat LSTM, ten times the updates"),
    "window-longer": ([*WINDOWS, "trainer.steps=3000"], "three windows of 64 tokens, ten times the updates"),
    "fast": (["memory=deltanet", "memory.key_size=64"], "flat fast weights (DeltaNet)"),
    "titans": (["memory=titans", "memory.key_size=64", "memory.hidden=64"], "Titans"),
}
STORIES = {
    "nested": (["memory.hidden=128", "memory.decay=none"], FED),
    "lstm": (["memory=lstm", "memory.hidden=192"], "flat LSTM"),
    "titans": (
        ["memory=titans", "memory.key_size=64", "algo.place=gate", "algo.window=64"],
        "Titans beside a window of 64 words",
    ),
    "hmt": (
        [
            "memory=window",
            "memory.window=64",
            "memory.heads=4",
            "algo.layers=2",
            "algo.place=segments",
            "algo.window=64",
        ],
        "HMT, segments of 64 words",
    ),
}
LONGER = {  # two facts take longer than one; three have longer stories, too
    1: [],
    2: ["trainer.steps=5000", "trainer.lr=3e-3"],
    3: ["trainer.steps=5000", "trainer.lr=3e-3", "env.steps=[32,512]"],
}
FAR = {32_768: 96, 131_072: 48, 1_048_576: 8}  # words, streams of so many
FLAT = ["memory=lstm", "memory.hidden=111", "algo.orders=[]", "algo.adapt=false", "algo.consolidate=0"]
BY_TALES = "env.data=[books,generated,books]"
PARTS: dict[str, dict[str, tuple[list[str], str]]] = {
    "books": {
        "nested": (["experiment=books"], NESTED),
        "lstm": (["experiment=books_lstm"], "flat LSTM"),
        "window": (["experiment=books_window"], "three windows of 128 tokens"),
        "leaning": (["experiment=books", "algo.level_loss=0"], "nested, without a loss of the layers' own"),
        "episodes": (
            ["experiment=books_lstm", "algo.orders=[3,4,6,8]", "algo.bits=16", "algo.level_loss=0.3"],
            "LSTM with exact episodes",
        ),
        "dynamic": (["experiment=books_lstm", "algo.adapt=true"], "flat LSTM, dynamic evaluation of the readout"),
    },
    "mqar": {name: (["experiment=mqar", *o], title) for name, (o, title) in RECALLERS.items()},
    "needle": {name: (["experiment=needle", *o], title) for name, (o, title) in RECALLERS.items()},
    "drift": {
        "nested": (["experiment=drifting_text"], NESTED),
        "lstm": (["experiment=drifting_text", *FLAT], "flat LSTM"),
    },
    "tales": {  # as drift, by way of what is least like books
        "nested": (["experiment=drifting_text", BY_TALES], NESTED),
        "lstm": (["experiment=drifting_text", BY_TALES, *FLAT], "flat LSTM"),
    },
} | {
    f"babilong{task}": {
        name: (["experiment=babilong", f"env.task={task}", *LONGER[task], *o], title)
        for name, (o, title) in STORIES.items()
    }
    for task in (1, 2, 3)
}  # fmt: skip
AT = "text-bpb-at-"
GROWTH, FIRST_PLACE = "flat LSTM minus nested", 512


def train(arguments: list[str]) -> None:
    seeds = [int(a) for a in arguments if a.isdigit()] or list(range(SEEDS))
    parts = [a for a in arguments if a in PARTS] or list(PARTS)
    methods = [a for a in arguments if not a.isdigit() and a not in PARTS]
    for seed in seeds:
        for part in parts:
            for method, (overrides, _) in PARTS[part].items():
                run = ROOT / f"{part}-{method}-s{seed}"
                if (run / "result.json").exists() or (methods and method not in methods):
                    continue
                if (run / "config.yaml").exists() and any(run.glob("checkpoints/step-*")):
                    jobs.train([f"resume={run}"])
                else:
                    jobs.train([*overrides, f"seed={seed}", f"run={run}"])


def far(names: list[str]) -> None:
    """Finished runs on BABILong (all, or those whose folders have one of `names`), beyond the lengths of their own test."""
    for path in sorted(ROOT.glob("babilong*/result.json")):
        if names and not any(name in path.parent.name for name in names):
            continue
        kept = path.with_name("far.json")
        found = json.loads(kept.read_text()) if kept.exists() else []
        for length, streams in FAR.items():
            if length not in [point[0] for point in found]:
                found += recall_run.evaluate(str(path.parent), [f"lengths={length}", f"streams={streams}"])["points"]
                kept.write_text(json.dumps(found))


def collect() -> None:
    rows = []
    for part, methods in PARTS.items():
        for method, (_, title) in methods.items():
            results = [loaded(p) for p in sorted(ROOT.glob(f"{part}-{method}-s*/result.json"))]
            if results:
                rows += summary(part, title, results)
    rows += growth() + paces("drift", "") + paces("tales", "-tales")
    rows = merged("text", rows)
    save("text", rows)
    draw(rows)


def loaded(path: Path) -> dict[str, Any]:
    """The result of a run, with what `far` asked it in the line by length, and what it was trained with."""
    result: dict[str, Any] = json.loads(path.read_text())
    kept = path.with_name("far.json")
    if kept.exists():
        result["lines"]["length"]["points"] += json.loads(kept.read_text())
    if path.with_name("config.yaml").exists():
        result["recipe"] = recipe(jobs.stored_config(path.parent), result["step"])
    return result


def draw(rows: list[dict[str, Any]], path: Path = Path("docs/text.png")) -> None:
    """Bits per byte by place, a line for each method with its interval where there are several seeds."""
    curves: dict[str, list[list[float]]] = {}
    for r in rows:
        if r["claim"].startswith(AT):
            low, high = (r["value"] if bound is None else bound for bound in (r["low"], r["high"]))
            curves.setdefault(r["method"].split(" (")[0], []).append(
                [float(r["claim"].removeprefix(AT)), r["value"], low, high]
            )
    if curves:
        figures.lines(
            {k: sorted(v) for k, v in curves.items()},
            "bytes of the book before",
            "bits per byte, held-out books",
            log=True,
        ).savefig(path)


def paces(part: str, by: str) -> list[dict[str, Any]]:
    """Updates until text not yet learned from is predicted at a level, flat over nested: on a first visit to books and on the
    return, at the level of the flat model at the end of its first visit; and on the return at what it ends that with. Counted in
    points of the run's line, six updates each."""
    first, again = f"first-visit-text{by}", f"recurrence-savings-text{by}"
    each: dict[tuple[str, str], list[float]] = {}
    for path in sorted(ROOT.glob(f"{part}-nested-s*/result.json")):
        other = ROOT / path.parent.name.replace("nested", "lstm") / "result.json"
        if other.exists():
            runs = [json.loads(p.read_text()) for p in (other, path)]
            curves = [[p[1] for p in run["lines"]["online"]["points"]] for run in runs]
            phase = len(curves[0]) // 3
            reached = mean_interval(curves[0][phase - 3 : phase]).mean + SLACK
            ended = mean_interval(curves[0][-3:]).mean
            for claim, what, start, level in (
                (first, "", 0, reached),
                (again, "", 2 * phase, reached),
                (again, ", to what the return ends with", 2 * phase, ended),
            ):
                flat, ours = (_reached(curve[start : start + phase], level) for curve in curves)
                each.setdefault((claim, what), []).append(flat / ours)
    rows = []
    for (claim, what), ratios in each.items():
        mean = mean_interval(ratios)
        bounds = {"low": mean.low, "high": mean.high} if mean.n > 1 else {}
        note = (
            f"seeds {', '.join(f'{r:.2f}' for r in ratios)}; books, {'speeches' if part == 'drift' else 'tales'}, books"
        )
        title = f"updates of the flat LSTM over nested{what}"
        rows.append(row(claim, title, mean.mean, n=mean.n, unit="ratio", note=note, **bounds))
    return rows


def _reached(curve: list[float], level: float) -> int:
    """Points until the mean of three is at the level, or all of them."""
    return next((i for i in range(3, len(curve)) if sum(curve[i - 3 : i]) / 3 <= level), len(curve))


def growth() -> list[dict[str, Any]]:
    """By how much the LSTM's bits per byte minus the nested model's are more at the last place than at the first."""
    each, last = [], 0
    for path in sorted(ROOT.glob("books-nested-s*/result.json")):
        other = ROOT / path.parent.name.replace("nested", "lstm") / "result.json"
        if other.exists():
            ours, flat = (json.loads(p.read_text())["lines"]["place"]["points"] for p in (path, other))
            gaps = [b[1] - a[1] for a, b in zip(ours, flat, strict=True)]
            each.append(gaps[-1] - gaps[0])
            last = round(ours[-1][0])
    if not each:
        return []
    mean = mean_interval(each)
    low, high = (mean.low, mean.high) if mean.n > 1 else (None, None)
    note = f"gap at {last} bytes minus gap at {FIRST_PLACE}; {'one seed' if mean.n == 1 else f'{mean.n} seeds'}"
    return [
        row("text-bpb-by-position", GROWTH, mean.mean, low=low, high=high, n=mean.n, unit="bits per byte", note=note)
    ]


def summary(part: str, title: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one method from its seeds; with one seed the interval is left out."""
    seeds = [str(r["seed"]) for r in results]
    match part:
        case "books":
            points = [{round(p[0]): p[1] for p in r["lines"]["place"]["points"]} for r in results]
            shared = [p for p in points[0] if all(p in other for other in points)]
            books = f"over books [{results[0]['low']:.3f}, {results[0]['high']:.3f}]" if len(results) == 1 else ""
            values = {"text-bpb": ([r["score"] for r in results], "bits per byte", books)}
            for place in shared:
                claim = f"{AT}{place}"
                values[claim] = ([p[place] for p in points], "bits per byte", "around this many bytes before")
            lesions = [k for k in results[0]["numbers"] if k.startswith("bits per byte, memory ")]
            for key in lesions:
                each = [r["numbers"][key]["mean"] for r in results]
                claim = f"text-lesion: {key.removeprefix('bits per byte, ')}"
                values[claim] = (each, "bits per byte", "first 8 kB")
        case "mqar" | "needle":
            values = {f"{part}-16x": ([r["score"] for r in results], "%", "1,024 tokens, learned on 64")}
            line = [r["lines"]["length"]["points"] for r in results]
            values[f"{part}-1x"] = ([points[0][1] for points in line], "%", "64 tokens")
        case "drift" | "tales":
            other, by = results[0]["env"]["data"][1], "" if part == "drift" else "-tales"
            asked = {
                f"forgetting-text{by}": ("forgetting of books while away", "bits per byte"),
                f"forgetting-text{by}-other": (f"forgetting of {other} while away", "bits per byte"),
                f"drift-savings{by}": ("savings on return to books", "ratio"),
            }
            values = {}
            for claim, (name, unit) in asked.items():
                each = [r["numbers"][name] for r in results]
                if not any(isinstance(v, str) for v in each):
                    values[claim] = (each, unit, f"books, {other}, books")
            for i in range(3):
                key = f"bits per byte of books after phase {i + 1}"
                values[f"drift-books-after-{i + 1}{by}"] = ([r["numbers"][key] for r in results], "bits per byte", "")
        case _:
            env = results[0]["env"]
            least, most = env["steps"]
            values, found = {}, [{round(p[0]): p[1] for p in r["lines"]["length"]["points"]} for r in results]
            for length in sorted({length for points in found for length in points}):
                each = {seed: points[length] for seed, points in zip(seeds, found, strict=True) if length in points}
                many = FAR.get(length, results[0]["n"])
                about = f"words; learned on {least} to {most}; {many} streams"
                values[f"babilong-qa{env['task']}-{length}"] = (each, "%", about)
    made_by = common(r.get("recipe", "") for r in results)
    rows = []
    for claim, (each, unit, about) in values.items():
        tested = "" if "streams" in about else f"{results[0]['n']} {results[0]['counted']}"
        rows.append(
            seeded(
                "text", claim, title, dict(zip(seeds, each, strict=True)) if isinstance(each, list) else each,
                made_by, unit=unit,
                wall_s=round(sum(r["seconds"] for r in results) / len(results)),
                params=results[0]["parameters"], state_bytes=results[0]["state_bytes"],
                note="; ".join(filter(None, [about, f"{results[0]['step']} updates", tested])),
            )
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", *rest]:
            train(rest)
        case ["far", *rest]:
            far(rest)
        case ["collect"]:
            collect()
        case _:
            raise SystemExit("text: expected train [PART...] [METHOD...] [SEED...], far or collect")
