"""Retention: how much of an item is left, why late recall strengthens it more, and what goes first when room runs out.

    R = floor + (1 - floor) exp(-days / (S_level * strength))               ranking only: decay never deletes
    useful access:  strength <- strength * (1 + eta (1 - R))                spacing effect: the later, the more
    mere retrieval: a counter, nothing else, so being found does not make an item easier to find
    eviction:       lowest  R * (1 + lower bound of useful / retrievals)    unpinned, and nothing rests on it alone

Ebbinghaus's curve with the lifecycle of SuperLocalMemory V3.3 (arXiv 2604.04514) and HEMA's salience (arXiv
2504.16754), corrected: SuperLocalMemory counts t in hours, so an untouched item is gone within a day and even the
strongest in two weeks (`hours=True` is the printed form); HEMA's printed bonus goes to what was *not* used
(`literal=True`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

DAY = 86400.0


@dataclass(frozen=True)
class Retention:
    """strengths: S of each level in days (levels above the last named never fade). floor: what is left for ever.

    zones: R at which an item is called active, warm, cold; archived below. hours: count as printed in the paper.
    work: days after its last write that a session (session.py) is forgotten.
    """

    strengths: Mapping[int, float] = field(default_factory=lambda: {-1: 90.0, 0: 14.0, 1: 90.0, 2: 365.0})
    floor: float = 0.05
    eta: float = 0.5
    ceiling: float = 100.0
    zones: tuple[float, float, float] = (0.8, 0.5, 0.2)
    hours: bool = False
    work: float = 7.0

    def __post_init__(self) -> None:
        days = (self.work, *self.strengths.values())
        if not 0 <= self.floor < 1 or self.eta < 0 or self.ceiling < 1 or min(days) <= 0:
            raise ValueError(
                f"retention: expected 0 <= floor < 1, eta >= 0, ceiling >= 1, strengths > 0 and work > 0, got {self}"
            )

    def retention(self, seconds: float, level: int, strength: float = 1.0) -> float:
        """R after `seconds` without useful access. Time that runs backwards counts as none."""
        if level not in self.strengths:
            return 1.0
        unit = 3600.0 if self.hours else DAY
        left = math.exp(-max(0.0, seconds) / unit / (self.strengths[level] * strength))
        return self.floor + (1 - self.floor) * left

    def place(self, seconds: float, level: int, strength: float, before: str) -> tuple[float, str]:
        """R, and the state that follows from it for an item that was in `before`."""
        left = self.retention(seconds, level, strength)
        return left, self.state(left)

    def strengthened(self, strength: float, retention: float) -> float:
        return min(self.ceiling, strength * (1 + self.eta * (1 - retention)))

    def state(self, retention: float) -> str:
        active, warm, cold = self.zones
        return (
            "active"
            if retention >= active
            else "warm"
            if retention >= warm
            else "cold"
            if retention >= cold
            else "archived"
        )


def utility_bound(useful: int, retrievals: int) -> float:
    """A cautious useful / retrievals: lower end of Wilson's 90 % interval, 0 if never retrieved."""
    return _wilson(useful, retrievals)[0]


def harmful(useful: int, retrievals: int, *, least: int = 5, literal: bool = False) -> bool:
    """Whether experience is surely of little use: the upper end of that interval is below one half.

    ReMe (arXiv 2512.10696) deletes from 5 retrievals on if useful / retrievals <= .5 (`literal`), which drops something
    useful every other time by chance.
    """
    if retrievals < least:
        return False
    return useful / retrievals <= 0.5 if literal else _wilson(useful, retrievals)[1] < 0.5


def _wilson(useful: int, retrievals: int) -> tuple[float, float]:
    if retrievals == 0:
        return 0.0, 1.0
    z, share = 1.6449, useful / retrievals
    middle = share + z * z / (2 * retrievals)
    spread = z * math.sqrt(share * (1 - share) / retrievals + z * z / (4 * retrievals**2))
    whole = 1 + z * z / retrievals
    return max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)


def salience(age: float, used: bool, *, gamma: float = 0.002, bonus: float = 0.5, literal: bool = False) -> float:
    """HEMA's weight of a chunk `age` turns old: exp(-gamma age) plus a bonus if it was used lately.

    `literal` is the printed formula, whose bonus is (1 - used) and so outlives what nobody needs.
    """
    return math.exp(-gamma * age) + bonus * float(used != literal)
