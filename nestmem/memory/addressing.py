"""What controllers with an addressable matrix share (NTM, MANN, DNC): the loop around the matrix, and content addressing.

Graves, Wayne & Danihelka 2014:
    h, c = LSTM([x, r], h, c);  heads = W h + b;  M, r = access(heads, M);  y = V [h, r]
    content: softmax_n(beta cos(k, M_n));  write: M' = M (1 - w e^T) + w a^T;  read: r = M^T w
The heads depend on the controller and the controller on the last read, so there is no form over a whole sequence.
Legend: B rows, T steps, Q queries, D token, H hidden, N slots, W width of a slot, R read heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nestmem.memory.base import Aux, Fields, Memory, check_fields, map_state

START = 1e-6  # what a slot holds at first: the same everywhere, small, and not zero (a cosine needs a direction)
EPS = 1e-8


class Controller(nn.Module):
    """An LSTM cell of matrix products: input [B, n], h and c [B, H] to the next h and c."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        bound = hidden**-0.5  # the ranges of nn.LSTM
        self.w = nn.Parameter(torch.empty(4 * hidden, inputs + hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        with torch.no_grad():
            self.bias[hidden : 2 * hidden] = 1.0

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (torch.cat([x, h], -1) @ self.w.T + self.bias).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Addressed(Memory):
    """Base of the three; a subclass gives `initial_state` and `access`. Its state has h, c and reads [B, R, W].

    heads: name and width of every number the controller sets at a step, before their nonlinearities.
    """

    def __init__(
        self,
        d_model: int,
        fields: Fields | None,
        slots: int,
        width: int,
        hidden: int,
        reads: int,
        heads: dict[str, int],
    ):
        super().__init__()
        check_fields(fields, d_model)
        for name, value, least in (("slots", slots, 2), ("width", width, 1), ("reads", reads, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.d_model, self.fields = d_model, fields
        self.slots, self.width, self.hidden, self.reads = slots, width, hidden or d_model, reads
        self.heads = heads
        self.controller = Controller(d_model + reads * width, self.hidden)
        self.to_heads = nn.Linear(self.hidden, sum(heads.values()))
        self.out = nn.Linear(self.hidden + reads * width, d_model if fields is None else fields.outcome)

    def access(self, heads: dict[str, Tensor], state: Any) -> tuple[Any, Aux]:
        """One step of the matrix: what the heads ask for [B, n] is written and read. The new state holds the reads."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any, Aux]:
        h, c = self.controller(torch.cat([x, state.reads.flatten(1)], -1), state.h, state.c)
        asked = self.to_heads(h).split(list(self.heads.values()), -1)
        state, aux = self.access(dict(zip(self.heads, asked, strict=True)), state._replace(h=h, c=c))
        y = self.out(torch.cat([h, state.reads.flatten(1)], -1))
        return y if self.fields is None else self.fields.token(y), state, aux

    def write(self, item: Tensor, state: Any, *, signal: Tensor | None = None) -> Any:
        """Take in a token [B, D]; what is written, and where, is the controller's affair."""
        return self.step(item, state)[1]

    def read(self, query: Tensor, state: Any) -> tuple[Tensor, Aux]:
        """What a step with this token would answer."""
        if query.dim() == 2:
            y, _, aux = self.step(query, state)
            return y, aux
        rows, queries = query.shape[:2]
        y, _, aux = self.step(query.flatten(0, 1), map_state(lambda t: t.repeat_interleave(queries, 0), state))
        y, aux = map_state(lambda t: t.reshape(rows, queries, -1), (y, (aux.confidence, aux.weights)))
        return y, Aux(*aux)

    def blank(self, batch_size: int, *shape: int) -> Tensor:
        return self.out.weight.new_zeros(batch_size, *shape)


def cosine(keys: Tensor, memory: Tensor) -> Tensor:
    """Of keys [B, R, W] and slots [B, N, W]: [B, R, N]. Smooth where one of them is zero."""
    lengths = (keys.square().sum(-1) + EPS**2).sqrt()[..., None] * (memory.square().sum(-1) + EPS**2).sqrt()[:, None]
    return keys @ memory.mT / (lengths + EPS)


def erase_and_add(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """M (1 - w e^T) + w a^T with M [B, N, W], w [B, N], e and a [B, W]."""
    w = weights[..., None]
    return memory * (1 - w * erase[:, None]) + w * add[:, None]
