"""What a stream of text leaves behind when its sources change: perplexity of A after B, forgetting, savings on return.

Recorded are R[i, j], bits per byte of test documents of source j at the end of phase i, and the bits of every update on text it
had not seen before (each piece is judged before it is learned from). Forgetting of j: R at the end minus the least R so far, so
0 is none. Savings on return: updates until the smoothed bits reach the level the first visit ended with (plus `SLACK`), on the
first visit over on the return; above 1 the return is faster.
Legend: P phases, S sources, U updates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nestmem.probes import Undefined

SMOOTH = 20  # updates averaged
SLACK = 0.05  # bits above the level at the end of the first visit
POINTS = 100  # of the line


class Phases:
    """names [S] of the sources, visits [P] to them, each of `length` updates."""

    def __init__(self, names: list[str], visits: list[int], length: int):
        self.names, self.visits, self.length = names, visits, length
        self.rows = torch.zeros(0, len(names), dtype=torch.float64)
        self.bits = torch.zeros(0, dtype=torch.float64)
        self.at = torch.zeros(0, dtype=torch.long)  # phase of each update

    def saw(self, visit: int, bits: float) -> None:
        self.bits = torch.cat([self.bits, torch.tensor([bits], dtype=torch.float64)])
        self.at = torch.cat([self.at, torch.tensor([visit])])

    def ended(self, updates: int) -> bool:
        """Whether a phase ends after so many updates."""
        return updates % self.length == 0 and updates // self.length <= len(self.visits)

    def asked(self, bits: list[float]) -> None:
        self.rows = torch.cat([self.rows, torch.tensor([bits], dtype=torch.float64)])

    def report(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Numbers, lines and matrices as `algos.report` has them."""
        r, numbers = self.rows.numpy(), {}
        for j, name in enumerate(self.names):
            seen = [i for i, visit in enumerate(self.visits[: len(r)]) if visit == j]
            for i in range(len(r)):
                numbers[f"bits per byte of {name} after phase {i + 1}"] = float(r[i, j])
            if seen and seen[0] < len(r) - 1:
                away = r[seen[0] + 1 : seen[1] if len(seen) > 1 else None, j]
                numbers[f"forgetting of {name} while away"] = float(away[-1] - r[seen[0], j]) if len(away) else 0.0
            if len(seen) > 1:
                numbers[f"savings on return to {name}"] = self.savings(*seen[:2])
        points = self._points()
        line = {
            "caption": "Bits per token of new text while learning, sources one after another",
            "x": "updates", "y": "bits per token", "points": points,
        }  # fmt: skip
        phases = [f"{i + 1} {self.names[visit]}" for i, visit in enumerate(self.visits[: len(r)])]
        matrix = {
            "caption": "bits per byte of each source after each phase, over 8",
            "y": "after phase", "rows": phases, "x": "source", "columns": self.names, "values": (r / 8).tolist(),
        }  # fmt: skip
        return numbers, ({"online": line} if points else {}), ({"sources": matrix} if len(r) else {})

    def savings(self, first: int, again: int) -> float | Undefined:
        curves = [self.bits[self.at == phase].numpy() for phase in (first, again)]
        if min(map(len, curves)) < 2 * SMOOTH:
            return Undefined(f"a phase of less than {2 * SMOOTH} updates")
        smooth = [np.convolve(curve, np.ones(SMOOTH) / SMOOTH, "valid") for curve in curves]
        level = float(smooth[0][-SMOOTH:].mean()) + SLACK
        reached = [np.flatnonzero(curve <= level) for curve in smooth]
        if not len(reached[1]):
            return Undefined("the level of the first visit was not reached again")
        return float((reached[0][0] + SMOOTH) / (reached[1][0] + SMOOTH))

    def _points(self) -> list[list[float]]:
        parts = np.array_split(np.arange(len(self.bits)), min(POINTS, max(len(self.bits), 1)))
        means = [(int(part[-1]) + 1, float(self.bits[part].mean())) for part in parts if len(part)]
        return [[at, mean, mean, mean] for at, mean in means]

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "bits": self.bits, "at": self.at}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rows, self.bits, self.at = state["rows"], state["bits"], state["at"]
