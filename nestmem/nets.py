"""Encoders, and normalisations that are exact in a MAML inner loop.

Under `torch.func.vmap`, batch, instance and layer norm with *affine* fast weights give silently wrong second-order
gradients (pytorch/functorch#534; the losses agree, so no loss test sees it). Here every norm is applied without its affine
part, then multiplied and shifted, which is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("batch", "running", "instance", "layer", "group", "rms", "none")


class Norm(nn.Module):
    """Normalise `[B, C, H, W]` or `[B, C]`, then scale and shift per channel.

    "batch" uses the statistics of the batch at hand, in training and in test, so it sees a task's queries together;
    "running" is the usual batch norm whose running statistics serve the test (not for inner loops: they are buffers).
    """

    def __init__(self, kind: str, channels: int):
        super().__init__()
        if kind not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {kind!r}")
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean: Tensor | None
        self.var: Tensor | None
        if kind == "running":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "running":  # the affine part is fused: nobody differentiates twice through running statistics
            return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training)
        match self.kind:
            case "batch":
                x = F.batch_norm(x, None, None, training=True)
            case "instance":
                x = F.instance_norm(x)
            case "layer":
                x = F.layer_norm(x, x.shape[1:])
            case "group":
                x = F.group_norm(x, min(8, x.shape[1]))
            case "rms":
                x = x * x.square().mean(1, keepdim=True).add(1e-5).rsqrt()
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


class Conv(nn.Module):
    """Blocks of 3x3 convolution, norm, ReLU, each halving the image: `[B, 1, 28, 28]` to `[B, features]`.

    channels: one entry per block. downsample: "stride" (Finn et al. 2017) or "pool" (2x2 maximum, Vinyals et al. 2016).
    flatten: keep the last map's positions, else average over them.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 64, 64, 64),
        downsample: str = "stride",
        norm: str = "batch",
        flatten: bool = True,
        size: int = 28,
    ):
        super().__init__()
        if downsample not in ("stride", "pool"):
            raise ValueError(f"downsample: expected stride or pool, got {downsample!r}")
        self.downsample, self.flatten, self.channels_last = downsample, flatten, norm == "running"
        widths = [1, *channels]
        stride = 2 if downsample == "stride" else 1
        # A bias before a norm does nothing but cost.
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=norm == "none") for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(Norm(norm, width) for width in channels)
        for _ in channels:
            size = (size + 1) // 2 if downsample == "stride" else max(size // 2, 1)
        self.features = channels[-1] * (size * size if flatten else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:  # 1.5 times faster on a CPU; under vmap it is not, so not in inner loops
            x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
            if self.downsample == "pool" and x.shape[-1] > 1:
                x = F.max_pool2d(x, 2)
        return x.flatten(1) if self.flatten else x.mean((2, 3))


class MLP(nn.Module):
    """Linear layers with ReLU between them: `[B, widths[0]]` to `[B, widths[-1]]`."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x
