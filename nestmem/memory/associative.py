"""What every key-value memory shares: how a token becomes (key, cue, outcome), and when they are bound.

An outcome arrives one step after what it belongs to: a label after its image, a reward after its observation, a value after
its key. So at step t the outcome in token t is bound to the key of token t-1, which waits in the state as `pending`:

    step(x, s):  s = write((s.pending, outcome(x)), s);  y = read(x, s);  s.pending = key(x)

A zero key or a zero outcome binds nothing: it stands for "no content" and "nothing arrived".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.base import Aux, Fields, Item, Memory, check_fields, stack_aux, where_rows


class Binding(nn.Module):
    """Token [..., D] to unit key [..., K], unit cue [..., C] and outcome [..., V]; and an answer back to a token.

    With `fields` the parts are read off the token as it is laid out. Without, they are learned linear maps of the whole
    token with K = `key_size`, C = 0 and V = D.
    """

    def __init__(self, d_model: int, fields: Fields | None, key_size: int = 0):
        super().__init__()
        check_fields(fields, d_model)
        self.fields = fields
        if fields is None:
            self.key_size, self.cue_size, self.outcome_size = key_size or d_model, 0, d_model
            self.to_key = nn.Linear(d_model, self.key_size, bias=False)
            self.to_outcome = nn.Linear(d_model, d_model, bias=False)
            self.to_token = nn.Linear(d_model, d_model, bias=False)
        else:
            self.key_size, self.cue_size, self.outcome_size = fields.content, fields.cue, fields.outcome

    def address(self, token: Tensor) -> Tensor:
        """Key and cue in one vector [..., K + C], each of unit length (or zero where absent)."""
        if self.fields is None:
            return F.normalize(self.to_key(token), dim=-1)
        content, cue, _ = self.fields.split(token)
        return torch.cat([F.normalize(content, dim=-1), F.normalize(cue, dim=-1)], dim=-1)

    def outcome(self, token: Tensor) -> Tensor:
        return self.to_outcome(token) if self.fields is None else self.fields.split(token)[2]

    def split(self, address: Tensor) -> tuple[Tensor, Tensor]:
        """Address [..., K + C] to key [..., K] and cue [..., C]."""
        key, cue = address.split([self.key_size, self.cue_size], dim=-1)
        return key, cue

    def token(self, answer: Tensor) -> Tensor:
        return self.to_token(answer) if self.fields is None else self.fields.token(answer)


class Associative(Memory):
    """Base of key-value memories; a subclass gives `read` and `write` on a state that has a `pending` field."""

    binding: Binding

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any, Aux]:
        state = self.write(Item(*self.binding.split(state.pending), self.binding.outcome(x)), state)
        y, aux = self.read(x, state)
        return y, state._replace(pending=self.binding.address(x)), aux

    def run_writing(self, x: Tensor, state: Any, wanted: Tensor) -> tuple[Tensor, Any, Aux]:
        """`run` that reads at every step, but leaves the memory as it was where `wanted` [B, T] is False."""
        ys, auxes = [], []
        for token, due in zip(x.unbind(1), wanted.unbind(1), strict=True):
            item = Item(*self.binding.split(state.pending), self.binding.outcome(token))
            state = where_rows(due, self.write(item, state), state)
            y, aux = self.read(token, state)
            state = state._replace(pending=self.binding.address(token))
            ys.append(y)
            auxes.append(aux)
        return torch.stack(ys, 1), state, stack_aux(auxes)

    def items(self, x: Tensor, pending: Tensor) -> Item:
        """The T items [B, T, ...] that a sequence [B, T, D] binds, in order."""
        addresses = torch.cat([pending[:, None], self.binding.address(x[:, :-1])], dim=1)
        return Item(*self.binding.split(addresses), self.binding.outcome(x))


class MultiHead(Associative):
    """Base of key-value memories that split the work among heads.

    Every head gets an equal part of the key, and of the outcome unless the token has fields: then every head fits the whole
    outcome and the answers are averaged. Legend: H heads, K key and V outcome of one head.
    """

    def __init__(self, d_model: int, fields: Fields | None, heads: int, key_size: int):
        super().__init__()
        self.d_model = d_model
        self.binding = Binding(d_model, fields, key_size)
        self.split_outcome = fields is None
        self.address_size = self.binding.key_size + self.binding.cue_size
        outcome = self.binding.outcome_size
        for name, width in (("key", self.address_size), ("outcome", outcome if self.split_outcome else 0)):
            if heads < 1 or width % heads:
                raise ValueError(f"heads: expected a divisor of the {name}'s width {width}, got {heads}")
        self.heads, self.key = heads, self.address_size // heads
        self.outcome = outcome // heads if self.split_outcome else outcome
        self.gain = nn.Parameter(torch.ones(()))

    def split(self, x: Tensor) -> Tensor:
        """[B, (T,) H n] to [B, H, (T,) n]."""
        parts: Tensor = x.unflatten(-1, (self.heads, -1))
        return parts.movedim(-2, 1)

    def keys(self, address: Tensor) -> Tensor:
        """Addresses [B, (T,) H K] as one unit key per head: [B, H, (T,) K]."""
        return F.normalize(self.split(address), dim=-1)

    def outcomes(self, outcome: Tensor) -> Tensor:
        """Outcomes [B, (T,) V'] as every head sees them: [B, H, (T,) V]."""
        if self.split_outcome:
            return self.split(outcome)
        return outcome.unsqueeze(1).expand(-1, self.heads, *[-1] * (outcome.dim() - 1))

    def answer(self, y: Tensor) -> tuple[Tensor, Aux]:
        """Answers of the heads [B, H, T, V] as tokens [B, T, D]."""
        joined = y.movedim(1, 2).flatten(2) if self.split_outcome else y.mean(1)
        answer = self.gain * joined
        return self.binding.token(answer), Aux(confidence=answer.amax(-1, keepdim=True))


def arrived(item: Item) -> Tensor:
    """Where an item has both a key and an outcome: bool, the item's leading shape."""
    return (item.key != 0).any(-1) & (item.outcome != 0).any(-1)
