"""Leaky averages: a slow memory of what is weakly but long true, such as a hidden state seen through noise.

Each unit averages a nonlinear feature of the token over its own time (leaky integrators, as in Jaeger et al. 2007):
    m_t = m_{t-1} + (phi(x_t) - m_{t-1}) / tau,   phi(x) = tanh(W x + b)
    y_t = A z_t + c,   z = (m - mu) / sigma
The mean of many numbers varies little around a large constant: sd(m) = sd(phi) / sqrt(2 tau - 1) for white phi. Read as it
is, it gets next to no gradient, and a level that averages over hundreds of steps learns nothing. mu and sigma are buffers
that follow the averages from update to update (`track`); in a sequence they are constants, so rows and steps stay
independent, which the statistics of a batch would not leave them.
Legend: B rows, T steps, Q queries, D token, H units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.memory.base import Aux, Fields, Memory, MemorySpec, State, check_fields
from nestmem.memory.registry import register

CHUNK = 64  # steps averaged by one product of matrices
SMALLEST = 1e-6  # variance


class LeakyState(NamedTuple):
    average: Tensor  # [B, H]


@register("leaky")
class Leaky(Memory):
    """A slow memory: standardised leaky averages of features.

    hidden: H, by default `d_model`. tau: the longest time constant, in steps. spread: time constants lie between
    tau / spread and tau, evenly on a logarithmic scale; with 1 all are tau.
    """

    spec = MemorySpec(role="slow", lifetime="life")

    def __init__(
        self, d_model: int, fields: Fields | None = None, hidden: int = 0, tau: float = 64.0, spread: float = 2.0
    ):
        super().__init__()
        check_fields(fields, d_model)
        if not 1 <= spread <= tau:
            raise ValueError(f"tau, spread: expected tau >= spread >= 1, got {tau} and {spread}")
        self.d_model, self.hidden, self.fields = d_model, hidden or d_model, fields
        self.features = nn.Linear(d_model, self.hidden)
        self.out = nn.Linear(self.hidden, d_model if fields is None else fields.outcome)
        taus = tau * spread ** -torch.linspace(0, 1, self.hidden)
        self.rate: Tensor
        self.centre: Tensor
        self.variance: Tensor
        self.register_buffer("rate", 1 / taus, persistent=False)
        self.register_buffer("centre", torch.zeros(self.hidden))
        self.register_buffer("variance", 1 / (2 * taus - 1))

    def initial_state(self, batch_size: int) -> LeakyState:
        return LeakyState(self.centre.expand(batch_size, -1))

    def step(self, x: Tensor, state: LeakyState) -> tuple[Tensor, LeakyState, Aux]:
        state = self.write(x, state)
        y, aux = self._answer(state.average)
        return y, state, aux

    def write(self, item: Tensor, state: LeakyState, *, signal: Tensor | None = None) -> LeakyState:
        """Take in a token [B, D]."""
        return LeakyState(state.average + self.rate * (self.features(item).tanh() - state.average))

    def read(self, query: Tensor, state: LeakyState) -> tuple[Tensor, Aux]:
        """The averages as they are, whatever is asked."""
        average = state.average if query.dim() == 2 else state.average[:, None].expand(-1, query.shape[1], -1)
        return self._answer(average)

    def run(self, x: Tensor, state: LeakyState) -> tuple[Tensor, LeakyState, Aux]:
        """m_t = (1 - r)^t m_0 + sum_{s <= t} r (1 - r)^(t - s) phi_s: a triangular matrix for each unit."""
        average, pieces = state.average, []
        for phi in self.features(x).tanh().split(CHUNK, 1):
            steps = torch.arange(phi.shape[1], device=x.device)
            decay = (1 - self.rate).log().clamp(min=-99)[:, None]  # tau = 1 forgets at once
            lag = (steps[:, None] - steps).clamp(min=0)
            weights = self.rate[:, None, None] * (decay[..., None] * lag).exp().tril()  # [H, T, T]
            fade = (decay * (steps + 1)).exp().T  # [T, H]
            averages = fade * average[:, None] + torch.einsum("hts,bsh->bth", weights, phi)
            average = averages[:, -1]
            pieces.append(averages)
        y, aux = self._answer(torch.cat(pieces, 1))
        return y, LeakyState(average), aux

    @torch.no_grad()
    def track(self, state: LeakyState, momentum: float = 0.2) -> None:
        """Move centre and variance towards those of the averages in a state, over its rows.

        Once an update, with the state after it: features change while they are learned, and a centre that lags behind by
        a few hundredths is already a standard deviation off. Without it they stay as at first: no mean, white features.
        """
        off = state.average - self.centre
        self.variance = self.variance.lerp(off.square().mean(0), momentum)
        self.centre = self.centre + momentum * off.mean(0)

    def _answer(self, average: Tensor) -> tuple[Tensor, Aux]:
        """The output; the confidence is how far the averages are from where they rest."""
        z = (average - self.centre) / self.variance.clamp(min=SMALLEST).sqrt()
        y = self.out(z)
        confidence = z.square().mean(-1, keepdim=True)
        return y if self.fields is None else self.fields.token(y), Aux(confidence=confidence)


def track(memory: Memory, state: State) -> None:
    """`Leaky.track` of a memory, or of the levels or parts it is made of: call it after every update."""
    if isinstance(memory, Leaky):
        memory.track(state)
    for level, held in zip(getattr(memory, "levels", ()), getattr(state, "levels", ()), strict=True):
        track(level, held)
    # The states of parts come first in what a compound holds.
    for part, held in zip(getattr(memory, "parts", ()), state, strict=False):
        track(part, held)
