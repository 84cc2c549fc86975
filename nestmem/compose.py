"""Memories made of memories: one after another, one gating another, one as another's context.

Stack    h <- h + m(norm(h)) for each memory m in turn
Gated    y = norm(a(x)) * sigmoid(norm(b(x)))
Context  h_t = m(x_t) as the memory stood when the segment began; a_t = attention to persistent tokens, to h and to x of the
         segment so far; y_t = norm(a_t) * sigmoid(norm(m(a_t))), where m takes in a_t
With a neural memory and a window of attention these are Titans' memory as a layer, as a gate and as context (Behrouz et al.
2025, MAL, MAG, MAC). Each norm here has a learned scale per channel. The parts see whole tokens; with `fields`, what comes out
is mapped to the outcome field.
Legend: B rows, T steps, L steps of a piece, G segment length, H heads, d width of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.attention import Attention, Window
from nestmem.memory.base import (
    LIFETIMES,
    Aux,
    Fields,
    Lifetime,
    Memory,
    MemorySpec,
    State,
    check_fields,
    traced,
    where_rows,
)
from nestmem.memory.registry import register
from nestmem.memory.titans import NeuralMemory


class Compound(Memory):
    """Base of what is made of other memories, `parts`, whose states it keeps side by side."""

    def __init__(self, parts: Sequence[Memory], fields: Fields | None):
        super().__init__()
        if not parts:
            raise ValueError("parts: expected at least one memory, got none")
        if len(widths := {part.d_model for part in parts}) > 1:
            raise ValueError(f"parts: expected one d_model for all, got {sorted(widths)}")
        self.d_model, self.fields = parts[0].d_model, fields
        check_fields(fields, self.d_model)
        self.parts: Any = nn.ModuleList(parts)  # Any: a ModuleList forgets what its modules are
        self.spec = joint_spec(parts)
        self.out = nn.Identity() if fields is None else nn.Linear(self.d_model, fields.outcome)

    def initial_state(self, batch_size: int) -> State:
        return tuple(part.initial_state(batch_size) for part in self.parts)

    def write(self, item: Tensor, state: State, *, signal: Tensor | None = None) -> State:
        """Take in a token [B, D]."""
        return self.step(item, state)[1]

    def reset(self, state: State, done: Tensor, *, until: Lifetime = "episode") -> State:
        """Every part clears what does not outlive `until`."""
        return tuple(part.reset(held, done, until=until) for part, held in zip(self.parts, state, strict=True))

    def said(self, y: Tensor) -> tuple[Tensor, Aux]:
        y = self.out(y) if self.fields is None else self.fields.token(self.out(y))
        return y, Aux(confidence=torch.zeros_like(y[..., :1]))


class Stack(Compound):
    """`Stack([Titans(64), Window(64)])`: each memory reads what the one before has added to the token."""

    def __init__(self, parts: Sequence[Memory], fields: Fields | None = None):
        super().__init__(parts, fields)
        self.norms = nn.ModuleList(Scale(self.d_model) for _ in parts)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "step")

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "run")

    def read(self, query: Tensor, state: State) -> tuple[Tensor, Aux]:
        for part, norm, held in zip(self.parts, self.norms, state, strict=True):
            query = query + part.read(norm(query), held)[0]
        return self.said(query)

    def _advance(self, x: Tensor, state: State, how: str) -> tuple[Tensor, State, Aux]:
        states = []
        for part, norm, held in zip(self.parts, self.norms, state, strict=True):
            y, held, _ = getattr(part, how)(norm(x), held)
            x = x + y
            states.append(held)
        y, aux = self.said(x)
        return y, tuple(states), aux


class Gated(Compound):
    """`Gated(Window(64), Titans(64))`: what the second memory says opens and closes the first, channel by channel."""

    def __init__(self, first: Memory, second: Memory, fields: Fields | None = None):
        super().__init__([first, second], fields)
        self.norms = nn.ModuleList(Scale(self.d_model) for _ in self.parts)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "step")

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "run")

    def read(self, query: Tensor, state: State) -> tuple[Tensor, Aux]:
        first, second = (part.read(query, held)[0] for part, held in zip(self.parts, state, strict=True))
        return self.said(gate(first, second, self.norms))

    def _advance(self, x: Tensor, state: State, how: str) -> tuple[Tensor, State, Aux]:
        outputs, states = [], []
        for part, held in zip(self.parts, state, strict=True):
            y, held, _ = getattr(part, how)(x, held)
            outputs.append(y)
            states.append(held)
        y, aux = self.said(gate(outputs[0], outputs[1], self.norms))
        return y, tuple(states), aux


class ContextState(NamedTuple):
    now: State  # of the memory
    begun: State  # of the memory when the segment began
    keys: Tensor  # [B, H, 2 G, d] of h and x, of the segment so far, side by side in time
    values: Tensor  # [B, H, 2 G, d]
    step: Tensor  # [B] steps since reset


class Context(Compound):
    """`Context(Titans(64), segment=16)`: attention within a segment, over what the memory recalls for each of its tokens.

    The memory takes in what attention made of the tokens, one by one, so that nothing leaks backwards in time.
    """

    def __init__(
        self, memory: Memory, fields: Fields | None = None, *, segment: int = 16, heads: int = 1, persistent: int = 1
    ):
        super().__init__([memory], fields)
        if segment < 1:
            raise ValueError(f"segment: expected at least 1 token, got {segment}")
        self.segment = segment
        self.attention = Attention(self.d_model, heads, persistent)
        self.by_distance = nn.Parameter(torch.zeros(heads, 2, segment))  # one bias for h, one for x
        self.norms = nn.ModuleList(Scale(self.d_model) for _ in range(2))

    def initial_state(self, batch_size: int) -> ContextState:
        memory, heads = self.parts[0].initial_state(batch_size), self.attention.heads
        held = self.by_distance.new_zeros(batch_size, heads, 2 * self.segment, self.d_model // heads)
        step = torch.zeros(batch_size, dtype=torch.long, device=held.device)
        return ContextState(memory, memory, held, held, step)

    def step(self, x: Tensor, state: ContextState) -> tuple[Tensor, ContextState, Aux]:
        place = state.step % self.segment
        state = state._replace(begun=where_rows(place == 0, state.now, state.begun))
        recalled, _ = self.parts[0].read(x, state.begun)
        mixed, keys, values = self._attend(x[:, None], recalled[:, None], place, state)
        answer, now, _ = self.parts[0].step(mixed[:, 0], state.now)
        y, aux = self.said(gate(mixed[:, 0], answer, self.norms))
        return y, ContextState(now, state.begun, keys, values, state.step + 1), aux

    def run(self, x: Tensor, state: ContextState) -> tuple[Tensor, ContextState, Aux]:
        """Within a segment everything but the memory's own recurrence happens at once."""
        if traced(x) or traced(state.step) or bool(((state.step - state.step[0]) % self.segment).any()):
            return super().run(x, state)
        first, steps, pieces = -int(state.step[0]) % self.segment, x.shape[1], []
        for start, stop in itertools.pairwise(sorted({0, *range(first, steps, self.segment), steps})):
            place, piece = state.step % self.segment, x[:, start:stop]
            if int(place[0]) == 0:
                state = state._replace(begun=state.now)
            recalled, _ = self.parts[0].read(piece, state.begun)
            mixed, keys, values = self._attend(piece, recalled, place, state)
            answer, now, _ = self.parts[0].run(mixed, state.now)
            pieces.append(gate(mixed, answer, self.norms))
            state = ContextState(now, state.begun, keys, values, state.step + (stop - start))
        y, aux = self.said(torch.cat(pieces, 1))
        return y, state, aux

    def read(self, query: Tensor, state: ContextState) -> tuple[Tensor, Aux]:
        """What a step with each query would answer, one by one."""
        queries = query if query.dim() == 3 else query[:, None]
        answers = torch.stack([self.step(q, state)[0] for q in queries.unbind(1)], 1)
        answer = answers if query.dim() == 3 else answers[:, 0]
        return answer, Aux(confidence=torch.zeros_like(answer[..., :1]))

    def reset(self, state: ContextState, done: Tensor, *, until: Lifetime = "episode") -> ContextState:
        """The segment ends with any event; the memory clears what does not outlive `until`."""
        memory = self.parts[0]
        fresh = self.initial_state(done.shape[0])
        now = memory.reset(state.now, done, until=until)
        return where_rows(done, fresh._replace(now=now, begun=now), state)

    def _attend(self, x: Tensor, recalled: Tensor, place: Tensor, state: ContextState) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of x [B, L, D], which begins at `place` [B] of its segment; the segment's keys and values so far."""
        steps, slots = x.shape[1], torch.arange(self.segment, device=x.device)
        q, k, v = self.attention.project(x)
        _, recalled_k, recalled_v = self.attention.project(recalled)
        at = place[:, None] + torch.arange(steps, device=x.device)  # [B, L]
        here = (at[:, :, None] == slots).to(x.dtype)  # [B, L, G] one-hot place of each step
        fresh = (slots >= place[:, None])[:, None, :, None].repeat(1, 1, 2, 1)  # what this segment has not filled yet
        keys, values = (
            torch.where(fresh, torch.cat([here.mT[:, None] @ part for part in parts], 2), held)
            for parts, held in (((recalled_k, k), state.keys), ((recalled_v, v), state.values))
        )
        distance = at[:, :, None] - slots  # [B, L, G]
        hidden = (distance < 0)[:, None, :, None]
        bias = self.by_distance[:, :, distance.clamp(min=0)].permute(2, 0, 3, 1, 4)  # [B, H, L, 2, G]
        mixed = self.attention.attend(q, keys, values, bias.masked_fill(hidden, -torch.inf).flatten(-2))
        return mixed, keys, values


class Scale(nn.Module):
    """Layer norm without, then a learned scale per channel: exact in an inner loop, as the fused affine form is not."""

    def __init__(self, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight


def gate(first: Tensor, second: Tensor, norms: Any) -> Tensor:
    opened: Tensor = norms[0](first) * norms[1](second).sigmoid()
    return opened


def joint_spec(parts: Sequence[Memory]) -> MemorySpec:
    """What holds for all parts; a compound lives as long as the longest of them."""
    specs = [part.spec for part in parts]
    return MemorySpec(
        role=specs[0].role,
        lifetime=max((spec.lifetime for spec in specs), key=LIFETIMES.index),
        differentiable_write=all(spec.differentiable_write for spec in specs),
        parallel=any(spec.parallel for spec in specs),
        vmap=all(spec.vmap for spec in specs),
        compiles=all(spec.compiles for spec in specs),
    )


@register("titans_layer")
def titans_layer(d_model: int, fields: Fields | None = None, chunk: int = 8, window: int = 16, heads: int = 1) -> Stack:
    """Titans as a layer (MAL): a neural memory, then a window of attention."""
    return Stack([NeuralMemory(d_model, chunk=chunk, heads=heads), Window(d_model, window=window, heads=heads)], fields)


@register("titans_gate")
def titans_gate(d_model: int, fields: Fields | None = None, chunk: int = 8, window: int = 16, heads: int = 1) -> Gated:
    """Titans as a gate (MAG): a neural memory opens and closes a window of attention."""
    return Gated(Window(d_model, window=window, heads=heads), NeuralMemory(d_model, chunk=chunk, heads=heads), fields)


@register("titans_context")
def titans_context(
    d_model: int, fields: Fields | None = None, chunk: int = 8, segment: int = 16, heads: int = 1
) -> Context:
    """Titans as context (MAC): attention within a segment, to what a neural memory recalls."""
    return Context(NeuralMemory(d_model, chunk=chunk, heads=heads), fields, segment=segment, heads=heads)
