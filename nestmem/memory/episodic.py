"""Episodic memory: a ring of slots, written once, read by content.

A soft dictionary (Pritzel et al. 2017, NEC; Ritter et al. 2018, epLSTM) with a product kernel over key and cue:
    w_s = softmax_s(beta_k cos(q, key_s) + beta_c cos(q_cue, cue_s) - rho age_s / S);  y = sum_s w_s outcome_s
Because the exponents add, a slot answers only if content *and* cue match: a conjunctive key. Age counts later writes; rho is
learned from zero, so that where meanings change the newer of two slots with one key can win.
Legend: B rows, T steps, S slots, K key, C cue, V outcome.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.memory.associative import Associative, Binding, arrived
from nestmem.memory.base import Aux, Consolidation, Fields, Item, MemorySpec, Regression, traced
from nestmem.memory.registry import register

TINY = 1e-12  # a probability that is never reached, so that its logarithm exists


class Slots(NamedTuple):
    """Book-keeping of the ring, without gradients."""

    valid: Tensor  # [B, S] bool
    written: Tensor  # [B, S] clock of the write
    usage: Tensor  # [B, S] how often and how lately the slot was met again
    clock: Tensor  # [B] writes so far


class EpisodicState(NamedTuple):
    keys: Tensor  # [B, S, K] unit vectors, float or int8
    cues: Tensor  # [B, S, C] unit vectors, float or int8
    outcomes: Tensor  # [B, S, V], int8 where they are labels and keys are
    slots: Slots
    pending: Tensor  # [B, K + C] what the next outcome belongs to


@register("episodic")
class Episodic(Associative):
    """A content-addressed key-value memory that writes what is new.

    slots: S. key_size: K when the token has no fields (otherwise K is the content's width).
    write_when: "novel" writes unless a slot already holds this key, cue and outcome (all cosines above `threshold`);
        "surprise" writes if the outcome was not foreseen (1 - cosine, or 1 - probability of a label, above `threshold`);
        "always" is the straw man.
    evict: when the ring is full, the "oldest" slot goes, or the "least_used" one.
    temperature: initial beta; it is learned.
    key_bits: 32, or 8 to keep keys, cues and labels in bytes: three to four times the slots in the same memory. They are
        rounded, so no gradient passes through a write then.
    """

    spec = MemorySpec(role="episodic", lifetime="task", regression=Regression("uniform", "slots", "exact"))

    def __init__(
        self,
        d_model: int,
        fields: Fields | None = None,
        slots: int = 64,
        key_size: int = 0,
        write_when: str = "novel",
        threshold: float = 0.95,
        evict: str = "oldest",
        temperature: float = 10.0,
        key_bits: int = 32,
    ):
        super().__init__()
        for name, value, known in (
            ("write_when", write_when, ("novel", "surprise", "always")),
            ("evict", evict, ("oldest", "least_used")),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if slots < 1:
            raise ValueError(f"slots: expected at least 1, got {slots}")
        if key_bits not in (8, 32):
            raise ValueError(f"key_bits: expected 8 or 32, got {key_bits}")
        self.d_model, self.slots, self.key_bits = d_model, slots, key_bits
        self.spec = self.spec._replace(differentiable_write=key_bits == 32)
        self.write_when, self.threshold, self.evict = write_when, threshold, evict
        self.binding = Binding(d_model, fields, key_size)
        self.labels = fields is not None and fields.labels
        self.log_beta = nn.Parameter(torch.full((2,), math.log(temperature)))  # for content and for cue
        self.recency = nn.Parameter(torch.zeros(()))  # rho

    def initial_state(self, batch_size: int) -> EpisodicState:
        zeros, bind = self.log_beta.new_zeros, self.binding
        slots = Slots(
            valid=zeros(batch_size, self.slots, dtype=torch.bool),
            written=zeros(batch_size, self.slots, dtype=torch.long),
            usage=zeros(batch_size, self.slots),
            clock=zeros(batch_size, dtype=torch.long),
        )
        sizes = bind.key_size, bind.cue_size, bind.outcome_size
        held = self._pack(Item(*(zeros(batch_size, self.slots, size) for size in sizes)))
        return EpisodicState(*held, slots, zeros(batch_size, bind.key_size + bind.cue_size))

    def read(self, query: Tensor, state: EpisodicState) -> tuple[Tensor, Aux]:
        held = self._unpack(Item(*state[:3]))
        alike, match = self._similarity(self.binding.address(query), held.key, held.cue)
        valid, age = state.slots.valid, self._age(state.slots)
        if query.dim() == 3:
            valid, age = valid[:, None], age[:, None]
        weights = _attend(match - self.recency * age, valid)
        confidence = alike.masked_fill(~valid, -1.0).amax(-1, keepdim=True)
        answer = torch.einsum("b...s,bsv->b...v", weights, held.outcome)
        return self._token(answer), Aux(confidence=confidence, weights=weights)

    def write(self, item: Item, state: EpisodicState, *, signal: Tensor | None = None) -> EpisodicState:
        same = self._same(item, self._unpack(Item(*state[:3])))
        wanted = arrived(item)
        if self.write_when == "surprise":
            wanted = wanted & ((self._surprise(item, state) if signal is None else signal) > self.threshold)
        place, slots = self._place(wanted, same, state.slots)
        keys, cues, outcomes = (
            torch.where(place[..., None], new[:, None], old)
            for new, old in zip(self._pack(item), state[:3], strict=True)
        )
        return state._replace(keys=keys, cues=cues, outcomes=outcomes, slots=slots)

    def run(self, x: Tensor, state: EpisodicState) -> tuple[Tensor, EpisodicState, Aux]:
        if self._stepwise(x, state):
            return super().run(x, state)
        return self.run_writing(x, state, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    def run_writing(self, x: Tensor, state: EpisodicState, wanted: Tensor) -> tuple[Tensor, EpisodicState, Aux]:
        """Which slot holds what at each step is decided first, on booleans; then one masked attention reads all steps."""
        if self._stepwise(x, state):
            return super().run_writing(x, state, wanted)
        steps = x.shape[1]
        new = self.items(x, state.pending)
        # Candidates: the S old slots, then the T new items.
        packed = Item(*(torch.cat(pair, 1) for pair in zip(state[:3], self._pack(new), strict=True)))
        held = self._unpack(packed)
        with torch.no_grad():
            same = self._same(new, held)  # [B, T, S + T]
            wanted = wanted & arrived(new)
            slots = state.slots
            owner = torch.arange(self.slots, device=x.device).expand_as(slots.valid)
            owners, valids, ages = [], [], []
            for t in range(steps):
                place, slots = self._place(wanted[:, t], same[:, t].gather(1, owner), slots)
                owner = torch.where(place, self.slots + t, owner)
                owners.append(owner)
                valids.append(slots.valid)
                ages.append(self._age(slots))
            owned, valid, age = (torch.stack(parts, 1) for parts in (owners, valids, ages))  # [B, T, S]
        alike, match = (m.gather(2, owned) for m in self._similarity(self.binding.address(x), held.key, held.cue))
        weights = _attend(match - self.recency * age, valid)
        spread = torch.zeros_like(same, dtype=weights.dtype).scatter_add(2, owned, weights)
        answer = spread @ held.outcome
        keys, cues, outcomes = (part.gather(1, owner[..., None].expand(-1, -1, part.shape[-1])) for part in packed)
        confidence = alike.masked_fill(~valid, -1.0).amax(-1, keepdim=True)
        end = EpisodicState(keys, cues, outcomes, slots, self.binding.address(x[:, -1]))
        return self._token(answer), end, Aux(confidence=confidence, weights=weights)

    def consolidate(self, state: EpisodicState) -> tuple[EpisodicState, Consolidation]:
        """Offers everything it holds for replay, and keeps it."""
        return state, Consolidation(self._unpack(Item(*state[:3])), state.slots.valid)

    def _stepwise(self, x: Tensor, state: EpisodicState) -> bool:
        """Surprise depends on what was just read, and under a transform no booleans can be looked at."""
        return self.write_when == "surprise" or traced(x) or traced(self.log_beta) or traced(state.keys)

    def _pack(self, item: Item) -> Item:
        """As it is kept. Keys and cues are unit vectors, labels one-hot; other outcomes have no bound and stay floats."""
        if self.key_bits == 32:
            return item
        key, cue, label = ((127 * part).round().to(torch.int8) for part in item)
        return Item(key, cue, label if self.labels else item.outcome)

    def _unpack(self, item: Item) -> Item:
        """As it is read, in floating point."""
        kind = self.log_beta.dtype
        return Item(*(part if part.is_floating_point() else part.to(kind) / 127 for part in item))

    def _similarity(self, address: Tensor, keys: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        """How alike [B, (Q,) N] (cosine of the contents, times that of the cues), and the kernel's exponent [B, (Q,) N]."""
        key, cue = self.binding.split(address)
        content = torch.einsum("b...k,bnk->b...n", key, keys)
        beta = self.log_beta.exp()
        if not self.binding.cue_size:
            return content, beta[0] * content
        context = torch.einsum("b...c,bnc->b...n", cue, cues)
        # Who knows the content from another context only must not sound sure: below zero, neither counts.
        return content.relu() * context.relu(), beta[0] * content + beta[1] * context

    def _age(self, slots: Slots) -> Tensor:
        """Writes since each slot's own, in units of S: [B, S]."""
        return (slots.clock[:, None] - slots.written).to(self.log_beta.dtype) / self.slots

    def _token(self, answer: Tensor) -> Tensor:
        return self.binding.token(torch.log(answer + TINY) if self.labels else answer)

    @torch.no_grad()
    def _same(self, item: Item, held: Item) -> Tensor:
        """Where what is held equals the item in key, cue and outcome: bool [B, (T,) N]."""
        close = torch.einsum("b...k,bnk->b...n", item.key, held.key) > self.threshold
        if self.binding.cue_size:
            close = close & (torch.einsum("b...c,bnc->b...n", item.cue, held.cue) > self.threshold)
        outcomes = (F.normalize(o, dim=-1) for o in (item.outcome, held.outcome))
        return close & (torch.einsum("b...v,bnv->b...n", *outcomes) > self.threshold)

    @torch.no_grad()
    def _surprise(self, item: Item, state: EpisodicState) -> Tensor:
        """1 - p(label), or 1 - cosine of the foreseen and the real outcome: [B]."""
        held = self._unpack(Item(*state[:3]))
        _, match = self._similarity(torch.cat([item.key, item.cue], -1), held.key, held.cue)
        match = match - self.recency * self._age(state.slots)
        foreseen = torch.einsum("bs,bsv->bv", _attend(match, state.slots.valid), held.outcome)
        if self.labels:
            return 1 - (foreseen * item.outcome).sum(-1)
        return 1 - F.cosine_similarity(foreseen, item.outcome, dim=-1)

    @torch.no_grad()
    def _place(self, wanted: Tensor, same: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        """Which slot takes the item: one-hot bool [B, S] (no slot where nothing is written), and the new book-keeping."""
        met = same & slots.valid & wanted[:, None]
        if self.write_when == "novel":
            wanted = wanted & ~met.any(-1)
        rank = slots.written.to(slots.usage.dtype) if self.evict == "oldest" else slots.usage
        victim = torch.where(slots.valid, rank, -1.0).argmin(-1)  # a free slot first
        place = (torch.arange(self.slots, device=victim.device) == victim[:, None]) & wanted[:, None]
        usage = torch.where(wanted[:, None], 0.95 * slots.usage, slots.usage) + met.to(slots.usage.dtype)
        return place, Slots(
            valid=slots.valid | place,
            written=torch.where(place, slots.clock[:, None], slots.written),
            usage=torch.where(place, torch.ones_like(usage), usage),
            clock=slots.clock + wanted,
        )


def _attend(match: Tensor, valid: Tensor) -> Tensor:
    """Softmax over valid slots; all zero where there is none."""
    return torch.softmax(match.masked_fill(~valid, torch.finfo(match.dtype).min), -1) * valid
