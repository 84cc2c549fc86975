"""Claims quickstart-seconds and quickstart-gain: the README's first command, timed whole, on three seeds.

python -m benchmarks.quickstart
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import row, save
from nestmem.probes import mean_interval

SEEDS = (0, 1, 2)


def main() -> None:
    seconds, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            run, start = Path(folder) / f"s{seed}", time.perf_counter()
            subprocess.run([sys.executable, "-m", "nestmem.cli", "train", f"seed={seed}", f"run={run}"], check=True)
            seconds.append(time.perf_counter() - start)
            places = (run, run / "baselines" / "lstm", run / "baselines" / "episodic")
            results.append([json.loads((place / "result.json").read_text()) for place in places])
    rows = []
    time_taken = mean_interval(seconds)
    rows.append(
        row(
            "quickstart-seconds",
            "nestmem train",
            max(seconds),
            unit="s",
            n=len(SEEDS),
            note="the slowest of the seeds, whole command",
        )
    )
    for place, name in enumerate(("nested", "flat LSTM", "flat episodic")):
        each = [pair[place] for pair in results]
        accuracy = mean_interval([r["score"] for r in each])
        rows.append(
            row("quickstart-accuracy", name, accuracy.mean, low=accuracy.low, high=accuracy.high, n=len(SEEDS), unit="%",
                wall_s=round(mean_interval([r["seconds"] for r in each]).mean), params=each[0]["parameters"],
                state_bytes=each[0]["state_bytes"], note="5-way 3-shot on new alphabets of glyphs")
        )  # fmt: skip
    gain = mean_interval([nested["score"] - flat["score"] for nested, flat, _ in results])
    rows.append(
        row("quickstart-gain", "nested minus flat LSTM at equal parameters", gain.mean, low=gain.low, high=gain.high, n=len(SEEDS),
            unit="points", note=f"whole command {time_taken.mean:.0f} s on average")
    )  # fmt: skip
    save("quickstart", rows)


if __name__ == "__main__":
    main()
