"""Prototypes: a class is the mean of its examples' features, and a query belongs to the nearest one.

Snell et al. 2017:  p(y = n | x) = softmax_n(-||f(x) - mean_n||^2 / F)
The plainest memory of all, one vector per class: the baseline for every episodic memory, and the way the embedding of the
sequential benchmark is trained. Division by F keeps the first loss near that of guessing whatever the encoder's width.
Legend: B tasks, N ways, K shots, Q queries per class, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.learner import Learner, Outcome
from envs.fewshot import Episodes


class Prototypes(Learner):
    """An encoder, images [n, 1, H, W] to features [n, F], and nothing else that learns but a temperature."""

    point = "shots"

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.log_scale = nn.Parameter(torch.zeros(()))

    def loss(self, batch: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        support, queries = self._features(batch)
        logits = self._logits(queries, class_means(support, batch.support_y))
        loss = F.cross_entropy(logits.flatten(0, 1), batch.query_y.flatten())
        right = (logits.argmax(-1) == batch.query_y).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": right}

    @torch.no_grad()
    def evaluate(self, batch: Episodes) -> Outcome:
        """Accuracy after 1, ... K shots of every class; after none there is no prototype, and 1 / N is guessed."""
        support, queries = self._features(batch)
        ways = int(batch.query_y.max()) + 1
        accuracy = [torch.full((len(queries),), 1 / ways, device=queries.device)]
        for shot in range(1, support.shape[1] // ways + 1):
            means = class_means(support[:, : shot * ways], batch.support_y[:, : shot * ways])
            accuracy.append((self._logits(queries, means).argmax(-1) == batch.query_y).float().mean(1))
        return Outcome(torch.stack(accuracy, 1))

    def _features(self, batch: Episodes) -> tuple[Tensor, Tensor]:
        images = torch.cat([batch.support_x, batch.query_x], 1)
        features = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        support, queries = features.split([batch.support_x.shape[1], batch.query_x.shape[1]], 1)
        return support, queries

    def _logits(self, queries: Tensor, means: Tensor) -> Tensor:
        """Queries [B, M, F] against means [B, N, F]: [B, M, N]."""
        distance = torch.cdist(queries.float(), means.float()).square()
        return -self.log_scale.exp() * distance / queries.shape[-1]


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Features [B, n, F] with labels [B, n] in 0..N-1, each class as often as any other: means [B, N, F]."""
    onehot = F.one_hot(labels).to(features.dtype)
    return onehot.mT @ features / onehot.sum(1)[..., None]
