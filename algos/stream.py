"""Learning on a stream that does not end: truncated backpropagation through time with the memory's state carried along.

An update sees the next piece of B streams, starts from the state the last piece ended in, and cuts the graph between the two
(Williams & Peng 1990). What differs between kinds of stream is the source, the learner's loss, and how the two are judged.
Legend: B rows, T steps of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from algos import stored
from algos.checkpoint import below
from algos.problem import Judged, Metrics, Optimize, Part
from nestmem.memory.base import Memory, State, detach, state_from_dict, state_to_dict


class Piece(NamedTuple):
    """What one update sees. batch: whatever the learner's loss understands, B rows. fresh: the streams begin here.
    session: they go on as in a new process; of all memory, what a store as its slowest level gathered is left."""

    batch: Any
    rows: int
    fresh: bool
    session: bool = False


class Source(Protocol):
    def next(self) -> Piece: ...

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream goes on."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class StreamLearner(nn.Module):
    """A memory and what surrounds it."""

    memory: Memory

    def loss(self, batch: Any, state: State) -> tuple[Tensor, State, Metrics]:
        """Loss of a piece, the state after it, metrics."""
        raise NotImplementedError


class StreamProblem:
    """Base of problems on streams; a subclass says how it is judged."""

    measure, counted = "accuracy", "streams"

    def __init__(self, learner: StreamLearner, source: Source, device: torch.device, amp: bool = False):
        self.learner, self.source, self.device, self.amp = learner, source, device, amp
        self.carried: State | None = None

    def update(self, optimize: Optimize) -> dict[str, float]:
        return optimize(self._parts(self.source.next()))

    def _parts(self, piece: Piece) -> Iterator[Part]:
        if piece.fresh or self.carried is None:
            self.carried = self.learner.memory.initial_state(piece.rows)
        elif piece.session:
            self.carried = stored.new_session(self.learner.memory, self.carried, piece.rows)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            loss, state, metrics = self.learner.loss(piece.batch, self.carried)
        self.carried = detach(state)
        yield Part(loss, metrics)

    def validate(self) -> Judged:
        raise NotImplementedError

    def test(self) -> Judged:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"source.{k}": v for k, v in self.source.state_dict().items()}
        if self.carried is not None:
            state |= {f"carried.{k}": v for k, v in state_to_dict(self.carried).items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.source.load_state_dict(below(state, "source."))
        carried = below(state, "carried.")
        self.carried = state_from_dict(carried, self.learner.memory.initial_state(1)) if carried else None
