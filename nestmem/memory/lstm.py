"""LSTM: the working memory, a state of two vectors that changes at every step.

Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000:
    i, f, g, o = split(W_ih x + W_hh h + b);  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
Legend: B rows, T steps, Q queries, D token, H hidden.
"""

from __future__ import annotations

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
    chrono: expect dependencies of up to so many steps (0: of a few): forget biases start at log U(1, chrono - 1), input
        biases at minus that (Tallec & Ollivier 2018, "Can recurrent neural networks warp time?").
    kernel: "fused" has no vmap rule, and on a GPU no double backward; "loop" has both and is several times slower.
        Under `torch.func` transforms the loop is taken by itself.
    """

    spec = MemorySpec(role="working", lifetime="episode")

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        hidden: int = 0,
        reset_every: int = 0,
        chrono: int = 0,
        kernel: str = "fused",
    ):
        super().__init__()
        check_fields(fields, d_model)
        if kernel not in ("fused", "loop"):
            raise ValueError(f"kernel: expected fused or loop, got {kernel!r}")
        if chrono and chrono < 3:
            raise ValueError(f"chrono: expected 0 or at least 3 steps, got {chrono}")
        self.d_model, self.hidden = d_model, hidden or d_model
        self.reset_every, self.kernel = reset_every, kernel
        bound = self.hidden**-0.5  # the ranges of nn.LSTM
        self.w_ih = nn.Parameter(torch.empty(4 * self.hidden, d_model).uniform_(-bound, bound))
        self.w_hh = nn.Parameter(torch.empty(4 * self.hidden, self.hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * self.hidden))
        with torch.no_grad():  # remember by default (Jozefowicz et al. 2015)
            self.bias[self.hidden : 2 * self.hidden] = 1.0
            if chrono:
                forget = torch.empty(self.hidden).uniform_(1, chrono - 1).log()
                self.bias[: 2 * self.hidden] = torch.cat([-forget, forget])
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
            for token in x.unbind(1):
                state = self.write(token, state)
                steps.append(state.h)
            hs = torch.stack(steps, 1)
        elif not self.reset_every:
            hs, state = self._fused(x, state)
        else:
            # Windows between two resets do not know of each other: the whole ones are rows of one batch.
            n, start = self.reset_every, min(-int(state.step[0]) % self.reset_every, x.shape[1])
            stop = start + (x.shape[1] - start) // n * n
            pieces = []
            if start:
                piece, state = self._fused(x[:, :start], state)
                pieces.append(piece)
            if stop > start:
                windows = x[:, start:stop].reshape(-1, n, x.shape[-1])
                piece, ends = self._fused(windows, self.initial_state(len(windows)))
                pieces.append(piece.reshape(len(x), -1, self.hidden))
                h, c = (end.view(len(x), -1, self.hidden)[:, -1] for end in (ends.h, ends.c))
                state = LSTMState(h, c, state.step + (stop - start))
            if stop < x.shape[1]:
                fresh = self.initial_state(len(x))._replace(step=state.step)
                piece, state = self._fused(x[:, stop:], fresh)
                pieces.append(piece)
            hs = torch.cat(pieces, 1)
        y, aux = self._answer(hs)
        return y, state, aux

    def _fused(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """A stretch without resets [B, T, D] to all h [B, T, H] and the state after it."""
        weights = [self.w_ih, self.w_hh, self.bias, torch.zeros_like(self.bias)]
        held = [state.h[None].contiguous(), state.c[None].contiguous()]
        hs, h, c = torch.lstm(x, held, weights, True, 1, 0.0, self.training, False, True)
        return hs, LSTMState(h[0], c[0], state.step + x.shape[1])

    def _answer(self, h: Tensor) -> tuple[Tensor, Aux]:
        """The output, and no confidence: an LSTM cannot tell whether it knows."""
        y = self.out(h) if self.fields is None else self.fields.token(self.out(h))
        return y, Aux(confidence=torch.zeros_like(h[..., :1]))

    def _cell(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = x @ self.w_ih.T + h @ self.w_hh.T + self.bias
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
