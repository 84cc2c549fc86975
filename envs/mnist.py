"""MNIST's test set (LeCun et al. 1998) as ten classes of as many digits each, white ink on black.

The 10,000 test digits alone: enough for streams, and small. Of each digit the first 892 in the file's order are kept, as many
as the rarest has, so that the set is one tensor like every other.
"""

from __future__ import annotations

import numpy as np
import torch

from envs.archives import Archive, check, fetch, gunzip
from envs.fewshot import ImageSet
from nestmem.errors import UserError

SIZE = 28
DIGITS = 10
DRAWINGS = 892
_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
ARCHIVES = tuple(
    Archive("mnist_t10k", f"t10k-{part}-ubyte.gz", f"{_SOURCE}t10k-{part}-ubyte.gz", sha256, "glyph styles")
    for part, sha256 in (
        ("images-idx3", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("labels-idx1", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    )
)


def load() -> ImageSet:
    """uint8 [10, 892, 28, 28], classes `mnist/0` to `mnist/9`."""
    images, labels = (_idx(archive) for archive in ARCHIVES)
    rows = [np.flatnonzero(labels == digit)[:DRAWINGS] for digit in range(DIGITS)]
    return ImageSet(torch.from_numpy(images[np.stack(rows)]), [f"mnist/{digit}" for digit in range(DIGITS)])


def _idx(archive: Archive) -> np.ndarray:
    """An idx file: two zero bytes, the type (8: uint8), the number of axes, their sizes, the data."""
    path = fetch(archive)
    check(archive, path)
    content = gunzip(path)
    if content[:3] != b"\0\0\x08":
        raise UserError(f"{path}: not an idx file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
