"""N-way K-shot tasks out of a set of images, drawn for a whole meta-batch by indexing.

Legend: C classes, E drawings of a class, B tasks, N ways, K shots, Q queries per class, H x W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nestmem.errors import UserError

SPLITS = ("train", "val", "test")


class ImageSet(NamedTuple):
    """Images uint8 [C, E, H, W], ink 255 on 0, and the C names of the classes."""

    images: Tensor
    names: list[str]

    def rotated(self) -> ImageSet:
        """The same classes and three more of each, turned by 90, 180 and 270 degrees: [4C, E, H, W]."""
        turned = torch.cat([torch.rot90(self.images, quarter, (2, 3)) for quarter in range(4)])
        return ImageSet(turned, [f"{name}/rot{90 * quarter:03d}" for quarter in range(4) for name in self.names])


class Episodes(NamedTuple):
    """B tasks. Images are float [B, n, 1, H, W] in 0..1, labels int64 [B, n] in 0..N-1.

    Support examples come one shot after the other: the first N hold each class once, in random order.
    """

    support_x: Tensor  # [B, N * K, 1, H, W]
    support_y: Tensor  # [B, N * K]
    query_x: Tensor  # [B, N * Q, 1, H, W]
    query_y: Tensor  # [B, N * Q]


def affine_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear and shift every image [n, 1, H, W] a little: 1 is up to 0.25 rad, 20 % and 3 of 28 pixels."""
    n = len(images)
    angle, shear, sx, sy, dx, dy = (strength * (2 * torch.rand(6, n, generator=generator) - 1)).to(images.device)
    cos, sin = torch.cos(0.25 * angle), torch.sin(0.25 * angle)
    sx, sy, shear = 1 + 0.2 * sx, 1 + 0.2 * sy, 0.25 * shear
    rows = [sx * cos, shear - sin, 0.2 * dx, sin + shear, sy * cos, 0.2 * dy]
    grid = F.affine_grid(torch.stack(rows, -1).view(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class FewShot:
    """A sampler of tasks. Its own generator makes it repeatable; its state is what a checkpoint keeps.

    augment: strength of `affine_jitter` on every image, for training classes.
    Errors: ways above the number of classes, or shots + queries above the drawings of a class.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
        augment: float = 0.0,
        device: str | torch.device = "cpu",
    ):
        classes, drawings = data.images.shape[:2]
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            if value < 1:
                raise UserError(f"env.{name}: expected at least 1, got {value}")
        if ways > classes:
            raise UserError(f"env.ways: {ways} ways asked for, but this split has {classes} classes")
        if shots + queries > drawings:
            raise UserError(
                f"env.shots: {shots} shots + {queries} queries asked for, but a class has {drawings} drawings"
            )
        self.images = data.images.to(device)
        self.ways, self.shots, self.queries, self.augment = ways, shots, queries, augment
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, tasks: int) -> Episodes:
        """`tasks` tasks, classes and drawings without replacement."""
        ways, shots, queries = self.ways, self.shots, self.queries
        n_classes, n_drawings = self.images.shape[:2]
        classes = self._distinct(tasks, n_classes, ways)[:, None]  # [B, 1, N]
        drawings = self._distinct(tasks * ways, n_drawings, shots + queries).view(tasks, ways, -1).mT  # [B, K + Q, N]
        order = torch.rand(tasks, shots, ways, generator=self.generator).argsort(-1)  # a new order for each shot
        support = drawings[:, :shots].gather(2, order)
        support_classes = classes.expand(-1, shots, -1).gather(2, order)
        query_y = torch.arange(ways).expand(tasks, queries, ways)
        return Episodes(
            self._images(support_classes, support),
            order.flatten(1).to(self.images.device),
            self._images(classes.expand(-1, queries, -1), drawings[:, shots:]),
            query_y.flatten(1).to(self.images.device),
        )

    def _distinct(self, rows: int, among: int, count: int) -> Tensor:
        """`count` distinct numbers below `among` in each of `rows` rows, in random order."""
        if count * 8 > among:
            return torch.rand(rows, among, generator=self.generator).topk(count).indices
        # Few out of many: draw with replacement and redraw the rows that repeat, which is rejection from the same law.
        picks = torch.randint(among, (rows, count), generator=self.generator)
        while len(bad := (picks.sort(-1).values.diff() == 0).any(-1).nonzero()[:, 0]):
            picks[bad] = torch.randint(among, (len(bad), count), generator=self.generator)
        return picks

    def _images(self, classes: Tensor, drawings: Tensor) -> Tensor:
        device = self.images.device
        chosen = self.images[classes.flatten(1).to(device), drawings.flatten(1).to(device)]
        images = chosen.unsqueeze(2).float().div_(255)
        if self.augment:
            images = affine_jitter(images.flatten(0, 1), self.augment, self.generator).view_as(images)
        return images
