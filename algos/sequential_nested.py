"""A memory of nestmem as a head of the sequential benchmark: tokens are (feature, label of the image before).

Nothing of the memory is trained on the stream but what it writes by itself. What it needs beyond that, which level to
believe and how sharply to answer, is fitted on background classes: streams of these are written as they come, and the
gradient of the answers to their held-out images reaches the parameters of the read alone.
Legend: R trajectories, S steps, M queries, C outputs, F features.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.sequential_omniglot import LEARNED, Trajectories
from nestmem import Episodic, Fields, Memory, NestedMemory, TensorProduct
from nestmem.memory.base import State, map_state, state_bytes

SLOTS = 64
FIT_AT = (0.1, 0.3, 1.0)  # shares of the classes, after which the read is fitted
FIT_STEPS, FIT_QUERIES, FIT_RATE = 60, 100, 0.03


def nested(features: int, outputs: int, *beyond: Memory) -> NestedMemory:
    """The last images in slots, a slow level that takes them over once a class (a direction for each class), and levels beyond."""
    fields = Fields(features, 0, outputs)
    fast = Episodic(fields.width, fields, slots=SLOTS, threshold=0.999)
    slow = TensorProduct(fields.width, fields, period=LEARNED, cosine=True)
    slow.key_map.requires_grad_(False)  # the features are the encoder's
    return NestedMemory([fast, slow, *beyond], fields, consolidation="hebb")


class Remembered:
    """R copies of a memory's state, one for each trajectory."""

    def __init__(self, memory: NestedMemory, trajectories: int):
        self.memory, self.fields = memory, memory.fields or Fields(0)
        self.state: State = memory.initial_state(trajectories)
        self.owed = torch.zeros(trajectories, self.fields.outcome)  # the last label, which comes with the next image
        self.known = torch.zeros(trajectories, self.fields.outcome, dtype=torch.bool)

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> None:
        for x, y in zip(features.split(LEARNED, 1), labels.split(LEARNED, 1), strict=True):
            outcomes = F.one_hot(y, self.fields.outcome).to(x.dtype)
            tokens = torch.cat([x, torch.cat([self.owed[:, None], outcomes[:, :-1]], 1)], -1)
            _, self.state = self.memory(tokens, self.state)
            self.owed, self.known = outcomes[:, -1], self.known | (outcomes > 0).any(1)

    @torch.no_grad()
    def answer(self, queries: Tensor) -> Tensor:
        return self.read(queries).masked_fill(~self.known[:, None], -math.inf)

    def read(self, queries: Tensor) -> Tensor:
        """Log-probabilities [R, M, C] of queries [R, M, F]."""
        y, _ = self.memory.read(F.pad(queries, (0, self.fields.outcome)), self.state)
        return self.fields.split(y)[2]

    @property
    def bytes_per_class(self) -> float:
        return state_bytes(map_state(lambda t: t[:1], self.state)) / max(int(self.known[0].sum()), 1)


class Readable(Protocol):
    """What has a memory whose read can be fitted."""

    memory: NestedMemory

    def learn(self, features: Tensor, labels: Tensor) -> None: ...

    def read(self, queries: Tensor) -> Tensor: ...


def fit_read(head: Readable, table: Tensor, streams: Trajectories, seed: int = 0) -> None:
    """Fit how the levels are read on background streams [R, S], one for each of the head's; table [C, E, F]."""
    generator = torch.Generator().manual_seed(seed)
    shown, labels = streams.learned(table)
    optimizer = torch.optim.Adam([p for p in head.memory.parameters() if p.requires_grad], FIT_RATE)
    done = 0
    for n in (math.ceil(share * streams.classes.shape[1]) for share in FIT_AT):
        head.learn(shown[:, done * LEARNED : n * LEARNED], labels[:, done * LEARNED : n * LEARNED])
        done = n
        asked, wanted = streams.held_out(table, n)
        for _ in range(FIT_STEPS):
            picked = torch.randint(asked.shape[1], (FIT_QUERIES,), generator=generator)
            logits = head.read(asked[:, picked])
            loss = F.cross_entropy(logits.flatten(0, 1), wanted[:, picked].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
