"""Your own characters: PATH/CLASS/IMAGE, one folder of images for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from envs.fewshot import ImageSet
from nestmem.errors import UserError

SIZE = 28
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def load(path: str) -> dict[str, ImageSet]:
    """Train, val and test classes (70, 10 and 20 %, in sorted order); every image grey, 28 x 28, dark ink on light.

    Each class must have as many images as the first; errors name the folder or image that is off.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"env.path: no folder {path!r}; expected PATH/CLASS/IMAGE")
    classes = sorted(p for p in root.iterdir() if p.is_dir())
    if len(classes) < 3:
        raise UserError(f"env.path: {path!r} has {len(classes)} class folders, expected at least 3 (train, val, test)")
    stacks = [_images(folder) for folder in classes]
    for folder, stack in zip(classes, stacks, strict=True):
        if len(stack) != len(stacks[0]):
            raise UserError(f"env.path: {folder} has {len(stack)} images, expected {len(stacks[0])} as in {classes[0]}")
    data = ImageSet(torch.from_numpy(np.stack(stacks)), [folder.name for folder in classes])
    first = max(1, round(SHARES["train"] * len(classes)))
    second = max(first + 1, round((SHARES["train"] + SHARES["val"]) * len(classes)))
    first, second = min(first, len(classes) - 2), min(second, len(classes) - 1)
    edges = {"train": slice(0, first), "val": slice(first, second), "test": slice(second, None)}
    return {split: ImageSet(data.images[rows], data.names[rows]) for split, rows in edges.items()}


def _images(folder: Path) -> np.ndarray:
    pictures = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            with Image.open(path) as image:
                if image.size != (SIZE, SIZE):
                    raise UserError(f"env.path: {path} is {image.width} x {image.height}, expected {SIZE} x {SIZE}")
                pictures.append(255 - np.asarray(image.convert("L")))
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"env.path: {path} is not an image ({error})") from None
    if not pictures:
        raise UserError(f"env.path: {folder} holds no image")
    return np.stack(pictures)
