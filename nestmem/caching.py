"""Memory Caching: keep the states that a fast memory had at the ends of past segments, and read them all.

Behrouz et al. 2026, as a decorator for any memory M with states M_i cached and M_t the running one:
    gamma = softmax_i <W x_t, u_i>      u_i is the mean token of segment i, of the running one so far
    residual  y = M_t(q) + sum_i M_i(q)
    gated     y = sum_i gamma_i M_i(q)            the running state included
    soup      y = M'(q), M' = sum_i gamma_i M_i   one read of averaged states; for a linear memory the same as gated
    sparse    gated over the `top` best cached states and the running one
Legend: B rows, T steps, L steps of a piece, Q queries, N cached states, D token.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.memory.associative import Associative
from nestmem.memory.base import (
    LIFETIMES,
    Aux,
    Fields,
    Lifetime,
    Memory,
    State,
    map_state,
    stack_aux,
    traced,
    where_rows,
)
from nestmem.memory.registry import build, register

MODES = ("residual", "gated", "soup", "sparse")


class CachedState(NamedTuple):
    now: State  # of the memory
    cache: State  # the same tree, [B, N, ...]
    keys: Tensor  # [B, N, D] mean token of each cached segment
    total: Tensor  # [B, D] sum of the tokens of the running segment
    step: Tensor  # [B] steps since reset


class Cached(Memory):
    """`Cached(NeuralMemory(64), segment=16, slots=8, mode="gated")`: early items stay readable though the memory moves on.

    slots: N, the oldest cached state goes when they are full. top: states read by "sparse". fresh: start every segment with an
    empty memory instead of going on with the last one.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        segment: int = 16,
        slots: int = 8,
        mode: str = "gated",
        top: int = 2,
        fresh: bool = False,
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        for name, value in (("segment", segment), ("slots", slots), ("top", top)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if mode == "soup" and not isinstance(memory, Associative):
            raise ValueError(f"mode: soup averages what key-value memories hold, and {type(memory).__name__} is none")
        self.memory, self.d_model = memory, memory.d_model
        self.segment, self.slots, self.mode, self.top, self.fresh = segment, slots, mode, min(top, slots), fresh
        self.spec = memory.spec._replace(regression=None)
        self.route = nn.Linear(self.d_model, self.d_model, bias=False)

    def initial_state(self, batch_size: int) -> CachedState:
        now, weight = self.memory.initial_state(batch_size), self.route.weight
        cache = map_state(lambda t: t[:, None].expand(-1, self.slots, *t.shape[1:]), now)
        keys = weight.new_zeros(batch_size, self.slots, self.d_model)
        step = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        return CachedState(now, cache, keys, weight.new_zeros(batch_size, self.d_model), step)

    def step(self, x: Tensor, state: CachedState) -> tuple[Tensor, CachedState, Aux]:
        y, now, _ = self.memory.step(x, state.now)
        total = state.total + x
        count = (state.step % self.segment + 1).to(x.dtype)[:, None]
        y, aux = self._combine(x[:, None], y[:, None], (total / count)[:, None], state._replace(now=now))
        state = self._turn(state._replace(now=now, total=total, step=state.step + 1))
        return y[:, 0], state, map_state(lambda t: t[:, 0], aux)

    def read(self, query: Tensor, state: CachedState) -> tuple[Tensor, Aux]:
        queries = query if query.dim() == 3 else query[:, None]
        y, _ = self.memory.read(queries, state.now)
        mean = state.total / (state.step % self.segment).clamp(min=1).to(query.dtype)[:, None]
        y, aux = self._combine(queries, y, mean[:, None].expand_as(queries), state)
        return (y, aux) if query.dim() == 3 else (y[:, 0], map_state(lambda t: t[:, 0], aux))

    def write(self, item: Tensor, state: CachedState, *, signal: Tensor | None = None) -> CachedState:
        """Take in a token [B, D]."""
        return self.step(item, state)[1]

    def run(self, x: Tensor, state: CachedState) -> tuple[Tensor, CachedState, Aux]:
        """Within a segment the cache is constant: the memory's own fast form, and one batch of cached reads."""
        one_by_one = (
            self.mode == "soup"
        )  # averages the running state of every single step, which a fast form never shows
        if one_by_one or traced(x) or traced(state.step) or bool((state.step != state.step[0]).any()):
            return super().run(x, state)
        first, steps, pieces = -int(state.step[0]) % self.segment, x.shape[1], []
        for start, stop in itertools.pairwise(sorted({0, *range(first, steps, self.segment), steps})):
            piece = x[:, start:stop]
            y, now, _ = self.memory.run(piece, state.now)
            totals = state.total[:, None] + piece.cumsum(1)
            counts = int(state.step[0]) % self.segment + torch.arange(1, 1 + stop - start, device=x.device).to(x.dtype)
            pieces.append(self._combine(piece, y, totals / counts[:, None], state))
            state = self._turn(state._replace(now=now, total=totals[:, -1], step=state.step + (stop - start)))
        return torch.cat([y for y, _ in pieces], 1), state, stack_aux([aux for _, aux in pieces], torch.cat)

    def reset(self, state: CachedState, done: Tensor, *, until: Lifetime = "episode") -> CachedState:
        """The cache goes with the memory it copies."""
        if LIFETIMES.index(self.spec.lifetime) > LIFETIMES.index(until):
            return state._replace(now=self.memory.reset(state.now, done, until=until))
        return where_rows(done, self.initial_state(done.shape[0]), state)

    def _turn(self, state: CachedState) -> CachedState:
        """Where a segment has just ended, cache its state."""
        ended = state.step % self.segment == 0
        place = (state.step // self.segment - 1) % self.slots
        here = ended[:, None] & (torch.arange(self.slots, device=place.device) == place[:, None])  # [B, N]

        def put(held: Tensor, new: Tensor) -> Tensor:
            return torch.where(here.view(*here.shape, *[1] * (new.dim() - 1)), new[:, None], held)

        now = where_rows(ended, self.memory.initial_state(len(ended)), state.now) if self.fresh else state.now
        return CachedState(
            now=now,
            cache=map_state(put, state.cache, state.now),
            keys=put(state.keys, state.total / self.segment),
            total=torch.where(ended[:, None], 0.0, state.total),
            step=state.step,
        )

    def _combine(self, query: Tensor, y: Tensor, mean: Tensor, state: CachedState) -> tuple[Tensor, Aux]:
        """Join what the running state says, y [B, Q, D] with segment key `mean` [B, Q, D], and what the cached ones say."""
        rows, count = query.shape[:2]
        cached = (state.step // self.segment)[:, None] > torch.arange(self.slots, device=y.device)  # [B, N]
        routed = self.route(query)
        running = (routed * mean).sum(-1, keepdim=True)
        scores = (routed @ state.keys.mT).masked_fill(~cached[:, None], -torch.inf)  # [B, Q, N]
        if self.mode == "sparse":
            scores = scores.masked_fill(scores < scores.topk(self.top, -1).values[..., -1:], -torch.inf)
        gamma = torch.softmax(torch.cat([scores, running], -1), -1)
        if self.mode == "soup":
            soup = map_state(lambda held, now: _average(held, now, gamma), state.cache, state.now)
            mixed = self.memory.read(query.flatten(0, 1)[:, None], soup)[0].unflatten(0, (rows, count))[:, :, 0]
        else:
            flat = map_state(lambda t: t.flatten(0, 1), state.cache)
            reads = self.memory.read(query.repeat_interleave(self.slots, 0), flat)[0].unflatten(0, (rows, -1))
            weights = cached[:, None].to(y.dtype) if self.mode == "residual" else gamma[..., :-1]
            own = y if self.mode == "residual" else gamma[..., -1:] * y
            mixed = own + torch.einsum("bqn,bnqd->bqd", weights.expand_as(scores), reads)
        return mixed, Aux(confidence=gamma.amax(-1, keepdim=True), weights=gamma)


def _average(held: Tensor, now: Tensor, gamma: Tensor) -> Tensor:
    """States [B, N, ...] and [B, ...] averaged for every query: [B Q, ...]. Clocks and flags are those of `now`."""
    if not now.is_floating_point():
        return now.repeat_interleave(gamma.shape[1], 0)
    every = torch.cat([held, now[:, None]], 1)
    return torch.einsum("bqn,bn...->bq...", gamma, every).flatten(0, 1)


@register("cached")
def cached(
    d_model: int,
    fields: Fields | None = None,
    memory: str = "gated_deltanet",
    segment: int = 16,
    slots: int = 8,
    mode: str = "gated",
    top: int = 2,
    fresh: bool = False,
) -> Cached:
    """Memory Caching: the states another memory had at the ends of past segments, read together."""
    made = build(memory, d_model, fields)
    return Cached(made, segment=segment, slots=slots, mode=mode, top=top, fresh=fresh)
