"""OML (Javed & White 2019): features on which online gradient descent of the last layer learns without forgetting.

A lesson is a short stream, a few classes one after the other, one image a step. The head's rows of these classes start from
zero and learn it; then the head is asked about new images of them and about images of any class it knew before:
    minimise over encoder and head   CE(head after the stream, new and old images)
with the gradient through every step of the stream (`algos.online`). The encoder does not move within a lesson.
ANML (Beaulieu et al. 2020): a second network looks at the same image and gates the features, sigmoid(g(x)) * f(x).
With an empty stream what is left is ordinary classification, the pretrained encoder they are compared with.

Choices, and what others do: the published code redraws the rows of a lesson's classes at random where ours are zero; all rows
start alike at meta-test, where a common start cannot matter to a softmax. ANML also moves the convolutions within a lesson,
to first order, and only the last layer at meta-test; here the last layer alone moves in both, to second order.
Legend: B lessons, S steps, M images asked for, C outputs, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.online import afterwards, errors
from nestmem.nets import Conv


class Gated(nn.Module):
    """Features [n, F] of images [n, 1, H, W], each multiplied by a gate in 0..1 that another network computes."""

    def __init__(self, encoder: Conv, modulator: Conv):
        super().__init__()
        self.encoder, self.modulator, self.features = encoder, modulator, encoder.features
        self.gate = nn.Linear(modulator.features, encoder.features)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder(x)
        return torch.sigmoid(self.gate(self.modulator(x))) * features


class OML(nn.Module):
    """encoder: images [n, 1, H, W] to features [n, F]. outputs: C. rate: of the inner loop."""

    def __init__(self, encoder: nn.Module, features: int, outputs: int, rate: float):
        super().__init__()
        self.encoder, self.head, self.rate = encoder, nn.Linear(features, outputs), rate

    def loss(self, learn: Tensor, learn_y: Tensor, ask: Tensor, ask_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images [B, S, 1, H, W] learned one by one, then [B, M, 1, H, W] asked for, with labels [B, S] and [B, M]."""
        steps = learn.shape[1]
        images = torch.cat([learn, ask], 1)
        features = self.encoder(images.flatten(0, 1)).to(self.head.weight).unflatten(0, images.shape[:2])
        logits = self.answer(features[:, :steps], learn_y, features[:, steps:])
        loss = F.cross_entropy(logits.flatten(0, 1), ask_y.flatten())
        right = (logits.argmax(-1) == ask_y).float()
        new = (ask_y[..., None] == learn_y[:, None]).any(-1).float()  # what the lesson has just taught
        metrics = {"loss": loss.detach(), "accuracy": right.mean()}
        for name, part in (("new", new), ("old", 1 - new)):
            if part.any():
                metrics[f"accuracy/{name}"] = (right * part).sum() / part.sum()
        return loss, metrics

    def answer(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Logits [B, M, C] of queries [B, M, F] after the stream x [B, S, F], y [B, S]."""
        taught = F.one_hot(y, self.head.out_features).any(1)[:, None]  # [B, 1, C]
        before, asked = (self.head(z).masked_fill(taught, 0.0) for z in (x, queries))
        return afterwards(asked, queries, x, errors(before, x, y, self.rate), self.rate)
