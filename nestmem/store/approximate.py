"""An approximate index beside a large block, where one is asked for: `Store(url, index="usearch")`.

A graph of near neighbours (HNSW: Malkov and Yashunin, arXiv 1603.09320, by usearch) names rows, four times as many as are
wanted; these are scored in full, so their scores and order are those of the exact scan, and only what the graph does
not name is missed. It is made from the block and follows it; its file carries a checksum and the stamp of the
generation it shows, and is made again where it does not fit. The database stays the only truth.

Legend: N rows, D dimension.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from usearch.index import Index

from nestmem.durable import sync

Array = np.ndarray[Any, Any]
OVERSAMPLE = 4
EXPANSION = 1024  # nodes a search keeps: of 50,000 clustered vectors 64 miss 29 % of the nearest, 512 3 %, 1024 1 %
METRICS = {"cosine": "ip", "dot": "ip", "l2": "l2sq"}  # rows for cosine are of length one


class Graph:
    """The graph of the rows of a block, named by their seqs."""

    def __init__(self, dim: int, metric: str):
        self._index = Index(ndim=dim, metric=METRICS[metric], dtype="f16", expansion_search=EXPANSION)

    def __len__(self) -> int:
        return len(self._index)

    def replace(self, gone: Array, seqs: Array, matrix: Tensor) -> None:
        """Drop rows by seq, then add rows [N, D]."""
        if len(gone) and len(self):
            self._index.remove(gone.astype(np.uint64))
        if len(seqs):
            self._index.add(seqs.astype(np.uint64), matrix.numpy(), threads=1)  # the same rows, the same graph

    def near(self, query: Tensor, limit: int) -> Array:
        """Seqs of rows that are near to `query` [D], few of the `limit` nearest missing."""
        return np.asarray(self._index.search(query.numpy(), min(OVERSAMPLE * limit, len(self))).keys, dtype=np.int64)

    def save(self, path: Path, stamp: tuple[int, str]) -> None:
        """Write the graph, then what says that it is whole and of which generation."""
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._index.save(str(aside))
        checksum = zlib.crc32(aside.read_bytes())
        sync(aside)
        os.replace(aside, path)
        about = path.with_name(path.name + ".json")
        aside.write_text(json.dumps(dict(stamp=stamp, checksum=checksum)))
        sync(aside)
        os.replace(aside, about)

    def load(self, path: Path, stamp: tuple[int, str]) -> bool:
        """Whether the file holds the graph of this generation, whole; it is read then."""
        try:
            about = json.loads(path.with_name(path.name + ".json").read_text())
            if about != dict(stamp=list(stamp), checksum=zlib.crc32(path.read_bytes())):
                return False
            self._index.load(str(path))
        except (OSError, ValueError, RuntimeError):
            return False
        return True
