"""Claims text-tokens-per-s and text-flatness: what a stream of text costs by how much was read before it.

    python -m benchmarks.text_speed [METHOD...]     nested, lstm, window, titans_pytorch (`uv run --group bench`); or all there are

Each method in a process of its own, so that its peak memory is its own: an untrained model reads a stream of a megabyte. Then it
reads it again, and the states it has on the way are kept. From each of them the same tokens are read many times, in turns, so that
whatever else the machine does hits every place alike; a rate is the median over the turns, in processor time.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import merged, row, save
from benchmarks.text import PARTS

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)  # bytes read before
PIECE, STRETCH, TURNS = 500, 5_000, 20  # tokens read at once, and timed in a turn
PEER, PEER_SIZES, PEER_TURNS = (
    "titans_pytorch",
    SIZES[:4],
    3,
)  # at a million bytes it would need more memory than there is


@torch.no_grad()
def measured(method: str) -> None:
    """Print tokens/s at each size, and the peak of resident memory by then above what it was before, in MB."""
    torch.set_num_threads(1)
    text = torch.randint(0, 256, (1, max(SIZES) + STRETCH), generator=torch.Generator().manual_seed(0))
    rates, peaks = peer(text) if method == PEER else carried(method, text)
    print(json.dumps({"tokens_per_s": rates, "peak_mb": peaks}))


def carried(method: str, text: Tensor) -> tuple[list[float], list[float]]:
    """Ours: reads in pieces with the state carried."""
    from algos import build
    from algos.config import configure

    made = build.learner(configure(PARTS["books"][method][0])).memory.eval()

    def read(state: Any, some: Tensor) -> Any:
        for piece in some.split(PIECE, 1):
            state = made(piece, state)[1]
        return state

    read(made.initial_state(1), text[:, :STRETCH])  # what is loaded and compiled at first is nobody's throughput
    base, state, peaks = _resident(), made.initial_state(1), []
    steps = [text[:, before:size] for before, size in zip((0, *SIZES), SIZES, strict=False)]
    for some in steps:
        state = read(state, some)
        peaks.append(_resident() - base)
    states = [made.initial_state(1)]
    for some in steps:
        states.append(read(states[-1], some))
    seconds: list[list[float]] = [[] for _ in SIZES]
    for _ in range(TURNS):
        for spent, state in zip(seconds, states[1:], strict=True):
            begun = time.process_time()
            read(state, text[:, -STRETCH:])
            spent.append(time.process_time() - begun)
    return [STRETCH / median(spent) for spent in seconds], peaks


def peer(text: Tensor) -> tuple[list[float], list[float]]:
    """The transformer of titans-pytorch with memory as context. It carries nothing from one call to the next, so it reads all at
    once, and its rate is that of the whole."""
    from titans_pytorch import MemoryAsContextTransformer

    made = MemoryAsContextTransformer(
        num_tokens=256, dim=48, depth=2, segment_len=128, num_persist_mem_tokens=4, num_longterm_mem_tokens=16,
        dim_head=16, heads=4, num_residual_streams=1, neural_memory_layers=(1,),
        neural_memory_kwargs={"dim_head": 24, "heads": 2},
    ).eval()  # fmt: skip
    made(text[:, : SIZES[0]])
    base, rates, peaks = _resident(), [], []
    for size in PEER_SIZES:
        seconds = []
        for _ in range(PEER_TURNS):
            begun = time.process_time()
            made(text[:, :size])
            seconds.append(time.process_time() - begun)
        rates.append(size / median(seconds))
        peaks.append(_resident() - base)
    return rates, peaks


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows(method: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    title = PARTS["books"][method][1] if method != PEER else "titans-pytorch, transformer of 141 k parameters"
    rates, peaks = found["tokens_per_s"], found["peak_mb"]
    note = f"{', '.join(f'{r:.0f}' for r in rates)} at {', '.join(map(str, SIZES[: len(rates)]))} bytes"
    note += f", one row, processor time; peak beyond the model MB {', '.join(f'{p:.0f}' for p in peaks)}"
    return [
        row("text-tokens-per-s", title, rates[-1], n=1, unit="tokens/s", note=note),
        row("text-flatness", title, max(rates) / min(rates), n=1, unit="ratio"),
    ]


def main(methods: list[str]) -> None:
    made: list[dict[str, Any]] = []
    for method in methods or ["nested", "lstm", "window", *([PEER] if importlib.util.find_spec(PEER) else [])]:
        code = f"from benchmarks.text_speed import measured; measured({method!r})"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        made += rows(method, json.loads(said.splitlines()[-1]))
    save("text_speed", merged("text_speed", made))


if __name__ == "__main__":
    main(sys.argv[1:])
