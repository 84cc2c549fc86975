"""Hope: a memory that makes its own keys, values and learning rates, followed by a chain of slower memories.

Self-modifying memory (Behrouz et al. 2025, Nested Learning): five matrices M_k, M_v, M_eta, M_alpha, M_mem live in the state,
each the meta-learned start plus what it has learned. With x' the token before x (associative.py says why):
    k = unit(x' M_k)   v = unit(x M_v)   eta = sigmoid(w . x' M_eta)   alpha = sigmoid(w' . x' M_alpha)   q = unit(x W_q)
    v_i = unit(v M_i)                                           the target each memory i sets itself
    A_i <- alpha A_i + eta k (v_i - k^T (start_i + alpha A_i))^T       a delta step
    y = q^T M_mem
Keys, values, rates and targets come from the matrices as they stood at the last multiple of `chunk` steps.
The printed update takes the projection (alpha I - eta k k^T) *and* the gradient of a squared error, which shrinks twice along
k; here it is the delta rule, which is that projection with the inner-product objective. Targets have unit length, for a
memory that enlarges its own targets diverges. Maps are linear instead of two-layer networks.
Legend: B rows, T steps, C chunk, I the five memories, D token.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.compose import Stack
from nestmem.memory.base import Aux, Fields, Memory, MemorySpec, Regression, check_fields, traced, where_rows
from nestmem.memory.continuum import Continuum
from nestmem.memory.recurrence import Written, linear_chunk
from nestmem.memory.registry import register

KEY, VALUE, RATE, KEEP, MAIN = range(5)


class SelfModifyingState(NamedTuple):
    change: Tensor  # [B, I, D, D] A
    base: Tensor  # [B, I, D, D] A at the last chunk boundary
    before: Tensor  # [B, D] the last token
    step: Tensor  # [B] steps since reset


@register("self_modifying")
class SelfModifying(Memory):
    """A memory that learns how to write to itself: keys, values, rates and targets come from memories like it."""

    spec = MemorySpec(role="working", lifetime="episode", regression=Regression("learned", "linear", "sgd"))

    def __init__(self, d_model: int, fields: Fields | None = None, chunk: int = 8):
        super().__init__()
        check_fields(fields, d_model)
        if chunk < 1:
            raise ValueError(f"chunk: expected at least 1 step, got {chunk}")
        self.d_model, self.fields, self.chunk = d_model, fields, chunk
        # Near the identity, a key is the token itself at first.
        self.start = nn.Parameter(torch.eye(d_model) + 0.1 * d_model**-0.5 * torch.randn(5, d_model, d_model))
        self.to_query = nn.Linear(d_model, d_model, bias=False)
        nn.init.eye_(self.to_query.weight)
        self.to_rate, self.to_keep = nn.Linear(d_model, 1), nn.Linear(d_model, 1)
        nn.init.constant_(self.to_keep.bias, 4.0)  # remember by default: sigmoid(4) = .98
        self.out = nn.Linear(d_model, d_model if fields is None else fields.outcome)

    def initial_state(self, batch_size: int) -> SelfModifyingState:
        change = self.start.new_zeros(batch_size, *self.start.shape)
        step = torch.zeros(batch_size, dtype=torch.long, device=change.device)
        return SelfModifyingState(change, change, change.new_zeros(batch_size, self.d_model), step)

    def step(self, x: Tensor, state: SelfModifyingState) -> tuple[Tensor, SelfModifyingState, Aux]:
        state = self.write(x, state)
        y, aux = self.read(x, state)
        return y, state, aux

    def write(self, item: Tensor, state: SelfModifyingState, *, signal: Tensor | None = None) -> SelfModifyingState:
        key, outcome, rate, log_keep = (
            p[:, :, 0] for p in self._written(item[:, None], state.before[:, None], state.base)
        )
        faded = log_keep.exp()[..., None] * state.change
        error = outcome - torch.einsum("bik,bikv->biv", key, faded)
        change = faded + torch.einsum("bik,biv->bikv", rate * key, error)
        step = state.step + 1
        return SelfModifyingState(change, where_rows(step % self.chunk == 0, change, state.base), item, step)

    def read(self, query: Tensor, state: SelfModifyingState) -> tuple[Tensor, Aux]:
        q = F.normalize(self.to_query(query), dim=-1)
        return self._said(torch.einsum("b...k,bkv->b...v", q, self.start[MAIN] + state.change[:, MAIN]))

    def run(self, x: Tensor, state: SelfModifyingState) -> tuple[Tensor, SelfModifyingState, Aux]:
        """Within a chunk the five memories are heads of one delta rule."""
        if traced(x) or traced(self.start) or bool((state.step != state.step[0]).any()):
            return super().run(x, state)
        before = torch.cat([state.before[:, None], x[:, :-1]], 1)
        queries = F.normalize(self.to_query(x), dim=-1)[:, None]
        change, base, step, answers = state.change, state.base, int(state.step[0]), []
        edges = sorted({0, *range(-step % self.chunk, x.shape[1], self.chunk), x.shape[1]})
        for start, stop in itertools.pairwise(edges):
            written = self._written(x[:, start:stop], before[:, start:stop], base)
            q = queries[:, :, start:stop].expand(-1, 5, -1, -1)
            y, change = linear_chunk(q, written, change, delta=True)
            answers.append(y[:, MAIN] + queries[:, 0, start:stop] @ self.start[MAIN])
            if (step + stop) % self.chunk == 0:
                base = change
        y, aux = self._said(torch.cat(answers, 1))
        return y, SelfModifyingState(change, base, x[:, -1], state.step + x.shape[1]), aux

    def _written(self, x: Tensor, before: Tensor, base: Tensor) -> Written:
        """What the five memories write for tokens [B, T, D] by the matrices start + base; relative to the start."""
        weights = self.start + base
        key = F.normalize(before @ weights[:, KEY], dim=-1)
        value = F.normalize(x @ weights[:, VALUE], dim=-1)
        target = F.normalize(value[:, None] @ weights, dim=-1)  # [B, I, T, D]
        rate = self.to_rate(before @ weights[:, RATE]).sigmoid()
        log_keep = F.logsigmoid(self.to_keep(before @ weights[:, KEEP]))
        keys, rates, keeps = (part[:, None].expand(-1, 5, -1, -1) for part in (key, rate, log_keep))
        return Written(keys, target - keys @ self.start, rates, keeps)

    def _said(self, y: Tensor) -> tuple[Tensor, Aux]:
        y = self.out(y) if self.fields is None else self.fields.token(self.out(y))
        return y, Aux(confidence=torch.zeros_like(y[..., :1]))


@register("hope")
def hope(
    d_model: int, fields: Fields | None = None, chunk: int = 8, levels: int = 3, fastest: int = 4, hidden: int = 32
) -> Stack:
    """Hope: a self-modifying memory, then a continuum of slower and slower ones."""
    slower = Continuum(d_model, levels=levels, fastest=fastest, hidden=hidden)
    return Stack([SelfModifying(d_model, chunk=chunk), slower], fields)
