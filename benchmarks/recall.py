"""Claims mqar-T-N: multi-query associative recall for every memory at equal state bytes; capacity, recency, delay, gaps.

    python -m benchmarks.recall train [NAME...]   three seeds of every memory into runs/recall (skips what is there)
    python -m benchmarks.recall collect           write the results and docs/recall.png; rows without a run stay as they were

The task (envs/recall.py; Arora et al. 2023): N key-value pairs, then every key again, once, at a power-law distance; the answer is
its value. Vocabulary 8,192; keys and values from two halves; random tokens in between, or blanks. One memory layer between
tied embeddings, trained on 64 tokens with 4 pairs and 128 with 8, half with blanks; longer and fuller streams are only tested.
Left out: self_modifying, hope and titans_context, whose states at this width are 10 to 90 times larger.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import nestmem
from benchmarks.results import load, row, save
from envs.recall import VOCABULARY, Stream, delayed, gapped, mqar
from nestmem import LSTM, Cached, Episodic, Gated, Memory, NestedMemory, NeuralMemory, Routed, SlowMLP, Stack, Window
from nestmem.probes import mean_interval

ROOT = Path("runs/recall")
D, STEPS, SEEDS = 64, 400, (0, 1, 2)
BYTES = 4096  # state of one row; every memory stays within 15 % of it
TRAIN = [(64, 4, 32), (128, 8, 16)]  # tokens, pairs, rows of a batch
MQAR = [(64, 4), (128, 8), (256, 16), (512, 64)]

# Options that bring each memory to BYTES. The largest learning rate that trained is used: 1e-2, unless it is named below.
OPTIONS: dict[str, dict[str, Any]] = {
    "lstm": {"hidden": 512},
    "episodic": {"slots": 12, "key_size": 16},
    "hcam": {"slots": 2, "chunk": 4, "top": 2, "key_size": 16},
    "slow": {"hidden": 6, "key_size": 16, "period": 4},
    "continuum": {"levels": 3, "hidden": 1, "key_size": 16},
    **{name: {"key_size": 16} for name in ("linear_attention", "retnet", "mamba2", "gla")},
    **{name: {"key_size": 16} for name in ("deltanet", "gated_deltanet", "deltaproduct")},
    "mesa": {"key_size": 13},
    "tensor_product": {"key_code": 16},
    "leaky": {"hidden": 1024},
    "nested_leaky": {"hidden": 256, "units": 256},
    "nested_fed": {"hidden": 32, "key_size": 14, "decay": "none", "units": 0},
    "titans": {"depth": 2, "hidden": 4, "key_size": 16, "chunk": 4},
    "moneta": {"depth": 2, "hidden": 6, "key_size": 16, "chunk": 4},
    "yaad": {"depth": 2, "hidden": 6, "key_size": 16, "chunk": 4},
    "memora": {"depth": 2, "hidden": 6, "key_size": 16, "chunk": 4},
    "window": {"window": 9},
    "eplstm": {"hidden": 128, "slots": 4},
    "ntm": {"slots": 24, "width": 32},
    "mann": {"slots": 24, "width": 32},
    "dnc": {"slots": 16, "width": 32},
}
RATES = {"lstm": 3e-3}


# What has no size of its own is put together here.
MADE: dict[str, Callable[[], Memory]] = {
    "titans, one layer": lambda: nestmem.build("titans", D, depth=1, key_size=5, chunk=4),
    **{
        f"{name}, one layer": partial(nestmem.build, name, D, depth=1, key_size=8, chunk=4)
        for name in ("moneta", "yaad", "memora")
    },
    "titans, 32 kB": lambda: nestmem.build("titans", D, hidden=32, key_size=16, chunk=4),
    "yaad, 32 kB": lambda: nestmem.build("yaad", D, hidden=48, key_size=16, chunk=4),
    "gated_deltanet, 32 kB": lambda: nestmem.build("gated_deltanet", D, key_size=120),
    "titans_gate": lambda: Gated(Window(D, window=5), NeuralMemory(D, hidden=2, key_size=16, chunk=4)),
    "titans_layer": lambda: Stack([NeuralMemory(D, hidden=2, key_size=16, chunk=4), Window(D, window=5)]),
    "cached": lambda: Cached(nestmem.build("gated_deltanet", D, key_size=3), slots=3, segment=32),
    "routed": lambda: Routed([nestmem.build("gated_deltanet", D, key_size=4) for _ in range(4)], top=1),
    "nested": lambda: NestedMemory(
        [LSTM(D, hidden=32), Episodic(D, slots=6, key_size=16), SlowMLP(D, hidden=3, key_size=16)]
    ),
}


def made(name: str) -> Memory:
    return MADE[name]() if name in MADE else nestmem.build(name, D, **OPTIONS[name])


NAMES = [*OPTIONS, *MADE]


class Model(nn.Module):
    """Tied embeddings around one memory."""

    def __init__(self, memory: Memory):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, D)
        nn.init.normal_(self.embedding.weight, std=D**-0.5)
        self.memory = memory
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """Logits [N, V] of what is asked, and the answers [N]."""
        tokens, wanted = stream
        y, _ = self.memory(self.embedding(tokens))
        return self.scale * y[wanted >= 0] @ self.embedding.weight.T, wanted[wanted >= 0]


def train(name: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    model = Model(made(name))
    size = nestmem.state_bytes(model.memory.initial_state(1))
    wanted = 8 * BYTES if "32 kB" in name else BYTES
    if not 0.85 * wanted < size < 1.15 * wanted:
        raise SystemExit(f"{name}: a state of {size} bytes, expected about {wanted}")
    rate = RATES.get(name, 1e-2)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, STEPS)
    started = time.perf_counter()
    for step in range(STEPS):
        steps, n, rows = TRAIN[step % 2]
        logits, answers = model(mqar(rows, steps, n, step // 2 % 2 == 1, g))
        loss = nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        found = tested(model, torch.Generator().manual_seed(1000 + seed))
    params = sum(p.numel() for p in model.memory.parameters())
    return {"seconds": seconds, "state_bytes": size, "params": params, "rate": rate, "accuracy": found}


def tested(model: Model, g: torch.Generator) -> dict[str, float]:
    """Accuracy in percent by claim."""

    def accuracy(stream: Stream) -> Tensor:
        logits, answers = model(stream)
        return 100 * (logits.argmax(-1) == answers).double()

    found = {}
    for steps, n in MQAR:
        rows = max(8, 512 // n)
        for noise, suffix in ((True, ""), (False, "-blank")):
            found[f"mqar-{steps}-{n}{suffix}"] = accuracy(mqar(rows, steps, n, noise, g)).mean().item()
    for n in (2, 4, 8, 16, 32, 64):
        of_pair = accuracy(delayed(32, n, 0, g)).view(32, n).mean(0)
        found[f"recall-capacity-{n}"] = of_pair.mean().item()
        if n == 32:
            for i, part in enumerate(of_pair.view(8, 4).mean(1).tolist()):
                found[f"recall-recency-{i}"] = part
    for delay in (0, 32, 128, 512):
        found[f"recall-delay-{delay}"] = accuracy(delayed(64, 4, delay, g)).mean().item()
    for gap in (0, 2, 8, 32):
        found[f"recall-gap-{gap}"] = accuracy(gapped(64, 4, gap, g)).mean().item()
    return found


def collect() -> None:
    rows = []
    runs = {name: [json.loads(p.read_text()) for p in sorted(ROOT.glob(f"{name}-s*.json"))] for name in NAMES}
    curves: dict[str, dict[str, float]] = {}
    for name, seeds in runs.items():
        curves[name] = {}
        if not seeds:  # what was measured before stays
            rows += (kept := [r for r in load("recall") if r["method"] == name])
            curves[name] = {r["claim"]: r["value"] for r in kept}
            continue
        for claim in seeds[0]["accuracy"]:
            mean = mean_interval([run["accuracy"][claim] for run in seeds])
            curves[name][claim] = mean.mean
            rows.append(
                row(
                    claim, name, mean.mean, low=mean.low if mean.n > 1 else None, n=mean.n, unit="%",
                    high=mean.high if mean.n > 1 else None,
                    wall_s=round(sum(run["seconds"] for run in seeds) / len(seeds)),
                    state_bytes=seeds[0]["state_bytes"], params=seeds[0]["params"],
                )
            )  # fmt: skip
    save("recall", rows)
    draw({name: values for name, values in curves.items() if values})


def draw(curves: dict[str, dict[str, float]]) -> None:
    """docs/recall.png: one heat map, a row per memory, a column per test."""
    columns = list(next(iter(curves.values())))
    names = sorted(curves, key=lambda name: -curves[name]["mqar-128-8"])
    figure = Figure(figsize=(0.42 * len(columns) + 2.5, 0.3 * len(names) + 2.2), layout="constrained")
    axes = figure.subplots()
    values = [[curves[name][column] for column in columns] for name in names]
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=70, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6, color="w" if value < 60 else "k")
    figure.colorbar(image, label="recalled, %", pad=0.01)
    figure.savefig("docs/recall.png", dpi=130)


def main(arguments: list[str]) -> None:
    actions: dict[str, Callable[[], None]] = {"collect": collect}
    if arguments[:1] == ["train"]:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        ROOT.mkdir(parents=True, exist_ok=True)
        for seed in SEEDS:
            for name in arguments[1:] or NAMES:
                path = ROOT / f"{name}-s{seed}.json"
                if not path.exists():
                    result = train(name, seed)
                    path.write_text(json.dumps(result))
                    print(
                        f"{name} seed {seed}: {result['seconds']:.0f} s, {result['accuracy']['mqar-64-4']:.1f} %",
                        flush=True,
                    )
    elif arguments and arguments[0] in actions:
        actions[arguments[0]]()
    else:
        raise SystemExit("recall: expected train [NAME...] or collect")


if __name__ == "__main__":
    main(sys.argv[1:])
