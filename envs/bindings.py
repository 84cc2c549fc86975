"""Recurring arbitrary bindings: which label a class has depends on the context and on nothing else.

Each row has a pool of classes. A context is W of them with labels of its own, so the same class has another label in another
context; when a context returns, its labels return. Two kinds of labels, with different floors for the first guess of a
class in a visit (k = 0):

    independent: every class draws its label alone; knowing nothing, 1/W is all one can get.
    permutation: the classes of a context share out the labels, so striking out those already used gives more,
        mean over j of 1 / (W - j): 45.7 % for five. Retention must be compared with that, not with chance.
Legend: B rows, V visits, W ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.visits import Schedule, Visits, distinct
from nestmem.errors import UserError

LABELS = ("independent", "permutation")


class Bindings(Visits):
    """Streams of arbitrary bindings over features [C, E, F]; see `Visits` for the other options.

    labels: how a context names its classes. pool: classes that one row draws its contexts from; few enough that they recur
    with conflicting labels.
    """

    def __init__(
        self, features: Tensor, *, seed: int, labels: str = "independent", pool: int = 25, ways: int = 5, **visits: Any
    ):
        if labels not in LABELS:
            raise UserError(f"bindings.labels: expected one of {', '.join(LABELS)}, got {labels!r}")
        if not ways <= pool <= features.shape[0]:
            raise UserError(
                f"bindings.pool: expected from {ways} (ways) to {features.shape[0]} (classes there are), got {pool}"
            )
        super().__init__(features, seed=seed, labels=ways, ways=ways, **visits)
        self.kind, self.pool = labels, pool

    @property
    def elimination(self) -> float:
        """Accuracy at k = 0 of one who strikes out the labels this visit has used, in 0..1."""
        if self.kind == "independent":
            return self.chance
        return sum(1 / (self.ways - used) for used in range(self.ways)) / self.ways

    def _members(self, plan: Schedule) -> Tensor:
        rows = len(plan.context)
        pools = distinct((rows,), self.features.shape[0], self.pool, self.generator)
        contexts = distinct((rows, self.visits), self.pool, self.ways, self.generator)
        classes = pools.gather(1, contexts.flatten(1)).view_as(contexts)
        return _of(classes, plan.context)

    def _labels(self, plan: Schedule, members: Tensor) -> Tensor:
        draws = torch.rand(members.shape, generator=self.generator)
        labels = draws.argsort(-1) if self.kind == "permutation" else (draws * self.ways).long()
        return _of(labels, plan.context)


class Alphabets(Visits):
    """Alphabets one after another, and all of them again: A, B, ..., A, B, ..., each with labels of its own.

    A context is an alphabet, W of its characters and their labels, arbitrary but in conflict with nothing: what is lost was
    pushed out, not contradicted. alphabet: that of each class, int64 [C]; one with fewer than W characters is left out.
    count: alphabets of a row, drawn anew, so each comes back after `count` visits. rounds: how often each is visited.
    """

    def __init__(
        self,
        features: Tensor,
        alphabet: Tensor,
        *,
        seed: int,
        count: int,
        rounds: int = 3,
        ways: int = 5,
        **visits: Any,
    ):
        if alphabet.shape != features.shape[:1]:
            raise UserError(f"alphabets.alphabet: expected [{features.shape[0]}], got {list(alphabet.shape)}")
        groups = [torch.nonzero(alphabet == a)[:, 0] for a in alphabet.unique().tolist()]
        self.groups = [rows for rows in groups if len(rows) >= ways]
        if not 1 <= count <= len(self.groups) or rounds < 1:
            raise UserError(
                f"alphabets: expected rounds >= 1 and count from 1 to {len(self.groups)} (alphabets there are), "
                f"got rounds {rounds}, count {count}"
            )
        super().__init__(features, seed=seed, labels=ways, ways=ways, visits=count * rounds, **visits)
        self.count = count

    def _plan(self, rows: int) -> Schedule:
        visit = torch.arange(self.visits)
        return Schedule(
            *(each.expand(rows, -1).clone() for each in (visit % self.count, self.count * (visit >= self.count)))
        )

    def _members(self, plan: Schedule) -> Tensor:
        rows = len(plan.context)
        chosen = distinct((rows,), len(self.groups), self.count, self.generator)
        picks = [[g[distinct((), len(g), self.ways, self.generator)] for g in self.groups] for _ in range(rows)]
        classes = torch.stack([torch.stack(each) for each in picks])  # [B, all alphabets, W]
        return _of(_of(classes, chosen), plan.context)

    def _labels(self, plan: Schedule, members: Tensor) -> Tensor:
        draws = torch.rand(len(members), self.count, self.ways, generator=self.generator)
        return _of((draws * self.ways).long(), plan.context)


def _of(table: Tensor, context: Tensor) -> Tensor:
    """Rows of a table over contexts [B, contexts, W] for each visit's context [B, V]: [B, V, W]."""
    return table.gather(1, context[..., None].expand(-1, -1, table.shape[-1]))
