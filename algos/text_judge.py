"""Bits per byte of a decoder on whole documents, by place in the document, and with its memory put out of order.

Every document begins with an empty memory, which then reads all of it; what is written while a document is judged is part
of the model. Bits per byte do not depend on how text is cut into tokens: nats of all tokens / (ln 2 * bytes of all tokens).
Lesions: `cleared` empties everything (or one layer) before every piece; `frozen` has every piece begin from what was held after
the first ones, so that nothing more is learned about the document.
Legend: B documents at once, T tokens of a piece, N documents, K bins of place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algos.decoder import Decoder, DecoderState, cross_entropy
from envs.documents import Document
from envs.text import Text, held
from nestmem.compose import Stack
from nestmem.probes import Interval, Undefined, mean_interval

FIRST = 1024  # tokens of the first bin; every later one reaches twice as far
FROZEN = 16  # pieces after which a frozen memory takes in nothing more


class Record(NamedTuple):
    """Bits and bytes of each document in each bin of place: [N, K]; a bin that a document does not reach holds zeros."""

    bits: np.ndarray
    bytes: np.ndarray

    def per_byte(self) -> np.ndarray:
        """Bits per byte of each document [N]."""
        return self.bits.sum(1) / self.bytes.sum(1)


@torch.no_grad()
def judge(
    decoder: Decoder,
    documents: Sequence[Document],
    lengths: Tensor,
    *,
    rows: int,
    steps: int,
    longest: int = 0,
    lesion: str = "",
) -> Record:
    """Read documents with the state carried. lengths [V]: bytes of each token. lesion: one of `lesions(decoder)`, or none."""
    sizes = [min(len(d), longest) if longest else len(d) for d in documents]
    bins = 1 + max(_bin(torch.tensor(size - 1)).item() for size in sizes)
    found = torch.zeros(2, len(documents), int(bins), dtype=torch.float64)
    device = next(decoder.parameters()).device
    decoder.eval()
    for group, pieces in held(documents, rows, steps, decoder.vocabulary, longest):
        state = begun = decoder.initial_state(len(group))
        for number, piece in enumerate(pieces):
            shown = begun if lesion == "frozen" and number > FROZEN else _damaged(decoder, state, lesion)
            logits, state = decoder(piece.tokens.to(device), shown)
            if number < FROZEN:
                begun = state
            nats = cross_entropy(logits.float(), piece.targets.to(device)).double().cpu()
            _count(found, group, piece, nats / math.log(2), lengths)
    decoder.train()
    return Record(*found.numpy())


def lesions(decoder: Decoder) -> list[str]:
    """What can be put out of order: everything, or one layer where there are several."""
    names = [f"cleared: {name}" for name in parts(decoder)]
    return ["cleared", "frozen", *(names if len(names) > 1 else [])]


def parts(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Where in the state each memory lies, by name: the layers, those within a nested layer, and what learns beside them."""
    places: list[tuple[str, tuple[int, ...]]] = []
    for i, part in enumerate(getattr(decoder.layers, "parts", [])):
        inner = list(part.parts) if isinstance(part, Stack) else []
        places += [(type(p).__name__, (0, i, j)) for j, p in enumerate(inner)] or [(type(part).__name__, (0, i))]
    for i, extra in enumerate((decoder.episodes, decoder.head)):
        places += [] if extra is None else [(type(extra).__name__, (1 + i,))]
    return {f"{i + 1} {name}": place for i, (name, place) in enumerate(places)}


def _damaged(decoder: Decoder, state: DecoderState, lesion: str) -> DecoderState:
    """The state a piece begins from."""
    if not lesion.startswith("cleared"):
        return state
    empty = decoder.initial_state(len(_first(state.memory)))
    if lesion == "cleared":
        return empty
    return _put(state, empty, parts(decoder)[lesion.removeprefix("cleared: ")])


def _put(state: Any, empty: Any, place: tuple[int, ...]) -> Any:
    """A state with the part at a place taken from another."""
    if not place:
        return empty
    held = list(state)
    held[place[0]] = _put(state[place[0]], empty[place[0]], place[1:])
    return type(state)(*held) if hasattr(state, "_fields") else tuple(held)


def _first(state: Any) -> Tensor:
    return state if isinstance(state, Tensor) else next(_first(part) for part in state if part != ())


def _bin(place: Tensor) -> Tensor:
    return (place / FIRST).clamp(min=1).log2().floor().long() + (place >= FIRST)


def _count(found: Tensor, group: list[int], piece: Text, bits: Tensor, lengths: Tensor) -> None:
    """Add a piece's bits [B, T] and bytes to the bins."""
    place = piece.place[:, None] + torch.arange(bits.shape[1])
    into = torch.tensor(group)[:, None] * found.shape[2] + _bin(place)
    for total, each in zip(found, (bits, lengths[piece.targets].double()), strict=True):
        total.view(-1).index_add_(0, into[piece.wanted], each[piece.wanted])


def by_place(record: Record) -> list[list[float]]:
    """Points (tokens before, mean, low, high) of bits per byte, over documents that fill at least half of a bin."""
    points = []
    for k in range(record.bits.shape[1]):
        width = FIRST * 2 ** max(k - 1, 0)
        most = record.bytes[:, k].max()
        full = record.bytes[:, k] >= most / 2
        if most == 0:
            continue
        mean = mean_interval((record.bits[full, k] / record.bytes[full, k]).tolist())
        middle = width / 2 if k == 0 else width * math.sqrt(2)
        spread = (mean.low, mean.high) if mean.n > 1 else (mean.mean, mean.mean)
        points.append([round(middle), mean.mean, *spread])
    return points


def late_gain(record: Record) -> Interval | Undefined:
    """Bits per byte of the first bin minus those of the last one that most documents reach, document by document."""
    reached = (record.bytes > 0).sum(0)
    last = int(np.flatnonzero(reached * 2 > len(record.bytes))[-1])
    if last == 0:
        return Undefined(f"no document is longer than {FIRST} tokens")
    rows = record.bytes[:, last] > 0
    each = record.bits[rows] / np.maximum(record.bytes[rows], 1)
    return mean_interval((each[:, 0] - each[:, last]).tolist())
