"""Kept: a nested memory for tasks that come back, an LSTM that forgets between visits beside fast weights that do not.

    a_t = LSTM(x_t);  S <- S + b k_{t-1} (a_{t-1} + C o_t - S^T k_{t-1})^T;  y_t = a_t + sigmoid(W [x_t, a_t]) * V S^T k_t
The fast weights S bind what the LSTM has made of a task to the cue it was met under, by the delta rule and without decay
(DeltaNet, Yang et al. 2024), and outlive an episode. What came of a step, o_t, arrives one step later, that of a visit's last
one when the LSTM has forgotten the visit; a linear map, zero at first, adds it to what is kept. Keys are k_t = softmax(U cue_t),
random features of an exponential kernel at first (Choromanski et al. 2021): cues that are much alike still have keys that are
not. As in the episodic LSTM (`eplstm`) a gate says how much of what comes back is heard; unlike there gradients go through S
from one visit to the next, so what is worth keeping is learned. What is recalled at a step was written before it, so that a
visit begins with what the last one ended with. What is kept is nearly silent at first and is never the LSTM's input: stacked on
it or fed to it, it drowned what is heard now.
Legend: D token, K key, V outcome.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.compose import joint_spec
from nestmem.memory.base import Aux, Fields, Lifetime, Memory, check_fields, where_rows
from nestmem.memory.lstm import LSTM, LSTMState
from nestmem.memory.recurrence import LinearMemory, MatrixState
from nestmem.memory.registry import register

SPREAD = 2.3  # of the logits of keys, for cues of numbers about 1


class KeptState(NamedTuple):
    working: LSTMState
    kept: MatrixState  # its pending key is that of the last step
    said: Tensor  # [B, V] answer of the LSTM at the last step, which is written next


@register("nested_kept")
class Kept(Memory):
    """An LSTM, and fast weights that outlive its episodes.

    The key is made of the cue of a token with fields, otherwise (or without a cue) of the token. hidden: of the LSTM, by
    default D. key_size: K.
    """

    def __init__(self, d_model: int, fields: Fields | None = None, hidden: int = 0, key_size: int = 64):
        super().__init__()
        check_fields(fields, d_model)
        self.d_model, self.fields = d_model, fields
        outcome = d_model if fields is None else fields.outcome
        bound = Fields(key_size, 0, outcome, labels=False)
        self.working = LSTM(d_model, fields, hidden=hidden)
        self.kept = LinearMemory(bound.width, bound, decay="none", rule="delta", lifetime="life")
        self.spec = joint_spec([self.working, self.kept])
        seen = fields.cue if fields is not None and fields.cue else d_model
        self.to_key = nn.Linear(seen, key_size)
        nn.init.normal_(self.to_key.weight, std=SPREAD * seen**-0.5)
        self.gate = nn.Linear(d_model + outcome, outcome)
        nn.init.constant_(self.gate.bias, -2.0)
        self.back = nn.Linear(outcome, outcome, bias=False)
        self.came = nn.Linear(outcome, outcome, bias=False)
        nn.init.zeros_(self.came.weight)

    def initial_state(self, batch_size: int) -> KeptState:
        said = self.back.weight.new_zeros(batch_size, self.back.in_features)
        return KeptState(self.working.initial_state(batch_size), self.kept.initial_state(batch_size), said)

    def step(self, x: Tensor, state: KeptState) -> tuple[Tensor, KeptState, Aux]:
        y, state, aux = self.run(x[:, None], state)
        return y[:, 0], state, Aux(confidence=aux.confidence[:, 0])

    def write(self, item: Tensor, state: KeptState, *, signal: Tensor | None = None) -> KeptState:
        """Take in a token [B, D]."""
        return self.step(item, state)[1]

    def run(self, x: Tensor, state: KeptState) -> tuple[Tensor, KeptState, Aux]:
        answer, working, _ = self.working.run(x, state.working)
        said = self.outcome(answer)
        due = torch.cat([state.said[:, None], said[:, :-1]], 1) + self.came(self.outcome(x))
        recalled, kept, aux = self.kept.run(torch.cat([self.key(x), due], -1), state.kept)
        return self.both(x, said, recalled), KeptState(working, kept, said[:, -1]), aux

    def read(self, query: Tensor, state: KeptState) -> tuple[Tensor, Aux]:
        said = self.outcome(self.working.read(query, state.working)[0])
        recalled, aux = self.kept.read(torch.cat([self.key(query), said], -1), state.kept)
        return self.both(query, said, recalled), aux

    def reset(self, state: KeptState, done: Tensor, *, until: Lifetime = "episode") -> KeptState:
        """The LSTM forgets; what it said last is still to be kept. At the end of life everything goes."""
        if until == "life":
            return where_rows(done, self.initial_state(len(done)), state)
        return state._replace(working=self.working.reset(state.working, done, until=until))

    def key(self, token: Tensor) -> Tensor:
        """Token [..., D] to the key [..., K] its task is kept under."""
        if self.fields is not None and self.fields.cue:
            token = self.fields.split(token)[1]
        key: Tensor = self.to_key(token).softmax(-1)
        return key

    def outcome(self, token: Tensor) -> Tensor:
        return token if self.fields is None else self.fields.split(token)[2]

    def both(self, token: Tensor, said: Tensor, recalled: Tensor) -> Tensor:
        """The answer [..., D] to a token [..., D], from what the LSTM says [..., V] and what S does [..., K + V]."""
        opened = self.gate(torch.cat([token, said], -1)).sigmoid()
        y = said + opened * self.back(recalled[..., -said.shape[-1] :])
        return y if self.fields is None else self.fields.token(y)
