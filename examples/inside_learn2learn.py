"""A memory inside learn2learn's MAML: the inner loop adapts everything, the memory included.

Each task is a short sequence with its own hidden lag; the learner must predict the next value. Run it:

    uv run python examples/inside_learn2learn.py
"""

import learn2learn as l2l
import torch
from torch import nn
from torch.nn import functional as F

from nestmem import LSTM


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        # The loop of matrix products: the fused kernel has no double backward on a GPU.
        self.encode, self.memory, self.head = nn.Linear(1, 16), LSTM(16, kernel="loop"), nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.memory(self.encode(x))[0])


def task(generator):
    """Four waves of one frequency: two to adapt on, two to be tested on; inputs and targets [4, 15, 1]."""
    frequency = 0.3 + torch.rand(1, generator=generator)
    phase = 6.28 * torch.rand(4, 1, generator=generator)
    wave = torch.sin(frequency * torch.arange(16) + phase)[..., None]
    return wave[:, :-1], wave[:, 1:]


def main(steps: int = 40) -> tuple[float, float]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    maml = l2l.algorithms.MAML(Predictor(), lr=0.1)
    optimizer = torch.optim.Adam(maml.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        total = 0.0
        for _ in range(4):
            learner, (x, y) = maml.clone(), task(generator)
            learner.adapt(F.mse_loss(learner(x[:2]), y[:2]))
            total = total + F.mse_loss(learner(x[2:]), y[2:]) / 4
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    print(f"error after one inner step: {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} updates")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
