"""Kept: a nested memory for tasks that come back, an LSTM that forgets between visits beside fast weights that do not.

    a_t = LSTM(x_t);  S <- S + b k_{t-1} (a_t - S^T k_{t-1})^T;  y_t = a_t + sigmoid(W [x_t, a_t]) * V S^T k_t
The fast weights S bind what the LSTM has made of a task to the cue it was met under, by the delta rule and without decay
(DeltaNet, Yang et al. 2024), and outlive an episode. Keys are k_t = softmax(U cue_t), random features of an exponential kernel
at first (Choromanski et al. 2021): cues that are much alike still have keys that are not. As in the episodic LSTM (`eplstm`) a
gate says how much of what comes back is heard; unlike there gradients go through S from one visit to the next, so what is worth
keeping is learned.
What is kept is nearly silent at first and is never the LSTM's input: stacked on it or fed to it, it drowned what is heard now.
Legend: D token, K key, V outcome.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nestmem.compose import Compound
from nestmem.memory.base import Aux, Fields, State
from nestmem.memory.lstm import LSTM
from nestmem.memory.recurrence import LinearMemory
from nestmem.memory.registry import register

SPREAD = 2.3  # of the logits of keys, for cues of numbers about 1


@register("nested_kept")
class Kept(Compound):
    """An LSTM, and fast weights that outlive its episodes.

    The key is made of the cue of a token with fields, otherwise (or without a cue) of the token. hidden: of the LSTM, by
    default D. key_size: K.
    """

    def __init__(self, d_model: int, fields: Fields | None = None, hidden: int = 0, key_size: int = 64):
        outcome = d_model if fields is None else fields.outcome
        bound = Fields(key_size, 0, outcome, labels=False)
        kept = LinearMemory(bound.width, bound, decay="none", rule="delta", lifetime="life")
        super().__init__([LSTM(d_model, fields, hidden=hidden), kept], fields)
        self.out = nn.Identity()  # the LSTM answers in the outcome field by itself
        seen = fields.cue if fields is not None and fields.cue else d_model
        self.key = nn.Linear(seen, key_size)
        nn.init.normal_(self.key.weight, std=SPREAD * seen**-0.5)
        self.gate = nn.Linear(d_model + outcome, outcome)
        nn.init.constant_(self.gate.bias, -2.0)
        self.back = nn.Linear(outcome, outcome, bias=False)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "step")

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "run")

    def read(self, query: Tensor, state: State) -> tuple[Tensor, Aux]:
        heard = self.outcome(self.parts[0].read(query, state[0])[0])
        recalled, aux = self.parts[1].read(torch.cat([self.where(query), heard], -1), state[1])
        return self.both(query, heard, recalled), aux

    def where(self, token: Tensor) -> Tensor:
        """Token [..., D] to the key [..., K] its task is kept under."""
        if self.fields is not None and self.fields.cue:
            token = self.fields.split(token)[1]
        key: Tensor = self.key(token).softmax(-1)
        return key

    def outcome(self, token: Tensor) -> Tensor:
        return token if self.fields is None else self.fields.split(token)[2]

    def both(self, token: Tensor, heard: Tensor, recalled: Tensor) -> Tensor:
        """The answer [..., D] to a token [..., D], from what the LSTM says [..., V] and what S does [..., K + V]."""
        opened = self.gate(torch.cat([token, heard], -1)).sigmoid()
        y = heard + opened * self.back(recalled[..., -heard.shape[-1] :])
        return y if self.fields is None else self.fields.token(y)

    def _advance(self, x: Tensor, state: State, how: str) -> tuple[Tensor, State, Aux]:
        working, kept = self.parts
        answer, heard_state, _ = getattr(working, how)(x, state[0])
        heard = self.outcome(answer)
        recalled, kept_state, aux = getattr(kept, how)(torch.cat([self.where(x), heard], -1), state[1])
        return self.both(x, heard, recalled), (heard_state, kept_state), aux
