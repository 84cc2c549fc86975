"""Controllers that write to and read from a matrix: by content and shift (NTM), or to the least used slot (MANN).

NTM (Graves, Wayne & Danihelka 2014), for the write head on M and then for the read head on the written M':
    w_c = softmax_n(beta cos(k, M_n));  w_g = g w_c + (1 - g) w_last
    w_s[n] = sum_{j in -1, 0, 1} s_j w_g[n - j mod N];  w = w_s^gamma / sum w_s^gamma,  gamma = 1 + softplus
    M' = M (1 - w e^T) + w a^T;  r = M'^T w_read
MANN (Santoro et al. 2016), least-recently-used access with one key k for writing and reading:
    w_write = sigmoid(alpha) w_read_last + (1 - sigmoid(alpha)) l_last;  w_read = softmax_n(beta cos(k, M_n))
    r = M^T w_read;  M' = M with slot l_last zeroed, + w_write k^T
    usage' = .95 usage + w_read + w_write;  l' = the slot of least usage'
The paper leaves the order open; here M is read before it is written, since a key that is in M already finds itself. Beta is
our addition: a softmax of bare cosines cannot be sharp. See `nestmem.memory.addressing` for the controller.
Legend: B rows, H hidden, N slots, W width of a slot.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem.memory.addressing import START, Addressed, cosine, erase_and_add
from nestmem.memory.base import Aux, Fields, MemorySpec
from nestmem.memory.registry import register

TINY = 1e-12  # a weight that is never reached, so that its logarithm exists


class NTMState(NamedTuple):
    h: Tensor  # [B, H]
    c: Tensor  # [B, H]
    memory: Tensor  # [B, N, W]
    write_weights: Tensor  # [B, N]
    read_weights: Tensor  # [B, N]
    reads: Tensor  # [B, 1, W]


@register("ntm")
class NTM(Addressed):
    """Neural Turing machine: a matrix addressed by content and by shifting from the last place.

    slots: N. width: W. hidden: H of the controller, by default `d_model`. One head writes and one reads.
    """

    spec = MemorySpec(role="working", lifetime="episode", parallel=False)

    def __init__(self, d_model: int, fields: Fields | None = None, slots: int = 16, width: int = 16, hidden: int = 0):
        heads = {"erase": width, "add": width}
        for head in ("write", "read"):
            heads |= {f"{head}_{name}": 1 for name in ("strength", "gate", "sharpness")}
            heads |= {f"{head}_key": width, f"{head}_shift": 3}
        super().__init__(d_model, fields, slots, width, hidden, reads=1, heads=heads)

    def initial_state(self, batch_size: int) -> NTMState:
        first = F.pad(self.blank(batch_size, 1) + 1, (0, self.slots - 1))  # both heads begin at slot 0
        return NTMState(
            self.blank(batch_size, self.hidden),
            self.blank(batch_size, self.hidden),
            self.blank(batch_size, self.slots, self.width) + START,
            first,
            first,
            self.blank(batch_size, 1, self.width),
        )

    def access(self, heads: dict[str, Tensor], state: NTMState) -> tuple[NTMState, Aux]:
        write_weights, _ = _address("write", heads, state.memory, state.write_weights)
        memory = erase_and_add(state.memory, write_weights, heads["erase"].sigmoid(), heads["add"])
        read_weights, similar = _address("read", heads, memory, state.read_weights)
        reads = read_weights[:, None] @ memory
        aux = Aux(confidence=similar.amax(-1, keepdim=True), weights=read_weights)
        return NTMState(state.h, state.c, memory, write_weights, read_weights, reads), aux


def _address(head: str, heads: dict[str, Tensor], memory: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Where a head goes from `last` [B, N]: its weights [B, N], and the cosine of its key with every slot [B, N]."""
    key, strength, gate, shift, sharpness = (
        heads[f"{head}_{name}"] for name in ("key", "strength", "gate", "shift", "sharpness")
    )
    similar = cosine(key[:, None], memory)[:, 0]
    by_content = torch.softmax(F.softplus(strength) * similar, -1)
    gated = last + gate.sigmoid() * (by_content - last)
    turned = torch.stack([gated.roll(j, -1) for j in (-1, 0, 1)], -1)
    shifted = (turned * shift.softmax(-1)[:, None]).sum(-1)
    # w^gamma / sum w^gamma, from logarithms: no power of zero, and nothing to divide by.
    return torch.softmax((1 + F.softplus(sharpness)) * torch.log(shifted + TINY), -1), similar


class MANNState(NamedTuple):
    h: Tensor  # [B, H]
    c: Tensor  # [B, H]
    memory: Tensor  # [B, N, W]
    read_weights: Tensor  # [B, N]
    usage: Tensor  # [B, N]
    reads: Tensor  # [B, 1, W]


@register("mann")
class MANN(Addressed):
    """Memory-augmented network: what is new goes to the slot that was used least, what is old to where it was read.

    slots: N. width: W. hidden: H of the controller, by default `d_model`. decay: of the usage, per step.
    """

    spec = MemorySpec(role="working", lifetime="episode", parallel=False)

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        slots: int = 16,
        width: int = 16,
        hidden: int = 0,
        decay: float = 0.95,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected at least 0 and less than 1, got {decay}")
        super().__init__(d_model, fields, slots, width, hidden, 1, {"key": width, "strength": 1, "alpha": 1})
        self.decay = decay

    def initial_state(self, batch_size: int) -> MANNState:
        return MANNState(
            self.blank(batch_size, self.hidden),
            self.blank(batch_size, self.hidden),
            self.blank(batch_size, self.slots, self.width) + START,
            self.blank(batch_size, self.slots),
            self.blank(batch_size, self.slots),
            self.blank(batch_size, 1, self.width),
        )

    def access(self, heads: dict[str, Tensor], state: MANNState) -> tuple[MANNState, Aux]:
        key, alpha = heads["key"].tanh(), heads["alpha"].sigmoid()
        similar = cosine(key[:, None], state.memory)[:, 0]
        read_weights = torch.softmax((1 + F.softplus(heads["strength"])) * similar, -1)
        reads = read_weights[:, None] @ state.memory
        slots = torch.arange(self.slots, device=key.device)
        least = (slots == state.usage.argmin(-1, keepdim=True)).to(key.dtype)
        write_weights = alpha * state.read_weights + (1 - alpha) * least
        memory = state.memory * (1 - least)[..., None] + write_weights[..., None] * key[:, None]
        usage = self.decay * state.usage + read_weights + write_weights
        aux = Aux(confidence=similar.amax(-1, keepdim=True), weights=read_weights)
        return MANNState(state.h, state.c, memory, read_weights, usage, reads), aux
