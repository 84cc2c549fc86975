"""An expandable network: early blocks for all tasks, a last block for each.

After MEMO (Zhou et al. 2023, A model or 603 exemplars): the first blocks of a network differ little between tasks, so only the
last one grows, starting from its predecessor; all of them are read together:
    logits = W [s_1(g(x)), ..., s_t(g(x))]
The early blocks g learn in the first task, s_i in task i; after that they stay. W goes on learning, from the batch and from a
reservoir of images. MEMO's auxiliary head and the rescaling of W are left out; its point that a stored block costs as much as so
many images is kept: `state_bytes` counts both.
Legend: n images, T tasks, F features of a block, C outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.strategies.replay import Replay
from nestmem.errors import UserError
from nestmem.nets import Conv


class Block(nn.Module):
    """One block of an encoder: convolution, norm, ReLU, perhaps pooling."""

    def __init__(self, encoder: Conv, index: int):
        super().__init__()
        self.conv, self.norm, self.pool = encoder.convs[index], encoder.norms[index], encoder.downsample == "pool"

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(x, 2) if self.pool and x.shape[-1] > 1 else x


class Grown(nn.Module):
    """Early blocks, room for T last ones, and a linear layer over all. The last block of task `current` learns."""

    met: Tensor
    current: Tensor

    def __init__(self, encoder: Conv, features: int, outputs: int, tasks: int):
        super().__init__()
        last = len(encoder.convs) - 1
        self.flatten = encoder.flatten
        self.early = nn.Sequential(*(Block(encoder, i) for i in range(last)))
        self.blocks: Any = nn.ModuleList(copy.deepcopy(Block(encoder, last)) for _ in range(tasks))
        self.head = nn.Linear(tasks * features, outputs)
        self.register_buffer("met", torch.zeros(tasks, dtype=torch.bool))
        self.register_buffer("current", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, H, W] to logits [n, C]."""
        shared = self.early(images)
        if int(self.met.sum()) > 1:
            shared = shared.detach()
        said = []
        for task, block in enumerate(self.blocks):
            if self.met[task] or task == self.current:
                own = block(shared) if task == self.current else block(shared).detach()
                said.append(own.flatten(1) if self.flatten else own.mean((2, 3)))
            else:
                said.append(None)
        nothing = torch.zeros_like(next(s for s in said if s is not None))
        logits: Tensor = self.head(torch.cat([nothing if s is None else s for s in said], -1))
        return logits

    def begin(self, task: int) -> None:
        """The block of `task` learns from now on; a new one starts as a copy of the last that learned."""
        if not self.met[task] and self.met.any():
            self.blocks[task].load_state_dict(self.blocks[int(self.current)].state_dict())
        self.met[task] = True
        self.current.fill_(task)


class Expandable(Replay):
    """A last block for each task, and replay. buffer: images kept."""

    told = True
    learner: Grown

    @staticmethod
    def network(encoder: nn.Module, features: int, outputs: int, tasks: int) -> nn.Module:
        if not isinstance(encoder, Conv) or len(encoder.convs) < 2:
            raise UserError("algo.strategy: expandable takes a convolutional encoder of at least two blocks")
        if any(norm.kind in ("running", "batch") for norm in encoder.norms):
            raise UserError("encoder.norm: old blocks stay as they are; expected instance, layer, group, rms or none")
        return Grown(encoder, features, outputs, tasks)

    def begin(self, task: int) -> None:
        self.learner.begin(task)

    @property
    def state_bytes(self) -> int:
        """The kept images, and every block beyond the first with its part of the linear layer."""
        per_block = sum(p.numel() * p.element_size() for p in self.learner.blocks[0].parameters())
        weight = self.learner.head.weight
        per_block += weight.numel() * weight.element_size() // len(self.learner.blocks)
        return super().state_bytes + max(int(self.learner.met.sum()) - 1, 0) * per_block
