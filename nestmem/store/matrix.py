"""A matrix of slots, as a neural memory holds it, as items of a store and back: bit for bit, and with a name for every slot.

    matrix_export(store, "page 3", state.memory[0], model)          one transaction, one item a slot, in a subtree of its own
    matrix_import(store, "page 3", model).matrix                    [N, W] again, in this process or another

What the numbers of a slot mean is decided by the weights that wrote them. So slots lie in the space `matrix:HASH` of those
weights: searches among them compare like with like, and a matrix is not read into another network by mistake.
Legend: N slots, W width of a slot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.store.errors import StoreError
from nestmem.store.model import New, Written, check_text
from nestmem.store.reader import Reader
from nestmem.store.rows import Filter
from nestmem.store.writer import Writer

KINDS = ("span", "result", "plan")


class Slots(NamedTuple):
    """A matrix [N, W], and of each slot: the item's id, what it holds ("span", "result" or "plan") and what is said of it."""

    matrix: Tensor
    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    texts: tuple[str, ...]


def matrix_space(weights: nn.Module) -> str:
    """The name of the space of what a module writes: a hash of its parameters and buffers."""
    mark = hashlib.sha256()
    for name, value in sorted(weights.state_dict().items()):
        whole = value.detach().cpu().contiguous()
        mark.update(f"{name} {whole.dtype} {list(whole.shape)};".encode())
        mark.update(whole.reshape(-1).view(dtype=torch.uint8).numpy().tobytes())
    return f"matrix:{mark.hexdigest()[:32]}"


def matrix_export(
    store: Writer,
    name: str,
    matrix: Tensor,
    weights: nn.Module,
    *,
    kinds: str | Sequence[str] = "result",
    texts: Sequence[str] | None = None,
) -> Written:
    """Put the slots [N, W] of a matrix that `weights` wrote under a name that is new in its namespace; all or none."""
    many = len(matrix) if matrix.dim() == 2 else 0
    if not many or not matrix.shape[1]:
        raise ValueError(f"matrix: expected [slots, width], got {list(matrix.shape)}")
    each = [kinds] * many if isinstance(kinds, str) else list(kinds)
    said = [f"{name}, slot {n}" for n in range(many)] if texts is None else list(texts)
    for option, given in (("kinds", each), ("texts", said)):
        if len(given) != many:
            raise ValueError(f"{option}: expected one for each of {many} slots, got {len(given)}")
    if wrong := set(each) - set(KINDS):
        raise ValueError(f"kinds: expected {', '.join(KINDS)}, got {min(wrong)!r}")
    space, root = matrix_space(weights), _root(name)
    store.space(space, matrix.shape[1], metric="dot")
    rows = zip(said, each, matrix.detach().cpu().float())
    return store.put_many(
        [
            New(text, key=f"{root}:{n}", kind=kind, root=root, vectors={space: row}, digest={"slot": n, "slots": many})
            for n, (text, kind, row) in enumerate(rows)
        ]
    )


def matrix_import(store: Reader, name: str, weights: nn.Module) -> Slots:
    """The slots that were put under a name, in their order; StoreError if some are gone or other weights wrote them."""
    space, where = matrix_space(weights), Filter(roots=[_root(name)])
    past = store.as_of(generation=store.generation)  # items and vectors of one generation
    items = {item.id: item for item in past.items(where) if item.digest and "slot" in item.digest}
    if not items:
        raise StoreError(f"matrix: nothing under the name {name!r} in namespace {store.namespace!r}")
    if space not in past.spaces():
        raise StoreError(f"matrix: {name!r} was written by other weights")
    ids, rows = past.vectors(space, where=where)
    place = {ident: n for n, ident in enumerate(ids) if ident in items}
    order = sorted(place, key=lambda ident: int((items[ident].digest or {})["slot"]))
    wanted = max(int((item.digest or {})["slots"]) for item in items.values())
    if len(order) != wanted:
        why = "the others are forgotten" if order else "other weights wrote them"
        raise StoreError(f"matrix: {len(order)} of {wanted} slots of {name!r} are here; {why}")
    matrix = rows[[place[ident] for ident in order]]
    return Slots(matrix, tuple(order), tuple(items[i].kind for i in order), tuple(items[i].text for i in order))


def _root(name: str) -> str:
    return f"matrix:{check_text('name', name, empty=False)}"
