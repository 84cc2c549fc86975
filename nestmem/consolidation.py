"""Consolidation, fast to slow: what a slow readout takes over from items that a faster memory holds.

Each rule maps a linear readout over features to a new one; `ridge` says how noisy the features are, in their own squared units:
    rule(weights [B, H, V], features [B, N, H], targets [B, N, V], valid [B, N], ridge=...) -> weights [B, H, V]
Legend: B rows, N items, H features, V outcome.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn


class Rule(Protocol):
    def __call__(
        self, weights: Tensor, features: Tensor, targets: Tensor, valid: Tensor, *, ridge: float = ...
    ) -> Tensor: ...


def replay(
    weights: Tensor, features: Tensor, targets: Tensor, valid: Tensor, *, rate: float = 1.0, ridge: float = 0.05
) -> Tensor:
    """Exact replay: the smallest change of the weights after which every item is answered (a ridge projection).

        W += rate Phi^T (Phi Phi^T + ridge I)^-1 (Y - Phi W)

    It is what replaying the items by gradient descent converges to. For one-shot, conflicting bindings use rate 1.
    """
    phi = features * valid[..., None]
    error = (targets - features @ weights) * valid[..., None]
    gram = phi @ phi.mT + ridge * torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
    change: Tensor = phi.mT @ torch.linalg.solve(gram, error)
    return weights + rate * change


def distill(
    weights: Tensor, features: Tensor, targets: Tensor, valid: Tensor, *, steps: int = 5, ridge: float = 0.0
) -> Tensor:
    """Distillation: gradient steps on the squared error of the items, each at 1 / (the largest eigenvalue of their
    Gram matrix + ridge), a step that cannot diverge however correlated the items are."""
    phi = features * valid[..., None]
    largest = torch.linalg.eigvalsh((phi @ phi.mT).detach())[..., -1].clamp(min=1e-6)[..., None, None] + ridge
    for _ in range(steps):
        weights = weights + phi.mT @ ((targets - phi @ weights) * valid[..., None]) / largest
    return weights


def reptile(
    weights: Tensor,
    features: Tensor,
    targets: Tensor,
    valid: Tensor,
    *,
    steps: int = 50,
    rate: float = 0.3,
    ridge: float = 0.0,
) -> Tensor:
    """Normalised Reptile (Nichol et al. 2018): learn the items with `distill`, then move only part of the way.
    An intermediate rate averages over tasks that share structure; conflicting bindings want `replay`."""
    learned = distill(weights, features, targets, valid, steps=steps, ridge=ridge)
    return weights + rate * (learned - weights)


def hebb(weights: Tensor, features: Tensor, targets: Tensor, valid: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Hebb's rule: W += Phi^T Y. Nothing is corrected, so nothing old is pushed away: for readouts by cosine
    (`TensorProduct(cosine=True)`), where the sum of an outcome's features stands for their mean. `ridge` plays no part."""
    return weights + (features * valid[..., None]).mT @ targets


RULES: dict[str, Rule] = {"replay": replay, "distill": distill, "reptile": reptile, "hebb": hebb}


def average_(parameters: Iterable[tuple[nn.Parameter, Tensor]], rate: float = 0.1) -> None:
    """Across tasks, in place: move each slow parameter by rate times the mean change [B, ...] its fast copies made.

    `rate` is the share of the mean change that is kept: 1 overwrites with the mean of the last tasks, intermediate
    values average over time. The deltas come from `memory.consolidate(state)[1].deltas`.
    """
    with torch.no_grad():
        for parameter, delta in parameters:
            parameter.add_(delta.mean(0), alpha=rate)
