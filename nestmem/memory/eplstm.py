"""Episodic LSTM: when a context comes back, so does the cell that was held when it was last seen.

Ritter et al. 2018, "Been there, done that: meta-learning with episodic recall" (epLSTM), with the kernel of Pritzel et al. 2017:
    w_s = k_s / sum_s k_s,  k_s = 1 / (|q - key_s|^2 + delta);  m = sum_s w_s cell_s
    i, f, g, o, r = split(W_ih x + W_hh h + b)
    c' = sigmoid(i) tanh(g) + sigmoid(f) c + sigmoid(r) tanh(m);  h' = sigmoid(o) tanh(c')
A pair (context key q of the last step, cell c) is stored when an episode ends, so the dictionary is constant within one. A key
that is held already (distance^2 below delta) is overwritten, or else a revisit would average the old cell with the new one;
the paper leaves this open. Both parts are stored without their graph: there is no backpropagation across episodes.
Legend: B rows, T steps, Q queries, D token, H hidden, S slots, K context key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.base import Aux, Fields, Lifetime, Memory, MemorySpec, check_fields, where_rows
from nestmem.memory.registry import register


class EpLSTMState(NamedTuple):
    h: Tensor  # [B, H]
    c: Tensor  # [B, H]
    context: Tensor  # [B, K] key of the last step
    step: Tensor  # [B] steps since the episode began
    keys: Tensor  # [B, S, K]
    cells: Tensor  # [B, S, H]
    stored: Tensor  # [B] pairs that took a new slot so far


@register("eplstm")
class EpLSTM(Memory):
    """An LSTM with a dictionary from contexts to cells: known situations go on where they ended.

    The dictionary is written by `reset`, where an episode or a task ends; only `reset(until="life")` empties it.
    The context is the cue of a token with fields, otherwise (or without a cue) a learned linear map of the token.
    hidden: H, by default `d_model`. slots: S; the oldest goes. key_size: K where it is learned (0: `d_model`).
    delta: width of the kernel, for unit keys.
    """

    spec = MemorySpec(role="episodic", lifetime="life", differentiable_write=False)

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        hidden: int = 0,
        slots: int = 16,
        key_size: int = 0,
        delta: float = 1e-3,
    ):
        super().__init__()
        check_fields(fields, d_model)
        if slots < 1:
            raise ValueError(f"slots: expected at least 1, got {slots}")
        if delta <= 0:
            raise ValueError(f"delta: expected more than 0, got {delta}")
        self.d_model, self.hidden, self.slots, self.delta = d_model, hidden or d_model, slots, delta
        self.fields = fields
        self.cued = fields is not None and fields.cue > 0
        self.key_size = fields.cue if fields is not None and self.cued else key_size or d_model
        if not self.cued:
            self.to_context = nn.Linear(d_model, self.key_size, bias=False)
        bound = self.hidden**-0.5  # the ranges of nn.LSTM
        self.w_ih = nn.Parameter(torch.empty(5 * self.hidden, d_model).uniform_(-bound, bound))
        self.w_hh = nn.Parameter(torch.empty(5 * self.hidden, self.hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(5 * self.hidden))
        with torch.no_grad():  # remember by default, reinstate with caution
            self.bias[self.hidden : 2 * self.hidden] = 1.0
            self.bias[4 * self.hidden :] = -1.0
        width = d_model if fields is None else fields.outcome
        self.out = nn.Linear(self.hidden, width) if self.hidden != width else nn.Identity()

    def initial_state(self, batch_size: int) -> EpLSTMState:
        zeros = self.w_hh.new_zeros
        none = zeros(batch_size, dtype=torch.long)
        return EpLSTMState(
            zeros(batch_size, self.hidden),
            zeros(batch_size, self.hidden),
            zeros(batch_size, self.key_size),
            none,
            zeros(batch_size, self.slots, self.key_size),
            zeros(batch_size, self.slots, self.hidden),
            none,
        )

    def step(self, x: Tensor, state: EpLSTMState) -> tuple[Tensor, EpLSTMState, Aux]:
        context = self.context(x)
        recalled, aux = self._recall(context, state)
        h, c = self._cell(x @ self.w_ih.T + self.bias, state.h, state.c, recalled)
        return self._token(h), state._replace(h=h, c=c, context=context, step=state.step + 1), aux

    def write(self, item: Tensor, state: EpLSTMState, *, signal: Tensor | None = None) -> EpLSTMState:
        """Take in a token [B, D]. Nothing is stored before the episode ends."""
        return self.step(item, state)[1]

    def read(self, query: Tensor, state: EpLSTMState) -> tuple[Tensor, Aux]:
        h, c = state.h, state.c
        if query.dim() == 3:
            h, c = h[:, None].expand(-1, query.shape[1], -1), c[:, None].expand(-1, query.shape[1], -1)
        recalled, aux = self._recall(self.context(query), state)
        return self._token(self._cell(query @ self.w_ih.T + self.bias, h, c, recalled)[0]), aux

    def run(self, x: Tensor, state: EpLSTMState) -> tuple[Tensor, EpLSTMState, Aux]:
        """The dictionary is constant, so what every step recalls is known beforehand; only the cell is a loop."""
        context = self.context(x)
        recalled, aux = self._recall(context, state)
        driven = x @ self.w_ih.T + self.bias
        h, c, hs = state.h, state.c, []
        for now, then in zip(driven.unbind(1), recalled.unbind(1), strict=True):
            h, c = self._cell(now, h, c, then)
            hs.append(h)
        end = state._replace(h=h, c=c, context=context[:, -1], step=state.step + x.shape[1])
        return self._token(torch.stack(hs, 1)), end, aux

    def reset(self, state: EpLSTMState, done: Tensor, *, until: Lifetime = "episode") -> EpLSTMState:
        """Where `done`, store what the episode ended with and clear h and c; at the end of life, clear everything."""
        state = super().reset(state, done, until=until)
        return state if until == "life" else where_rows(done & (state.step > 0), self._end(state), state)

    def context(self, token: Tensor) -> Tensor:
        """Token [..., D] to the unit key of its context [..., K]."""
        if self.fields is not None and self.cued:
            return F.normalize(self.fields.split(token)[1], dim=-1)
        return F.normalize(self.to_context(token), dim=-1)

    def _end(self, state: EpLSTMState) -> EpLSTMState:
        """The episode's last cell under its last context, in the slot of that context or else the oldest one."""
        slots = torch.arange(self.slots, device=state.h.device)
        distance = self._distance(state.context, state).detach()
        known = distance.amin(-1) < self.delta
        slot = torch.where(known, distance.argmin(-1), state.stored % self.slots)
        place = (slots == slot[:, None])[..., None]
        zeros = torch.zeros_like(state.h)
        return EpLSTMState(
            zeros,
            zeros,
            torch.zeros_like(state.context),
            torch.zeros_like(state.step),
            torch.where(place, state.context.detach()[:, None], state.keys),
            torch.where(place, state.c.detach()[:, None], state.cells),
            state.stored + ~known,
        )

    def _recall(self, context: Tensor, state: EpLSTMState) -> tuple[Tensor, Aux]:
        """The cell of a context [B, (Q,) K]: [B, (Q,) H]; zero, without confidence, where nothing is stored."""
        kernel = 1 / (self._distance(context, state) + self.delta)
        weights = kernel / kernel.sum(-1, keepdim=True).clamp_min(torch.finfo(kernel.dtype).tiny)
        confidence = self.delta * kernel.amax(-1, keepdim=True)
        return torch.einsum("b...s,bsh->b...h", weights, state.cells), Aux(confidence=confidence, weights=weights)

    def _distance(self, context: Tensor, state: EpLSTMState) -> Tensor:
        """Squared, from a context [B, (Q,) K] to each slot [B, (Q,) S]; infinite where a slot is empty."""
        held = torch.arange(self.slots, device=context.device) < state.stored[:, None]
        keys = state.keys
        if context.dim() == 3:
            held, keys = held[:, None], keys[:, None]
        return (context[..., None, :] - keys).square().sum(-1).masked_fill(~held, torch.inf)

    def _cell(self, driven: Tensor, h: Tensor, c: Tensor, recalled: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o, r = (driven + h @ self.w_hh.T).chunk(5, dim=-1)
        c = i.sigmoid() * g.tanh() + f.sigmoid() * c + r.sigmoid() * recalled.tanh()
        return o.sigmoid() * c.tanh(), c

    def _token(self, h: Tensor) -> Tensor:
        y: Tensor = self.out(h)
        return y if self.fields is None else self.fields.token(y)
