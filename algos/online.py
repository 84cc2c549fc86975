"""Online gradient descent of a linear softmax layer, followed through its errors instead of its weights.

One image a step:  W_{t+1} = W_t - rate e_t x_t^T,  b_{t+1} = b_t - rate e_t,  e_t = softmax(W_t x_t + b_t) - onehot(y_t)
so that after any number of steps the layer says of an image z
    W_0 z + b_0 - rate sum_t e_t (x_t . z + 1)
which asks for the errors and for inner products of images, and never for a copy of the weights. Gradients of the sum pass
through every step, second order included: this is the inner loop of OML. For long streams the weights are brought up to
date once for a stretch of steps, which reads them that many times less often.
Legend: R trajectories, S steps, M queries, C outputs, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def errors(first: Tensor, x: Tensor, y: Tensor, rate: Tensor | float) -> Tensor:
    """What each of S steps got wrong, [R, S, C].

    first [R, S, C]: logits of the S images before the first step. x [R, S, F]; y int64 [R, S]; rate: one, or [R, 1, 1].
    """
    wanted = F.one_hot(y, first.shape[-1]).to(first.dtype)
    near = rate * (x @ x.mT + 1)  # [R, S, S]
    made: list[Tensor] = []
    for t in range(x.shape[1]):
        logits = first[:, t]
        if made:
            logits = logits - (near[:, t, None, :t] @ torch.stack(made, 1))[:, 0]
        made.append(logits.softmax(-1) - wanted[:, t])
    return torch.stack(made, 1) if made else torch.zeros_like(first)


def afterwards(first: Tensor, queries: Tensor, x: Tensor, made: Tensor, rate: Tensor | float) -> Tensor:
    """Logits [R, M, C] of queries [R, M, F] after the steps on x that made these `errors`; `first` [R, M, C]: before them."""
    return first - rate * ((queries @ x.mT + 1) @ made)
