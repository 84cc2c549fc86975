"""An encoder that stays as it is, and a memory that learns: nothing shared is overwritten, so nothing is forgotten that way.

    means    a class is the mean of its features, the nearest one wins (Mensink et al. 2013): one vector a class
    memory   any memory of `nestmem` by name: it takes in features and labels as one endless sequence, labels one step late, and is
             asked in between. What it holds is all that changes with the stream: an episodic level keeps single images, a
             slow one takes over what that level holds whenever its clock ticks.
The few weights by which a memory reads (temperature, gate between levels) learn while the stream goes on: each batch is first
asked, then shown. The encoder is random, or comes from another run (`algo.encoder`) on other classes than the stream's.
Legend: n images, C outputs, F features, D token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.checkpoint import below
from algos.problem import Part
from algos.strategies.base import Classifier, Encoding, Strategy, right
from nestmem.memory.base import Aux, Fields, Memory, State, state_bytes, state_from_dict, state_to_dict


class Means(Strategy):
    """Nearest class mean of the encoder's features."""

    learner: Classifier

    def __init__(self, learner: nn.Module, *, strength: float | None = None, buffer: int = 200, seed: int = 0):
        super().__init__(learner.requires_grad_(False), strength=strength, buffer=buffer, seed=seed)
        weight = self.learner.head.weight
        self.kept = {"sum": torch.zeros_like(weight), "count": torch.zeros_like(weight[:, 0])}

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        """Nothing follows a gradient."""
        yield from ()

    @torch.no_grad()
    def stepped(self, images: Tensor, labels: Tensor) -> None:
        self.kept["sum"].index_add_(0, labels, self.learner.encoder(images))
        self.kept["count"].index_add_(0, labels, torch.ones_like(labels, dtype=self.kept["count"].dtype))

    def logits(self, images: Tensor) -> Tensor:
        means = self.kept["sum"] / self.kept["count"].clamp(min=1)[:, None]
        distance = torch.cdist(self.learner.encoder(images), means).square()
        return -distance.masked_fill(self.kept["count"] == 0, math.inf)


class Remembering(Encoding):
    """A frozen encoder and a memory whose tokens are features and label."""

    def __init__(self, encoder: nn.Module, memory: Memory, fields: Fields):
        super().__init__(encoder.requires_grad_(False))
        self.memory, self.fields = memory, fields


class Remember(Strategy):
    """A memory takes in the stream; features are counted from their mean so far, or all would look alike."""

    learner: Remembering

    def __init__(self, learner: nn.Module, *, strength: float | None = None, buffer: int = 200, seed: int = 0):
        super().__init__(learner, strength=strength, buffer=buffer, seed=seed)
        self.fields = self.learner.fields
        self.state: State = self.learner.memory.initial_state(1)
        zeros = next(learner.parameters()).new_zeros
        self.kept = {
            "mean": zeros(self.fields.content),
            "seen": zeros(()),
            "owed": zeros(self.fields.outcome),  # the label of the last image, which arrives with the next one
            "met": zeros(self.fields.outcome, dtype=torch.bool),
        }

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        """Ask for those images whose class has been met."""
        known = self.kept["met"][labels]
        if known.any():
            answer, aux = self.read(images[known])
            metrics = {"accuracy": known.float().mean() * right(answer, labels[known])}
            if aux.gates is not None:
                metrics |= {f"gate/{level}": gate for level, gate in enumerate(aux.gates.detach().mean((0, 1)))}
            yield Part(F.cross_entropy(answer, labels[known]), metrics)

    @torch.no_grad()
    def stepped(self, images: Tensor, labels: Tensor) -> None:
        features, outcomes = self.learner.encoder(images), F.one_hot(labels, self.fields.outcome).float()
        self.kept["seen"] += len(images)
        self.kept["mean"] += (features - self.kept["mean"]).sum(0) / self.kept["seen"]
        arriving = torch.cat([self.kept["owed"][None], outcomes[:-1]])
        tokens = torch.cat([features - self.kept["mean"], arriving], -1)
        _, self.state = self.learner.memory(tokens[None], self.state)
        self.kept["owed"], self.kept["met"] = outcomes[-1], self.kept["met"] | outcomes.any(0)

    def logits(self, images: Tensor) -> Tensor:
        return self.read(images)[0]

    def read(self, images: Tensor) -> tuple[Tensor, Aux]:
        """Log-probabilities [n, C] of the labels, over the classes met."""
        with torch.no_grad():
            features = self.learner.encoder(images) - self.kept["mean"]
        tokens = F.pad(features, (0, self.fields.outcome))
        y, aux = self.learner.memory.read(tokens[None], self.state)
        return self.fields.split(y)[2][0].masked_fill(~self.kept["met"], -1e4), aux

    @property
    def state_bytes(self) -> int:
        return super().state_bytes + state_bytes(self.state)

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {f"state.{name}": t for name, t in state_to_dict(self.state).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict({name: t for name, t in state.items() if not name.startswith("state.")})
        self.state = state_from_dict(below(state, "state."), self.learner.memory.initial_state(1))
