"""Neural memory: a small network in the state that learns at test time, by gradient descent with momentum and forgetting.

Titans (Behrouz et al. 2025), the long-term memory module:
    u_t = -theta_t grad loss(M_base; k_t, v_t)      surprise of the moment, loss = 1/2 ||M(k) - v||^2
    S_t = eta_t S_{t-1} + u_t                        surprise with momentum
    A_t = (1 - alpha_t) A_{t-1} + S_t                forgetting; A is the change of the weights since the meta-learned start
    y_t = M_t(q_t),  M_t = start + A_t;              theta, eta, alpha depend on what is written
M_base are the weights at the last multiple of `chunk` steps. This staleness is what makes the memory fast: within a chunk all
gradients are one batch, and the chunk size is part of the model. Chunk 1 is plain online descent.
Departures from the paper, each for stability or for our contract (docs/decisions.md): outcomes are bound to the key one step
before, in place of a short convolution; forgetting leads back to the meta-learned start, not to zero (a network of zeros
cannot learn); theta = sigmoid(.) (1 - eta) / (chunk * sharpness), where sharpness, the squared norm of the gradient over
that of its error, is 1 for a linear memory. So what one chunk moves an answer by is bounded by its error.
Legend: B rows, T steps, C chunk, L steps of a piece of one chunk, H heads, K key, N hidden and V outcome of one head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.associative import MultiHead, arrived
from nestmem.memory.base import Aux, Fields, Item, MemorySpec, Regression, traced, where_rows
from nestmem.memory.recurrence import decay_between
from nestmem.memory.registry import register

Weights = tuple[Tensor, ...]  # one matrix per layer, [B, H, in, out]
TINY = 1e-12


class NeuralState(NamedTuple):
    change: Weights  # A, each [B, H, in, out]
    base: Weights  # A at the last chunk boundary
    momentum: Weights  # S; empty without momentum
    step: Tensor  # [B] steps since reset
    pending: Tensor  # [B, H K]


class Gates(NamedTuple):
    rate: Tensor  # [B, H, L, 1] theta times the sharpness
    log_keep: Tensor  # [B, H, L, 1] log(1 - alpha)
    log_eta: Tensor  # [B, H, L, 1]
    threshold: Tensor  # [B, H, L, 1] where a loss turns from quadratic to robust


class Gradients(NamedTuple):
    """The gradient of every layer is an outer product per step, inputs[l]^T errors[l], scaled by -rate."""

    inputs: list[Tensor]  # [B, H, L, in]
    errors: list[Tensor]  # [B, H, L, out]
    rate: Tensor  # [B, H, L, 1]


def l2(error: Tensor, threshold: Tensor) -> Tensor:
    """Gradient of 1/2 ||error||^2."""
    return error


def plus(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x + a @ b for [B, H, ., .] in one kernel."""
    return torch.baddbmm(x.flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1)).view_as(x)


def scaled(scale: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """scale [B, H, L, 1] times x [B, H, L, in] @ w [B, H, in, out], where there are fewer numbers to scale."""
    return (scale * x) @ w if w.shape[-2] <= w.shape[-1] else scale * (x @ w)


def plus_outer(w: Tensor, weight: Tensor, i: Tensor, e: Tensor) -> Tensor:
    """w [B, H, in, out] plus the sum over steps of weight [B, H, L, 1] times the outer product of i and e."""
    return plus(w, (weight * i).mT, e) if i.shape[-1] <= e.shape[-1] else plus(w, i.mT, weight * e)


class NeuralMemory(MultiHead):
    """A linear map (depth 1) or a two-layer network (depth 2, SiLU between) that learns while it is used.

    hidden: N, by default twice the key's width. chunk: C. heads: H. The strategies of MIRAS (see miras.py):
    loss(error, threshold) is the gradient of the inner loss; readout(accumulator) makes weights of `start + change` where
    they are not the same thing, and is then renewed at chunk boundaries only.
    """

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        *,
        depth: int = 2,
        hidden: int = 0,
        chunk: int = 8,
        heads: int = 1,
        key_size: int = 0,
        momentum: bool = True,
        loss: Callable[[Tensor, Tensor], Tensor] = l2,
        readout: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(d_model, fields, heads, key_size)
        if depth not in (1, 2):
            raise ValueError(f"depth: expected 1 or 2, got {depth}")
        if chunk < 1:
            raise ValueError(f"chunk: expected at least 1 step, got {chunk}")
        self.spec = MemorySpec(
            role="working",
            lifetime="episode",
            regression=Regression("learned", "linear" if depth == 1 else "mlp", "momentum sgd" if momentum else "sgd"),
        )
        self.chunk, self.momentum, self.loss, self.readout = chunk, momentum, loss, readout
        hidden = hidden or 2 * self.key
        sizes = [self.key, self.outcome] if depth == 1 else [self.key, hidden, self.outcome]
        self.start = nn.ParameterList(
            torch.randn(heads, i, o) * i**-0.5 if depth == 2 else torch.zeros(heads, i, o)
            for i, o in itertools.pairwise(sizes)
        )
        self.to_gates = nn.Linear(self.address_size + self.binding.outcome_size, 4 * heads)
        with torch.no_grad():  # remember by default: 1 - alpha = sigmoid(4) = .98
            self.to_gates.bias.view(4, heads)[1] = 4.0

    def initial_state(self, batch_size: int) -> NeuralState:
        zeros = tuple(w.new_zeros(batch_size, *w.shape) for w in self.start)
        step = torch.zeros(batch_size, dtype=torch.long, device=self.gain.device)
        pending = self.gain.new_zeros(batch_size, self.address_size)
        return NeuralState(zeros, zeros, zeros if self.momentum else (), step, pending)

    def write(self, item: Item, state: NeuralState, *, signal: Tensor | None = None) -> NeuralState:
        key = self.keys(torch.cat([item.key, item.cue], -1)[:, None])
        outcome, gates = self._written(Item(*(part[:, None] for part in item)))
        first, *later = self._weights(state.base)
        found = self._gradients(key, key @ first, outcome, gates, later)
        keep, eta = gates.log_keep.exp(), gates.log_eta.exp()
        momentum = tuple(-(found.rate * i).mT @ e for i, e in zip(found.inputs, found.errors, strict=True))
        if self.momentum:
            momentum = tuple(eta * s + u for s, u in zip(state.momentum, momentum, strict=True))
        change = tuple(keep * a + s for a, s in zip(state.change, momentum, strict=True))
        step = state.step + 1
        base = where_rows(step % self.chunk == 0, change, state.base)
        return state._replace(change=change, base=base, momentum=momentum if self.momentum else (), step=step)

    def read(self, query: Tensor, state: NeuralState) -> tuple[Tensor, Aux]:
        q = self.keys(self.binding.address(query if query.dim() == 3 else query[:, None]))
        y, aux = self.answer(self._network(q, self._weights(state.change if self.readout is None else state.base)))
        return (y, aux) if query.dim() == 3 else (y[:, 0], Aux(confidence=aux.confidence[:, 0]))

    def run(self, x: Tensor, state: NeuralState) -> tuple[Tensor, NeuralState, Aux]:
        """One batch of gradients per chunk; the weights of single steps are never formed."""
        if traced(x) or traced(self.gain) or bool(((state.step - state.step[0]) % self.chunk).any()):
            return super().run(x, state)
        steps, first, outputs = x.shape[1], -int(state.step[0]) % self.chunk, []
        addresses = torch.cat([state.pending[:, None], self.binding.address(x)], 1)
        outcome, gates = self._written(Item(*self.binding.split(addresses[:, :-1]), self.binding.outcome(x)))
        keys = self.keys(addresses)  # a step's query is the key of the next
        known = keys @ self.start[0]  # what the start makes of them
        edges = sorted({0, *range(first, steps, self.chunk), steps})
        sizes = [stop - start for start, stop in itertools.pairwise(edges)]
        sequences = (keys[:, :, 1:], known[:, :, 1:], keys[:, :, :-1], known[:, :, :-1], outcome, *gates)
        # `split`, as the gradient of a slice is as long as the whole sequence
        for q, known_q, key, known_key, value, *now in zip(*(s.split(sizes, 2) for s in sequences), strict=True):
            y, state = self._piece(q, known_q, key, known_key, value, Gates(*now), state)
            outputs.append(y)
        y, aux = self.answer(torch.cat(outputs, 2))
        return y, state._replace(pending=addresses[:, -1]), aux

    def _piece(
        self,
        q: Tensor,
        known_q: Tensor,
        key: Tensor,
        known_key: Tensor,
        outcome: Tensor,
        gates: Gates,
        state: NeuralState,
    ) -> tuple[Tensor, NeuralState]:
        """Steps of one chunk at once. A_t = fade_t A_0 + push_t S_0 + sum_{i<=t} into_ti (outer product of step i)."""
        if self.readout is None:
            seen = plus(known_key, key, state.base[0])
            later = self._weights(state.base, 1)
        else:
            first, *rest = self._weights(state.base)
            seen, later = key @ first, tuple(rest)
        found = self._gradients(key, seen, outcome, gates, later)
        total = gates.log_keep.cumsum(2)
        keep, fade = decay_between(total)[..., 0], total.exp()  # [B, H, L, L], [B, H, L, 1]
        into_momentum = -found.rate.mT.expand_as(keep)  # without momentum, a step acts where it happens
        if self.momentum:
            total = gates.log_eta.cumsum(2)
            linger = total.exp()
            into_momentum, push = decay_between(total)[..., 0] * into_momentum, keep @ linger
            into = keep @ into_momentum
        else:
            into = keep * into_momentum
        held = list(zip(found.inputs, found.errors, strict=True))
        change = tuple(fade[:, :, -1:] * a for a in state.change)
        momentum: Weights = ()
        if self.momentum:
            change = tuple(a + push[:, :, -1:] * s for a, s in zip(change, state.momentum, strict=True))
            momentum = tuple(
                plus_outer(linger[:, :, -1:] * s, into_momentum[:, :, -1:].mT, i, e)
                for s, (i, e) in zip(state.momentum, held, strict=True)
            )
        change = tuple(plus_outer(a, into[:, :, -1:].mT, i, e) for a, (i, e) in zip(change, held, strict=True))
        step = state.step + q.shape[2]
        ended = int(step[0]) % self.chunk == 0
        end = NeuralState(change, change if ended else state.base, momentum, step, state.pending)
        if self.readout is not None:  # reads see the weights of the last boundary
            y = self._network(q, self._weights(state.base))
            if ended:
                y = torch.cat([y[:, :, :-1], self._network(q[:, :, -1:], self._weights(change))], 2)
            return y, end
        y = q
        for layer, (start, (i, e)) in enumerate(zip(self.start, held, strict=True)):
            if layer:
                y = F.silu(y)
            old = (y @ start if layer else known_q) + scaled(fade, y, state.change[layer])
            if self.momentum:
                old = old + scaled(push, y, state.momentum[layer])
            y = plus(old, (y @ i.mT) * into, e)
        return y, end

    def _weights(self, change: Weights, first: int = 0) -> Weights:
        """Those of the layers from `first` on."""
        # A slice of a ParameterList would wrap its tensors anew, and under torch.func lose their gradients.
        whole = tuple(start + a for start, a in zip(list(self.start)[first:], change[first:], strict=True))
        return whole if self.readout is None else tuple(self.readout(a) for a in whole)

    def _network(self, x: Tensor, weights: Weights) -> Tensor:
        """M(x) for x [B, H, L, K]: [B, H, L, V]."""
        for layer, w in enumerate(weights):
            x = (F.silu(x) if layer else x) @ w
        return x

    def _gradients(
        self, key: Tensor, seen: Tensor, outcome: Tensor, gates: Gates, later: Sequence[Tensor]
    ) -> Gradients:
        """Of the inner loss, for every step of a piece, written out layer by layer.

        seen: what the first layer makes of the key [B, H, L, N or V]. later: the weights of the layers after it.
        """
        if not later:
            inputs, error = [key], seen - outcome
            errors = [self.loss(error, gates.threshold)]
        else:
            gate = seen.sigmoid()
            z = seen * gate  # SiLU
            inputs, error = [key, z], z @ later[0] - outcome
            last = self.loss(error, gates.threshold)
            slope = gate + z * (1 - gate)
            errors = [(last @ later[0].mT) * slope, last]
        squared = errors[-1].square().sum(-1, keepdim=True) + TINY
        sharpness = torch.ones_like(squared)
        if later:
            sharpness = inputs[1].square().sum(-1, keepdim=True) + errors[0].square().sum(-1, keepdim=True) / squared
        if self.loss is not l2:  # a loss steeper than a quadratic one would overshoot
            sharpness = sharpness * (squared / (error.square().sum(-1, keepdim=True) + TINY)).clamp(min=1).sqrt()
        return Gradients(inputs, errors, gates.rate / (self.chunk * (sharpness + 1e-6)))

    def _written(self, items: Item) -> tuple[Tensor, Gates]:
        """Outcomes and gates of items [B, T, ...]; nothing is written where nothing arrived, but time passes."""
        address = torch.cat([items.key, items.cue], -1)
        rate, keep, eta, threshold = self.to_gates(torch.cat([address, items.outcome], -1)).chunk(4, -1)
        rate = rate.sigmoid() * arrived(items)[..., None]
        if self.momentum:
            rate = rate * (-eta).sigmoid()
        gates = Gates(*(self.split(g) for g in (rate, F.logsigmoid(keep), F.logsigmoid(eta), F.softplus(threshold))))
        return self.outcomes(items.outcome), gates


@register("titans")
def titans(
    d_model: int,
    fields: Fields | None = None,
    depth: int = 2,
    hidden: int = 0,
    chunk: int = 8,
    heads: int = 1,
    key_size: int = 0,
) -> NeuralMemory:
    """Titans: a small network trained on the fly, with momentum and forgetting."""
    return NeuralMemory(d_model, fields, depth=depth, hidden=hidden, chunk=chunk, heads=heads, key_size=key_size)
