"""FastHead: a readout that goes on learning while it reads, and leaves what it learned to the slow weights.

Dynamic evaluation (Mikolov et al. 2010; Krause et al. 2018) as a meta-learned inner loop (MAML, Finn et al. 2017): the document
is the task, its tokens are the labels, and how fast which weight learns is itself trained through the steps. With h_t the hidden
state, p_t the prediction made of it, and y_t the token that then came,
    logits_t = (W + A) h_t + b
    A <- keep A + rate_v rate_d sum_{t in chunk} (onehot(y_t) - p_t) h_t^T / sqrt(D)      after every chunk of C tokens
A is the gradient step on the cross-entropy of the chunk. It is a state of each row, begins at zero with a document, and is
differentiable all the way. At a document's end the slow weights move towards it, W <- W + beta mean(A) (Reptile, Nichol et al.
2018), so that what was common to documents need not be learned in each.
Legend: B rows, T tokens, C chunk, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.errors import UserError
from nestmem.memory.base import where_rows

RATE = 0.01  # of the fast weights at first


class HeadState(NamedTuple):
    change: Tensor  # [B, V, D] A
    gathered: Tensor  # [B, V, D] of the chunk so far
    hidden: Tensor  # [B, D] h of the last step, whose token has not come yet
    predicted: Tensor  # [B, V] p of the last step
    step: Tensor  # [B]


class FastHead(nn.Module):
    """chunk: tokens between two steps of the fast weights. beta: share of them that the slow weights take over at a document's
    end in training (0: none)."""

    def __init__(self, vocabulary: int, width: int, chunk: int = 32, beta: float = 0.0):
        super().__init__()
        if chunk < 1 or not 0 <= beta <= 1:
            raise UserError(f"algo.chunk, algo.consolidate: expected at least 1 and 0 to 1, got {chunk} and {beta}")
        self.vocabulary, self.width, self.chunk, self.beta = vocabulary, width, chunk, beta
        self.rate_out = nn.Parameter(torch.full((vocabulary, 1), math.log(RATE)))
        self.rate_in = nn.Parameter(torch.zeros(width))
        self.keep = nn.Parameter(torch.tensor(6.0))  # sigmoid(6) = .9975 a chunk

    def initial_state(self, batch_size: int) -> HeadState:
        weights = self.rate_in.new_zeros(batch_size, self.vocabulary, self.width)
        step = torch.zeros(batch_size, dtype=torch.long, device=weights.device)
        return HeadState(weights, weights, weights[:, 0], weights[..., 0], step)

    def reset(self, state: HeadState, done: Tensor) -> HeadState:
        """A document begins in the rows `done` [B], with no fast weights."""
        return where_rows(done, self.initial_state(len(done)), state)

    def forward(self, hidden: Tensor, tokens: Tensor, slow: Tensor, state: HeadState) -> tuple[Tensor, HeadState]:
        """hidden [B, T, D], the tokens [B, T] they saw, and what is said without fast weights [B, T, V]: logits [B, T, V]."""
        steps, first = hidden.shape[1], -int(state.step[0]) % self.chunk
        known = (tokens < self.vocabulary)[..., None]  # the token before a document says nothing
        came = F.one_hot(tokens.clamp(max=self.vocabulary - 1), self.vocabulary).to(hidden.dtype)
        rate = self.rate_out.exp() * self.rate_in.exp() / math.sqrt(self.width)  # [V, D]
        keep, pieces = self.keep.sigmoid(), []
        for start, stop in itertools.pairwise(sorted({0, *range(first, steps, self.chunk), steps})):
            h = hidden[:, start:stop]
            pieces.append(slow[:, start:stop] + h @ state.change.mT)
            predicted = torch.softmax(pieces[-1].float(), -1).to(h.dtype)
            # A step's token comes with the next step: the last one of a piece waits in the state.
            before = torch.cat([state.hidden[:, None], h[:, :-1]], 1)
            expected = torch.cat([state.predicted[:, None], predicted[:, :-1]], 1)
            error = (came[:, start:stop] - expected) * known[:, start:stop]
            change, gathered, step = state.change, state.gathered + error.mT @ before, state.step + (stop - start)
            if int(step[0]) % self.chunk == 0:
                change, gathered = keep * change + rate * gathered, torch.zeros_like(gathered)
            state = HeadState(change, gathered, h[:, -1], predicted[:, -1], step)
        return torch.cat(pieces, 1), state

    @torch.no_grad()
    def consolidate(self, readout: nn.Linear, state: HeadState, ended: Tensor) -> None:
        """Slow weights move towards what was learned in the rows `ended` [B], whose documents are over."""
        if self.beta:
            readout.weight += self.beta * torch.where(ended[:, None, None], state.change, 0.0).mean(0)
