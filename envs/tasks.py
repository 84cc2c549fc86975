"""Tasks to string into a stream: sets of classes with names to be learned, perhaps seen through a view.

    class-incremental: every task brings classes and labels of its own, one output for all:  class_incremental(by_alphabet(data))
    domain-incremental: the same labels in every task, another look:                         domain_incremental(by_alphabet(data))
    coarse to fine: first the alphabet of every character, then characters, alphabet by alphabet: coarse_to_fine(data)
    Omniglot, then MNIST: class_incremental([whole("omniglot", data), whole("mnist", digits)])
Glyph styles are alphabets too. Legend: C classes, E drawings of a class, H x W pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.fewshot import ImageSet
from nestmem.errors import UserError


class View(NamedTuple):
    """How a task's images are seen. pixels: an order of the H * W pixels; degrees: turned counter-clockwise first."""

    pixels: Tensor | None = None
    degrees: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """float [n, 1, H, W] to the same."""
        if self.degrees:
            angle = math.radians(self.degrees)
            turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
            grid = F.affine_grid(turn.to(images).expand(len(images), 2, 3), list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, align_corners=False)
        if self.pixels is not None:
            images = images.flatten(2)[..., self.pixels.to(images.device)].view_as(images)
        return images


class Task(NamedTuple):
    """Classes to tell apart: images of C classes, and the label of each, int64 [C] in the stream's one output."""

    name: str
    data: ImageSet
    labels: Tensor
    view: View = View()


def alphabet(name: str) -> str:
    """The alphabet of `Alphabet/characterNN`."""
    return name.split("/")[0]


def whole(name: str, data: ImageSet, view: View | None = None) -> Task:
    """One task of all classes, labelled 0..C-1."""
    return Task(name, data, torch.arange(len(data.names)), view or View())


def by_alphabet(data: ImageSet) -> list[Task]:
    """A task for each alphabet, in sorted order, its characters labelled from 0."""
    names = sorted({alphabet(name) for name in data.names})
    return [_part(name, data, [i for i, n in enumerate(data.names) if alphabet(n) == name]) for name in names]


def split(data: ImageSet, classes: int) -> list[Task]:
    """Consecutive tasks of `classes` classes each, labelled from 0: split MNIST with 2."""
    if classes < 1 or len(data.names) % classes:
        raise UserError(f"tasks.split: expected a divisor of {len(data.names)} classes, got {classes}")
    return [
        _part(f"{i}-{i + classes - 1}", data, list(range(i, i + classes))) for i in range(0, len(data.names), classes)
    ]


def permuted(data: ImageSet, tasks: int, seed: int) -> list[Task]:
    """The same classes through `tasks` orders of the pixels; the first is the natural one."""
    g = torch.Generator().manual_seed(seed)
    count = data.images.shape[-1] * data.images.shape[-2]
    orders = torch.rand(max(tasks - 1, 0), count, generator=g, dtype=torch.float64).argsort(dim=-1, stable=True)
    views = [View(), *(View(pixels=order) for order in orders)]
    return [whole(f"permuted{i}", data, view) for i, view in enumerate(views)]


def rotated(data: ImageSet, degrees: list[float]) -> list[Task]:
    """The same classes, turned by so many degrees."""
    return [whole(f"rotated{angle:g}", data, View(degrees=angle)) for angle in degrees]


def class_incremental(tasks: list[Task]) -> list[Task]:
    """Labels of their own for every task, counted on from task to task."""
    starts = torch.tensor([0, *(len(t.labels) for t in tasks)]).cumsum(0)
    return [t._replace(labels=start + torch.arange(len(t.labels))) for t, start in zip(tasks, starts[:-1])]


def domain_incremental(tasks: list[Task]) -> list[Task]:
    """The same labels 0..n-1 in every task; each keeps its first n classes, n being the size of the smallest."""
    n = min(len(t.labels) for t in tasks)
    return [t._replace(data=ImageSet(t.data.images[:n], t.data.names[:n]), labels=torch.arange(n)) for t in tasks]


def coarse_to_fine(data: ImageSet) -> list[Task]:
    """First every character under its alphabet's label 0..A-1; then, one alphabet after the other, under its own, A..A+C-1."""
    parts = by_alphabet(data)
    coarse = {part.name: i for i, part in enumerate(parts)}
    first = Task("coarse", data, torch.tensor([coarse[alphabet(name)] for name in data.names]))
    fine = class_incremental(parts)
    return [first, *(part._replace(labels=len(parts) + part.labels) for part in fine)]


def _part(name: str, data: ImageSet, rows: list[int]) -> Task:
    return Task(name, ImageSet(data.images[rows], [data.names[i] for i in rows]), torch.arange(len(rows)))
