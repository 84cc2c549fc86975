"""What the training loop asks of that which is trained: one update, a judgement, and a state to go on from.

A problem joins a learner with the source of its experience: few-shot tasks (`algos.fewshot`), endless streams
(`algos.stream`). The loop in `algos.trainer` knows nothing else of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from nestmem.probes import Interval

Metrics = dict[str, Tensor]


class Part(NamedTuple):
    """A share of one update: a scalar loss, metrics to log, and the weight of both in the update."""

    loss: Tensor
    metrics: Metrics
    share: float = 1.0


Optimize = Callable[[Iterable[Part]], dict[str, float]]
"""Adds up the gradients of the parts, makes one step of the optimizer, and gives back the weighted metrics."""


class Judged(NamedTuple):
    """score: the headline with its interval, n being what it was measured on. scalars, figures, videos (frames [H, W, 3]): for the
    log. details: what the result file says beyond the score; see `algos.report` for the keys that become figures and tables."""

    score: Interval
    scalars: dict[str, float]
    figures: dict[str, Figure]
    details: dict[str, Any]
    videos: Mapping[str, Sequence[NDArray[np.uint8]]] = MappingProxyType({})


class Problem(Protocol):
    learner: nn.Module
    measure: str  # what the score is, as in "accuracy"; logged as val/MEASURE, in percent or in the problem's `unit`
    counted: str  # what the n of a score counts, as in "tasks"

    def update(self, optimize: Optimize) -> dict[str, float]:
        """Draw experience and learn from it."""
        ...

    def validate(self) -> Judged: ...

    def test(self) -> Judged: ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that later updates depend on beside weights and optimizer."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...
