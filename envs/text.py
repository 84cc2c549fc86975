"""Text as endless streams: documents one after another in B parallel lanes, each read in order from its first token to its last.

A lane takes the next document when its own has ended; that is a true reset, told by `fresh`, and always at the beginning of a
piece: what is left of the last piece is padding that nobody is asked about. Every token of a document is predicted, the
first one from the token `start`. With `phase`, sources come one after another (books, then speeches, then books again), each
for so many pieces; a lane then leaves its document, and a source that returns goes on with documents it has not shown.
Legend: B lanes, T tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.documents import Document
from nestmem.errors import UserError


class Text(NamedTuple):
    """A piece of B lanes."""

    tokens: Tensor  # [B, T] what is seen: the token before the one that is asked for
    targets: Tensor  # [B, T]
    wanted: Tensor  # [B, T] bool: False beyond the end of a document
    fresh: Tensor  # [B] bool: a document begins here
    place: Tensor  # [B] tokens of the document that came before
    source: Tensor  # [B] which source the document is of


class Lanes:
    """B lanes over the documents of one or more sources. A place in the stream is a few numbers (`state_dict`).

    sources: documents of each. start: the token that stands before a document. ordered: sources whose documents come in
    order; those of the others are shuffled, anew in every round.
    visits: source of each phase, the last one without end; phase: its pieces, 0 for one phase without end. mixing: pieces
    around the end of a phase within which the lanes change one by one.
    longest: a document is left after so many tokens, and entered anywhere (0: read whole).
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Document]],
        rows: int,
        steps: int,
        start: int,
        *,
        seed: int,
        ordered: Sequence[bool] = (),
        visits: Sequence[int] = (0,),
        phase: int = 0,
        mixing: int = 0,
        longest: int = 0,
    ):
        if rows < 1 or steps < 1 or phase < 0 or longest < 0 or not 0 <= mixing <= phase:
            raise UserError(
                f"lanes: expected rows and steps >= 1, phase and longest >= 0 and mixing in 0..phase, got rows {rows}, "
                f"steps {steps}, phase {phase}, longest {longest}, mixing {mixing}"
            )
        if not all(sources) or not all(0 <= visit < len(sources) for visit in visits):
            raise UserError(f"lanes: expected documents in every source, and visits to 0..{len(sources) - 1}")
        self.sources, self.rows, self.steps, self.start, self.seed = sources, rows, steps, start, seed
        self.ordered = [*ordered, *[False] * (len(sources) - len(ordered))]
        self.visits, self.phase, self.mixing, self.longest = visits, phase, mixing, longest
        self.count = 0  # pieces so far
        self.given = np.zeros(len(sources), np.int64)  # documents handed out
        self.at = np.full((rows, 3), -1, np.int64)  # of each lane: source, number of its document, tokens read

    def next(self) -> Text:
        rows = [self._advance(lane) for lane in range(self.rows)]
        self.count += 1
        return _stack(rows, self.steps, self.start)

    def visit(self, lane: int = 0) -> int:
        """Number of the phase a lane is in."""
        if not self.phase:
            return 0
        later = round(((lane + 0.5) / self.rows - 0.5) * self.mixing)
        return min(max((self.count - later) // self.phase, 0), len(self.visits) - 1)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "count": torch.tensor(self.count),
            "given": torch.from_numpy(self.given.copy()),
            "at": torch.from_numpy(self.at.copy()),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["at"].shape != self.at.shape or state["given"].shape != self.given.shape:
            raise UserError("lanes: the saved place is of other lanes or sources than these")
        self.count = int(state["count"])
        self.given, self.at = state["given"].numpy().copy(), state["at"].numpy().copy()

    def _advance(self, lane: int) -> tuple[np.ndarray, bool, int, int]:
        """The next piece of a lane: its tokens with the one before them, whether it is fresh, its place and source."""
        source, number, read = self.at[lane]
        wanted = self.visits[self.visit(lane)]
        if source != wanted or read >= len(self._document(source, number)):
            source, number, read = wanted, self.given[wanted], 0
            self.given[wanted] += 1
        document = self._document(source, number)
        self.at[lane] = source, number, min(read + self.steps, len(document))
        return _read(document, int(read), self.steps, self.start), bool(read == 0), int(read), int(source)

    def _document(self, source: int, number: int) -> Document:
        """The document a source hands out as its `number`-th."""
        documents = self.sources[source]
        turn, index = divmod(int(number), len(documents))
        if not self.ordered[source]:
            index = int(np.random.default_rng([self.seed, source, turn]).permutation(len(documents))[index])
        document = documents[index]
        if not self.longest or len(document) <= self.longest:
            return document
        chance = np.random.default_rng([self.seed, source, 1 << 32, number])
        begin = document.start + int(chance.integers(len(document) - self.longest + 1))
        return Document(document.name, begin, begin + self.longest, document.path, document.kind, document.data)


def held(
    documents: Sequence[Document], rows: int, steps: int, start: int, longest: int = 0
) -> Iterator[tuple[list[int], Iterator[Text]]]:
    """Documents to be judged on: groups of at most `rows`, alike in length, each with its pieces from the first token on.

    Yields the documents' numbers and an iterator over pieces; `longest` > 0 ends every document after so many tokens.
    """
    sizes = [min(len(d), longest) if longest else len(d) for d in documents]
    order = sorted(range(len(documents)), key=lambda i: sizes[i])
    for first in range(0, len(order), rows):
        group = order[first : first + rows]
        yield group, _pieces([documents[i] for i in group], [sizes[i] for i in group], steps, start)


def _pieces(documents: list[Document], sizes: list[int], steps: int, start: int) -> Iterator[Text]:
    ends = [
        Document(d.name, d.start, d.start + size, d.path, d.kind, d.data)
        for d, size in zip(documents, sizes, strict=True)
    ]
    for at in range(0, max(sizes), steps):
        yield _stack([(_read(d, at, steps, start), at == 0, at, 0) for d in ends], steps, start)


def _read(document: Document, at: int, steps: int, start: int) -> np.ndarray:
    """The token before `at` and up to `steps` from there on, int64."""
    if at:
        return document.read(at - 1, at + steps).astype(np.int64)
    return np.concatenate([[start], document.read(0, steps).astype(np.int64)])


def _stack(rows: list[tuple[np.ndarray, bool, int, int]], steps: int, start: int) -> Text:
    tokens = np.full((len(rows), steps + 1), start, np.int64)
    wanted = np.zeros((len(rows), steps), bool)
    for i, (read, *_) in enumerate(rows):
        tokens[i, : len(read)] = read
        wanted[i, : max(len(read) - 1, 0)] = True
    both = torch.from_numpy(tokens)
    _, fresh, place, source = zip(*rows, strict=True)
    targets = torch.where(torch.from_numpy(wanted), both[:, 1:], 0)
    return Text(
        both[:, :-1].contiguous(), targets, torch.from_numpy(wanted),
        torch.tensor(fresh), torch.tensor(place), torch.tensor(source),
    )  # fmt: skip
