"""nestmem: continual meta-learning with nested fast and slow memory.

    from nestmem import Episodic, LSTM, NestedMemory, SlowMLP
    memory = NestedMemory([LSTM(64), Episodic(64, slots=128), SlowMLP(64, period=16)])
    y, state = memory(x)            # x [B, T, 64]
    y, state = memory(more, state)

The library needs torch, numpy and safetensors (`Store` also SQLAlchemy, in the extra `store`). Environments, learners and the
command line live in the checkout.
"""

from typing import TYPE_CHECKING

from nestmem.caching import Cached
from nestmem.compose import Context, Gated, Stack
from nestmem.consolidation import average_, distill, hebb, replay, reptile
from nestmem.errors import UserError
from nestmem.fed import nested_fed
from nestmem.hope import SelfModifying
from nestmem.kept import Kept
from nestmem.memory import miras
from nestmem.memory.attention import Window
from nestmem.memory.base import (
    Aux,
    Consolidation,
    Fields,
    Item,
    Memory,
    MemorySpec,
    detach,
    select,
    state_bytes,
    state_from_dict,
    state_to_dict,
)
from nestmem.memory.continuum import Continuum
from nestmem.memory.dnc import DNC
from nestmem.memory.episodic import Episodic
from nestmem.memory.eplstm import EpLSTM
from nestmem.memory.hcam import HCAM
from nestmem.memory.leaky import Leaky
from nestmem.memory.lstm import LSTM
from nestmem.memory.ntm import MANN, NTM
from nestmem.memory.recurrence import LinearMemory
from nestmem.memory.registry import build, memories, register
from nestmem.memory.slow import SlowMLP
from nestmem.memory.tensor_product import TensorProduct
from nestmem.memory.titans import NeuralMemory
from nestmem.nested import NestedMemory
from nestmem.optim import DGD, M3
from nestmem.routing import Routed
from nestmem.segments import SegmentWrapper
from nestmem.summed import Summed

if TYPE_CHECKING:
    from nestmem.store import Store as Store

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`Store` on first use: it alone needs SQLAlchemy (the extra `store`)."""
    if name == "Store":
        from nestmem.store import Store

        return Store
    raise AttributeError(f"module 'nestmem' has no attribute {name!r}")


__all__ = [
    "DGD",
    "DNC",
    "HCAM",
    "LSTM",
    "M3",
    "MANN",
    "NTM",
    "Aux",
    "Cached",
    "Consolidation",
    "Context",
    "Continuum",
    "EpLSTM",
    "Episodic",
    "Fields",
    "Gated",
    "Item",
    "Kept",
    "Leaky",
    "LinearMemory",
    "Memory",
    "MemorySpec",
    "NestedMemory",
    "NeuralMemory",
    "Routed",
    "SegmentWrapper",
    "SelfModifying",
    "SlowMLP",
    "Stack",
    "Summed",
    "TensorProduct",
    "UserError",
    "Window",
    "average_",
    "build",
    "detach",
    "distill",
    "hebb",
    "memories",
    "miras",
    "nested_fed",
    "register",
    "replay",
    "reptile",
    "select",
    "state_bytes",
    "state_from_dict",
    "state_to_dict",
]
