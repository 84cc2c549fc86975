"""Continuum memory: a chain of MLP levels, each changing on its own, slower and slower clock.

The continuum memory system of Behrouz et al. 2025, Nested Learning, as key-value memory: with a stream h of width W = A + V
    h_0 = [address, 0];  h_l = h_(l-1) + relu(h_(l-1) W1_l) W2_l;  prediction = the last V numbers of h_L
    theta_l <- theta_l - rate_l mean_{items since its last tick} g_l / (1 + c + ||g||)     every periods[l] steps
    g_l = gradient of e^2 / 2 for level l,  e = ||prediction - outcome||,  ||g||^2 = sum_l ||g_l||^2,  c = ||g||^2 / e^2
The answer has a place of its own in the stream, so all levels have one shape and none needs a projection; level 1, the
fastest, comes first. The published rule divides by nothing. c is the curvature of an item along its own gradient, over all
levels: a step of g / c cancels its error to first order, so with rates up to 1 none overshoots there, even where every level
ticks at once. The chain is linear only for short steps, and ||g|| keeps each shorter than 1, however wrong the prediction.
The chain rule is written out, so the memory runs under vmap and can be differentiated twice.
Legend: B rows, T steps, N items, L levels, A address (key and cue), H hidden, V outcome, W stream.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.associative import Associative, Binding, arrived
from nestmem.memory.base import Aux, Consolidation, Fields, Item, Lifetime, MemorySpec, Regression, traced, where_rows
from nestmem.memory.registry import register

TINY = 1e-12  # so that an item without error has a step: zero


class ContinuumState(NamedTuple):
    w1: Tensor  # [B, L, W, H]
    w2: Tensor  # [B, L, H, W]
    g1: Tensor  # [B, L, W, H] normalised gradients gathered since each level's last tick
    g2: Tensor  # [B, L, H, W]
    seen: Tensor  # [B, L] items gathered since then
    step: Tensor  # [B] steps since reset
    pending: Tensor  # [B, A]


@register("continuum")
class Continuum(Associative):
    """A chain of MLPs from fast to slow: level l learns in windows of `fastest * ratio^(l-1)` steps.

    levels: L. fastest: steps between two changes of level 1. ratio: from one level's period to the next one's.
    hidden: H of every level. max_rate: bound of the learned rates; above 1 a step may overshoot.
    A task's end clears level 1, which otherwise removes the error before the slower levels see it; these live for life.
    The first weights of a row are parameters, hence meta-learned.
    """

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        levels: int = 3,
        fastest: int = 4,
        ratio: int = 4,
        hidden: int = 32,
        key_size: int = 0,
        max_rate: float = 1.0,
    ):
        super().__init__()
        for name, value in (("levels", levels), ("fastest", fastest), ("ratio", ratio), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        regression = Regression("uniform", "mlp", "sgd")
        self.spec = MemorySpec(role="slow", lifetime="life", period=fastest, regression=regression)
        self.d_model, self.hidden, self.max_rate = d_model, hidden, max_rate
        self.periods = tuple(fastest * ratio**level for level in range(levels))
        self.binding = Binding(d_model, fields, key_size)
        self.address = self.binding.key_size + self.binding.cue_size
        width = self.address + self.binding.outcome_size
        # Unit features of unit addresses, and levels that at first say little.
        self.w1 = nn.Parameter(math.sqrt(2 / hidden) * torch.randn(levels, width, hidden))
        self.w2 = nn.Parameter(0.01 * torch.randn(levels, hidden, width))
        self.rate = nn.Parameter(torch.zeros(levels))
        self.log_gain = nn.Parameter(torch.zeros(()))

    def initial_state(self, batch_size: int) -> ContinuumState:
        w1, w2 = (w.expand(batch_size, *w.shape) for w in (self.w1, self.w2))
        seen = torch.zeros(batch_size, len(self.periods), dtype=torch.long, device=w1.device)
        pending = w1.new_zeros(batch_size, self.address)
        return ContinuumState(w1, w2, torch.zeros_like(w1), torch.zeros_like(w2), seen, seen[:, 0], pending)

    def read(self, query: Tensor, state: ContinuumState) -> tuple[Tensor, Aux]:
        answer = self._chain(self.binding.address(query), state)[2]
        return self.binding.token(self.log_gain.exp() * answer), Aux(confidence=answer.amax(-1, keepdim=True))

    def write(self, item: Item, state: ContinuumState, *, signal: Tensor | None = None) -> ContinuumState:
        state = self._gather(Item(*(part[:, None] for part in item)), state)
        due = torch.stack([state.step % period == 0 for period in self.periods], -1)
        return self._tick(state, due)

    def run(self, x: Tensor, state: ContinuumState) -> tuple[Tensor, ContinuumState, Aux]:
        """Between two ticks of level 1 all weights are constant: one batch of gradients and one batch of reads."""
        if traced(x) or traced(state.w1) or bool((state.step != state.step[0]).any()):
            return super().run(x, state)
        items, steps, period = self.items(x, state.pending), x.shape[1], self.periods[0]
        first = period - 1 - int(state.step[0]) % period
        ys, confidences = [], []
        for start, stop in itertools.pairwise(sorted({0, *range(first, steps, period), steps})):
            # The item that completes a window is written, and the weights change, before that step's read.
            state = self.write(Item(*(part[:, start] for part in items)), state)
            state = self._gather(Item(*(part[:, start + 1 : stop] for part in items)), state)
            y, aux = self.read(x[:, start:stop], state)
            ys.append(y)
            confidences.append(aux.confidence)
        end = state._replace(pending=self.binding.address(x[:, -1]))
        return torch.cat(ys, 1), end, Aux(confidence=torch.cat(confidences, 1))

    def flush(self, state: ContinuumState) -> ContinuumState:
        """Apply what is gathered in unfinished windows, at the end of a stream. The clocks go on as they were."""
        return self._tick(state, torch.ones_like(state.seen, dtype=torch.bool))

    def reset(self, state: ContinuumState, done: Tensor, *, until: Lifetime = "episode") -> ContinuumState:
        """A task's end clears level 1, its gradients and the key that waits; the other levels and all clocks go on."""
        if until != "task":
            cleared: ContinuumState = super().reset(state, done, until=until)
            return cleared
        fresh = self.initial_state(done.shape[0])
        first = torch.arange(len(self.periods), device=done.device) == 0
        parts = {
            name: torch.where(first.view(-1, *[1] * (old.dim() - 2)), getattr(fresh, name), old)
            for name, old in state._asdict().items()
            if name not in ("step", "pending")
        }
        return where_rows(done, state._replace(pending=fresh.pending, **parts), state)

    def consolidate(self, state: ContinuumState) -> tuple[ContinuumState, Consolidation]:
        """Offers how far its weights have moved from the meta-learned ones."""
        return state, Consolidation(deltas={"w1": state.w1 - self.w1, "w2": state.w2 - self.w2})

    def _chain(self, address: Tensor, state: ContinuumState) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Addresses [B, (N,) A] to every level's input [B, (N,) W] and preactivation [B, (N,) H], and the answer."""
        h, inputs, pres = F.pad(address, (0, self.binding.outcome_size)), [], []
        for w1, w2 in zip(state.w1.unbind(1), state.w2.unbind(1), strict=True):
            inputs.append(h)
            pres.append(torch.einsum("b...w,bwh->b...h", h, w1))
            h = h + torch.einsum("b...h,bhw->b...w", pres[-1].relu(), w2)
        return inputs, pres, h[..., self.address :]

    def _gather(self, items: Item, state: ContinuumState) -> ContinuumState:
        """N steps: add the normalised gradients of their items [B, N, ...] at the current weights."""
        wanted = arrived(items)
        inputs, pres, answer = self._chain(torch.cat([items.key, items.cue], -1), state)
        error = (answer - items.outcome) * wanted[..., None]
        # Down the chain: what reaches each level's output (top), and its hidden units (deep).
        tops: list[Tensor] = [F.pad(error, (self.address, 0))]
        deeps: list[Tensor] = []
        for level in reversed(range(len(self.periods))):
            deeps.insert(0, torch.einsum("bnw,bhw->bnh", tops[0], state.w2[:, level]) * (pres[level] > 0))
            tops.insert(0, tops[0] + torch.einsum("bnh,bwh->bnw", deeps[0], state.w1[:, level]))
        h, top, hidden, deep = (torch.stack(part, 1) for part in (inputs, tops[1:], pres, deeps))  # [B, L, N, ...]
        hidden = hidden.relu()
        # An item's gradient is an outer product for each matrix, and so is its norm a product of norms.
        norms = _square(h) * _square(deep) + _square(hidden) * _square(top)
        squared, total = _square(error), norms.sum(1)
        # 1 / (1 + c + ||g||), times e^2 above and below
        weight = (squared / (squared + total + squared * (total + TINY).sqrt() + TINY))[:, None, :, None]
        return state._replace(
            g1=state.g1 + h.mT @ (weight * deep),
            g2=state.g2 + hidden.mT @ (weight * top),
            seen=state.seen + wanted.sum(1)[:, None],
            step=state.step + wanted.shape[1],
        )

    def _tick(self, state: ContinuumState, due: Tensor) -> ContinuumState:
        """Levels that are due [B, L] take their step and begin a new window."""
        rate = self.max_rate * self.rate.sigmoid() * due / state.seen.clamp(min=1)
        keep = ~due
        return state._replace(
            w1=state.w1 - rate[..., None, None] * state.g1,
            w2=state.w2 - rate[..., None, None] * state.g2,
            g1=state.g1 * keep[..., None, None],
            g2=state.g2 * keep[..., None, None],
            seen=state.seen * keep,
        )


def _square(x: Tensor) -> Tensor:
    return x.square().sum(-1)
