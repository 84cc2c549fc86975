"""Hierarchical chunk attention: find the right stretch of the past first, then look inside it.

Lampinen et al. 2021, "Towards mental time travel: a hierarchical memory for reinforcement learning agents" (HCAM).
    write: items (address a, outcome v) pile up; L of them make a chunk, and it goes into a ring with key = mean_l a_l
    read:  R = the `top` chunks by q . key_s;  p = softmax_{s in R}(beta_1 q . key_s)
           y = sum_{s in R} p_s sum_l softmax_l(beta_2 q . a_sl) v_sl
As in the paper, the unfinished chunk is not read: the newest L - 1 items belong to a working memory. Unlike the paper, what
is stored is pairs and not hidden states (so a position inside a chunk says nothing and none is added), one head attends
with learned temperatures in place of learned projections, and gradients reach what was written.
Legend: B rows, T steps, Q queries, S slots (chunks), N chunks that could be read, P picked chunks, L items a chunk,
A address (K + C), V outcome.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.memory.associative import Associative, Binding, arrived
from nestmem.memory.base import Aux, Consolidation, Fields, Item, MemorySpec, Regression
from nestmem.memory.registry import register

TINY = 1e-12  # a probability that is never reached, so that its logarithm exists


class Chunks(NamedTuple):
    """Finished chunks."""

    keys: Tensor  # [B, S, A] mean address of a chunk
    addresses: Tensor  # [B, S, L, A]
    outcomes: Tensor  # [B, S, L, V]


class HCAMState(NamedTuple):
    ring: Chunks
    pushed: Tensor  # [B] chunks finished so far; number n lies in slot n mod S
    addresses: Tensor  # [B, L, A] of the unfinished chunk
    outcomes: Tensor  # [B, L, V]
    filled: Tensor  # [B] items in the unfinished chunk
    pending: Tensor  # [B, A] what the next outcome belongs to


@register("hcam")
class HCAM(Associative):
    """A ring of chunks of items, read coarsely by chunk and then finely inside the best few.

    chunk: L, items a chunk. slots: S, chunks held; the oldest goes. top: chunks that are looked into.
    key_size: K when the token has no fields (otherwise K is the content's width).
    temperature: initial beta_2, learned. beta_1 starts at L times that, as one item is an L-th of its chunk's key.
    """

    spec = MemorySpec(role="episodic", lifetime="task", regression=Regression("uniform", "slots", "exact"))

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        chunk: int = 8,
        slots: int = 8,
        top: int = 2,
        key_size: int = 0,
        temperature: float = 10.0,
    ):
        super().__init__()
        for name, value in (("chunk", chunk), ("slots", slots)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 1 <= top <= slots:
            raise ValueError(f"top: expected 1 to {slots} (slots), got {top}")
        self.d_model, self.chunk, self.slots, self.top = d_model, chunk, slots, top
        self.binding = Binding(d_model, fields, key_size)
        self.labels = fields is not None and fields.labels
        self.log_beta = nn.Parameter(torch.tensor([temperature * chunk, temperature]).log())

    def initial_state(self, batch_size: int) -> HCAMState:
        address, outcome = self.binding.key_size + self.binding.cue_size, self.binding.outcome_size

        def zeros(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
            return self.log_beta.new_zeros(batch_size, *shape, dtype=dtype)

        ring = Chunks(
            zeros(self.slots, address), zeros(self.slots, self.chunk, address), zeros(self.slots, self.chunk, outcome)
        )
        return HCAMState(
            ring,
            zeros(dtype=torch.long),
            zeros(self.chunk, address),
            zeros(self.chunk, outcome),
            zeros(dtype=torch.long),
            zeros(address),
        )

    def read(self, query: Tensor, state: HCAMState) -> tuple[Tensor, Aux]:
        q = self.binding.address(query)
        q = q if query.dim() == 3 else q[:, None]
        slots = torch.arange(self.slots, device=q.device).expand(*q.shape[:2], -1)
        y, aux = self._recall(q, state.ring, slots, slots < state.pushed[:, None, None])
        if query.dim() == 3:
            return y, aux
        assert aux.weights is not None
        return y[:, 0], Aux(aux.confidence[:, 0], aux.weights[:, 0])

    def write(self, item: Item, state: HCAMState, *, signal: Tensor | None = None) -> HCAMState:
        wanted = arrived(item)
        here = (torch.arange(self.chunk, device=wanted.device) == state.filled[:, None]) & wanted[:, None]
        address = torch.cat([item.key, item.cue], -1)
        addresses = torch.where(here[..., None], address[:, None], state.addresses)
        outcomes = torch.where(here[..., None], item.outcome[:, None], state.outcomes)
        filled = state.filled + wanted
        full = filled == self.chunk
        oldest = torch.arange(self.slots, device=full.device) == (state.pushed % self.slots)[:, None]
        place = oldest & full[:, None]
        ring = Chunks(
            torch.where(place[..., None], addresses.mean(1)[:, None], state.ring.keys),
            torch.where(place[..., None, None], addresses[:, None], state.ring.addresses),
            torch.where(place[..., None, None], outcomes[:, None], state.ring.outcomes),
        )
        return state._replace(
            ring=ring,
            pushed=state.pushed + full,
            addresses=addresses.masked_fill(full[:, None, None], 0.0),
            outcomes=outcomes.masked_fill(full[:, None, None], 0.0),
            filled=filled.masked_fill(full, 0),
        )

    def run(self, x: Tensor, state: HCAMState) -> tuple[Tensor, HCAMState, Aux]:
        """Which item lies where follows from counting arrivals, row by row, so all steps are read at once."""
        new = self.items(x, state.pending)
        wanted = arrived(new)
        count = state.filled[:, None] + wanted.cumsum(1)  # items since the ring of `state`, after each step [B, T]
        more = (self.chunk - 1 + x.shape[1]) // self.chunk  # chunks that can be finished here
        nowhere = (more + 1) * self.chunk
        old = torch.arange(self.chunk, device=x.device).expand_as(state.addresses[..., 0])
        lane = torch.cat(
            [old.masked_fill(old >= state.filled[:, None], nowhere), (count - 1).masked_fill(~wanted, nowhere)], 1
        )

        def lay(waiting: Tensor, coming: Tensor) -> Tensor:
            """The unfinished chunk and T items as chunks in order: [B, more + 1, L, n]."""
            parts = torch.cat([waiting, coming], 1)
            empty = parts.new_zeros(parts.shape[0], nowhere + 1, parts.shape[-1])
            laid = empty.scatter_add(1, lane[..., None].expand_as(parts), parts)[:, :-1]
            return laid.reshape(parts.shape[0], more + 1, self.chunk, parts.shape[-1])

        addresses = lay(state.addresses, torch.cat([new.key, new.cue], -1))
        outcomes = lay(state.outcomes, new.outcome)
        # Candidates: the S old chunks, then those finished here.
        finished = Chunks(addresses.mean(2), addresses, outcomes)
        held = Chunks(*(torch.cat([a, b[:, :-1]], 1) for a, b in zip(state.ring, finished, strict=True)))
        slots = torch.arange(self.slots, device=x.device)
        last = (state.pushed[:, None] + count // self.chunk - 1)[..., None]
        number = last - (last - slots) % self.slots  # of the chunk in each slot [B, T, S]; below 0 where there is none
        since = number - state.pushed[:, None, None]
        owner = torch.where(since >= 0, self.slots + since, slots)
        y, aux = self._recall(self.binding.address(x), held, owner, number >= 0)
        unfinished = count[:, -1:] // self.chunk
        end = HCAMState(
            Chunks(*(_pick(part, owner[:, -1:])[:, 0] for part in held)),
            last[:, -1, 0] + 1,
            _pick(addresses, unfinished[:, None])[:, 0, 0],
            _pick(outcomes, unfinished[:, None])[:, 0, 0],
            count[:, -1] % self.chunk,
            self.binding.address(x[:, -1]),
        )
        return y, end, aux

    def consolidate(self, state: HCAMState) -> tuple[HCAMState, Consolidation]:
        """Offers every item of the finished chunks for replay, and keeps them."""
        key, cue = self.binding.split(state.ring.addresses.flatten(1, 2))
        held = torch.arange(self.slots, device=key.device) < state.pushed[:, None]
        return state, Consolidation(
            Item(key, cue, state.ring.outcomes.flatten(1, 2)), held.repeat_interleave(self.chunk, 1)
        )

    def _recall(self, q: Tensor, held: Chunks, owner: Tensor, valid: Tensor) -> tuple[Tensor, Aux]:
        """q [B, Q, A]; held: N chunks; owner [B, Q, S]: which of them lies in each slot, where `valid`."""
        beta = self.log_beta.exp()
        coarse = (beta[0] * (q @ held.keys.mT)).gather(2, owner)
        score, slot = coarse.masked_fill(~valid, torch.finfo(q.dtype).min).topk(self.top, -1)
        held_here = valid.gather(2, slot)
        share = torch.softmax(score, -1) * held_here  # [B, Q, P]
        picked = owner.gather(2, slot)
        match = torch.einsum("bqa,bqpla->bqpl", q, _pick(held.addresses, picked))
        within = torch.softmax(beta[1] * match, -1)
        answer = torch.einsum("bqpl,bqplv->bqv", share[..., None] * within, _pick(held.outcomes, picked))
        cosine = match.amax(-1) / (1 + (self.binding.cue_size > 0))
        best = cosine.masked_fill(~held_here, -1.0).amax(-1, keepdim=True)
        confidence = best.masked_fill(~held_here.any(-1, keepdim=True), 0.0)
        weights = torch.zeros_like(coarse).scatter(2, slot, share)
        said = torch.log(answer + TINY) if self.labels else answer
        return self.binding.token(said), Aux(confidence=confidence, weights=weights)


def _pick(chunks: Tensor, which: Tensor) -> Tensor:
    """Of N chunks [B, N, ...] those numbered `which` [B, Q, P]: [B, Q, P, ...]."""
    flat = chunks.flatten(2)
    index = which.flatten(1)[..., None].expand(-1, -1, flat.shape[-1])
    return flat.gather(1, index).reshape(*which.shape, *chunks.shape[2:])
