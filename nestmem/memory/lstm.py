"""LSTM: the working memory, a state of two vectors that changes at every step.

Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000:
    i, f, g, o = split(W_ih x + W_hh h + b);  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
Legend: B rows, T steps, Q queries, D token, H hidden.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.memory.base import Aux, Fields, Memory, MemorySpec, check_fields, traced
from nestmem.memory.registry import register


class LSTMState(NamedTuple):
    h: Tensor  # [B, H]
    c: Tensor  # [B, H]
    step: Tensor  # [B] steps since reset


@register("lstm")
class LSTM(Memory):
    """A working memory: the fused LSTM kernel, or a loop of matrix products where that kernel cannot go.

    hidden: H, by default `d_model`; otherwise a linear map brings the output back to D. With `fields` the output is an
        outcome, in the outcome field of a token.
    reset_every: clear the state every n steps (0: never). A fast level that never forgets starves the slower ones:
        it removes the error before they see it.
    kernel: "fused" has no vmap rule, and on a GPU no double backward; "loop" has both and is several times slower.
        Under `torch.func` transforms the loop is taken by itself.
    """

    spec = MemorySpec(role="working", lifetime="episode")

    def __init__(
        self, d_model: int, fields: Fields | None = None, hidden: int = 0, reset_every: int = 0, kernel: str = "fused"
    ):
        super().__init__()
        check_fields(fields, d_model)
        if kernel not in ("fused", "loop"):
            raise ValueError(f"kernel: expected fused or loop, got {kernel!r}")
        self.d_model, self.hidden = d_model, hidden or d_model
        self.reset_every, self.kernel = reset_every, kernel
        bound = self.hidden**-0.5  # the ranges of nn.LSTM
        self.w_ih = nn.Parameter(torch.empty(4 * self.hidden, d_model).uniform_(-bound, bound))
        self.w_hh = nn.Parameter(torch.empty(4 * self.hidden, self.hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * self.hidden))
        with torch.no_grad():  # remember by default (Jozefowicz et al. 2015)
            self.bias[self.hidden : 2 * self.hidden] = 1.0
        self.fields = fields
        width = d_model if fields is None else fields.outcome
        self.out = nn.Linear(self.hidden, width) if self.hidden != width else nn.Identity()

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = self.w_hh.new_zeros(batch_size, self.hidden)
        return LSTMState(zeros, zeros, torch.zeros(batch_size, dtype=torch.long, device=zeros.device))

    def step(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState, Aux]:
        state = self.write(x, state)
        y, aux = self._answer(state.h)
        return y, state, aux

    def write(self, item: Tensor, state: LSTMState, *, signal: Tensor | None = None) -> LSTMState:
        h, c = state.h, state.c
        if self.reset_every:
            fresh = (state.step % self.reset_every == 0)[:, None]
            h, c = h.masked_fill(fresh, 0.0), c.masked_fill(fresh, 0.0)
        return LSTMState(*self._cell(item, h, c), state.step + 1)

    def read(self, query: Tensor, state: LSTMState) -> tuple[Tensor, Aux]:
        h, c = state.h, state.c
        if query.dim() == 3:
            h, c = h[:, None].expand(-1, query.shape[1], -1), c[:, None].expand(-1, query.shape[1], -1)
        return self._answer(self._cell(query, h, c)[0])

    def run(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState, Aux]:
        step_by_step = self.kernel == "loop" or traced(x) or traced(self.w_hh)
        if step_by_step or (self.reset_every and bool((state.step != state.step[0]).any())):
            steps = []
            for t in range(x.shape[1]):
                state = self.write(x[:, t], state)
                steps.append(state.h)
            hs = torch.stack(steps, 1)
        else:
            pieces = []
            for start, stop in self._pieces(x.shape[1], state):
                h, c = state.h, state.c
                if self.reset_every and int(state.step[0]) % self.reset_every == 0:
                    h, c = torch.zeros_like(h), torch.zeros_like(c)
                weights = [self.w_ih, self.w_hh, self.bias, torch.zeros_like(self.bias)]
                held = [h[None].contiguous(), c[None].contiguous()]
                piece, h, c = torch.lstm(x[:, start:stop], held, weights, True, 1, 0.0, self.training, False, True)
                state = LSTMState(h[0], c[0], state.step + (stop - start))
                pieces.append(piece)
            hs = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        y, aux = self._answer(hs)
        return y, state, aux

    def _pieces(self, steps: int, state: LSTMState) -> list[tuple[int, int]]:
        """The stretches between two resets of `reset_every`."""
        if not self.reset_every:
            return [(0, steps)]
        first = -int(state.step[0]) % self.reset_every
        edges = sorted({0, steps, *range(first, steps, self.reset_every)})
        return list(itertools.pairwise(edges))

    def _answer(self, h: Tensor) -> tuple[Tensor, Aux]:
        """The output, and no confidence: an LSTM cannot tell whether it knows."""
        y = self.out(h) if self.fields is None else self.fields.token(self.out(h))
        return y, Aux(confidence=torch.zeros_like(h[..., :1]))

    def _cell(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = x @ self.w_ih.T + h @ self.w_hh.T + self.bias
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
