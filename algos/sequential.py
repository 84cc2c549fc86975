"""Learning hundreds of classes one image at a time, on features that stay as they are: the heads, and how they are asked.

A head sees (feature, label) pairs once, in order, and is then asked for held-out features among all outputs. Episodic path:
    means       a class is the mean of its features; the nearest one wins (Snell et al. 2017)
    gaussian    a class is a Gaussian whose mean and variances have a conjugate prior, fitted on background classes; the
                Student density of the query decides (GeMCL, Banayeeanzade et al. 2021)
    neighbours  everything is kept; the k nearest vote
    nested      a NestedMemory of slots and slow weights, with nothing but the gate fitted (algos/sequential_nested.py)
Slow path, without stored examples or class means:
    gradient    online gradient descent of a linear softmax head, one image a step. From zero weights, and no other common
                start of all outputs would matter: a softmax does not see what is added to every logit
    cosine      the same weights, read by the cosine between feature and weights (Gidaris & Komodakis 2018): how often and
                how lately a class was pushed changes the length of its weights more than their direction
    network     online gradient descent of the encoder too (algos/sequential_network.py)
R trajectories run side by side, so a step is one batched product.
Legend: R trajectories, S steps, M queries, C outputs, F features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from algos.online import errors
from envs.fewshot import ImageSet
from envs.sequential_omniglot import LEARNED, Trajectories
from nestmem.errors import UserError

BLOCK, QUERIES, GROUP = (
    16,
    32,
    8,
)  # outputs, queries and factors at a time where densities are taken: what fits in a cache
STRETCH = 25  # steps between two updates of weights in memory
BATCH = 500  # images encoded at once


class Head(Protocol):
    """What a method does on the stream. `bytes_per_class` counts what is kept for a class of 15 images, in single precision."""

    def learn(self, features: Tensor, labels: Tensor) -> None:
        """A stretch of the stream [R, S, F] with labels [R, S], in order, each image once."""

    def answer(self, queries: Tensor) -> Tensor:
        """Scores of queries [R, M, F]: [R, M, C]; an output that was never learned scores -inf."""

    @property
    def bytes_per_class(self) -> float: ...


class Moments:
    """Count, mean and sum of squared deviations of every class; the state of the first two heads."""

    def __init__(self, trajectories: int, outputs: int, size: int):
        self.count = torch.zeros(trajectories, outputs)
        self.mean = torch.zeros(trajectories, outputs, size)
        self.squares = torch.zeros(trajectories, outputs, size)

    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Chan's update with one block, which equals Welford's with each image in turn."""
        onehot = F.one_hot(labels, self.count.shape[1]).to(features.dtype)  # [R, S, C]
        new = onehot.sum(1)
        mean = torch.where(new[..., None] > 0, onehot.mT @ features / new.clamp(min=1)[..., None], 0.0)
        inside = onehot.mT @ features.square() - new[..., None] * mean.square()
        both = (self.count + new).clamp(min=1)
        apart = mean - self.mean
        self.squares = self.squares + inside + apart.square() * (self.count * new / both)[..., None]
        self.mean = self.mean + apart * (new / both)[..., None]
        self.count = self.count + new


class Means(Moments):
    """Nearest class mean, in Euclidean distance."""

    def answer(self, queries: Tensor) -> Tensor:
        scores = -torch.cdist(queries, self.mean).square()
        return scores.masked_fill(self.count[:, None] == 0, -math.inf)

    @property
    def bytes_per_class(self) -> float:
        return 4 * (self.mean.shape[-1] + 1)


class Prior(NamedTuple):
    """Normal-inverse-gamma of every feature: mean 0 with weight `kappa`, variance from `alpha` and `beta` [F]."""

    kappa: float
    alpha: float
    beta: Tensor


def fit_prior(features: Tensor, kappa: float = 0.01, alpha: float = 10.0) -> Prior:
    """From background classes, features [C, E, F]: the expected variance within a class; the other two are the caller's.

    No feature is taken for more certain than a hundredth of the average one: a unit that is always off has no variance.
    """
    within = features.var(1).mean(0)
    return Prior(kappa, alpha, (alpha - 1) * within.clamp(min=0.01 * float(within.mean())))


class Gaussian(Moments):
    """One Gaussian with diagonal covariance per class, its uncertainty kept: queries are scored by the posterior predictive."""

    def __init__(self, trajectories: int, outputs: int, size: int, prior: Prior):
        super().__init__(trajectories, outputs, size)
        self.prior = prior

    def answer(self, queries: Tensor) -> Tensor:
        kappa = (self.prior.kappa + self.count)[..., None]
        alpha = (self.prior.alpha + self.count / 2)[..., None]
        mean = self.count[..., None] * self.mean / kappa
        shrunk = self.prior.kappa * self.count[..., None] / kappa * self.mean.square()
        beta = self.prior.beta + (self.squares + shrunk) / 2
        scale = beta * (kappa + 1) / (alpha * kappa)  # of the Student density with 2 alpha degrees of freedom
        constant = torch.lgamma(alpha + 0.5) - torch.lgamma(alpha) - 0.5 * torch.log(2 * alpha * math.pi)
        constant = (constant - 0.5 * scale.log()).sum(-1)  # [R, C]
        power = alpha[..., 0] + 0.5
        short = (0, -queries.shape[-1] % GROUP)  # features in which query and mean agree add nothing
        queries, mean, narrow = (F.pad(part, short) for part in (queries, mean, 1 / (2 * alpha * scale)))
        scores = queries.new_full((*queries.shape[:2], self.count.shape[1]), -math.inf)
        for r in range(len(queries)):
            for block in self.count[r].nonzero()[:, 0].split(BLOCK):
                centre, factor = mean[r, block], narrow[r, block]
                for rows in torch.arange(queries.shape[1]).split(QUERIES):
                    far = (queries[r, rows, None] - centre).square_().mul_(factor).add_(1)
                    scores[r, rows[:, None], block] = constant[r, block] - power[r, block] * _log_product(far)
        return scores

    @property
    def bytes_per_class(self) -> float:
        return 4 * (2 * self.mean.shape[-1] + 1)


def _log_product(factors: Tensor) -> Tensor:
    """Sum of logarithms over the last axis: one logarithm for each group of factors, as it costs more than all the rest."""
    factors = factors.unflatten(-1, (GROUP, -1))
    while factors.shape[-2] > 1:
        one, other = factors.chunk(2, -2)
        factors = one * other
    return factors.log().sum((-2, -1))


class Neighbours:
    """All images are kept; the score of a class is its share of the k nearest, ties going to the nearest."""

    def __init__(self, trajectories: int, outputs: int, size: int, k: int = 3):
        self.outputs, self.k = outputs, k
        self.features = torch.zeros(trajectories, 0, size)
        self.labels = torch.zeros(trajectories, 0, dtype=torch.long)

    def learn(self, features: Tensor, labels: Tensor) -> None:
        self.features = torch.cat([self.features, features], 1)
        self.labels = torch.cat([self.labels, labels], 1)

    def answer(self, queries: Tensor) -> Tensor:
        near = torch.cdist(queries, self.features).topk(min(self.k, self.labels.shape[1]), largest=False)
        labels = self.labels[:, None].expand(-1, queries.shape[1], -1).gather(2, near.indices)
        votes = 1 - 1e-3 * torch.arange(labels.shape[-1]).expand_as(labels).to(queries.dtype)
        scores = queries.new_zeros(*labels.shape[:2], self.outputs).scatter_add(2, labels, votes)
        return torch.where(scores > 0, scores, -math.inf)

    @property
    def bytes_per_class(self) -> float:
        return 15 * (4 * self.features.shape[-1] + 8)


class Gradient:
    """A linear softmax head from zero weights, one step of gradient descent an image; rates may differ by trajectory."""

    def __init__(self, trajectories: int, outputs: int, size: int, rate: float | Tensor):
        self.weight = torch.zeros(trajectories, outputs, size)
        self.bias = torch.zeros(trajectories, outputs)
        self.rate = torch.as_tensor(rate).expand(trajectories)[:, None, None]

    def learn(self, features: Tensor, labels: Tensor) -> None:
        for x, y in zip(features.split(STRETCH, 1), labels.split(STRETCH, 1), strict=True):
            steps = self.rate * errors(self.logits(x), x, y, self.rate)
            self.weight.baddbmm_(steps.mT, x, alpha=-1)
            self.bias -= steps.sum(1)

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT + self.bias[:, None]

    def answer(self, queries: Tensor) -> Tensor:
        return self.logits(queries)

    @property
    def bytes_per_class(self) -> float:
        return 4 * (self.weight.shape[-1] + 1)


class Cosine(Gradient):
    """Learns as `Gradient` does; an output answers with the direction of its weights alone."""

    def answer(self, queries: Tensor) -> Tensor:
        return queries @ F.normalize(self.weight, dim=-1).mT


class Record(NamedTuple):
    """Accuracy in percent per trajectory after so many classes, on held-out and on learned images."""

    classes: int
    held_out: Tensor  # [R]
    learned: Tensor  # [R]


def follow(head: Head, table: Tensor, trajectories: Trajectories, points: list[int]) -> Iterator[Record]:
    """Show a head the trajectories class by class, and ask at each of `points` (numbers of classes, rising).

    table [C, E, F]: the features of every image of the set that the trajectories run over.
    """
    if points != sorted(set(points)) or not points:
        raise UserError(f"points: expected rising numbers of classes, got {points}")
    shown, labels = trajectories.learned(table)
    done = 0
    for n in points:
        head.learn(shown[:, done * LEARNED : n * LEARNED], labels[:, done * LEARNED : n * LEARNED])
        done = n
        asked = (trajectories.held_out(table, n), trajectories.relearned(table, n))
        yield Record(n, *(100 * (head.answer(x).argmax(-1) == y).float().mean(1) for x, y in asked))


def shuffled(x: Tensor, y: Tensor, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The stream [R, S, F], [R, S] in random order, one order per epoch: what an i.i.d. oracle learns from."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(x.shape[1], generator=generator)
        yield x[:, order], y[:, order]


@torch.no_grad()
def embed(encoder: torch.nn.Module, data: ImageSet, shifts: int = 0) -> Tensor:
    """Features [C, E, F] of every image, on the CPU: the mean over its shifts by up to so many pixels either way."""
    images, device = data.images.flatten(0, 1)[:, None], next(encoder.parameters()).device
    reach = range(-shifts, shifts + 1)
    features = torch.zeros(())
    for shift in itertools.product(reach, reach):
        seen = images.roll(shift, (2, 3))
        features = features + torch.cat(
            [encoder(part.to(device).float() / 255).float().cpu() for part in seen.split(BATCH)]
        )
    return (features / len(reach) ** 2).unflatten(0, data.images.shape[:2])
