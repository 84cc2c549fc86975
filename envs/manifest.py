"""Which image is which: a listing of a stream that is the same on every machine, and its sha256.

Published numbers on Omniglot depend on the order in which a file system lists folders; ours name the manifest they ran on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

Table = Sequence[str] | Tensor


class Listed(Protocol):
    """A stream that can say what it shows."""

    def listing(self) -> Mapping[str, Table]:
        """Named tables of class names (text) and of classes, drawings and order (integers)."""


class Manifest(NamedTuple):
    """The tables, sorted by name, and the sha256 over all of them."""

    tables: dict[str, Table]
    sha256: str

    def text(self) -> str:
        """The manifest as JSON, to be published beside results."""
        tables = {name: t.tolist() if isinstance(t, Tensor) else list(t) for name, t in self.tables.items()}
        return json.dumps({"sha256": self.sha256, "tables": tables})


def manifest(stream: Listed) -> Manifest:
    """The manifest of a stream. Integers are hashed as little-endian int64 after their shape, text as UTF-8."""
    listing = stream.listing()
    tables = {name: listing[name] for name in sorted(listing)}
    total = hashlib.sha256()
    for name, table in tables.items():
        if isinstance(table, Tensor):
            if table.is_floating_point():
                raise ValueError(f"{name}: expected integers, got {table.dtype}; floats are not the same everywhere")
            content = table.long().cpu().contiguous().numpy().astype("<i8").tobytes()
            kind = json.dumps([name, list(table.shape)])
        else:
            content, kind = "\n".join(table).encode(), json.dumps([name, len(table)])
        total.update(kind.encode() + b"\0" + content + b"\0")
    return Manifest(tables, total.hexdigest())
