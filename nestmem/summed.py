"""Summed: a nested memory whose levels' reads are added up, for a learner whose own decoder combines them.

    y = sum_l y_l
Each level ends in a linear map of its own, so the sum says as much as the reads side by side. A gate (`NestedMemory`) suits
levels that answer the same question, where one of them is to be believed. Here each level knows something else, and all
of it is needed at once; a gate would turn away a slow level that at first says nothing, and it would never learn.
Legend: L levels, D token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nestmem.memory.base import Aux, Fields, Memory
from nestmem.memory.leaky import Leaky
from nestmem.memory.lstm import LSTM
from nestmem.memory.registry import register
from nestmem.nested import NestedMemory


class Summed(NestedMemory):
    """Any memories as levels, fastest first, as in `NestedMemory`, without its gate."""

    def __init__(self, levels: Sequence[Memory], fields: Fields | None = None):
        super().__init__(levels, fields)
        self.gate = nn.Sequential()

    def combine(self, reads: Sequence[Tensor], auxes: Sequence[Aux]) -> tuple[Tensor, Aux]:
        """Add one read per level [..., D]. A probe may pass reads of its own making."""
        confidence = torch.cat([aux.confidence for aux in auxes], -1).amax(-1, keepdim=True)
        return torch.stack(list(reads)).sum(0), Aux(confidence=confidence, reads=tuple(reads))


@register("nested_leaky")
def nested_leaky(
    d_model: int,
    fields: Fields | None = None,
    hidden: int = 24,
    reset_every: int = 4,
    units: int = 32,
    middle: float = 16.0,
    slowest: float = 256.0,
    spread: float = 4.0,
) -> Summed:
    """An LSTM that forgets and two levels of leaky averages, added up: what holds for a step, for tens, for hundreds.

    hidden, reset_every: of the LSTM, which forgets so that slower levels have something left to learn. units: of each
    leaky level. middle, slowest: their longest time constants. spread: of time constants within a level.
    """
    levels = [
        LSTM(d_model, fields, hidden=hidden, reset_every=reset_every),
        Leaky(d_model, fields, hidden=units, tau=middle, spread=spread),
        Leaky(d_model, fields, hidden=units, tau=slowest, spread=spread),
    ]
    return Summed(levels, fields)
