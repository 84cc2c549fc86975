"""Artificial grammars whose state does not show in their symbols: what must be kept, and what must be passed over.

Random finite-state grammars in the manner of Reber (1967), as SelectivBench draws them (arXiv:2601.12598; made anew from a
description, no code seen). A symbol that is split into several hidden states has successors that depend on which one it was.
Asked for at every symbol is its hidden state, which the symbols so far determine. Between symbols lie gaps:
    blank gaps       of `gap` blanks each: to be waited through (memorisation with 1, selectivity with varying ones)
    distractor gaps  of symbols which cannot follow: only the grammar marks them as not belonging
One-hot values with added noise, as the original has them, do not exist for tokens; gaps alone make it selective here.
Legend: B rows, T steps, S hidden states.
"""

from __future__ import annotations

import numpy as np
import torch

from envs.recall import BLANK, Stream
from nestmem.errors import UserError

LONGEST = 200  # symbols of a string
STARTS = 4


class Grammar:
    """`letters` symbols and the end of a string; `ambiguous` of them split into `depth` hidden states each.

    A state's edge to a symbol is kept with probability min(1, states of that symbol * 0.4 / depth) and leads to one of them;
    all edges of a state are equally likely. Redrawn until every state leads to the end.
    """

    def __init__(self, letters: int, ambiguous: int, depth: int, seed: int):
        if letters < STARTS or not 0 <= ambiguous <= letters or depth < 1:
            raise UserError(
                f"grammar: expected at least {STARTS} letters, 0 to as many ambiguous and a depth of at least 1, got "
                f"{letters}, {ambiguous} and {depth}"
            )
        chance = np.random.default_rng(seed)
        while True:
            split = set(chance.choice(letters, ambiguous, replace=False).tolist())
            # State 0 is the end; symbol 0 is the blank, 1 the end, letters follow.
            self.symbol = np.array([1, *(2 + a for a in range(letters) for _ in range(depth if a in split else 1))])
            self.edges = self._edges(chance, letters + 2, 0.4 / depth)
            self.starts = 1 + chance.choice(len(self.symbol) - 1, STARTS, replace=False)
            if self._ends():
                break
        self.states, self.symbols = len(self.symbol), letters + 2

    def strings(self, length: int, chance: np.random.Generator) -> np.ndarray:
        """Hidden states [length] of strings one after another."""
        found: list[int] = []
        while len(found) < length:
            string = [int(chance.choice(self.starts))]
            while string[-1] and len(string) <= LONGEST:
                string.append(int(chance.choice(self.edges[string[-1]])))
            if not string[-1]:
                found += string
        return np.array(found[:length])

    def draw(self, rows: int, symbols: int, gap: tuple[int, int], distract: bool, seed: int) -> Stream:
        """Rows of `symbols` symbols, after each a gap of `gap` (least, most) steps, padded with blanks to one length."""
        if symbols < 1 or not 0 <= gap[0] <= gap[1]:
            raise UserError(
                f"grammar: expected at least one symbol and a gap of 0 or more steps, got {symbols} and {gap}"
            )
        chance = np.random.default_rng(seed)
        lines = []
        for _ in range(rows):
            tokens, wanted = [], []
            for state in self.strings(symbols, chance):
                tokens.append(int(self.symbol[state]))
                wanted.append(int(state))
                for _ in range(int(chance.integers(gap[0], gap[1] + 1))):
                    tokens.append(self._foreign(int(state), chance) if distract else BLANK)
                    wanted.append(-1)
            lines.append((tokens, wanted))
        longest = max(len(tokens) for tokens, _ in lines)
        padded = [(t + [BLANK] * (longest - len(t)), w + [-1] * (longest - len(w))) for t, w in lines]
        both = torch.tensor(padded)
        return both[:, 0], both[:, 1]

    def _foreign(self, state: int, chance: np.random.Generator) -> int:
        """A letter that cannot follow a state; a blank where all can."""
        others = np.setdiff1d(np.arange(2, self.symbols), self.symbol[self.edges[state]])
        return int(chance.choice(others)) if len(others) else BLANK

    def _edges(self, chance: np.random.Generator, symbols: int, density: float) -> list[np.ndarray]:
        """Successors of each state: at most one for each symbol, so that symbols determine states."""
        of = [np.flatnonzero(self.symbol == symbol) for symbol in range(symbols)]
        edges: list[np.ndarray] = [np.array([], int)]
        for _ in range(1, len(self.symbol)):
            kept = [int(chance.choice(s)) for s in of if len(s) and chance.random() < min(1.0, len(s) * density)]
            edges.append(np.array(kept, int))
        return edges

    def _ends(self) -> bool:
        """Whether every state leads to the end."""
        reached = {0}
        while True:
            more = {s for s in range(1, len(self.edges)) if s not in reached and reached & set(self.edges[s].tolist())}
            if not more:
                return len(reached) == len(self.edges)
            reached |= more
