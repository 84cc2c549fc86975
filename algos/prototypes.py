"""Prototypes: a class is the mean of its examples' features, and a query belongs to the nearest one.

Snell et al. 2017:  p(y = n | x) = softmax_n(-s ||f(x) - mean_n||^2)
The plainest memory of all, one vector per class: the baseline for every episodic memory, and the way the embedding of the
sequential benchmark is trained. Two things differ from the paper, and both learn more from the same images: features have
unit length (with a learned scale s), and in training every image of a task is a query, its own class being the mean of the
others (docs/decisions.md has what each is worth).
Legend: B tasks, N ways, K shots, Q queries per class, E = K + Q, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.learner import Learner, Outcome
from envs.fewshot import Episodes


class Prototypes(Learner):
    """An encoder, images [n, 1, H, W] to features [n, F] of unit length, and nothing else that learns but a scale."""

    point = "shots"

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = nn.Sequential(encoder, Unit())
        self.log_scale = nn.Parameter(torch.tensor(math.log(8.0)))

    def loss(self, batch: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        features = torch.cat(self._features(batch), 1).float()  # [B, N E, F]
        labels = torch.cat([batch.support_y, batch.query_y], 1)
        logits = -self.log_scale.exp() * left_out_distances(features, labels)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return loss, {"accuracy": (logits.argmax(-1) == labels).float().mean()}

    @torch.no_grad()
    def evaluate(self, batch: Episodes) -> Outcome:
        """Accuracy after 1, ... K shots of every class; after none there is no prototype, and 1 / N is guessed."""
        support, queries = self._features(batch)
        ways = int(batch.query_y.max()) + 1
        accuracy = [torch.full((len(queries),), 1 / ways, device=queries.device)]
        for shot in range(1, support.shape[1] // ways + 1):
            means = class_means(support[:, : shot * ways], batch.support_y[:, : shot * ways])
            guess = torch.cdist(queries.float(), means.float()).argmin(-1)
            accuracy.append((guess == batch.query_y).float().mean(1))
        return Outcome(torch.stack(accuracy, 1))

    def _features(self, batch: Episodes) -> tuple[Tensor, Tensor]:
        images = torch.cat([batch.support_x, batch.query_x], 1)
        features = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        support, queries = features.split([batch.support_x.shape[1], batch.query_x.shape[1]], 1)
        return support, queries


class Unit(nn.Module):
    """Scales features [n, F] to unit length."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Features [B, n, F] with labels [B, n] in 0..N-1, each class as often as any other: means [B, N, F]."""
    onehot = F.one_hot(labels).to(features.dtype)
    return onehot.mT @ features / onehot.sum(1)[..., None]


def left_out_distances(features: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of each feature [B, n, F] to every class mean, to that of its own class without itself: [B, n, N]."""
    onehot = F.one_hot(labels).to(features.dtype)
    means, each = class_means(features, labels), onehot.sum(1)[:, :1, None]  # each: E, at least 2
    squared = features.square().sum(-1, keepdim=True)
    distances = squared + means.square().sum(-1)[:, None] - 2 * features @ means.mT
    # Without x, the mean of its class lies E / (E - 1) times as far from x.
    return torch.where(onehot.bool(), (each / (each - 1)) ** 2 * distances, distances)
