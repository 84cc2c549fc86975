"""Episodes: an exact memory of which token followed which, by the last n tokens, as a level of a text model.

For every order n there is a table of S slots. The last n tokens are hashed to a slot, which holds the token that came next when
they were last seen, how often in a row it did (1 to 7), and 8 bits of the hash by which a stranger is known:
    read   m_t,n = the slot's token, c_t,n = its count (0: nothing known);  logits_t[m_t,n] += w_n,c + u_n . h_t
    write  the token that came, after every chunk of C tokens: the same one counts up, another replaces it with count 1
w and u are learned with all else, so the model knows how far to trust 3 tokens and how far 8; what is stored is not. It is the
match model of data compressors (Mahoney 2005, PAQ8) and the exact form of a neural cache (Grave et al. 2017). As an episodic level
it is empty when a document begins, knows its names after one mention, and takes the same room after any length.
Legend: B rows, T tokens, C chunk, N orders, S slots, V vocabulary, D width.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.errors import UserError
from nestmem.memory.base import where_rows

MOST = 7  # of a count
CHUNK = 16  # tokens between two writes
FACTOR = 6364136223846793005  # of the hash (Knuth's linear congruential generator), products modulo 2^64


class EpisodesState(NamedTuple):
    token: Tensor  # [B, N, S] int16
    count: Tensor  # [B, N, S] uint8, 0: empty
    tag: Tensor  # [B, N, S] uint8
    tail: Tensor  # [B, max n + C] the last tokens, of which those of the chunk under way are not written yet
    step: Tensor  # [B]


class Episodes(nn.Module):
    """orders: numbers of tokens that are looked up. bits: log2 S. chunk: tokens between two writes."""

    def __init__(self, vocabulary: int, width: int, orders: list[int], bits: int = 15, chunk: int = CHUNK):
        super().__init__()
        if not orders or min(orders) < 1 or not 4 <= bits <= 24 or chunk < 1 or vocabulary > 32767:
            raise UserError(
                "algo.orders, algo.bits, algo.chunk: expected orders and chunk of at least 1, 4 to 24 bits and a vocabulary "
                f"below 32768, got {list(orders)}, {bits}, {chunk}, {vocabulary}"
            )
        self.vocabulary, self.orders, self.chunk = vocabulary, list(orders), chunk
        self.slots = 1 << bits
        self.trust = nn.Parameter(torch.linspace(0.0, 2.0, MOST + 1).repeat(len(orders), 1))
        self.moment = nn.Linear(width, len(orders), bias=False)
        nn.init.zeros_(self.moment.weight)

    def initial_state(self, batch_size: int) -> EpisodesState:
        device, size = self.trust.device, (batch_size, len(self.orders), self.slots)
        none = torch.zeros(size, dtype=torch.uint8, device=device)
        tail = torch.full((batch_size, max(self.orders) + self.chunk), self.vocabulary, device=device)
        step = torch.zeros(batch_size, dtype=torch.long, device=device)
        return EpisodesState(none.short(), none, none, tail, step)

    def reset(self, state: EpisodesState, done: Tensor) -> EpisodesState:
        return where_rows(done, self.initial_state(len(done)), state)

    def forward(self, hidden: Tensor, tokens: Tensor, state: EpisodesState) -> tuple[Tensor, EpisodesState]:
        """hidden [B, T, D] and tokens [B, T]: what is added to the logits [B, T, V]."""
        (steps, chunk), first = (tokens.shape[1], self.chunk), -int(state.step[0]) % self.chunk
        whole = torch.cat([state.tail, tokens], 1)
        slot, tag = self._places(whole)  # [B, N, C + T]: a chunk of them was before this piece
        came = whole[:, max(self.orders) + 1 :]  # [B, C - 1 + T] what followed them
        tables = state._replace(token=state.token.clone(), count=state.count.clone(), tag=state.tag.clone())
        found, counts = [], []
        for start, stop in itertools.pairwise(sorted({0, *range(first, steps, chunk), steps})):
            at, known = slot[:, :, chunk + start : chunk + stop], tag[:, :, chunk + start : chunk + stop]
            found.append(tables.token.gather(2, at))
            counts.append(torch.where(tables.tag.gather(2, at) == known, tables.count.gather(2, at), 0))
            if (stop - first) % chunk == 0:  # a chunk is over: what followed each of its contexts
                over = slice(stop - 1, stop + chunk - 1)
                self._write(slot[:, :, over], tag[:, :, over], came[:, over], tables)
        token, count = torch.cat(found, 2).long(), torch.cat(counts, 2).long()  # [B, N, T]
        trust = torch.stack([row[count[:, n]] for n, row in enumerate(self.trust)], 1) + self.moment(hidden).mT
        # Orders may name the same token; their votes add up.
        logits = trust.new_zeros(*tokens.shape, self.vocabulary)
        logits = logits.scatter_add(2, token.mT, (trust * (count > 0)).mT)
        return logits, tables._replace(tail=whole[:, -state.tail.shape[1] :], step=state.step + steps)

    def _places(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Slot and tag of the contexts that end at each of the last C + T tokens of [B, max n + C + T]."""
        longest = max(self.orders) + 1
        ends = whole.shape[1] - longest + 1
        slots, tags = [], []
        for order in self.orders:
            mixed = torch.full_like(whole[:, :ends], order)
            for back in range(order):
                mixed = (mixed ^ whole[:, longest - 1 - back : longest - 1 - back + ends]) * FACTOR + 1
            slots.append((mixed >> 20) & (self.slots - 1))
            tags.append(((mixed >> 48) & 255).to(torch.uint8))
        return torch.stack(slots, 1), torch.stack(tags, 1)

    def _write(self, slot: Tensor, tag: Tensor, came: Tensor, tables: EpisodesState) -> None:
        """Store, in place, tokens [B, C] at the slots [B, N, C] of the contexts before them; of two in one slot the later."""
        came = came[:, None].expand_as(slot)
        wanted = came < self.vocabulary  # before a document nothing came
        clash = (slot[..., :, None] == slot[..., None, :]) & wanted[..., None, :]
        wanted = wanted & ~clash.triu(1).any(-1)
        same = (tables.tag.gather(2, slot) == tag) & (tables.token.gather(2, slot) == came)
        count = torch.where(same, (tables.count.gather(2, slot) + 1).clamp(max=MOST), 1)
        row, order, _ = wanted.nonzero(as_tuple=True)
        at = (row, order, slot[wanted])
        tables.token[at], tables.count[at], tables.tag[at] = (
            came[wanted].short(),
            count[wanted].to(torch.uint8),
            tag[wanted],
        )
