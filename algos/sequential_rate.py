"""The step size of a gradient head, chosen by OML's rule on background classes: no held-out image is looked at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from algos.sequential import Gradient, Head, shuffled
from envs.sequential_omniglot import Trajectories

RATES = (1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)  # for features of unit length


def best_rate(table: Tensor, streams: Trajectories, make: type[Gradient], epochs: int = 0) -> float:
    """The `winner` of `RATES` for a head on features [C, E, F].

    A step on an image moves its own logits by the rate times its squared length, so they are divided by the mean of that.
    """
    rates = torch.tensor(RATES) / table.square().sum(-1).mean()
    return winner(table, streams, lambda n, tried: make(n, len(table), table.shape[-1], tried), rates, epochs)


def winner(
    table: Tensor, streams: Trajectories, make: Callable[[int, Tensor], Head], rates: Tensor, epochs: int = 0
) -> float:
    """The rate that most often is best by accuracy on the learned images, over the streams; the faster one of equals.

    table [C, E, ...]: what the streams run over. make: so many heads side by side, and their rates. epochs: of the images in
    random order; 0 is the stream itself.
    """
    images, labels = streams.learned(table)
    wins = torch.zeros(len(rates))
    for i, (x, y) in enumerate(zip(images.split(1), labels.split(1), strict=True)):
        x, y = x.expand(len(rates), -1, -1), y.expand(len(rates), -1)  # all rates side by side
        head = make(len(rates), rates)
        for shown in shuffled(x, y, epochs, seed=i) if epochs else [(x, y)]:
            head.learn(*shown)
        wins[(head.answer(x).argmax(-1) == y).float().mean(1).argmax()] += 1
    return float(rates[wins.argmax()])
