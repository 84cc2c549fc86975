"""Shared rules under drift: labels follow from what a class looks like, by a rule that many more classes share than slots hold.

A context is a rule; each of its visits shows classes drawn afresh, so most are seen once and a store of examples helps only as
far as look-alikes do. With z the class mean in r whitened dimensions and bin_K(.) the K-quantile among all classes:

    linear: label = perm(bin_K(u . z));   xor: label = bin_K(u . z) + bin_K(u' . z) mod K, of which neither part tells anything;
    group:  label = table[group of the class], the group being its alphabet, say.

u, u', perm and the table are drawn anew for every context. Drift: at visit v, u = cos(drift v) p + sin(drift v) q with
orthogonal p, q (u' has its own two, orthogonal to both); in "group" each group's label is drawn again with probability
`drift` per visit. With `returns` = 1, `first` = 1 and `gaps` = (1, n) there is one context, a single rule that only drifts;
otherwise rules are left and come back with their cue.
Legend: B rows, V visits, W ways, C classes, F features, r dimensions of the rule, K labels, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.visits import Schedule, Visits, distinct
from nestmem.errors import UserError

RULES = ("linear", "xor", "group")


def principal(features: Tensor, size: int) -> Tensor:
    """A map [F, r] to the `size` widest directions of the class means of [C, E, F], each scaled to unit spread.

    Made once, on training classes, it is what all rules have in common: the part of the stream that can be meta-learned.
    """
    means = features.double().mean(1)
    if not 1 <= size <= min(means.shape):
        raise UserError(f"rules.size: expected 1..{min(means.shape)}, got {size}")
    _, spread, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    # The sign of a singular vector is anybody's choice; ours makes its largest component positive.
    top = directions[:size]
    top = top * top.gather(1, top.abs().argmax(1, keepdim=True)).sign()
    return (top / (spread[:size, None] / len(means) ** 0.5)).mT.to(features.dtype)


class Rules(Visits):
    """Streams of shared rules over features [C, E, F]; see `Visits` for the other options.

    by: what labels depend on, a map [F, r] as made by `principal`, or for "group" the group of each class, int64 [C].
    drift: radians per visit, or for "group" the probability per visit that a group's label changes.
    """

    def __init__(
        self,
        features: Tensor,
        by: Tensor,
        *,
        seed: int,
        rule: str = "linear",
        labels: int = 2,
        drift: float = 0.0,
        **visits: Any,
    ):
        if rule not in RULES:
            raise UserError(f"rules.rule: expected one of {', '.join(RULES)}, got {rule!r}")
        shape = (features.shape[0],) if rule == "group" else (features.shape[-1], max(by.shape[-1], _directions(rule)))
        if by.shape != shape:
            wanted = f"groups [{shape[0]}]" if rule == "group" else f"a map [{shape[0]}, r >= {_directions(rule)}]"
            raise UserError(f"rules.by: expected {wanted} for rule {rule!r}, got {list(by.shape)}")
        super().__init__(features, seed=seed, labels=labels, **visits)
        self.rule, self.drift = rule, drift
        self.groups = by if rule == "group" else None
        self.means = None if rule == "group" else (features.mean(1) @ by.to(features)).double().cpu()  # z, [C, r]

    def _members(self, plan: Schedule) -> Tensor:
        return distinct((len(plan.context), self.visits), self.features.shape[0], self.ways, self.generator)

    def _labels(self, plan: Schedule, members: Tensor) -> Tensor:
        every = self._group(plan) if self.groups is not None else self._projected(plan)
        return every.gather(2, members)

    def _projected(self, plan: Schedule) -> Tensor:
        """The label of every class at every visit under a linear or xor rule: int64 [B, V, C]."""
        g, labels = self.generator, self.fields.outcome
        rows, visits = plan.context.shape
        angle = self.drift * torch.arange(visits, dtype=torch.float64)[:, None]
        bins = []
        # All directions of a rule are orthogonal, so that neither half of an xor ever says anything about the other.
        count, size = _directions(self.rule), self.means.shape[-1]
        axes = torch.linalg.qr(torch.randn(rows, visits, size, count, generator=g, dtype=torch.float64)).Q.movedim(
            -1, 0
        )
        at = plan.context[..., None].expand(-1, -1, size)
        for p, q in axes.split(2):
            direction = angle.cos() * p.gather(1, at) + angle.sin() * q.gather(1, at)
            rank = (direction @ self.means.mT).argsort(-1).argsort(-1)
            bins.append(rank * labels // self.means.shape[0])
        names = torch.rand(rows, visits, labels, generator=g).argsort(-1)
        if self.rule == "xor":
            return (bins[0] + bins[1]) % labels
        names = names.gather(1, plan.context[..., None].expand(-1, -1, labels))
        return names.gather(2, bins[0])

    def _group(self, plan: Schedule) -> Tensor:
        """The same where the rule is a table over groups."""
        g, labels = self.generator, self.fields.outcome
        rows, visits = plan.context.shape
        count = int(self.groups.max()) + 1
        table = (labels * torch.rand(rows, visits, count, generator=g)).long()
        table = table.gather(1, plan.context[..., None].expand(-1, -1, count))
        # A group's label is shifted by what was drawn at its last change, and by nothing before the first.
        changes = torch.rand(rows, visits, count, generator=g) < self.drift
        shifts = (labels * torch.rand(rows, visits, count, generator=g)).long()
        when = torch.where(changes, torch.arange(visits)[:, None], -1).cummax(1).values
        shift = torch.where(when < 0, 0, shifts.gather(1, when.clamp(min=0)))
        return ((table + shift) % labels)[..., self.groups.cpu()]


def _directions(rule: str) -> int:
    """Orthogonal directions a rule needs, two for each projection so that it can drift."""
    return 4 if rule == "xor" else 2
