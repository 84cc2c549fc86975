"""Glyphs: made-up alphabets drawn by made-up hands, for when nothing may be downloaded.

An alphabet has a style (how many strokes, how curved, how wide, which slant); a character is a few quadratic strokes in that
style; a drawer bends every stroke and shifts, turns and scales the whole. Like Omniglot's, new alphabets are new styles.
Legend: C characters, E drawings, S strokes, P points along a stroke.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.fewshot import ImageSet

SIZE = 28
DRAWINGS = 20
STROKES = 4
POINTS = 40


def make(alphabets: int, characters: int, seed: int, jitter: float = 0.07) -> ImageSet:
    """uint8 [alphabets * characters, 20, 28, 28] of white ink on black; the same seed makes the same glyphs.

    jitter: standard deviation of a control point between drawings, in units of the character's size.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=g)

    a, c = alphabets, characters
    # Style of an alphabet: mean number of strokes, curvature, aspect, slant, pen.
    strokes, curve = uniform(a, 1, low=1.5, high=3.5), uniform(a, 1, low=0.1, high=0.9)
    aspect, slant, pen = uniform(a, low=0.7, high=1.3), uniform(a, low=-0.3, high=0.3), uniform(a, low=0.6, high=0.9)

    anchors = uniform(a, 6, 2, low=-1, high=1)  # corners that an alphabet's strokes like to share
    pick = torch.randint(6, (a, c, STROKES, 2), generator=g)
    ends = anchors[torch.arange(a)[:, None, None, None], pick] + 0.25 * torch.randn(a, c, STROKES, 2, 2, generator=g)
    middle = ends.mean(3) + curve[:, :, None, None] * torch.randn(a, c, STROKES, 2, generator=g)
    control = torch.stack([ends[:, :, :, 0], middle, ends[:, :, :, 1]], 3)  # [a, c, S, 3, 2]
    count = (strokes + torch.randn(a, c, generator=g)).round().clamp(1, STROKES)
    used = torch.arange(STROKES) < count[..., None]  # [a, c, S]

    shear = torch.stack([torch.stack([aspect, slant], -1), torch.stack([torch.zeros(a), 1 / aspect], -1)], -2)
    control = control @ shear.mT[:, None, None]
    inked = used[..., None, None]
    middle = (control * inked).sum((2, 3), keepdim=True) / (3 * count[..., None, None, None])
    control = (control - middle) * inked  # centred, and filling the page
    control = control / control.abs().amax((2, 3, 4), keepdim=True)
    control, used, pen = control.flatten(0, 1), used.flatten(0, 1), pen.repeat_interleave(c)
    drawn = control[:, None] + jitter * torch.randn(a * c, DRAWINGS, STROKES, 3, 2, generator=g)
    angle, scale = (
        0.12 * torch.randn(a * c, DRAWINGS, generator=g),
        1 + 0.08 * torch.randn(a * c, DRAWINGS, generator=g),
    )
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    drawn = drawn @ (scale[..., None, None] * turn).unsqueeze(2).mT
    drawn = drawn + 0.06 * torch.randn(a * c, DRAWINGS, 1, 1, 2, generator=g)

    t = torch.linspace(0, 1, POINTS)[:, None]
    basis = torch.cat([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)  # quadratic Bezier, [P, 3]
    points = torch.einsum("pk,cesko->cespo", basis, drawn) * 0.72
    images = torch.cat([_ink(points[i : i + 64], used[i : i + 64], pen[i : i + 64]) for i in range(0, a * c, 64)])
    return ImageSet(images, [f"alphabet{i:02d}/character{j:02d}" for i in range(a) for j in range(c)])


def _ink(points: Tensor, used: Tensor, pen: Tensor) -> Tensor:
    """Points [c, E, S, P, 2] in -1..1 to uint8 [c, E, 28, 28]: dots on a pixel grid, spread by the pen [c] and clipped."""
    c, e, _s, _p, _ = points.shape
    at = ((points + 1) / 2 * SIZE - 0.5).clamp(0, SIZE - 1.001)
    low, part = at.floor().long(), at - at.floor()
    canvas = torch.zeros(c, e, SIZE * SIZE)
    for dx in (0, 1):
        for dy in (0, 1):  # a dot is shared by the four pixels around it
            share = (part[..., 0] if dx else 1 - part[..., 0]) * (part[..., 1] if dy else 1 - part[..., 1])
            index = (low[..., 1] + dy) * SIZE + low[..., 0] + dx
            canvas.scatter_add_(2, index.flatten(2), (share * used[:, None, :, None]).flatten(2))
    radius = torch.arange(-2, 3)
    blur = torch.exp(-(radius[:, None] ** 2 + radius**2) / (2 * pen[:, None, None] ** 2))
    blur = blur / blur.sum((1, 2), keepdim=True)
    spread = F.conv2d(canvas.view(c, e, SIZE, SIZE).transpose(0, 1), blur[:, None], padding=2, groups=c).transpose(0, 1)
    return (1 - torch.exp(-2.5 * spread)).mul(255).round().to(torch.uint8)
