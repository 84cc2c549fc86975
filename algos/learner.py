"""What the trainer asks of a learner."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from envs.fewshot import Episodes


class Outcome(NamedTuple):
    """accuracy [B, P]: share of a task's queries answered right after each of P amounts of adaptation (the last counts).
    gates [P, L]: mean weight of each level of a nested memory, if there is one."""

    accuracy: Tensor
    gates: Tensor | None = None


class Learner(nn.Module):
    """`loss(batch)` gives a scalar to minimise and metrics to log; `evaluate(batch)` an Outcome."""

    point: str  # what the P amounts of adaptation are: "inner step" or "shots"

    def loss(self, batch: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def evaluate(self, batch: Episodes) -> Outcome:
        raise NotImplementedError
