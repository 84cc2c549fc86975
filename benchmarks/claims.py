"""The table of claims: goal, best of ours, whether it is met. `--write` puts the tables of results into the documents.

python -m benchmarks.claims [--write]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.results import FOLDER

TOP = FOLDER.parent.parent
DOCUMENTS = [
    TOP / "README.md",
    *(
        TOP / "docs" / name
        for name in ("memories.md", "continual.md", "probes.md", "recurring.md", "rl.md", "text.md", "store.md")
    ),
]
Row = dict[str, Any]
Goal = tuple[str, Callable[[Row], bool]]


def at_least(goal: float) -> Goal:
    return f"≥ {goal:g}", lambda row: row["value"] >= goal


def at_most(goal: float) -> Goal:
    return f"≤ {goal:g}", lambda row: row["value"] <= goal


LEAKY = "nested (LSTM reset every 4, leaky 16, leaky 256)"
TEXT_RECALL = "nested (LSTM, fast weights)"
BELOW: Goal = ("interval below 0", lambda row: row["high"] is not None and row["high"] < 0)
AHEAD: Goal = ("interval above 0", lambda row: (row["low"] or 0) > 0)
STORE = "LSTM + episodic, 8-bit keys"
MARGIN, BEYOND = "nested minus the best flat", ("14-20", "21-30", "31+")  # the last: gaps beyond the slots

PACE = "updates of the flat LSTM over nested"
ML1, ML1_NESTED = "RL2, LSTM", "RL2, nested (LSTM, leaky averages)"

# Goal of each claim and the method it is about ("": all of them). The rest of a claim's rows are peers and controls.
GOALS: dict[str, tuple[Goal, str]] = {
    "quickstart-seconds": (at_most(200), ""),
    "quickstart-gain": (("interval above 0", lambda row: row["low"] > 0), ""),
    "omniglot-5w1s": (at_least(98.7), "black box, nested memory"),
    "omniglot-20w1s": (at_least(95.8), "black box, nested memory"),
    "maml-vs-learn2learn-cpu": (at_least(3), ""),
    "maml-vs-learn2learn-tuned-cpu": (at_least(1.4), "learn2learn in memory, 2 processes"),
    "maml-vs-learn2learn-small-cpu": (at_least(5), ""),
    "sampling-vs-learn2learn": (at_least(50), "learn2learn defaults (PNG files)"),
    "meta-gradient-error": (at_most(1e-10), ""),
    "resume-identical": (at_least(100), ""),
    "titans-vs-titans-pytorch-cpu": (at_least(3), ""),
    "titans-vs-titans-pytorch-gpu": (at_least(3), ""),
    "lstm-vs-nn-lstm-cpu": (at_least(0.9), ""),
    "recurrence-vs-fla-gpu": (at_least(0.67), ""),
    "stream-flatness": (at_most(1.1), ""),
    "continual-600": (at_least(90), "prototypes, nine views: nested, slots and slow weights"),
    "continual-600-drop": (at_most(2), "prototypes, nine views: nested, slots and slow weights"),
    "bandit-10-5": (at_least(6.6), "RL2, linear attention"),
    "bandit-100-5": (at_least(78.3), "RL2, second stage"),
    "bandit-500-5": (at_least(405), "RL2, linear attention"),
    "mdp-10": (at_least(156.2), "RL2, linear attention"),
    "mdp-25": (at_least(445.7), "RL2, linear attention"),
    **{claim: (at_least(goal), ML1) for claim, goal in (("ml1-reach-any", 90), ("ml1-reach-final", 70))},
    "ml1-reach-adaptation": (("interval above 1", lambda row: (row["low"] or 0) > 1), ML1_NESTED),
    "rl2-vs-sb3-bandit": (at_least(2), ""),
    "rl2-vs-sb3-ml1": (at_least(1), ""),
    "rollout-efficiency": (at_least(80), ""),
    "barcode-second-visit": (at_most(0.1), "RL2, nested: LSTM, kept fast weights over LSTM"),
    "recurrence-savings-rl": (("interval above 1", lambda row: (row["low"] or 0) > 1), ""),
    "first-visit-rl": (("interval not below 1", lambda row: (row["high"] or 0) >= 1), ""),
    "bayes-gain-a": (at_least(0.95), LEAKY),
    "bayes-gain-b": (at_least(0.9), LEAKY),
    "bayes-gain-c": (at_least(0.8), LEAKY),
    "interchange-diagonal": (at_least(0.8), LEAKY),
    "interchange-off-diagonal": (at_most(0.1), LEAKY),
    "interchange-index": (at_least(0.8), LEAKY),
    **{
        f"recurrence-gap-{gap}-bindings": (AHEAD if gap in BEYOND else at_least(-2), MARGIN) for gap in ("5-8", *BEYOND)
    },
    "recurrence-new1-bindings": (at_least(-2), MARGIN),
    "recurrence-new0-rules": (AHEAD, MARGIN),
    "recurrence-savings-omniglot": (("interval above 1", lambda row: (row["low"] or 0) > 1), f"{STORE}, bindings"),
    "first-visit-omniglot": (("interval not below 1", lambda row: (row["high"] or 0) >= 1), f"{STORE}, bindings"),
    "forgetting-omniglot-alphabets": (BELOW, MARGIN),
    "recurrence-savings-text": (("interval above 1", lambda row: (row["low"] or 0) > 1), PACE),
    "recurrence-savings-text-tales": (("interval above 1", lambda row: (row["low"] or 0) > 1), PACE),
    "first-visit-text": (("interval not below 1", lambda row: (row["high"] or 0) >= 1), ""),
    "mqar-16x": (at_least(95), TEXT_RECALL),
    "needle-16x": (at_least(95), TEXT_RECALL),
    "text-bpb-by-position": (("above 0", lambda row: (row["low"] or row["value"]) > 0), ""),
    "text-flatness": (at_most(1.1), "nested (LSTM, fast weights, leaky, exact episodes, learning readout)"),
    **{f"store-puts-vs-{peer}": (at_least(3), "") for peer in ("sqlite-vec", "lancedb", "chroma")},
    **{f"store-search-100k-vs-{peer}": (at_least(3), "") for peer in ("sqlite-vec", "lancedb", "chroma")},
    "store-recall-100k": (at_least(100), "nestmem.store, SQLite"),
    "store-crash": (at_least(100), ""),
    **{f"store-savings-{than}": (AHEAD, "") for than in ("warm", "none")},
    "store-savings-cleared": (("interval around 0", lambda row: (row["low"] or 0) <= 0 <= (row["high"] or 0)), ""),
    "store-savings-second-process": (("as in one process", lambda row: row["value"] == 0), ""),
    "store-failover-lost": (at_most(0), ""),
    "store-soak-missed": (at_most(0), ""),
}


def all_rows() -> list[Row]:
    """Every row of every result file, with the file's commit and machine."""
    rows = []
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text())
        rows += [row | {"machine": result["machine"], "commit": result["commit"]} for row in result["rows"]]
    return rows


def status(rows: list[Row]) -> str:
    """Markdown: one line for each claim with a goal; the worst of the rows it is about decides."""
    lines = ["| claim | goal | measured | met |", "|---|---|---|---|"]
    for claim, ((text, reached), about) in GOALS.items():
        mine = [r for r in rows if r["claim"] == claim and r["n"] and about in ("", r["method"])]
        if mine:
            values = ", ".join(f"{r['value']:.4g}{interval(r)} {r['unit']}" for r in mine)
            lines.append(f"| {claim} | {text} | {values} | {'yes' if all(map(reached, mine)) else 'no'} |")
        else:
            lines.append(f"| {claim} | {text} | not run | |")
    return "\n".join(lines)


def table(rows: list[Row], claims: list[str]) -> str:
    """Markdown: every row of the claims."""
    lines = ["| claim | method | value | seeds or rounds | training, s | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["claim"] in claims:
            seconds = "" if row["wall_s"] is None else f"{row['wall_s']:.0f}"
            n = row["n"] or "published"
            value = f"{row['value']:.4g}{interval(row)} {row['unit']}"
            each = ", ".join(f"{x:.4g}" for x in row.get("each", {}).values())
            seeds = f"seeds {each}" if row["n"] > 1 and each else ""
            note = "; ".join(part for part in (seeds, row["note"]) if part)
            lines.append(f"| {row['claim']} | {row['method']} | {value} | {n} | {seconds} | {note} |")
    return "\n".join(lines)


def wide(rows: list[Row], claims: list[str]) -> str:
    """Markdown: one line for each method, one column for each claim; mean and half of the interval."""
    lines = ["| method | state, bytes | seeds | " + " | ".join(claims) + " |", "|---|---|---|" + "---|" * len(claims)]
    for method in dict.fromkeys(row["method"] for row in rows if row["claim"] in claims):
        mine = {row["claim"]: row for row in rows if row["method"] == method and row["claim"] in claims}
        cells = []
        for claim in claims:
            if (row := mine.get(claim)) is None:
                cells.append("")
                continue
            digits = 3 if row["unit"] in ("fraction", "bits per byte") else 1
            spread = f" ± {(row['high'] - row['low']) / 2:.{digits}f}" if row["n"] > 1 else ""
            cells.append(f"{row['value']:.{digits}f}{spread}")
        size = max((row["state_bytes"] or 0 for row in mine.values()), default=0) or ""
        n = max(row["n"] for row in mine.values()) or "published"
        lines.append(f"| {method} | {size} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(row: Row) -> str:
    return "" if row["low"] is None else f" [{row['low']:.4g}, {row['high']:.4g}]"


LEVELS = ("1 LSTM", "2 LinearMemory", "3 Leaky", "4 Episodes", "5 FastHead")
LESIONS = ("on", "cleared", "frozen", *(f"cleared: {level}" for level in LEVELS))  # of text
PLACES = (512, 1448, 2896, 5793, 11585, 23170, 46341, 92682)

STORES = ("sqlite-vec", "lancedb", "chroma")
STORE_COSTS = ("batched-puts", "search", "filtered", "recall", "bytes", "start")
SECTIONS = {
    "few-shot": ["omniglot-5w1s", "omniglot-20w1s", "quickstart-seconds", "quickstart-accuracy", "quickstart-gain"],
    "speed": [
        "maml-vs-learn2learn-cpu", "maml-vs-learn2learn-tuned-cpu", "maml-vs-learn2learn-small-cpu",
        "maml-vs-learn2learn-32-filters-cpu", "maml-vs-learn2learn-pooled-cpu", "sampling-vs-learn2learn",
    ],
    "text-more": [
        "text-bpb-by-position", *(f"{what}-text{by}" for by in ("", "-tales") for what in ("first-visit", "recurrence-savings")),
        "text-tokens-per-s", "text-flatness",
    ],
    "exactness": ["meta-gradient-error", "resume-identical"],
    "ml1": [
        *(f"ml1-{part}" for part in ("reach-any", "reach-final", "reach-adaptation", "evaluators")),
        "rl2-vs-sb3-bandit", "rl2-vs-sb3-ml1", "rollout-efficiency", "rollout-runner",
    ],
    "rl": [
        "bandit-10-5", "bandit-100-5", "bandit-500-5", "mdp-10", "mdp-25",
        "barcode", "barcode-regret", "barcode-pulls", "barcode-second-visit",
    ],
    "returning": [
        *(f"rl-steps-{what}" for what in ("first-visit", "second-visit", "saved")), "rl-returning-any", "rl-returning-final",
        "first-visit-rl", "recurrence-savings-rl",
    ],
    "memory-speed": [
        "titans-vs-titans-pytorch-cpu", "titans-vs-titans-pytorch-gpu", "titans-vs-titans-pytorch-renewed-cpu",
        "titans-vs-titans-unofficial-cpu",
        "lstm-vs-nn-lstm-cpu", "recurrence-vs-fla-cpu", "recurrence-vs-fla-gpu", "memory-peak", "stream-flatness",
    ],
    "store": [
        *(f"store-{w}-vs-{peer}" for w in ("puts", "search-100k", "unfiltered-100k") for peer in STORES),
        *(f"store-{what}" for what in ("puts", "puts-cpu", "batched-puts-100k", "search-100k", "filtered-100k", "recall-100k")),
        "store-bytes-100k", "store-start-100k", "store-crash", "store-failover-lost",
        *(f"store-soak{what}" for what in ("", "-missed", "-files", "-memory", "-journal")),
    ],
    "store-sizes": [
        *(f"store-{what}-{n}" for n in ("10k", "1M") for what in STORE_COSTS),
        *(f"store-recall-{n}-filtered" for n in ("10k", "100k", "1M")), "store-index-1M", "store-recall-index-1M",
    ],
    "store-retrieval": [f"store-retrieval-{on}" for on in ("planted", "repeated", "loogle")],
    "store-savings-by": [f"store-savings-{than}" for than in ("warm", "none", "cleared", "second-process", "carried")],
    "recurring-more": [
        "recurrence-savings-omniglot", "first-visit-omniglot", "recurrence-lesion-bindings", "recurrence-lesion-rules",
    ],
}  # fmt: skip


WIDE = {
    "sequential": [*(f"continual-{n}" for n in (10, 50, 100, 200, 400, 600)), "continual-600-drop"],
    "recall": [f"mqar-{size}{fill}" for fill in ("", "-blank") for size in ("64-4", "128-8", "256-16", "512-64")],
    "text": ["text-bpb", *(f"text-bpb-at-{place}" for place in PLACES)],
    "text-lesions": [f"text-lesion: memory {what}" for what in LESIONS],
    **{
        f"text-drift{by}": [
            *(f"drift-books-after-{i}{by}" for i in (1, 2, 3)),
            *(f"forgetting-text{by}{of}" for of in ("", "-other")),
            f"drift-savings{by}",
        ]
        for by in ("", "-tales")
    },
    "timescales": [
        *(f"bayes-gain-{v}" for v in "abc"),
        *(f"interchange-{part}" for part in ("diagonal", "off-diagonal", "index")),
        "decodability-contrast",
    ],
}
WIDE["recurring-alphabets"] = [
    *(f"alphabets-{name}" for name in ("first-visit", "return", "learned", "final")),
    "forgetting-omniglot-alphabets",
]
WIDE["store-savings"] = [
    *(f"store-savings-visit-{n}" for n in (1, 2, 3)),
    *(f"store-savings-{what}" for what in ("one-shot", "shots", "steps", "new")),
]
WIDE["text-recall"] = [f"{kind}-{times}x" for kind in ("mqar", "needle") for times in (1, 16)]
WIDE |= {
    f"babilong-{task}": [f"babilong-qa{task}-{n}" for n in (128, 512, 2048, 8192, 32768, 131072, 1048576)]
    for task in (1, 2, 3)
}
RECURRENCE = ["new0", "new1", *(f"gap-{gap}" for gap in ("5-8", "9-13", "14-20", "21-30", "31+"))]
WIDE |= {f"recurring-{s}": [f"recurrence-{name}-{s}" for name in RECURRENCE] for s in ("bindings", "rules")}


def write(text: str, rows: list[Row]) -> str:
    """A document with the tables between its markers made anew."""
    for name, claims in (SECTIONS | WIDE).items():
        begin, end = f"<!-- results: {name} -->", f"<!-- end: {name} -->"
        if begin not in text:
            continue
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{(wide if name in WIDE else table)(rows, claims)}\n{end}{after}"
    return text


if __name__ == "__main__":
    found = all_rows()
    print(status(found))
    if "--write" in sys.argv:
        for document in DOCUMENTS:
            document.write_text(write(document.read_text(), found))
