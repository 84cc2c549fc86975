"""The step size of a gradient head, chosen by OML's rule on background classes: no held-out image is looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from algos.sequential import Gradient, shuffled
from envs.sequential_omniglot import Trajectories

RATES = (1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)  # for features of unit length


def best_rate(table: Tensor, streams: Trajectories, make: type[Gradient], epochs: int = 0) -> float:
    """The rate that most often is best by accuracy on the learned images, over the streams; the faster one of equals.

    A step on an image moves its own logits by the rate times its squared length, so `RATES` are divided by the mean of that.
    table [C, E, F]: features of the set that the streams run over. epochs: of the images in random order; 0 is the stream itself.
    """
    rates = torch.tensor(RATES) / table.square().sum(-1).mean()
    images, labels = streams.learned(table)
    wins = torch.zeros(len(RATES))
    for i, (x, y) in enumerate(zip(images.split(1), labels.split(1), strict=True)):
        x, y = x.expand(len(RATES), -1, -1), y.expand(len(RATES), -1)  # all rates side by side
        head = make(len(RATES), len(table), table.shape[-1], rates)
        for shown in shuffled(x, y, epochs, seed=i) if epochs else [(x, y)]:
            head.learn(*shown)
        wins[(head.answer(x).argmax(-1) == y).float().mean(1).argmax()] += 1
    return float(rates[wins.argmax()])
