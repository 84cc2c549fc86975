"""Kept: a nested memory for tasks that come back, an LSTM that forgets between visits above fast weights that do not.

    h_1 = x + LSTM(norm(x));  h_2 = h_1 + gain S(norm(h_1))          (`nestmem.compose.Stack`)
The fast weights S bind what the LSTM has made of a task to where and under which cue it was met, by the delta rule and without
decay (DeltaNet, Yang et al. 2024), and outlive an episode. Gradients go through S from one visit to the next, so what is worth
keeping is learned; the episodic LSTM (`eplstm`) stores its cell without.
The gain begins small: what is loud before it knows anything drowns the LSTM.
"""

from __future__ import annotations

from torch import nn

from nestmem.compose import Stack
from nestmem.memory.base import Fields
from nestmem.memory.lstm import LSTM
from nestmem.memory.recurrence import LinearMemory
from nestmem.memory.registry import register

QUIET = 0.1


@register("nested_kept")
def nested_kept(d_model: int, fields: Fields | None = None, hidden: int = 96, key_size: int = 64) -> Stack:
    """LSTM, and fast weights that outlive its episodes.

    hidden: of the LSTM. key_size: of the fast weights.
    """
    kept = LinearMemory(d_model, decay="none", rule="delta", key_size=key_size, lifetime="life")
    nn.init.constant_(kept.gain, QUIET)
    return Stack([LSTM(d_model, hidden=hidden), kept], fields)
