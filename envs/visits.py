"""Streams of visits: a context appears for a few steps, goes away, and perhaps comes back.

A visit shows W classes, each `shots` times, in random order; the label of an image is told after it was asked for. Which
context a visit belongs to is drawn by `schedule`; what a context means is left to `envs.bindings` and `envs.rules`.
A token is (content, cue, outcome): the image's features, a noisy unit vector that names the context, and the label of the
*previous* step (zero at the very first). So any memory can be run on the tokens as they are, and the prediction at step t is
made from tokens 0..t, which hold the labels 0..t-1.
Legend: B rows, V visits, W classes of a visit, T = V * W * shots steps, C classes, E drawings of a class, F features, K labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem import Fields
from nestmem.errors import UserError


class Schedule(NamedTuple):
    """Contexts are numbered by first appearance. gap: visits since the context's last one, 0 at its first. [B, V]"""

    context: Tensor
    gap: Tensor


class Stream(NamedTuple):
    """B rows of T steps and the record of what happened, each [B, T] where not said otherwise."""

    tokens: Tensor  # [B, T, D]
    labels: Tensor  # what is to be predicted at this step, 0..K-1
    visit: Tensor
    context: Tensor
    gap: Tensor  # visits since this context was last here; 0: never before
    classes: Tensor
    drawings: Tensor
    seen: Tensor  # how often this class came earlier in this visit (k)
    met: Tensor  # bool: this class came in an earlier visit, whatever its context

    @property
    def is_new(self) -> Tensor:
        """First visit of the context: bool [B, T]."""
        return self.gap == 0


def schedule(
    rows: int,
    visits: int,
    generator: torch.Generator,
    *,
    first: int = 6,
    returns: float = 0.5,
    gaps: tuple[int, int] = (5, 60),
    contexts: int | None = None,
) -> Schedule:
    """Which context each visit belongs to.

    The first `first` visits are new. After that a visit is, with probability `returns`, a return: to any context, all alike,
    whose gap lies within `gaps`. Where there are only so many `contexts` and all were seen, any but the present one comes back.
    """
    low, high = gaps
    if visits < 1 or first < 1 or not 0 <= returns <= 1 or not 1 <= low <= high:
        raise UserError(
            f"schedule: expected visits and first >= 1, returns in 0..1 and 1 <= gaps[0] <= gaps[1], "
            f"got visits {visits}, first {first}, returns {returns}, gaps {gaps}"
        )
    never = -(visits + high + 1)
    last = torch.full((rows, visits), never)  # when each context was last here
    known = torch.zeros(rows, dtype=torch.long)
    limit = visits if contexts is None else contexts
    context, gap = torch.zeros(rows, visits, dtype=torch.long), torch.zeros(rows, visits, dtype=torch.long)
    for v in range(visits):
        coin = torch.rand(rows, generator=generator)
        score = torch.rand(rows, visits, generator=generator)
        age = v - last
        due = (last >= 0) & (age >= low) & (age <= high)
        back = (coin < returns) & due.any(-1) & (v >= first)
        full = ~back & (known >= limit)
        others = (last >= 0) & ((age > 1) | (known == 1)[:, None])
        allowed = torch.where(full[:, None], others, due)
        chosen = torch.where(back | full, score.masked_fill(~allowed, -1).argmax(-1), known)
        known = known + ~(back | full)
        context[:, v] = chosen
        gap[:, v] = torch.where(back | full, age.gather(1, chosen[:, None])[:, 0], 0)
        last.scatter_(1, chosen[:, None], v)
    return Schedule(context, gap)


class Visits:
    """Base of streams of visits over features [C, E, F]; a subclass says which classes a visit shows and what they are called.

    shots: times each class is shown in a visit. cue_size, cue_noise: width of the cue (0: none), and the standard deviation of
    each of its components from step to step. first, returns, gaps: see `schedule`.
    The generator's state is all that a later `sample` depends on.
    """

    def __init__(
        self,
        features: Tensor,
        *,
        seed: int,
        labels: int,
        ways: int = 5,
        shots: int = 3,
        visits: int = 36,
        first: int = 6,
        returns: float = 0.5,
        gaps: tuple[int, int] = (5, 60),
        cue_size: int = 16,
        cue_noise: float = 0.05,
    ):
        if features.dim() != 3 or not features.is_floating_point():
            raise UserError(f"features: expected float [C, E, F], got {features.dtype} {list(features.shape)}")
        if not 1 <= ways <= features.shape[0] or not 1 <= shots <= features.shape[1]:
            raise UserError(
                f"visits: {ways} classes x {shots} shots asked for, but there are {features.shape[0]} classes "
                f"of {features.shape[1]} drawings"
            )
        self.features, self.ways, self.shots, self.visits = features, ways, shots, visits
        self.first, self.returns, self.gaps = first, returns, gaps
        self.cue_noise = cue_noise
        self.fields = Fields(content=features.shape[-1], cue=cue_size, outcome=labels)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def steps(self) -> int:
        """Steps of one visit."""
        return self.ways * self.shots

    @property
    def chance(self) -> float:
        """Accuracy of a guesser who knows nothing, in 0..1."""
        return 1 / self.fields.outcome

    def sample(self, rows: int) -> Stream:
        """`rows` rows of `visits` visits each; nothing is shared between rows."""
        g, ways, shots = self.generator, self.ways, self.shots
        plan = self._plan(rows)
        members = self._members(plan)  # [B, V, W]
        order = torch.rand(rows, self.visits, self.steps, generator=g).argsort(-1) % ways
        shown = F.one_hot(order, ways).cumsum(2).gather(3, order[..., None])[..., 0] - 1  # k of each step
        picks = torch.rand(rows, self.visits, ways, self.features.shape[1], generator=g).topk(shots).indices
        drawings = picks.flatten(2).gather(2, order * shots + shown).flatten(1)
        classes = members.gather(2, order)
        steps = plan.context.repeat_interleave(self.steps, 1)
        cues = self._cues(steps)
        # Labels are drawn last: tokens but for their outcomes do not depend on them.
        labels = self._labels(plan, members).gather(2, order).flatten(1)
        outcomes = F.pad(F.one_hot(labels, self.fields.outcome)[:, :-1], (0, 0, 1, 0))
        met = self._met(members).gather(2, order)
        device = self.features.device
        content = self.features[classes.flatten(1).to(device), drawings.to(device)]
        tokens = torch.cat([content, cues.to(content), outcomes.to(content)], -1)
        return Stream(
            tokens,
            *(
                record.to(device)
                for record in (
                    labels,
                    torch.arange(self.visits).repeat_interleave(self.steps).expand(rows, -1),
                    steps,
                    plan.gap.repeat_interleave(self.steps, 1),
                    classes.flatten(1),
                    drawings,
                    shown.flatten(1),
                    met.flatten(1),
                )
            ),
        )

    def _plan(self, rows: int) -> Schedule:
        """Which context each visit belongs to."""
        return schedule(rows, self.visits, self.generator, first=self.first, returns=self.returns, gaps=self.gaps)

    def _members(self, plan: Schedule) -> Tensor:
        """The classes of each visit, int64 [B, V, W], distinct within a visit."""
        raise NotImplementedError

    def _labels(self, plan: Schedule, members: Tensor) -> Tensor:
        """Their labels, int64 [B, V, W]."""
        raise NotImplementedError

    def _cues(self, contexts: Tensor) -> Tensor:
        """Unit vectors [B, T, cue_size] near the context's own."""
        width, g = self.fields.cue, self.generator
        own = F.normalize(torch.randn(contexts.shape[0], self.visits, width, generator=g), dim=-1)
        noise = self.cue_noise * torch.randn(*contexts.shape, width, generator=g)
        return F.normalize(own.gather(1, contexts[..., None].expand(-1, -1, width)) + noise, dim=-1)

    def _met(self, members: Tensor) -> Tensor:
        """Where a class came in an earlier visit: bool [B, V, W]."""
        known = torch.zeros(len(members), self.features.shape[0], dtype=torch.bool)
        met = torch.zeros_like(members, dtype=torch.bool)
        for v in range(members.shape[1]):
            met[:, v] = known.gather(1, members[:, v])
            known.scatter_(1, members[:, v], True)
        return met


def distinct(rows: tuple[int, ...], among: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct numbers below `among`, in random order: int64 [*rows, count]."""
    return torch.rand(*rows, among, generator=generator).topk(count).indices
