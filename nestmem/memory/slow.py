"""Slow memory: an MLP whose weights live in the state and change only on its clock.

One level of a continuum memory system (Behrouz et al. 2025, Nested Learning, eq. as read in the reference notes):
    theta <- theta - (lr / n) sum_{window} grad 1/2 ||f(key; theta) - outcome||^2     every `period` steps, else unchanged
    f(k, c) = phi(k, c) W2,  phi = sqrt(2 / H) relu(k W1) * (c A)      (no product where the token has no cue)
The product with the cue makes the features conjunctive; without biases, what shares only one of key and cue collides little.
Gradients are written out (two outer products), so the memory runs under vmap and can be differentiated twice.
Legend: B rows, T steps, N items, K key, C cue, H features, V outcome.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.consolidation import Rule
from nestmem.memory.associative import Associative, Binding, arrived
from nestmem.memory.base import Aux, Consolidation, Fields, Item, MemorySpec, Regression, traced, where_rows
from nestmem.memory.registry import register


class SlowState(NamedTuple):
    w1: Tensor  # [B, K, H]
    w2: Tensor  # [B, H, V]
    g1: Tensor  # [B, K, H] gradient gathered since the last tick
    g2: Tensor  # [B, H, V]
    seen: Tensor  # [B] items gathered since the last tick
    step: Tensor  # [B] steps since reset
    pending: Tensor  # [B, K + C]


@register("slow")
class SlowMLP(Associative):
    """A slow key-value memory: a two-layer MLP that learns in windows of `period` steps.

    hidden: H. period: steps between two changes of the weights. max_rate: bound of the learned rate; the features have
    unit length on average, so a rate below 2 contracts. decay: share of the weights' change that is lost at each tick.
    The first weights of a row are parameters, hence meta-learned.
    """

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        hidden: int = 128,
        period: int = 16,
        key_size: int = 0,
        max_rate: float = 1.0,
        decay: float = 0.0,
    ):
        super().__init__()
        if period < 1:
            raise ValueError(f"period: expected at least 1 step, got {period}")
        self.spec = MemorySpec(
            role="slow", lifetime="life", period=period, regression=Regression("uniform", "mlp", "sgd")
        )
        self.d_model, self.hidden, self.period, self.max_rate, self.decay = d_model, hidden, period, max_rate, decay
        self.binding = Binding(d_model, fields, key_size)
        key, cue, outcome = self.binding.key_size, self.binding.cue_size, self.binding.outcome_size
        self.w1 = nn.Parameter(torch.randn(key, hidden))
        self.w2 = nn.Parameter(0.01 * torch.randn(hidden, outcome))
        self.cue_map = nn.Parameter(torch.randn(cue, hidden)) if cue else None
        self.rate = nn.Parameter(torch.zeros(()))
        self.log_gain = nn.Parameter(torch.zeros(()))

    def initial_state(self, batch_size: int) -> SlowState:
        w1, w2 = (w.expand(batch_size, *w.shape) for w in (self.w1, self.w2))
        count = torch.zeros(batch_size, dtype=torch.long, device=w1.device)
        pending = w1.new_zeros(batch_size, self.binding.key_size + self.binding.cue_size)
        return SlowState(w1, w2, torch.zeros_like(w1), torch.zeros_like(w2), count, count, pending)

    def features(self, key: Tensor, cue: Tensor, w1: Tensor) -> Tensor:
        """phi [B, (N,) H] of keys [B, (N,) K] and cues [B, (N,) C]."""
        phi = math.sqrt(2 / self.hidden) * torch.einsum("b...k,bkh->b...h", key, w1).relu()
        return phi if self.cue_map is None else phi * (cue @ self.cue_map)

    def read(self, query: Tensor, state: SlowState) -> tuple[Tensor, Aux]:
        phi = self.features(*self.binding.split(self.binding.address(query)), state.w1)
        raw = torch.einsum("b...h,bhv->b...v", phi, state.w2)
        # A slow average varies little, so its reader would get no gradient: standardise what it says.
        answer = self.log_gain.exp() * F.layer_norm(raw, raw.shape[-1:])
        return self.binding.token(answer), Aux(confidence=raw.amax(-1, keepdim=True))

    def write(self, item: Item, state: SlowState, *, signal: Tensor | None = None) -> SlowState:
        new = self._gather(Item(*(part[:, None] for part in item)), state)
        return self._tick(new._replace(step=state.step + 1), (state.step + 1) % self.period == 0)

    def run(self, x: Tensor, state: SlowState) -> tuple[Tensor, SlowState, Aux]:
        """Between two ticks the weights are constant, so a window is one batch of gradients and one batch of reads."""
        if traced(x) or traced(state.w1) or bool((state.step != state.step[0]).any()):
            return super().run(x, state)
        items, steps = self.items(x, state.pending), x.shape[1]
        first = self.period - 1 - int(state.step[0]) % self.period
        ys, confidences = [], []
        # The item that completes a window is written, and the weights change, before that step's read.
        edges = sorted({0, *range(first, steps, self.period), steps})
        for start, stop in itertools.pairwise(edges):
            ticks = (start - first) % self.period == 0 and start >= first
            if ticks:
                state = self._gather(Item(*(part[:, start : start + 1] for part in items)), state)
                state = self._tick(state, torch.ones_like(state.step, dtype=torch.bool))
            state = self._gather(Item(*(part[:, start + ticks : stop] for part in items)), state)
            y, aux = self.read(x[:, start:stop], state)
            ys.append(y)
            confidences.append(aux.confidence)
        end = state._replace(step=state.step + steps, pending=self.binding.address(x[:, -1]))
        return torch.cat(ys, 1), end, Aux(confidence=torch.cat(confidences, 1))

    def absorb(self, state: SlowState, given: Consolidation, due: Tensor, rule: Rule) -> SlowState:
        """Take over the items of a faster level where `due` [B], by one of `nestmem.consolidation.RULES`."""
        if given.items is None or given.valid is None:
            return state
        phi = self.features(given.items.key, given.items.cue, state.w1)
        w2 = rule(state.w2, phi, given.items.outcome, given.valid)
        return where_rows(due, state._replace(w2=w2), state)

    def consolidate(self, state: SlowState) -> tuple[SlowState, Consolidation]:
        """Offers how far its weights have moved from the meta-learned ones."""
        return state, Consolidation(deltas={"w1": state.w1 - self.w1, "w2": state.w2 - self.w2})

    def _gather(self, items: Item, state: SlowState) -> SlowState:
        """Add the gradients of items [B, N, ...] at the current weights."""
        wanted = arrived(items)
        pre = torch.einsum("bnk,bkh->bnh", items.key, state.w1)
        phi = self.features(items.key, items.cue, state.w1)
        error = (torch.einsum("bnh,bhv->bnv", phi, state.w2) - items.outcome) * wanted[..., None]
        back = torch.einsum("bnv,bhv->bnh", error, state.w2) * (pre > 0) * math.sqrt(2 / self.hidden)
        if self.cue_map is not None:
            back = back * (items.cue @ self.cue_map)
        return state._replace(
            g1=state.g1 + items.key.mT @ back, g2=state.g2 + phi.mT @ error, seen=state.seen + wanted.sum(1)
        )

    def _tick(self, state: SlowState, due: Tensor) -> SlowState:
        rate = self.max_rate * self.rate.sigmoid() / state.seen.clamp(min=1)[:, None, None]
        keep = 1 - self.decay
        ticked = state._replace(
            w1=self.w1 + keep * (state.w1 - self.w1) - rate * state.g1,
            w2=self.w2 + keep * (state.w2 - self.w2) - rate * state.g2,
            g1=torch.zeros_like(state.g1),
            g2=torch.zeros_like(state.g2),
            seen=torch.zeros_like(state.seen),
        )
        return where_rows(due, ticked, state)
