"""Vectors of a store for TensorBoard's projector: `tensorboard --logdir FOLDER`, then the tab Projector.

Each space becomes an embedding [N, D] with a table beside it that says which item every point is; the files are those of
`SummaryWriter.add_embedding` (tensors.tsv, metadata.tsv, projector_config.pbtxt).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from nestmem.store.errors import StoreError
from nestmem.store.model import Item
from nestmem.store.reader import Reader
from nestmem.store.rows import Filter

COLUMNS = ("text", "level", "kind", "root", "writer", "recorded", "trust", "id")
WIDTH = 20  # characters of a space's name in its folder's


def project(
    store: Reader,
    folder: Path,
    *,
    spaces: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    most: int = 10_000,
) -> dict[str, int]:
    """Write the newest `most` vectors of each space (None: all spaces that have any). How many of each were written."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise StoreError("projector: the package 'tensorboard' is missing; pip install 'nestmem[train]'") from None
    known = sorted(store.spaces())
    if unknown := [name for name in spaces or () if name not in known]:
        raise ValueError(f"space: expected one of {', '.join(known) or 'none yet'}, got {unknown[0]!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"projector: {folder} is there already; expected a new folder")
    where = Filter(levels=levels)
    items = {item.id: item for item in store.items(where)}
    written: dict[str, int] = {}
    try:
        board = SummaryWriter(str(folder))
        for name in known if spaces is None else spaces:
            ids, vectors = store.vectors(name, where=where)
            newest = sorted(range(len(ids)), key=lambda n: items[ids[n]].recorded_at)[-most:]
            if newest:
                rows = [_row(items[ids[n]]) for n in newest]
                tag = f"{len(written)} {name[:WIDTH]}"  # two may begin alike
                board.add_embedding(vectors[newest], rows, metadata_header=list(COLUMNS), tag=tag)
                written[name] = len(newest)
        board.close()
    except OSError as error:
        raise StoreError(f"projector: cannot write to {folder} ({error.strerror})") from None
    if not written:
        raise StoreError("projector: no vectors here; expected a space with items that have one")
    return written


def _row(item: Item) -> list[str]:
    """One line of the table; tabs and line ends would break it."""
    recorded = datetime.datetime.fromtimestamp(item.recorded_at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    level = f"L{item.level}" if item.level >= 0 else "procedural"
    cells = (item.text[:100], level, item.kind, item.root, item.writer, recorded, f"{item.trust:g}", item.id)
    return [" ".join(cell.split()) or "-" for cell in cells]
