"""Filtering a stream: predict its next tokens by an encoder, a memory whose state goes on for ever, and a decoder.

Legend: B streams, T steps, D token of the memory, 3 tokens a step of 4 values each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.problem import Metrics
from algos.stream import Piece, StreamLearner
from envs.timescales import VALUES, VARIABLES, Chunk, Process, Timescales
from nestmem.memory.base import Memory, State


class Filter(StreamLearner):
    """Tokens [B, T, 3] through an encoder, a memory and a decoder to logits of the next ones [B, T, 3, 4].

    width: D. hidden: of the encoder, and of the decoder. frozen: encoder and memory stay as they were drawn, only the
    decoder learns; a control for what clocks and random features do by themselves.
    """

    def __init__(self, memory: Memory, hidden: tuple[int, int] = (64, 96), frozen: bool = False):
        super().__init__()
        tokens, width = len(VARIABLES) * VALUES, memory.d_model
        self.encoder = nn.Sequential(nn.Linear(tokens, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], width))
        self.memory = memory
        self.decoder = nn.Sequential(nn.Linear(width, hidden[1]), nn.ReLU(), nn.Linear(hidden[1], tokens))
        if frozen:
            self.encoder.requires_grad_(False)
            self.memory.requires_grad_(False)

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, 3] to what the memory sees [B, T, D]."""
        encoded: Tensor = self.encoder(F.one_hot(tokens, VALUES).flatten(-2).float())
        return encoded

    def decode(self, y: Tensor) -> Tensor:
        """What the memory says [..., D] to logits [..., 3, 4]."""
        logits: Tensor = self.decoder(y).unflatten(-1, (len(VARIABLES), VALUES))
        return logits

    def loss(self, batch: Chunk, state: State) -> tuple[Tensor, State, Metrics]:
        y, state = self.memory(self.encode(batch.tokens), state)
        each = F.cross_entropy(self.decode(y).flatten(0, 2), batch.targets.flatten(), reduction="none")
        nats = each.view(-1, len(VARIABLES)).mean(0)
        return nats.mean(), state, {f"nats/{v}": n.detach() for v, n in zip(VARIABLES, nats, strict=True)}


class Pieces:
    """The endless stream, cut into pieces of T steps. restart: after so many pieces memories begin anew, empty (0: never)."""

    def __init__(self, rows: int, steps: int, restart: int, seed: int, process: Process, device: torch.device):
        self.stream, self.rows, self.steps, self.device = Timescales(rows, seed, process), rows, steps, device
        self.restart, self.count = restart, 0

    def next(self) -> Piece:
        chunk = Chunk(*(part.to(self.device) for part in self.stream.sample(self.steps)))
        fresh = self.restart > 0 and self.count % self.restart == 0
        self.count += 1
        return Piece(chunk, self.rows, fresh)

    def state_dict(self) -> dict[str, Tensor]:
        return self.stream.state_dict() | {"count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.stream.load_state_dict(state)
        self.count = int(state["count"])
