"""Mixture-of-Memories: a router sends every item to a few of several memories, and asks the same few for the answer.

Du et al. 2025 (MoM), over any key-value memories:
    r = softmax(W a(x)), the `top` largest renormalised, the others 0
    memory m takes in an item (key, outcome) only if r_m(key) > 0; else it stays as it is and does not even fade
    y = sum_m r_m(q) m(q) + shared(q)
The item of a step belongs to the token before (associative.py), so it goes where that token was routed: a query finds what was
stored under its own key. Routers collapse onto few memories unless `Routed.load_balance` is part of the loss.
Legend: B rows, T steps, M memories, A address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.associative import Associative
from nestmem.memory.base import LIFETIMES, Aux, Fields, Lifetime, Memory, MemorySpec, State, check_fields
from nestmem.memory.registry import build, register


class RoutedState(NamedTuple):
    memories: tuple[State, ...]
    route: Tensor  # [B, M] of the token before


class Routed(Memory):
    """`Routed([memory, ...], top=2)`; with `shared`, the last memory takes in everything and always answers."""

    def __init__(self, memories: Sequence[Memory], fields: Fields | None = None, *, top: int = 2, shared: bool = True):
        super().__init__()
        for memory in memories:
            if not isinstance(memory, Associative):
                raise ValueError(f"memories: expected key-value memories, got {type(memory).__name__}")
        if len(widths := {memory.d_model for memory in memories}) > 1:
            raise ValueError(f"memories: expected one d_model for all, got {sorted(widths)}")
        routed = len(memories) - shared
        if not 1 <= top <= routed:
            raise ValueError(f"top: expected 1 to {routed} (the memories that are routed to), got {top}")
        self.d_model, self.fields, self.top, self.shared, self.routed = memories[0].d_model, fields, top, shared, routed
        check_fields(fields, self.d_model)
        self.memories: Any = nn.ModuleList(memories)  # Any: a ModuleList forgets what its modules are
        specs = [memory.spec for memory in memories]
        self.spec = MemorySpec(
            role=specs[0].role,
            lifetime=max((spec.lifetime for spec in specs), key=LIFETIMES.index),
            differentiable_write=all(spec.differentiable_write for spec in specs),
            parallel=all(spec.parallel for spec in specs),
            vmap=all(spec.vmap for spec in specs),
            compiles=all(spec.compiles for spec in specs),
        )
        self.router = nn.Linear(self.d_model if fields is None else fields.content + fields.cue, routed, bias=False)

    def initial_state(self, batch_size: int) -> RoutedState:
        memories = tuple(memory.initial_state(batch_size) for memory in self.memories)
        return RoutedState(memories, self.router.weight.new_zeros(batch_size, len(self.memories)))

    def step(self, x: Tensor, state: RoutedState) -> tuple[Tensor, RoutedState, Aux]:
        y, state, aux = self.run(x[:, None], state)
        return y[:, 0], state, Aux(aux.confidence[:, 0], gates=None if aux.gates is None else aux.gates[:, 0])

    def read(self, query: Tensor, state: RoutedState) -> tuple[Tensor, Aux]:
        answers = [memory.read(query, held) for memory, held in zip(self.memories, state.memories, strict=True)]
        return self._mix(answers, self.route(query))

    def write(self, item: Tensor, state: RoutedState, *, signal: Tensor | None = None) -> RoutedState:
        """Take in a token [B, D]."""
        return self.step(item, state)[1]

    def run(self, x: Tensor, state: RoutedState) -> tuple[Tensor, RoutedState, Aux]:
        route = self.route(x)
        wanted = torch.cat([state.route[:, None], route[:, :-1]], 1) > 0
        answers, states = [], []
        for m, (memory, held) in enumerate(zip(self.memories, state.memories, strict=True)):
            y, held, aux = memory.run_writing(x, held, wanted[..., m])
            answers.append((y, aux))
            states.append(held)
        y, aux = self._mix(answers, route)
        return y, RoutedState(tuple(states), route[:, -1]), aux

    def reset(self, state: RoutedState, done: Tensor, *, until: Lifetime = "episode") -> RoutedState:
        """Every memory clears what does not outlive `until`, and the item under way is dropped."""
        memories = tuple(
            memory.reset(held, done, until=until) for memory, held in zip(self.memories, state.memories, strict=True)
        )
        return RoutedState(memories, torch.where(done[:, None], 0.0, state.route))

    def route(self, x: Tensor) -> Tensor:
        """Weight of every memory for tokens [..., D]: [..., M], 0 where not chosen, 1 for the shared one."""
        chosen = self._chosen(probability := self._probability(x)) * probability
        return F.pad(chosen / chosen.sum(-1, keepdim=True), (0, int(self.shared)), value=1.0)

    def load_balance(self, x: Tensor) -> Tensor:
        """Auxiliary loss on tokens [B, T, D]: 1 where all memories are used alike, M / top where `top` of them take all.

        M sum_m (share of tokens sent to m) (mean probability of m), Fedus et al. 2022; MoM adds 0.01 of it.
        """
        probability = self._probability(x)
        share = self._chosen(probability).flatten(0, -2).mean(0) / self.top
        return self.routed * (share * probability.flatten(0, -2).mean(0)).sum()

    def _probability(self, x: Tensor) -> Tensor:
        if self.fields is not None:
            x = x[..., : self.fields.content + self.fields.cue]  # what an outcome is must not decide where it goes
        return torch.softmax(self.router(x), -1)

    def _chosen(self, probability: Tensor) -> Tensor:
        """1 for the `top` largest of [..., M], else 0."""
        return (probability >= probability.topk(self.top, -1).values[..., -1:]).to(probability.dtype)

    def _mix(self, answers: list[tuple[Tensor, Aux]], route: Tensor) -> tuple[Tensor, Aux]:
        y = torch.stack([y for y, _ in answers], -1) @ route[..., None]
        confidence = torch.stack([aux.confidence for _, aux in answers]).amax(0)
        return y[..., 0], Aux(confidence=confidence, gates=route)


@register("routed")
def routed(
    d_model: int,
    fields: Fields | None = None,
    memory: str = "gated_deltanet",
    copies: int = 4,
    top: int = 2,
    shared: bool = True,
) -> Routed:
    """Mixture-of-Memories: several copies of another memory behind a router."""
    return Routed([build(memory, d_model, fields) for _ in range(copies + shared)], fields, top=top, shared=shared)
