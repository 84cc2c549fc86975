"""Claims text-bpb, text-bpb-by-position, text-lesion, mqar-16x, needle-16x, babilong-qaN-LENGTH, forgetting-text,
recurrence-savings-text, text-flatness: long streams of text with a nested memory and with flat ones.

    python -m benchmarks.text train [PART...] [METHOD...] [SEED...]  runs into runs/text (goes on if interrupted); parts are books,
                                                                     mqar, needle, drift, babilong1 to 3; 3 seeds
    python -m benchmarks.text far [NAME...]                          runs on BABILong asked at 32 k, 128 k and a million words
    python -m benchmarks.text throughput [METHOD...]                 tokens/s and peak memory from 10 kB to 1 MB; with
                                                                     titans-pytorch (`uv run --group bench`) its transformer too
    python -m benchmarks.text collect                                rows from what is there; what has no run stays as it was

All methods of a part see the same bytes in the same order. Flat memories of books and drift have the nested model's parameters
within 2 %; state bytes are shown, and differ. Rates are those of the nested model, for all; nothing was tuned on test
documents.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from algos import figures, jobs, recall_run
from algos.text_drift import SLACK
from benchmarks.results import load, row, save
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
TWICE = ["algo.layers=2"]  # to find out who has a thing, and where that one is
FAR = {32_768: 96, 131_072: 48, 1_048_576: 8}  # words, streams of so many
FLAT = ["memory=lstm", "memory.hidden=111", "algo.orders=[]", "algo.adapt=false", "algo.consolidate=0"]
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
} | {
    f"babilong{task}": {
        name: (["experiment=babilong", f"env.task={task}", *([] if task == 1 else TWICE), *o], title)
        for name, (o, title) in STORIES.items()
    }
    for task in (1, 2, 3)
}  # fmt: skip
AT = "text-bpb-at-"
GROWTH, FIRST_PLACE = "flat LSTM minus nested", 512
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)  # bytes of a throughput measurement
STRETCH, PIECE = 10_000, 500  # of these, the last so many are timed; so many are read at once
ROUNDS = 3  # of which the median counts
PEER, PEER_SIZES = "titans_pytorch", 4  # at a million bytes it would need more memory than there is


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


def throughput(methods: list[str]) -> None:
    """Each method in a process of its own, so that its peak memory is its own: an untrained model reads up to 1 MB."""
    kept = ROOT / "flatness.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for method in methods or ["nested", "lstm", "window", *([PEER] if importlib.util.find_spec(PEER) else [])]:
        code = f"from benchmarks.text import measured; measured({method!r})"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        found[method] = json.loads(said.splitlines()[-1])
        print(method, found[method], flush=True)
    ROOT.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))


@torch.no_grad()
def measured(method: str) -> None:
    """Print tokens/s in processor time at each size, and the peak of resident memory by then above what it was before."""
    torch.set_num_threads(1)
    read = peer() if method == PEER else carried(method)
    text = torch.randint(0, 256, (1, max(SIZES)), generator=torch.Generator().manual_seed(0))
    read(text[:, :STRETCH])  # what is loaded and compiled at first is nobody's throughput
    base, rates, peaks = _resident(), [], []
    for size in SIZES[: PEER_SIZES if method == PEER else None]:
        rates.append(median(read(text[:, :size]) for _ in range(ROUNDS)))
        peaks.append(_resident() - base)
    print(json.dumps({"tokens_per_s": rates, "peak_mb": peaks}))


def carried(method: str) -> Callable[[Tensor], float]:
    """Ours: reads in pieces with the state carried. Its rate is that of the last `STRETCH` tokens."""
    from algos import build
    from algos.config import configure

    made = build.learner(configure(PARTS["books"][method][0])).memory.eval()

    def read(text: Tensor) -> float:
        state, begun = made.initial_state(1), 0.0
        for start in range(0, text.shape[1], PIECE):
            if start == text.shape[1] - STRETCH:
                begun = time.process_time()
            state = made(text[:, start : start + PIECE], state)[1]
        return STRETCH / (time.process_time() - begun)

    return read


def peer() -> Callable[[Tensor], float]:
    """The transformer of titans-pytorch with memory as context. It carries nothing from one call to the next, so it reads all at
    once, and its rate is that of the whole."""
    from titans_pytorch import MemoryAsContextTransformer

    made = MemoryAsContextTransformer(
        num_tokens=256, dim=48, depth=2, segment_len=128, num_persist_mem_tokens=4, num_longterm_mem_tokens=16,
        dim_head=16, heads=4, num_residual_streams=1, neural_memory_layers=(1,),
        neural_memory_kwargs={"dim_head": 24, "heads": 2},
    ).eval()  # fmt: skip

    def read(text: Tensor) -> float:
        begun = time.process_time()
        made(text)
        return text.shape[1] / (time.process_time() - begun)

    return read


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def collect() -> None:
    rows = []
    fresh: set[tuple[str, str]] = set()
    for part, methods in PARTS.items():
        for method, (_, title) in methods.items():
            results = [loaded(p) for p in sorted(ROOT.glob(f"{part}-{method}-s*/result.json"))]
            if results:
                rows += summary(part, title, results)
    rows += growth() + paces()
    if (ROOT / "flatness.json").exists():
        for method, found in json.loads((ROOT / "flatness.json").read_text()).items():
            title = PARTS["books"][method][1] if method != PEER else "titans-pytorch, transformer of 141 k parameters"
            rates, peaks = found["tokens_per_s"], found["peak_mb"]
            note = f"{', '.join(f'{r:.0f}' for r in rates)} at {', '.join(map(str, SIZES[: len(rates)]))} bytes"
            note += f", one row, processor time; peak beyond the model MB {', '.join(f'{p:.0f}' for p in peaks)}"
            rows.append(row("text-tokens-per-s", title, rates[-1], n=1, unit="tokens/s", note=note))
            rows.append(row("text-flatness", title, max(rates) / min(rates), n=1, unit="ratio"))
    fresh |= {(r["claim"], r["method"]) for r in rows}
    rows += [r for r in load("text") if (r["claim"], r["method"]) not in fresh]
    save("text", rows)
    draw(rows)


def loaded(path: Path) -> dict[str, Any]:
    """The result of a run, with what `far` asked it in the line by length."""
    result: dict[str, Any] = json.loads(path.read_text())
    kept = path.with_name("far.json")
    if kept.exists():
        result["lines"]["length"]["points"] += json.loads(kept.read_text())
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


def paces() -> list[dict[str, Any]]:
    """Updates until text not yet learned from is predicted as well as the flat model did at the end of its first visit to books,
    flat over nested: on a first visit and on the return after speeches. Counted in points of the run's line, six updates each."""
    each: dict[str, list[float]] = {"first-visit-text": [], "recurrence-savings-text": []}
    for path in sorted(ROOT.glob("drift-nested-s*/result.json")):
        other = ROOT / path.parent.name.replace("nested", "lstm") / "result.json"
        if other.exists():
            runs = [json.loads(p.read_text()) for p in (other, path)]
            curves = [[p[1] for p in run["lines"]["online"]["points"]] for run in runs]
            phase = len(curves[0]) // 3
            level = mean_interval(curves[0][phase - 3 : phase]).mean + SLACK
            for claim, start in zip(each, (0, 2 * phase), strict=True):
                flat, ours = (_reached(curve[start : start + phase], level) for curve in curves)
                each[claim].append(flat / ours)
    rows = []
    for claim, ratios in each.items():
        if ratios:
            mean = mean_interval(ratios)
            bounds = {"low": mean.low, "high": mean.high} if mean.n > 1 else {}
            note = f"seeds {', '.join(f'{r:.2f}' for r in ratios)}; books, speeches, books"
            rows.append(
                row(
                    claim,
                    "updates of the flat LSTM over nested",
                    mean.mean,
                    n=mean.n,
                    unit="ratio",
                    note=note,
                    **bounds,
                )
            )
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
    """Rows of one method from its seeds; with one seed the interval is left out, and the note says so."""
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
        case "drift":
            asked = {
                "forgetting-text": ("forgetting of books while away", "bits per byte"),
                "forgetting-text-speeches": ("forgetting of speeches while away", "bits per byte"),
                "drift-savings": ("savings on return to books", "ratio"),
            }
            values = {}
            for claim, (name, unit) in asked.items():
                each = [r["numbers"][name] for r in results]
                if not any(isinstance(v, str) for v in each):
                    values[claim] = (each, unit, "books, speeches, books")
            for i in range(3):
                key = f"bits per byte of books after phase {i + 1}"
                values[f"drift-books-after-{i + 1}"] = ([r["numbers"][key] for r in results], "bits per byte", "")
        case _:
            values = {}
            shared = min((r["lines"]["length"]["points"] for r in results), key=len)
            for i, point in enumerate(shared):
                each = [r["lines"]["length"]["points"][i][1] for r in results]
                many = FAR.get(round(point[0]), results[0]["n"])
                about = f"words; learned on 64 to 512; {many} streams"
                values[f"babilong-qa{results[0]['env']['task']}-{round(point[0])}"] = (each, "%", about)
    rows = []
    for claim, (each, unit, about) in values.items():
        mean, tested = mean_interval(each), f"{results[0]['n']} {results[0]['counted']}"
        note = f"seeds {', '.join(f'{v:.3f}' for v in each)}" if len(each) > 1 else "one seed"
        note = "; ".join(
            filter(None, [about, note, f"{results[0]['step']} updates", "" if "streams" in about else tested])
        )
        rows.append(
            row(
                claim, title, mean.mean, low=mean.low if mean.n > 1 else None, high=mean.high if mean.n > 1 else None,
                n=len(each), unit=unit, wall_s=round(sum(r["seconds"] for r in results) / len(results)),
                params=results[0]["parameters"], state_bytes=results[0]["state_bytes"], note=note,
            )
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["train", *rest]:
            train(rest)
        case ["far", *rest]:
            far(rest)
        case ["throughput", *rest]:
            throughput(rest)
        case ["collect"]:
            collect()
        case _:
            raise SystemExit("text: expected train [PART...] [METHOD...] [SEED...], far, throughput or collect")
