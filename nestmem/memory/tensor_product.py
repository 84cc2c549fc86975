"""Tensor-product memory: one linear map over the outer product of key and cue, a few bytes for each thing remembered.

Smolensky 1990 (tensor product variable binding), written by the delta rule (Widrow & Hoff 1960; Schlag et al. 2021):
    phi(k, c) = A k / |A k|  (x)  C c / |C c|;   y = gain phi W;   W += phi^T (outcome - phi W) / (1 + ridge)
As a slow level it does not see the tokens: at each tick it takes over the items of a faster level, all at once. What shares
only the key or only the cue with a query hardly answers it, because the cosines multiply. The ridge stands for the noise of
keys: the larger it is, the less a new item overwrites, and the longer old ones stay.
Legend: B rows, N items, K key, C cue, K' and C' their codes, H = K' C' features, V outcome.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.consolidation import Rule
from nestmem.memory.associative import Associative, Binding, arrived
from nestmem.memory.base import Aux, Consolidation, Fields, Item, MemorySpec, Regression, where_rows
from nestmem.memory.registry import register

LIMIT = 10.0  # largest weight that 8 bits hold, in units of 1 / sqrt(H)
TINY = 1e-8  # of a squared length: what was never written has no direction


class TensorProductState(NamedTuple):
    w: Tensor  # [B, H, V], float or int8
    pending: Tensor  # [B, K + C]


@register("tensor_product")
class TensorProduct(Associative):
    """A slow key-value memory of H x V numbers whose features are fixed within a life and meta-learned across lives.

    key_code: K', by default K; larger than K the code is relu(A k), else A k. ridge: noise of keys, see above. period:
    steps between two ticks, where a nested memory feeds it; alone it writes at every step. bits: 32, or 8 to keep the
    weights in bytes; they are rounded, so no gradient passes through a write then. cosine: an outcome answers with the
    direction of its weights W_v / |W_v|, so one that came more often or later is not louder; with consolidation="hebb"
    that is the mean of the codes for each label.
    """

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        key_code: int = 0,
        ridge: float = 2.0,
        period: int = 16,
        bits: int = 32,
        key_size: int = 0,
        cosine: bool = False,
    ):
        super().__init__()
        if period < 1:
            raise ValueError(f"period: expected at least 1 step, got {period}")
        if bits not in (8, 32):
            raise ValueError(f"bits: expected 8 or 32, got {bits}")
        self.spec = MemorySpec(
            role="slow", lifetime="life", period=period, differentiable_write=bits == 32, parallel=False,
            regression=Regression("uniform", "linear", "sgd"),
        )  # fmt: skip
        self.d_model, self.ridge, self.period, self.bits, self.cosine = d_model, ridge, period, bits, cosine
        self.binding = Binding(d_model, fields, key_size)
        key, cue = self.binding.key_size, self.binding.cue_size
        width = key_code or key
        self.wide = width > key
        self.key_map = nn.Parameter(torch.randn(key, width) if self.wide else torch.eye(key)[:, :width].clone())
        self.cue_map = nn.Parameter(torch.eye(cue)) if cue else None
        self.hidden = width * max(cue, 1)
        self.scale = 127 * self.hidden**0.5 / LIMIT  # quanta per unit of weight
        self.log_gain = nn.Parameter(torch.tensor(2.0))

    def initial_state(self, batch_size: int) -> TensorProductState:
        zeros, bind = self.key_map.new_zeros, self.binding
        w = zeros(batch_size, self.hidden, bind.outcome_size)
        return TensorProductState(self._pack(w), zeros(batch_size, bind.key_size + bind.cue_size))

    def features(self, key: Tensor, cue: Tensor) -> Tensor:
        """phi [B, (N,) H] of keys [B, (N,) K] and cues [B, (N,) C], of unit length (zero for a zero key)."""
        code = key @ self.key_map
        code = F.normalize(code.relu() if self.wide else code, dim=-1)
        if self.cue_map is None:
            return code
        return (code[..., :, None] * F.normalize(cue @ self.cue_map, dim=-1)[..., None, :]).flatten(-2)

    def read(self, query: Tensor, state: TensorProductState) -> tuple[Tensor, Aux]:
        phi = self.features(*self.binding.split(self.binding.address(query)))
        return self._answer(torch.einsum("b...h,bhv->b...v", phi, self._read_weights(state.w)))

    def write(self, item: Item, state: TensorProductState, *, signal: Tensor | None = None) -> TensorProductState:
        w, phi = self._unpack(state.w), self.features(item.key, item.cue)
        error = item.outcome - torch.einsum("bh,bhv->bv", phi, w)
        change = phi[..., :, None] * error[..., None, :] / (1 + self.ridge)
        return state._replace(w=self._pack(w + arrived(item)[:, None, None] * change))

    def run(self, x: Tensor, state: TensorProductState) -> tuple[Tensor, TensorProductState, Aux]:
        """Features depend on no state, so they are made for all steps at once; only the map goes step by step."""
        items = self.items(x, state.pending)
        wanted = arrived(items)[..., None]
        written = self.features(items.key, items.cue)
        addresses = self.binding.address(x)
        asked = self.features(*self.binding.split(addresses))
        w, raws = state.w, []
        # unbind, not an index: the gradient of an index is as long as the sequence, at every step
        steps = zip(*(part.unbind(1) for part in (written, items.outcome, wanted, asked)), strict=True)
        for phi, outcome, arrives, query in steps:
            held = self._unpack(w)
            error = outcome[:, None] - phi[:, None] @ held
            w = self._pack(held + arrives[..., None] * phi[..., None] * error / (1 + self.ridge))
            raws.append((query[:, None] @ self._read_weights(w))[:, 0])
        y, aux = self._answer(torch.stack(raws, 1))
        return y, TensorProductState(w, addresses[:, -1]), aux

    def absorb(self, state: TensorProductState, given: Consolidation, due: Tensor, rule: Rule) -> TensorProductState:
        """Take over the items of a faster level where `due` [B], by one of `nestmem.consolidation.RULES`."""
        if given.items is None or given.valid is None:
            return state
        phi = self.features(given.items.key, given.items.cue)
        w = rule(self._unpack(state.w), phi, given.items.outcome, given.valid, ridge=self.ridge)
        return where_rows(due, state._replace(w=self._pack(w)), state)

    def consolidate(self, state: TensorProductState) -> tuple[TensorProductState, Consolidation]:
        """Offers its weights, which began at zero."""
        return state, Consolidation(deltas={"w": self._unpack(state.w)})

    def _answer(self, raw: Tensor) -> tuple[Tensor, Aux]:
        return self.binding.token(self.log_gain.exp() * raw), Aux(confidence=raw.amax(-1, keepdim=True))

    def _read_weights(self, packed: Tensor) -> Tensor:
        w = self._unpack(packed)
        return w * (w.square().sum(1, keepdim=True) + TINY).rsqrt() if self.cosine else w

    def _pack(self, w: Tensor) -> Tensor:
        return w if self.bits == 32 else (w * self.scale).clamp(-127, 127).round().to(torch.int8)

    def _unpack(self, w: Tensor) -> Tensor:
        return w if self.bits == 32 else w.to(self.key_map.dtype) / self.scale
