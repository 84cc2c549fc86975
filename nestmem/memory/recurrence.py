"""The recurrence family: one matrix per head, decayed, optionally projected, written like a gradient step.

Test-time regression (Wang et al. 2025): each member fits a linear map from keys to outcomes seen so far and evaluates it at
the query. They differ in how the past is weighted (decay a) and in how the fit is made (rule):
    S <- a S                       a: 1 (none), a constant per head (fixed), a number per step (scalar) or per key channel
    S <- S + b k (v - k^T S)^T     rule "delta", one gradient step of rate b; "hebb" leaves the projection k^T S out
    y  = q^T S
    rule "ridge": y = S^T (P + r I)^-1 q with P <- a P + b k k^T, the exact weighted ridge solution instead of a step
    name               decay    rule     source
    linear_attention   none     hebb     Katharopoulos et al. 2020
    retnet             fixed    hebb     Sun et al. 2023
    mamba2             scalar   hebb     Dao & Gu 2024
    gla                channel  hebb     Yang et al. 2024a
    deltanet           none     delta    Schlag et al. 2021; Yang et al. 2024b
    gated_deltanet     scalar   delta    Yang et al. 2025
    mesa               scalar   ridge    von Oswald et al. 2023, 2025
Legend: B rows, T steps, C chunk, H heads, K key and V outcome of one head, G decays of one head (1 or K).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.associative import Associative, Binding, arrived
from nestmem.memory.base import Aux, Fields, Item, MemorySpec
from nestmem.memory.registry import register

Decay = Literal["none", "fixed", "scalar", "channel"]
Rule = Literal["hebb", "delta", "ridge"]


class MatrixState(NamedTuple):
    s: Tensor  # [B, H, K, V] the map
    p: Tensor  # [B, H, K, K] covariance of the keys (rule "ridge", else [B, H, 0, 0])
    pending: Tensor  # [B, H K]


class Written(NamedTuple):
    """Items as the heads see them: key [B, H, (T,) K], outcome [B, H, (T,) V], rate [B, H, (T,) 1], log decay [..., G]."""

    key: Tensor
    outcome: Tensor
    rate: Tensor
    log_decay: Tensor


class LinearMemory(Associative):
    """One member of the family. Keys have unit length in every head, so a rate b in (0, 1) never overshoots.

    heads: H; the key is split among them, and so is the outcome unless the token has fields (then every head fits the
    whole outcome and the answers are averaged). chunk: steps `run` solves at once; it changes speed alone.
    slowest: the largest time constant of fixed decays, in steps.
    """

    spec = MemorySpec(role="working", lifetime="episode")

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        *,
        decay: Decay,
        rule: Rule,
        heads: int = 1,
        key_size: int = 0,
        chunk: int = 32,
        slowest: float = 256.0,
    ):
        super().__init__()
        self.d_model, self.decay, self.rule, self.chunk = d_model, decay, rule, chunk
        self.binding = Binding(d_model, fields, key_size)
        self.split_outcome = fields is None
        key, outcome = self.binding.key_size + self.binding.cue_size, self.binding.outcome_size
        for name, width in (("key", key), ("outcome", outcome if self.split_outcome else 0)):
            if heads < 1 or width % heads:
                raise ValueError(f"heads: expected a divisor of the {name}'s width {width}, got {heads}")
        self.heads, self.key = heads, key // heads
        self.outcome = outcome // heads if self.split_outcome else outcome
        self.to_rate = nn.Linear(key + outcome, heads)
        if decay in ("scalar", "channel"):
            self.to_decay = nn.Linear(key + outcome, key if decay == "channel" else heads)
            nn.init.constant_(self.to_decay.bias, 4.0)  # remember by default: sigmoid(4) = .98
        # Time constants of fixed decays are spread over the heads, from `slowest` down (RetNet's multi-scale retention).
        constants = torch.logspace(math.log10(slowest), math.log10(min(4.0, slowest)), heads)
        self.log_fixed: Tensor
        self.register_buffer("log_fixed", -1 / constants)
        if rule == "ridge":
            self.log_ridge = nn.Parameter(torch.zeros(heads))
        self.gain = nn.Parameter(torch.ones(()))

    def initial_state(self, batch_size: int) -> MatrixState:
        zeros, width = self.gain.new_zeros, self.key if self.rule == "ridge" else 0
        return MatrixState(
            zeros(batch_size, self.heads, self.key, self.outcome),
            zeros(batch_size, self.heads, width, width),
            zeros(batch_size, self.heads * self.key),
        )

    def write(self, item: Item, state: MatrixState, *, signal: Tensor | None = None) -> MatrixState:
        key, outcome, rate, log_decay = self._written(item)
        decay = log_decay.exp()[..., None]
        s, p = decay * state.s, state.p
        if self.rule == "delta":
            outcome = outcome - torch.einsum("bhk,bhkv->bhv", key, s)
        s = s + torch.einsum("bhk,bhv->bhkv", rate * key, outcome)
        if self.rule == "ridge":
            p = decay * p + torch.einsum("bhk,bhl->bhkl", rate * key, key)
        return state._replace(s=s, p=p)

    def read(self, query: Tensor, state: MatrixState) -> tuple[Tensor, Aux]:
        q = self._heads(self.binding.address(query if query.dim() == 3 else query[:, None]))  # [B, H, Q, K]
        if self.rule == "ridge":
            q = self._solve(state.p[:, :, None], q)
        y, aux = self._answer(q @ state.s)
        return (y, aux) if query.dim() == 3 else (y[:, 0], Aux(confidence=aux.confidence[:, 0]))

    def run(self, x: Tensor, state: MatrixState) -> tuple[Tensor, MatrixState, Aux]:
        """Chunks of C steps as one triangular solve and a few matrix products (the WY form for "delta")."""
        written = self._written(self.items(x, state.pending))
        queries = self._heads(self.binding.address(x))
        s, p, outputs = state.s, state.p, []
        for start in range(0, x.shape[1], self.chunk):
            window = slice(start, start + self.chunk)
            key, outcome, rate, log_decay = (part[:, :, window] for part in written)
            q = queries[:, :, window]
            total = log_decay.cumsum(2)  # [B, H, C, G], all <= 0
            since = _since(total)  # decay between two steps [B, H, C, C, G]
            kept = total.exp()
            if self.rule == "ridge":
                weights = since[..., 0] * rate.mT
                q = self._solve(
                    kept[..., None] * p[:, :, None] + torch.einsum("bhij,bhjk,bhjl->bhikl", weights, key, key), q
                )
            if self.rule == "delta":
                interference = rate * _scores(key, key, since).tril(-1)
                right = rate * (outcome - (kept * key) @ s)
                change = torch.linalg.solve_triangular(interference, right, upper=False, unitriangular=True)
            else:
                change = rate * outcome
            outputs.append((kept * q) @ s + _scores(q, key, since) @ change)
            faded = key * (total[:, :, -1:] - total).exp()
            last = kept[:, :, -1, :, None]
            s = last * s + faded.mT @ change
            if self.rule == "ridge":
                p = last * p + (rate * faded).mT @ key
        y, aux = self._answer(torch.cat(outputs, 2))
        return y, MatrixState(s, p, self.binding.address(x[:, -1])), aux

    def _written(self, item: Item) -> Written:
        """Rates and decays depend on what is written; nothing is written where nothing arrived, but time passes."""
        address = torch.cat([item.key, item.cue], -1)
        whole = torch.cat([address, item.outcome], -1)
        rate = self.to_rate(whole).sigmoid() * arrived(item)[..., None]
        if self.decay in ("scalar", "channel"):
            log_decay = F.logsigmoid(self.to_decay(whole))
        else:
            fixed = self.log_fixed if self.decay == "fixed" else torch.zeros_like(self.log_fixed)
            log_decay = fixed.expand_as(rate)
        outcome = (
            self._split(item.outcome)
            if self.split_outcome
            else item.outcome.unsqueeze(1).expand(-1, self.heads, *[-1] * (item.outcome.dim() - 1))
        )
        return Written(self._heads(address), outcome, self._split(rate), self._split(log_decay))

    def _heads(self, address: Tensor) -> Tensor:
        return F.normalize(self._split(address), dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """[B, (T,) H n] to [B, H, (T,) n]."""
        parts: Tensor = x.unflatten(-1, (self.heads, -1))
        return parts.movedim(-2, 1)

    def _solve(self, p: Tensor, q: Tensor) -> Tensor:
        """(P + r I)^-1 q with P [B, H, (C or 1), K, K] and q [B, H, C, K]."""
        ridge = self.log_ridge.exp()[:, None, None, None] * torch.eye(self.key, dtype=p.dtype, device=p.device)
        solved: Tensor = torch.linalg.solve(p + ridge, q[..., None])
        return solved[..., 0]

    def _answer(self, y: Tensor) -> tuple[Tensor, Aux]:
        """Answers of the heads [B, H, T, V] as tokens [B, T, D]."""
        joined = y.movedim(1, 2).flatten(2) if self.split_outcome else y.mean(1)
        answer = self.gain * joined
        return self.binding.token(answer), Aux(confidence=answer.amax(-1, keepdim=True))


def _since(total: Tensor) -> Tensor:
    """exp(total_i - total_j) for j <= i, else 0; [B, H, C, G] to [B, H, C, C, G]. From differences, so nothing overflows."""
    steps = total.shape[2]
    later = torch.ones(steps, steps, dtype=torch.bool, device=total.device).triu(1)[..., None]
    return (total[:, :, :, None] - total[:, :, None]).masked_fill(later, -torch.inf).exp()


def _scores(q: Tensor, k: Tensor, since: Tensor) -> Tensor:
    """sum_k q_ik since_ijk k_jk: [B, H, C, C]."""
    if since.shape[-1] == 1:
        return q @ k.mT * since[..., 0]
    return torch.einsum("bhik,bhjk,bhijk->bhij", q, k, since)


def _member(name: str, decay: Decay, rule: Rule, what: str) -> None:
    def build(
        d_model: int, fields: Fields | None = None, heads: int = 1, key_size: int = 0, chunk: int = 32
    ) -> LinearMemory:
        return LinearMemory(d_model, fields, decay=decay, rule=rule, heads=heads, key_size=key_size, chunk=chunk)

    build.__doc__ = what
    register(name)(build)


_member("linear_attention", "none", "hebb", "Linear attention: sums of outer products, nothing is forgotten.")
_member("retnet", "fixed", "hebb", "RetNet: sums of outer products that fade at a constant rate per head.")
_member("mamba2", "scalar", "hebb", "Mamba-2 style: one learned decay per head and step.")
_member("gla", "channel", "hebb", "Gated linear attention: one learned decay per key channel and step.")
_member("deltanet", "none", "delta", "DeltaNet: a repeated key overwrites what it held.")
_member("gated_deltanet", "scalar", "delta", "Gated DeltaNet: overwrites and fades.")
_member("mesa", "scalar", "ridge", "Mesa layer: the exact ridge fit of everything seen, faded.")
