"""Claims titans-vs-*, recurrence-vs-fla-*, lstm-vs-nn-lstm-cpu, stream-flatness: memories beside what one would pick instead.

    uv run --group bench python -m benchmarks.memory_speed [speed] [memory] [stream] [threads=N] [rounds=8] [only=TEXT]

speed: forward and backward of a batch of 4 sequences, width 128, float32, every pair interleaved in one run; a ratio is the
median over rounds of their time over ours, its interval from a bootstrap over rounds. memory: growth of the peak resident
memory by one such step, each in a fresh process. stream: every memory reads one million tokens, then is timed going on from its
states at 10 thousand, 100 thousand and one million tokens, in turns, so that noise of the machine hits all three alike.
`only` picks pairs by a text in "claim method length", and streamed memories by one in their names.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nestmem
from benchmarks.results import merged, row, save

BATCH, WIDTH = 4, 128
LENGTHS = {"1k": 1024, "4k": 4096, "16k": 16384}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STREAMED = {"lstm": {}, "gated_deltanet": {}, "titans": {}, "episodic": {"slots": 128}, "window": {}, "nested": {}}
MARKS, WINDOW = (10_000, 100_000, 1_000_000), 1000
Model = Callable[[], nn.Module]


class FlaDelta(nn.Module):
    """A (gated) DeltaNet layer around flash-linear-attention's operations, with the same maps as ours.

    `kernel`: its Triton kernels, which take bfloat16; otherwise its pure PyTorch chunk forms.
    """

    def __init__(self, gated: bool, kernel: bool):
        super().__init__()
        self.gated, self.kernel = gated, kernel
        self.qk, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.gates = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.delta_rule.naive import delta_rule_chunkwise
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

        q, v = F.normalize(self.qk(x), dim=-1)[:, :, None], self.v(x)[:, :, None]  # [B, T, 1, D]
        rate, decay = self.gates(x).unsqueeze(-2).unbind(-1)  # [B, T, 1]
        rate, decay = rate.sigmoid(), F.logsigmoid(decay)
        if self.kernel:
            q, v, rate = (part.bfloat16() for part in (q, v, rate))
        if self.gated:
            rule = chunk_gated_delta_rule if self.kernel else naive_chunk_gated_delta_rule
            y = rule(q, q, v, g=decay, beta=rate)[0]
        elif self.kernel:
            y = chunk_delta_rule(q, q, v, beta=rate)[0]
        else:
            q, v = q.transpose(1, 2), v.transpose(1, 2)
            y = delta_rule_chunkwise(q, q, v, rate.transpose(1, 2))[0].transpose(1, 2)
        return self.out(y[:, :, 0].float())


class Delta(nn.Module):
    """Our layer; on a GPU in bfloat16, where it is served by the same kernels."""

    def __init__(self, name: str):
        super().__init__()
        self.memory = nestmem.build(name, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            return self.memory(x)[0].float()


def titans_pytorch(chunk: int, batch_size: int | None = None) -> nn.Module:
    from titans_pytorch import NeuralMemory

    return NeuralMemory(dim=WIDTH, chunk_size=chunk, batch_size=batch_size, heads=1)


def titans_unofficial() -> nn.Module:
    from titans.utils.memory import NeuralMemoryModule

    return NeuralMemoryModule(WIDTH)


def titans(chunk: int, hidden: int) -> nn.Module:
    return nestmem.NeuralMemory(WIDTH, depth=2, hidden=hidden, chunk=chunk)


# Claim, what is compared, ours, theirs, the lengths, and what the reader must know.
SIZES = "two-layer memory of 128-512-128 in both"
DEFAULT = f"{SIZES}; theirs takes all gradients of a call at its first weights, ours a chunk's at the chunk's"
RENEWED = f"{SIZES}; theirs with batch_size = chunk, which moves its weights at every chunk as ours do"
PAIRS: list[tuple[str, str, Model, Model, list[str], str]] = [
    ("titans-vs-titans-pytorch", "chunk 64", lambda: titans(64, 512), lambda: titans_pytorch(64), ["1k", "4k", "16k"],
     DEFAULT),
    ("titans-vs-titans-pytorch", "chunk 16", lambda: titans(16, 512), lambda: titans_pytorch(16), ["1k"], DEFAULT),
    ("titans-vs-titans-pytorch-renewed", "chunk 64", lambda: titans(64, 512), lambda: titans_pytorch(64, 64), ["1k"],
     RENEWED),
    ("titans-vs-titans-pytorch-renewed", "chunk 16", lambda: titans(16, 512), lambda: titans_pytorch(16, 16), ["1k"],
     RENEWED),
    ("titans-vs-titans-unofficial", "chunk 1", lambda: titans(1, WIDTH), titans_unofficial, ["1k"],
     "128-128-128 in both; theirs knows no chunks"),
    ("lstm-vs-nn-lstm", "LSTM", lambda: nestmem.LSTM(WIDTH), lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
     ["1k", "4k", "16k"], ""),
]  # fmt: skip
for name, gated in (("deltanet", False), ("gated_deltanet", True)):
    PAIRS.append(
        ("recurrence-vs-fla", name, lambda name=name: Delta(name),
         lambda gated=gated: FlaDelta(gated, kernel=DEVICE == "cuda"), ["1k", "4k", "16k"],
         "both: their kernels in bfloat16" if DEVICE == "cuda" else "theirs: pure PyTorch chunk form")
    )  # fmt: skip


def stepper(build: Model, length: int) -> Callable[[], None]:
    """One forward and backward pass."""
    torch.manual_seed(0)
    model = build().to(DEVICE)
    x = torch.randn(BATCH, length, WIDTH, device=DEVICE)

    def step() -> None:
        model.zero_grad()
        y = model(x)
        y = y[0] if isinstance(y, tuple) else y
        y.square().mean().backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return step


def bootstrap(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % interval."""
    draws = np.median(np.random.default_rng(0).choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def compare(claim: str, method: str, ours: Model, theirs: Model, length: str, note: str, rounds: int) -> dict[str, Any]:
    steps = [stepper(ours, LENGTHS[length]), stepper(theirs, LENGTHS[length])]
    rounds = max(3, rounds // {"1k": 1, "4k": 2, "16k": 4}[length])
    seconds = []
    for turn in range(rounds + 1):  # the first is warm-up
        times = []
        for step in steps:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        if turn:
            seconds.append(times)
    mine, other = np.array(seconds).T
    median, low, high = bootstrap(other / mine)
    tokens = BATCH * LENGTHS[length]
    speed = f"{tokens / np.median(mine):.0f} against {tokens / np.median(other):.0f} tokens/s"
    note = f"{speed}; {note}" if note else speed
    threads = torch.get_num_threads()
    method = f"{method}, {length} tokens, {threads} thread{'s' * (threads > 1)}"
    end = "gpu" if DEVICE == "cuda" else "cpu"
    print(f"{claim} {method}: {median:.3g} [{low:.3g}, {high:.3g}], {speed}", flush=True)
    return row(f"{claim}-{end}", method, median, low=low, high=high, n=rounds, unit="x", note=note)


def speed(rounds: int, only: str) -> list[dict[str, Any]]:
    rows = []
    for claim, method, ours, theirs, lengths, note in PAIRS:
        for length in lengths:
            if only not in f"{claim} {method} {length}":
                continue
            try:
                rows.append(compare(claim, method, ours, theirs, length, note, rounds))
            except ImportError as error:  # a peer that does not import here is a note, not an end
                print(f"{claim}: not run, {error}")
    return rows


def peak(index: int, side: int, length: str) -> float:
    """MB by which one step raises the peak of this process (on a GPU: that was allocated)."""
    step = stepper(PAIRS[index][2 + side], LENGTHS[length])
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    free = next(line for line in Path("/proc/meminfo").read_text().split("\n") if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(free.split()[1]),) * 2)  # fail alone, not with the whole machine
    stepper(PAIRS[index][2 + side], 64)()  # what a first step loads is not the model's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory(threads: int) -> list[dict[str, Any]]:
    rows = []
    for index, (claim, method, _, _, lengths, _) in enumerate(PAIRS):
        for length in lengths:
            found = []
            for side in (0, 1):
                command = [sys.executable, "-m", "benchmarks.memory_speed", f"threads={threads}", "peak"]
                done = subprocess.run([*command, str(index), str(side), length], capture_output=True, text=True)
                found.append(float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan"))
            mine, other = found
            said = ["does not fit" if np.isnan(value) else f"{value:.0f} MB" for value in found]
            print(f"{claim} {method} {length}: {said[0]} against {said[1]}", flush=True)
            if not np.isnan(mine) and not np.isnan(other):
                rows.append(row("memory-peak", f"{claim.replace('-vs-', ' against ')}, {method}, {length} tokens",
                                other / mine, unit="x", n=1, note=f"{said[0]} against {said[1]}, one step"))  # fmt: skip
    return rows


def resident() -> float:
    """MB now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@torch.no_grad()
def streamed(name: str, rounds: int) -> dict[str, Any]:
    """One row of tokens, width 64, in windows of 1,000; no gradient, as when a trained memory is used."""
    torch.manual_seed(0)
    model = nestmem.build(name, 64, **STREAMED[name])
    state, held, used = model.initial_state(1), {}, {}
    windows = torch.randn(10, 1, WINDOW, 64)
    for count in range(1, MARKS[-1] // WINDOW + 1):
        _, state = model(windows[count % 10], state)
        if count * WINDOW in MARKS:
            held[count * WINDOW], used[count * WINDOW] = state, resident()
    seconds = []
    for turn in range(rounds):
        times = []
        for mark in MARKS:
            start = time.perf_counter()
            model(windows[turn % 10], held[mark])
            times.append(time.perf_counter() - start)
        seconds.append(times)
    times = np.array(seconds)
    medians = np.median(times, 0)
    draws = np.random.default_rng(0).integers(rounds, size=(2000, rounds))
    ratios = [np.ptp(np.log(np.median(times[draw], 0))) for draw in draws]
    low, high = np.exp(np.quantile(ratios, [0.025, 0.975]))
    rates = ", ".join(f"{WINDOW / value:.0f}" for value in medians)
    grown = used[MARKS[-1]] - used[MARKS[0]]
    note = f"{rates} tokens/s after 10k, 100k, 1M; resident memory {grown:+.0f} MB from 10k to 1M"
    print(f"stream {name}: {medians.max() / medians.min():.3f}, {note}", flush=True)
    return row("stream-flatness", name, float(medians.max() / medians.min()), low=float(low), high=float(high), n=rounds,
               unit="x", state_bytes=nestmem.state_bytes(state), note=note)  # fmt: skip


def main(arguments: list[str]) -> None:
    options = dict(a.split("=") for a in arguments if "=" in a)
    parts, only = [a for a in arguments if "=" not in a], options.get("only", "")
    threads, rounds = int(options.get("threads", torch.get_num_threads())), int(options.get("rounds", 8))
    torch.set_num_threads(threads)
    if parts[:1] == ["peak"]:
        print(peak(int(parts[1]), int(parts[2]), parts[3]))
        return
    made: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "speed": lambda: speed(rounds, only),
        "memory": lambda: memory(threads),
        "stream": lambda: [streamed(name, 5 * rounds) for name in STREAMED if only in name],
    }
    rows = [r for part in parts or made for r in made[part]()]
    save("memory_speed", merged("memory_speed", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
