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
    deltaproduct       none     delta    Siems et al. 2025: several steps per token with b in (0, 2), so that I - b k k^T may
                                         reflect, and a product of reflections rotate
    mesa               scalar   ridge    von Oswald et al. 2023, 2025
Legend: B rows, T steps, N micro-steps of a token, M micro-steps (T N), C chunk, H heads, K key and V outcome of one head,
G decays of one head (1 or K).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory import kernels
from nestmem.memory.associative import MultiHead, arrived
from nestmem.memory.base import Aux, Fields, Item, Lifetime, MemorySpec, Regression
from nestmem.memory.registry import register

Decay = Literal["none", "fixed", "scalar", "channel"]
Rule = Literal["hebb", "delta", "ridge"]
WEIGHTS = {"none": "uniform", "fixed": "geometric", "scalar": "learned", "channel": "learned"}
SOLVERS = {"hebb": "hebb", "delta": "sgd", "ridge": "exact"}


class MatrixState(NamedTuple):
    s: Tensor  # [B, H, K, V] the map
    p: Tensor  # [B, H, K, K] covariance of the keys (rule "ridge", else [B, H, 0, 0])
    pending: Tensor  # [B, H K]


class Written(NamedTuple):
    """What the heads write, micro-step by micro-step."""

    key: Tensor  # [B, H, M, K]
    outcome: Tensor  # [B, H, M, V]
    rate: Tensor  # [B, H, M, 1]
    log_decay: Tensor  # [B, H, M, G]


class LinearMemory(MultiHead):
    """One member of the family. Keys have unit length in every head, so a rate b in (0, 1) never overshoots.

    heads: H. chunk: tokens `run` solves at once; it changes speed alone. slowest: the largest time constant of fixed decays,
    in steps. micro: N; above 1 the further keys and outcomes of a token are learned maps of its own, and rates reach to 2.
    lifetime: what the map outlives, see `MemorySpec`.
    """

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
        micro: int = 1,
        lifetime: Lifetime = "episode",
    ):
        super().__init__(d_model, fields, heads, key_size)
        if micro < 1 or (micro > 1 and rule != "delta"):
            raise ValueError(f"micro: expected 1, or more with the rule delta, got {micro} with {rule}")
        self.spec = MemorySpec(
            role="working", lifetime=lifetime, regression=Regression(WEIGHTS[decay], "linear", SOLVERS[rule])
        )
        self.decay, self.rule, self.chunk, self.micro = decay, rule, chunk, micro
        key, outcome = self.address_size, self.binding.outcome_size
        self.to_rate = nn.Linear(key + outcome, heads * micro)
        if micro > 1:
            self.more_keys = nn.Linear(key, (micro - 1) * key, bias=False)
            self.more_outcomes = nn.Linear(outcome, (micro - 1) * outcome, bias=False)
        if decay in ("scalar", "channel"):
            self.to_decay = nn.Linear(key + outcome, key if decay == "channel" else heads)
            nn.init.constant_(self.to_decay.bias, 4.0)  # remember by default: sigmoid(4) = .98
        # Time constants of fixed decays are spread over the heads, from `slowest` down (RetNet's multi-scale retention).
        constants = torch.logspace(math.log10(slowest), math.log10(min(4.0, slowest)), heads)
        self.log_fixed: Tensor
        self.register_buffer("log_fixed", -1 / constants)
        if rule == "ridge":
            self.log_ridge = nn.Parameter(torch.zeros(heads))

    def initial_state(self, batch_size: int) -> MatrixState:
        zeros, width = self.gain.new_zeros, self.key if self.rule == "ridge" else 0
        return MatrixState(
            zeros(batch_size, self.heads, self.key, self.outcome),
            zeros(batch_size, self.heads, width, width),
            zeros(batch_size, self.address_size),
        )

    def write(self, item: Item, state: MatrixState, *, signal: Tensor | None = None) -> MatrixState:
        written = self._written(Item(*(part[:, None] for part in item)))
        s, p = state.s, state.p
        for key, outcome, rate, log_decay in zip(*(part.unbind(2) for part in written), strict=True):
            decay = log_decay.exp()[..., None]
            s = decay * s
            if self.rule == "delta":
                outcome = outcome - torch.einsum("bhk,bhkv->bhv", key, s)
            s = s + torch.einsum("bhk,bhv->bhkv", rate * key, outcome)
            if self.rule == "ridge":
                p = decay * p + torch.einsum("bhk,bhl->bhkl", rate * key, key)
        return state._replace(s=s, p=p)

    def read(self, query: Tensor, state: MatrixState) -> tuple[Tensor, Aux]:
        q = self.keys(self.binding.address(query if query.dim() == 3 else query[:, None]))  # [B, H, Q, K]
        if self.rule == "ridge":
            q = self._solve(state.p[:, :, None], q)
        y, aux = self.answer(q @ state.s)
        return (y, aux) if query.dim() == 3 else (y[:, 0], Aux(confidence=aux.confidence[:, 0]))

    def run(self, x: Tensor, state: MatrixState) -> tuple[Tensor, MatrixState, Aux]:
        return self._run(x, state, self.items(x, state.pending), self.binding.address(x[:, -1]))

    def run_writing(self, x: Tensor, state: MatrixState, wanted: Tensor) -> tuple[Tensor, MatrixState, Aux]:
        return self._run(x, state, self.items(x, state.pending), self.binding.address(x[:, -1]), wanted)

    def run_masked(self, x: Tensor, state: MatrixState, mask: Tensor) -> tuple[Tensor, MatrixState, Aux]:
        """A masked step writes at rate 0, fades nothing, and the item it would complete waits for the next step."""
        addresses = torch.cat([state.pending[:, None], self.binding.address(x)], 1)
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)
        last = torch.where(mask, steps, 0).cummax(1).values  # the newest step so far, 0: the pending one
        last = F.pad(last, (1, 0))[..., None].expand(-1, -1, addresses.shape[-1])
        addresses = addresses.gather(1, last)
        item = Item(*self.binding.split(addresses[:, :-1]), self.binding.outcome(x))
        y, state, aux = self._run(x, state, item, addresses[:, -1], mask)
        return y * mask[..., None], state, aux

    def _run(
        self, x: Tensor, state: MatrixState, items: Item, pending: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, MatrixState, Aux]:
        """Chunks of C tokens as one triangular solve and a few matrix products (the WY form for "delta")."""
        written, n = self._written(items, mask), self.micro
        queries = self.keys(self.binding.address(x))
        s, p, outputs = state.s, state.p, []
        if self.rule != "ridge" and n == 1 and kernels.serve(x, self.key):
            out, s = kernels.linear(queries, *written, s, delta=self.rule == "delta")
            y, aux = self.answer(out)
            return y, MatrixState(s, p, pending), aux
        # `split`, as the gradient of a slice is as long as the whole sequence
        pieces = zip(*(part.split(self.chunk * n, 2) for part in written), strict=True)
        for q, piece in zip(queries.split(self.chunk, 2), map(Written._make, pieces), strict=True):
            if self.rule == "ridge":
                total = piece.log_decay.cumsum(2)
                kept, weights = total.exp(), decay_between(total)[..., 0] * piece.rate.mT
                seen = torch.einsum("bhij,bhjk,bhjl->bhikl", weights, piece.key, piece.key)
                q = self._solve(kept[..., None] * p[:, :, None] + seen, q)
                p = kept[:, :, -1:] * p + (weights[:, :, -1:].mT * piece.key).mT @ piece.key
            y, s = linear_chunk(q, piece, s, delta=self.rule == "delta")
            outputs.append(y)
        y, aux = self.answer(torch.cat(outputs, 2))
        return y, MatrixState(s, p, pending), aux

    def _written(self, items: Item, mask: Tensor | None = None) -> Written:
        """Items [B, T, ...]. Rates and decays depend on what is written; nothing is written where nothing arrived, but
        time passes. Where `mask` [B, T] is False neither happens."""
        n = self.micro
        address = torch.cat([items.key, items.cue], -1)
        whole = torch.cat([address, items.outcome], -1)
        rate = (1 if n == 1 else 2) * self.to_rate(whole).sigmoid()
        rate = rate * arrived(items)[..., None]
        if self.decay in ("scalar", "channel"):
            log_decay = F.logsigmoid(self.to_decay(whole))
        else:
            fixed = self.log_fixed if self.decay == "fixed" else torch.zeros_like(self.log_fixed)
            log_decay = fixed.expand(*whole.shape[:-1], -1)
        if mask is not None:
            rate, log_decay = rate * mask[..., None], log_decay * mask[..., None]
        outcome = items.outcome
        if n > 1:  # the micro-steps of a token lie side by side in time; it fades once, before the first
            address = torch.cat([address, self.more_keys(address)], -1).unflatten(-1, (n, -1)).flatten(1, 2)
            outcome = torch.cat([outcome, self.more_outcomes(outcome)], -1).unflatten(-1, (n, -1)).flatten(1, 2)
            rate = rate.unflatten(-1, (n, -1)).flatten(1, 2)
            log_decay = F.pad(log_decay[:, :, None], (0, 0, 0, n - 1)).flatten(1, 2)
        return Written(self.keys(address), self.outcomes(outcome), self.split(rate), self.split(log_decay))

    def _solve(self, p: Tensor, q: Tensor) -> Tensor:
        """(P + r I)^-1 q with P [B, H, (C or 1), K, K] and q [B, H, C, K]."""
        ridge = self.log_ridge.exp()[:, None, None, None] * torch.eye(self.key, dtype=p.dtype, device=p.device)
        lower = torch.linalg.cholesky(p + ridge)
        half = torch.linalg.solve_triangular(lower, q[..., None], upper=False)
        solved: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
        return solved[..., 0]


def linear_chunk(q: Tensor, written: Written, s: Tensor, *, delta: bool) -> tuple[Tensor, Tensor]:
    """Writes and reads of one chunk at once: queries [B, H, T, K] and M = T N writes, from the state s [B, H, K, V].

    Returns answers [B, H, T, V] and the state after. A delta write is found by one triangular solve (the WY form).
    """
    key, outcome, rate, log_decay = written
    n = key.shape[2] // q.shape[2]  # a token reads after the last of its micro-steps
    total = log_decay.cumsum(2)  # [B, H, M, G], all <= 0
    since = decay_between(total)  # between two micro-steps [B, H, M, M, G]
    kept = total.exp()
    change = rate * outcome
    if delta:
        interference = rate * _scores(key, key, since).tril(-1)
        right = change - rate * ((kept * key) @ s)
        change = torch.linalg.solve_triangular(interference, right, upper=False, unitriangular=True)
    y = (kept[:, :, n - 1 :: n] * q) @ s + _scores(q, key, since[:, :, n - 1 :: n]) @ change
    faded = key * (total[:, :, -1:] - total).exp()
    return y, kept[:, :, -1, :, None] * s + faded.mT @ change


def decay_between(total: Tensor) -> Tensor:
    """exp(total_i - total_j) for j <= i, else 0; [B, H, M, G] to [B, H, M, M, G]. From differences, so nothing overflows."""
    steps = total.shape[2]
    later = torch.ones(steps, steps, dtype=torch.bool, device=total.device).triu(1)[..., None]
    return (total[:, :, :, None] - total[:, :, None]).masked_fill(later, -torch.inf).exp()


def _scores(q: Tensor, k: Tensor, since: Tensor) -> Tensor:
    """sum_k q_ik since_ijk k_jk: [B, H, I, J]."""
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


@register("deltaproduct")
def deltaproduct(
    d_model: int, fields: Fields | None = None, heads: int = 1, key_size: int = 0, chunk: int = 32, micro: int = 2
) -> LinearMemory:
    """DeltaProduct: several delta writes per token, so that its state can rotate."""
    return LinearMemory(
        d_model, fields, decay="none", rule="delta", heads=heads, key_size=key_size, chunk=chunk, micro=micro
    )
