"""The nested head of the sequential benchmark with a persistent store as its slowest level, one for each trajectory.

A session is ten classes: at its end what the faster levels gathered is written into the store, which the next session reads.
Slots and slow weights stay as they are. The store keeps every image that is not like one it has, so with it the head is
one that could go on after a restart; what it costs in bytes is the size of its file.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from algos.sequential_nested import Remembered, nested
from envs.sequential_omniglot import LEARNED
from nestmem import Fields
from nestmem.store import Store
from nestmem.store.level import StoreLevel

SESSION = 10  # classes between two write-backs
QUERIES = 500  # answered at once


class Stored:
    """R memories with one read: their gates and sharpness are the same parameters, their stores `FOLDER/0.db` and so on
    (default: a temporary folder, gone with the head)."""

    def __init__(self, trajectories: int, outputs: int, features: int, folder: Path | None = None):
        fields = Fields(features, 0, outputs)
        if folder is None:
            self.temporary = tempfile.TemporaryDirectory()
            folder = Path(self.temporary.name)
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{r}.db" for r in range(trajectories)]
        self.stores = [Store(path) for path in self.paths]
        self.levels = [StoreLevel(store, fields.width, fields, period=LEARNED) for store in self.stores]
        self.parts = [Remembered(nested(features, outputs, level), 1) for level in self.levels]
        self.memory = self.parts[0].memory
        self.share(self)

    def share(self, other: Stored) -> None:
        """Read as another head does, whose read was fitted."""
        for part in self.parts:
            for mine, theirs in zip(part.memory.modules(), other.memory.modules(), strict=True):
                for name, parameter in theirs.named_parameters(recurse=False):
                    setattr(mine, name, parameter)

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> None:
        for level, part, x, y in zip(self.levels, self.parts, features, labels, strict=True):
            for images, names in zip(x.split(SESSION * LEARNED), y.split(SESSION * LEARNED), strict=True):
                part.learn(images[None], names[None])
                *faster, gathered = part.state.levels
                gathered, _ = level.write_back(gathered)
                level.look()
                part.state = part.state._replace(levels=(*faster, gathered))

    @torch.no_grad()
    def answer(self, queries: Tensor) -> Tensor:
        known = torch.cat([part.known for part in self.parts])[:, None]
        found = [self.read(some).masked_fill(~known, -math.inf) for some in queries.split(QUERIES, 1)]
        return torch.cat(found, 1)

    def read(self, queries: Tensor) -> Tensor:
        """Log-probabilities [R, M, C] of queries [R, M, F]."""
        return torch.cat([part.read(asked[None]) for part, asked in zip(self.parts, queries, strict=True)])

    @property
    def bytes_per_class(self) -> float:
        part = self.parts[0]
        return part.bytes_per_class + self.paths[0].stat().st_size / max(int(part.known.sum()), 1)

    def close(self) -> None:
        for store in self.stores:
            store.close()
