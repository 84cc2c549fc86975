"""Layers of memory, each with its own decay: short, middle, long; use promotes, disuse demotes.

    importance  I = 50 strength rate^days        rate .92, .967, .988 a day; a useful access adds 5 (strength + 0.1)
    recency     e^(-days / Q)                    Q 3, 90, 365 days
    promote at I >= 60 to the middle and >= 80 to the long layer; demote below 50 and 70; out of sight if recency < .05
    or I < 5

TradingGPT (arXiv 2309.03736) with the constants of FinMem (2311.13743), which promotes and demotes at one threshold, so
that an item at it moves back and forth at every tick (`hysteresis=False`). Layers are the states of a store: long is
"active", middle "warm", short "cold", and what is purged there is "archived" here: nothing is deleted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nestmem.store.retention import DAY, Retention

STATES = ("cold", "warm", "active")  # short, middle, long


@dataclass(frozen=True)
class Layered(Retention):
    """`Store(url, retention=Layered())`."""

    rates: tuple[float, float, float] = (0.92, 0.967, 0.988)
    spans: tuple[float, float, float] = (3.0, 90.0, 365.0)
    hysteresis: bool = True

    def strengthened(self, strength: float, retention: float) -> float:
        return min(2.0, strength + 0.1)

    def place(self, seconds: float, level: int, strength: float, before: str) -> tuple[float, str]:
        days = max(0.0, seconds) / DAY
        most = 50 * strength  # it has never been more important
        layer = min(STATES.index(before) if before in STATES else 0, 2 if most >= 80 else 1 if most >= 60 else 0)
        importance = most * self.rates[layer] ** days
        gap = 10.0 if self.hysteresis else 0.0
        while layer < 2 and importance >= (60, 80)[layer]:
            layer += 1
        while layer > 0 and importance < (60, 80)[layer - 1] - gap:
            layer -= 1
        left = math.exp(-days / self.spans[layer])
        state = "archived" if left < 0.05 or importance < 5 else STATES[layer]
        return self.floor + (1 - self.floor) * left, state
