"""The plain slow path of the sequential benchmark: online gradient descent of the whole network, encoder and head.

What Beaulieu et al. 2020 call "pretrain and fine-tune", and from an encoder that never learned, "scratch". Nothing is held
still, so what a class wrote is overwritten by the next ones wherever they share weights: the case that every other method is
there to avoid. Norms use the statistics they came with, as those of one image say nothing.
Legend: R trajectories, S steps, M queries, C outputs, F features, P pixels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
BATCH = 500  # images asked at once


class Network:
    """R copies of an encoder, each under a linear softmax head from zero weights; one step of gradient descent an image.

    encoder: images [M, 1, side, side] to features [M, F]. rates may differ by trajectory. A `Head` of images instead of
    features: what it learns and answers is [R, S, P].
    """

    def __init__(self, encoder: nn.Module, trajectories: int, outputs: int, features: int, rate: float | Tensor):
        self.networks = []
        for _ in range(trajectories):
            head = nn.Linear(features, outputs)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.networks.append(nn.Sequential(copy.deepcopy(encoder), head).eval().requires_grad_())
        self.rates = torch.as_tensor(rate).expand(trajectories).tolist()

    @torch.enable_grad()
    def learn(self, images: Tensor, labels: Tensor) -> None:
        for network, rate, shown, wanted in zip(self.networks, self.rates, images, labels, strict=True):
            weights = list(network.parameters())
            for x, y in zip(square(shown).split(1), wanted.split(1), strict=True):
                moves = torch.autograd.grad(F.cross_entropy(network(x), y), weights)
                with torch.no_grad():
                    torch._foreach_add_(weights, moves, alpha=-rate)

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.cat([network(x) for x in square(asked).split(BATCH)])
                for network, asked in zip(self.networks, images, strict=True)
            ]
        )

    @property
    def bytes_per_class(self) -> float:
        """Of the head alone, as for the other slow heads: there is one encoder, however many classes."""
        return 4 * (self.networks[0][-1].in_features + 1)


def square(pixels: Tensor) -> Tensor:
    """Images [M, 1, side, side] between 0 and 1 of pixels [M, P] of bytes."""
    side = round(pixels.shape[-1] ** 0.5)
    return pixels.view(-1, 1, side, side).float() / 255
