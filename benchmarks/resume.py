"""Claim resume-identical: kill a training run with SIGKILL at a random moment, continue it, compare with one left alone.

python -m benchmarks.resume [kills=30]
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.results import row, save

STEPS = 40
OPTIONS = [
    f"trainer.steps={STEPS}", "trainer.tasks=4", "trainer.eval_every=10", "trainer.eval_tasks=8", "trainer.test_tasks=8",
    "trainer.checkpoint_every=5", "trainer.threads=1", "env.alphabets=4", "env.characters=6", "encoder.channels=[8,8,8,8]",
    "baselines=[]",
]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "nestmem.cli", "train", *arguments], stdout=subprocess.DEVNULL)


def uninterrupted(folder: Path) -> tuple[Path, float]:
    """A run left alone, and how long it trained after its first checkpoint."""
    process = start(f"run={folder}/whole", *OPTIONS)
    first = wait_for_checkpoint(folder / "whole", process)
    assert process.wait() == 0
    return folder / "whole", time.monotonic() - first


def interrupted(folder: Path, name: str, duration: float, rng: random.Random, kills: int = 1) -> tuple[Path, list[int]]:
    """The same run killed at random moments and continued to the end; and the steps it went on from."""
    run, went_on_from = folder / name, []
    process = start(f"run={run}", *OPTIONS)
    for _ in range(kills):
        wait_for_checkpoint(run, process)
        time.sleep(rng.uniform(0, 0.8 * duration))
        process.send_signal(signal.SIGKILL)
        process.wait()
        went_on_from.append(max(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")))
        process = start(f"resume={run}")
    assert process.wait() == 0
    return run, went_on_from


def wait_for_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> float:
    while not any((run / "checkpoints").glob("step-*")):
        assert process.poll() in (None, 0), f"training failed with {process.returncode}"
        time.sleep(0.005)
    return time.monotonic()


def trace(run: Path) -> tuple[list[str], dict[str, bytes], dict[str, object]]:
    """Everything a run leaves behind, except times: scalars, the last checkpoint's tensors as bytes, the result."""
    rows = [line for line in (run / "scalars.jsonl").read_text().splitlines() if '"time/' not in line]
    tensors = load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "tensors.safetensors")
    result = json.loads((run / "result.json").read_text())
    result.pop("seconds")
    return rows, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, result


def main(kills: int = 30) -> None:
    rng, same, steps = random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole, duration = uninterrupted(folder)
        want = trace(whole)
        for trial in range(kills):
            run, went_on_from = interrupted(folder, f"killed-{trial}", duration, rng)
            same += trace(run) == want
            steps += went_on_from
            print(f"{trial + 1}/{kills}: went on from step {went_on_from[0]}, {same} identical so far", flush=True)
    note = f"{same} of {kills}; killed after checkpoints {min(steps)} to {max(steps)} of {STEPS} steps"
    save("resume", [row("resume-identical", "nestmem", 100 * same / kills, unit="%", n=kills, note=note)])


if __name__ == "__main__":
    main(*(int(a.removeprefix("kills=")) for a in sys.argv[1:]))
