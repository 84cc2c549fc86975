"""Fed: a nested memory whose levels are each fed by the faster one below.

    h_0 = x;  h_l = h_(l-1) + m_l(norm(h_(l-1)))          (`nestmem.compose.Stack`)
Level 1 is an LSTM, which knows where in the sentence it is; level 2 are fast weights, which bind what the LSTM makes of a token to
what comes next, for thousands of steps; level 3 are leaky averages of what the two say, up to the time constant `tau`. A slow level
so has keys made of context, not of single tokens. `NestedMemory` asks its levels side by side and mixes their answers; here a
faster level decides what a slower one is shown.
"""

from __future__ import annotations

from nestmem.compose import Stack
from nestmem.memory.base import Fields
from nestmem.memory.leaky import Leaky
from nestmem.memory.lstm import LSTM
from nestmem.memory.recurrence import Decay, LinearMemory
from nestmem.memory.registry import register


@register("nested_fed")
def nested_fed(
    d_model: int,
    fields: Fields | None = None,
    hidden: int = 96,
    key_size: int = 64,
    heads: int = 1,
    decay: str = "scalar",
    units: int = 32,
    tau: float = 1024.0,
) -> Stack:
    """LSTM, fast weights, leaky averages: each level fed by the faster one below it.

    hidden: of the LSTM. key_size, heads: of the fast weights; decay: "scalar", by learned gates, or "none". units, tau: of the
    averages, whose time constants lie between tau / 32 and tau; units = 0 leaves them out.
    """
    if decay not in ("scalar", "none"):
        raise ValueError(f"decay: expected scalar or none, got {decay!r}")
    kind: Decay = "scalar" if decay == "scalar" else "none"
    fast = LinearMemory(d_model, decay=kind, rule="delta", heads=heads, key_size=key_size)
    slow = [Leaky(d_model, hidden=units, tau=tau, spread=min(32.0, tau))] if units else []
    return Stack([LSTM(d_model, hidden=hidden), fast, *slow], fields)
