"""What a probe returns when there is no number: the reason. And values as plain JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

PREFIX = "undefined: "


class Undefined(str):
    """A metric that has no value here, and why: `Undefined("no task was revisited")`.

    A string, "undefined: no task was revisited", so that json, logs and tables take it as it is, whatever the
    number format (`f"{value:.2f}"`). `float()` of it is nan; arithmetic and comparisons raise, as they should.
    """

    def __new__(cls, reason: str) -> Undefined:
        return super().__new__(cls, PREFIX + reason.removeprefix(PREFIX))

    @property
    def reason(self) -> str:
        return self.removeprefix(PREFIX)

    def __float__(self) -> float:
        return math.nan

    def __format__(self, spec: str) -> str:
        return str(self)


def jsonable(value: Any) -> Any:
    """The same value from dicts, lists, numbers and strings alone.

    Records become dicts of their fields; nan and infinities, which JSON lacks, None.
    """
    if isinstance(value, str) or value is None:
        return value
    if dataclasses.is_dataclass(value):
        return jsonable(vars(value))
    if hasattr(value, "_asdict"):
        return {name: jsonable(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): jsonable(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
