"""Differentiable neural computer: a matrix with an allocator, and links from each write to the next.

Graves et al. 2016. Free gates f, allocation gate g_a, write gate g_w, read modes pi:
    usage:  psi = prod_r (1 - f_r w_read_r);  u' = (u + w_write - u w_write) psi
    place:  a[phi_j] = (1 - u'[phi_j]) prod_{i < j} u'[phi_i],  phi = slots by rising usage
    write:  w = g_w (g_a a + (1 - g_a) softmax_n(beta cos(k, M_n)));  M' = M (1 - w e^T) + w v^T
    order:  L'[i, j] = (1 - w_i - w_j) L[i, j] + w_i p[j],  L'[i, i] = 0;  p' = (1 - sum w) p + w
    read:   w_read_r = pi_1 L'^T w_read_r + pi_2 softmax_n(beta_r cos(k_r, M'_n)) + pi_3 L' w_read_r;  r = M'^T w_read_r
See `nestmem.memory.addressing` for the controller. The product over sorted slots is taken as a sum of logarithms, with usage
kept above EPS, so that it has derivatives of every order where slots are free.
Legend: B rows, H hidden, N slots, W width of a slot, R read heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem.memory.addressing import START, Addressed, cosine, erase_and_add
from nestmem.memory.base import Aux, Fields, MemorySpec
from nestmem.memory.registry import register

EPS = 1e-6
TIE = 1e-5  # usage that differs by less is alike


class DNCState(NamedTuple):
    h: Tensor  # [B, H]
    c: Tensor  # [B, H]
    memory: Tensor  # [B, N, W]
    usage: Tensor  # [B, N] from 0, free
    write_weights: Tensor  # [B, N]
    links: Tensor  # [B, N, N]: how far slot i was written right after slot j
    precedence: Tensor  # [B, N] how far a slot was the last one written
    read_weights: Tensor  # [B, R, N]
    reads: Tensor  # [B, R, W]


@register("dnc")
class DNC(Addressed):
    """Differentiable neural computer: finds free slots by itself, and can replay what it wrote in order.

    slots: N (links take N^2). width: W. hidden: H of the controller, by default `d_model`. reads: R, read heads.
    """

    spec = MemorySpec(role="working", lifetime="episode", parallel=False)

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        slots: int = 16,
        width: int = 16,
        hidden: int = 0,
        reads: int = 2,
    ):
        heads = {"write_key": width, "write_strength": 1, "erase": width, "add": width}
        heads |= {"allocation_gate": 1, "write_gate": 1}
        heads |= {"read_keys": reads * width, "read_strengths": reads, "free_gates": reads, "modes": 3 * reads}
        super().__init__(d_model, fields, slots, width, hidden, reads, heads)

    def initial_state(self, batch_size: int) -> DNCState:
        return DNCState(
            self.blank(batch_size, self.hidden),
            self.blank(batch_size, self.hidden),
            self.blank(batch_size, self.slots, self.width) + START,
            self.blank(batch_size, self.slots),
            self.blank(batch_size, self.slots),
            self.blank(batch_size, self.slots, self.slots),
            self.blank(batch_size, self.slots),
            self.blank(batch_size, self.reads, self.slots),
            self.blank(batch_size, self.reads, self.width),
        )

    def access(self, heads: dict[str, Tensor], state: DNCState) -> tuple[DNCState, Aux]:
        kept = (1 - heads["free_gates"].sigmoid()[..., None] * state.read_weights).prod(1)
        usage = (state.usage + state.write_weights - state.usage * state.write_weights) * kept
        similar = cosine(heads["write_key"][:, None], state.memory)[:, 0]
        by_content = torch.softmax((1 + F.softplus(heads["write_strength"])) * similar, -1)
        fresh = heads["allocation_gate"].sigmoid()
        w = heads["write_gate"].sigmoid() * (fresh * allocation(usage) + (1 - fresh) * by_content)
        memory = erase_and_add(state.memory, w, heads["erase"].sigmoid(), heads["add"])
        links, precedence = link(state.links, state.precedence, w)
        keys = heads["read_keys"].unflatten(-1, (self.reads, self.width))
        similar = cosine(keys, memory)
        found = torch.softmax((1 + F.softplus(heads["read_strengths"]))[..., None] * similar, -1)
        modes = heads["modes"].unflatten(-1, (self.reads, 3)).softmax(-1)
        ways = torch.stack([state.read_weights @ links, found, state.read_weights @ links.mT], -1)
        read_weights = (ways * modes[:, :, None]).sum(-1)
        end = DNCState(state.h, state.c, memory, usage, w, links, precedence, read_weights, reads=read_weights @ memory)
        return end, Aux(confidence=similar.amax(-1).amax(-1, keepdim=True), weights=read_weights.mean(1))


def allocation(usage: Tensor) -> Tensor:
    """Where there is room: usage [B, N] in [0, 1] to write weights [B, N], most of them on the freest slot."""
    usage = EPS + (1 - EPS) * usage
    # Slots that are equally used but for rounding go by their number: else the machine, or the size of the batch, would choose.
    order = (usage.detach() / TIE).round().argsort(stable=True, dim=-1)
    rising = usage.gather(-1, order)
    logs = rising.log()
    room = (1 - rising) * (logs.cumsum(-1) - logs).exp()
    return room.gather(-1, order.argsort(-1))


def link(links: Tensor, precedence: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Links [B, N, N] and precedence [B, N] after a write with `weights` [B, N]; rows and columns sum to at most 1."""
    here = weights[:, :, None]
    linked = (1 - here - weights[:, None]) * links + here * precedence[:, None]
    diagonal = torch.eye(weights.shape[-1], dtype=torch.bool, device=weights.device)
    return linked.masked_fill(diagonal, 0.0), (1 - weights.sum(-1, keepdim=True)) * precedence + weights
