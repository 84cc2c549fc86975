"""A store as the slowest level of a nested memory: what was learned in one session is there in the next.

A session reads the store as it was at one generation, so that a run is repeatable and may be resumed bit for bit
whatever others write meanwhile; what it learns is gathered in the state and written back when the session ends.

    read        the k nearest stored addresses, then  y = sum_k softmax_k(beta_k cos(q, key_k) + beta_c cos(q_cue, cue_k)) outcome_k
    absorb      what a faster episodic level offers at a tick, if it is not gathered yet
    session     several sessions in one process: what a row gathered in earlier ones is read, too, before it is in the store
    write_back  new items are put, known ones strengthened, and where an outcome changed the old item is superseded
    reinstate   the items of a cue, written into the episodic level (a context comes back)

Which items are retrieved has no gradient; the rest of the read has. The generation is in the module's `state_dict`, so a
checkpoint says which one it belongs to and loading it shows that one again.
Legend: B rows, T steps, N stored items, S gathered items, K key, C cue, V outcome.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem.consolidation import Rule
from nestmem.memory.associative import Associative, Binding, arrived
from nestmem.memory.base import Aux, Consolidation, Fields, Item, MemorySpec, traced, where_rows
from nestmem.memory.episodic import TINY, Episodic, _attend
from nestmem.nested import NestedMemory, NestedState
from nestmem.store.errors import StoreError
from nestmem.store.hits import Hits
from nestmem.store.model import New, Written
from nestmem.store.reader import Reader
from nestmem.store.rows import Filter
from nestmem.store.store import Store

OF_THIS_CUE = 0.8  # cosine of a stored cue to the one that came back
ABSENT, NEVER = -1.0, -1e30  # how alike nothing is, and how it matches


class Gathered(NamedTuple):
    keys: Tensor  # [B, S, K]
    cues: Tensor  # [B, S, C]
    outcomes: Tensor  # [B, S, V]
    valid: Tensor  # [B, S] bool; the newest is last
    shown: Tensor  # [B, S] bool; of an earlier session of this row, so that it is read
    pending: Tensor  # [B, K + C]


class Near(NamedTuple):
    """The k items nearest to each query."""

    match: Tensor  # [..., k]
    there: Tensor  # [..., k] bool; False where there are fewer than k
    outcomes: Tensor  # [..., k, V]
    alike: Tensor  # [..., 1] how alike the most alike is


class StoreLevel(Associative):
    """`StoreLevel(Store("memory.db"), d_model, fields)`, the last of the levels of a `NestedMemory`.

    k: items retrieved for each query. slots: S, how many new items a row can hold until they are written back.
    period: steps between two looks at what the episodic level holds. same: cosine above which two addresses, or two
    outcomes, are one. generation: which past of the store to read (None:
    the newest). name: of its two vector spaces and the kind of its keys. encoder: what made the contents of the tokens;
    a store refuses vectors of another one under the same name.
    """

    generation: Tensor
    stamp: Tensor
    keys: Tensor
    cues: Tensor
    outcomes: Tensor

    def __init__(
        self,
        store: Store,
        d_model: int,
        fields: Fields | None = None,
        k: int = 16,
        slots: int = 256,
        period: int = 16,
        temperature: float = 10.0,
        same: float = 0.95,
        generation: int | None = None,
        name: str = "level",
        encoder: str = "",
    ):
        super().__init__()
        for option, value in (("k", k), ("slots", slots), ("period", period)):
            if value < 1:
                raise ValueError(f"{option}: expected at least 1, got {value}")
        if fields is None:
            raise ValueError(
                "fields: a store level needs tokens with fields, since learned keys would not outlive a run"
            )
        self.spec = MemorySpec(
            role="persistent", lifetime="life", period=period, differentiable_write=False, compiles=False
        )
        self.d_model, self.store, self.k, self.slots, self.name, self.same = d_model, store, k, slots, name, same
        self.binding = Binding(d_model, fields)
        self.labels = fields.labels
        self.log_beta = nn.Parameter(torch.full((2,), math.log(temperature)))
        sizes = {"address": self.binding.key_size + self.binding.cue_size, "outcome": self.binding.outcome_size}
        for part, size in sizes.items():
            if f"{name}.{part}" not in store.spaces() or not store.read_only:
                store.space(f"{name}.{part}", size, metric="dot", encoder=encoder)
        self.hits: Hits | None = None  # counts what reads find, while somebody wants to know
        self.register_buffer("generation", torch.zeros((), dtype=torch.long))
        self.register_buffer("stamp", torch.zeros((), dtype=torch.long))
        for part in ("keys", "cues", "outcomes"):
            self.register_buffer(part, torch.zeros(0), persistent=False)
        self.look(generation)
        self.register_load_state_dict_post_hook(_restored)

    def look(self, generation: int | None = None) -> None:
        """Read the store as of a generation (None: the newest) from now on."""
        at = self.store.generation if generation is None else generation
        past = self.store.as_of(generation=at)
        ids, addresses = past.vectors(f"{self.name}.address", where=Filter(kinds=["result"]))
        _, outcomes = past.vectors(f"{self.name}.outcome", where=Filter(kinds=["result"]))
        device = self.log_beta.device
        self.ids = ids
        self.keys, self.cues = (part.to(device) for part in self.binding.split(addresses))
        self.outcomes = outcomes.to(device)
        self.generation.fill_(at)
        self.stamp.fill_(_number(past))

    def initial_state(self, batch_size: int) -> Gathered:
        zeros, bind = self.log_beta.new_zeros, self.binding
        sizes = bind.key_size, bind.cue_size, bind.outcome_size
        keys, cues, outcomes = (zeros(batch_size, self.slots, size) for size in sizes)
        valid, shown = (zeros(batch_size, self.slots, dtype=torch.bool) for _ in range(2))
        return Gathered(keys, cues, outcomes, valid, shown, zeros(batch_size, bind.key_size + bind.cue_size))

    def read(self, query: Tensor, state: Gathered | None) -> tuple[Tensor, Aux]:
        key, cue = self.binding.split(self.binding.address(query))
        if self.hits is not None:
            self.hits.count(key, cue, state)
        found: list[Near] = []
        if len(self.keys):
            found.append(self._near(key @ self.keys.mT, cue @ self.cues.mT, self.outcomes))
        if state is not None and (traced(state.shown) or bool(state.shown.any())):
            alike, context = (
                torch.einsum("b...k,bsk->b...s", asked, held) for asked, held in ((key, state.keys), (cue, state.cues))
            )
            shown = state.shown if query.dim() == 2 else state.shown[:, None]
            found.append(self._near(alike, context, state.outcomes, shown))
        if not found:
            answer = query.new_zeros(*query.shape[:-1], self.binding.outcome_size)
            return self._token(answer), Aux(confidence=query.new_full((*query.shape[:-1], 1), ABSENT))
        match, there, outcomes, alike = (torch.cat(parts, d) for parts, d in zip(zip(*found), (-1, -1, -2, -1)))
        weights = _attend(match, there)
        answer = (weights[..., None] * outcomes).sum(-2)
        return self._token(answer), Aux(confidence=alike.amax(-1, keepdim=True))

    def write(self, item: Item, state: Gathered, *, signal: Tensor | None = None) -> Gathered:
        return self._gather(Item(*(part[:, None] for part in item)), arrived(item)[:, None], state)

    def run(self, x: Tensor, state: Gathered) -> tuple[Tensor, Gathered, Aux]:
        """What is read does not change within a session, so all steps are one read."""
        y, aux = self.read(x, state)
        items = self.items(x, state.pending)
        end = self._gather(items, arrived(items), state)
        return y, end._replace(pending=self.binding.address(x[:, -1])), aux

    def absorb(self, state: Gathered, given: Consolidation, due: Tensor, rule: Rule) -> Gathered:
        """Gather what a faster level offers where `due` [B], unless it is gathered already."""
        if given.items is None or given.valid is None:
            return state
        held = Item(*state[:3])
        same = _alike(given.items, held, self.same) & state.valid[:, None]
        return where_rows(due, self._gather(given.items, given.valid & ~same.any(-1), state), state)

    def consolidate(self, state: Gathered) -> tuple[Gathered, Consolidation]:
        """Offers what was gathered and is not in the store yet."""
        return state, Consolidation(Item(*state[:3]), state.valid)

    def write_back(self, state: Gathered, *, run: str = "") -> tuple[Gathered, Written]:
        """Write what was gathered [B, S] into the store, in one transaction for what is new. The state it leaves is empty.

        What is read does not change: `look()` shows it. `run` is noted with the items.
        """
        with torch.no_grad():
            flat = [part.detach().cpu().float()[state.valid.cpu()] for part in state[:3]]
            done = self._write(torch.cat(flat[:2], -1), flat[2], run)
            none = torch.zeros_like(state.valid)
            empty = state._replace(valid=none, shown=none)
        return empty, done

    def session(self, state: Gathered) -> Gathered:
        """The state in which the rows' next session begins: what they gathered is read from now on, though the store does
        not have it yet.
        """
        return state._replace(shown=state.valid, pending=torch.zeros_like(state.pending))

    def reinstate(self, cue: Tensor, many: int = 32) -> tuple[Item, Tensor]:
        """The `many` stored items [B, many, ...] nearest to cues [B, C], and which of them are of this cue at all [B, many]."""
        if not self.binding.cue_size:
            raise ValueError("reinstate: the tokens have no cue")
        context = F.normalize(cue, dim=-1) @ self.cues.mT if len(self.keys) else cue.new_zeros(len(cue), 0)
        near = context.topk(min(many, context.shape[-1]), -1)
        item = Item(*(part[near.indices] for part in (self.keys, self.cues, self.outcomes)))
        return item, near.values > OF_THIS_CUE

    def _near(self, alike: Tensor, context: Tensor, outcomes: Tensor, there: Tensor | None = None) -> Near:
        """The k best of N items by their cosines to key and cue [..., N]; there is none where `there` [..., N] is False.

        outcomes: [N, V], or [B, N, V] where every row has items of its own.
        """
        beta = self.log_beta.exp()
        match = beta[0] * alike
        if self.binding.cue_size:
            alike, match = alike.relu() * context.relu(), match + beta[1] * context
        there = torch.ones_like(alike, dtype=torch.bool) if there is None else there.expand_as(alike)
        match, which = match.masked_fill(~there, NEVER).topk(min(self.k, match.shape[-1]), -1)
        if outcomes.dim() == 2:
            said = outcomes[which]
        else:
            rows = which.flatten(1)[..., None].expand(-1, -1, outcomes.shape[-1])
            said = outcomes.gather(1, rows).view(*which.shape, -1)
        best = alike.masked_fill(~there, ABSENT).amax(-1, keepdim=True)
        return Near(match, there.gather(-1, which), said, best)

    def _token(self, answer: Tensor) -> Tensor:
        return self.binding.token(torch.log(answer + TINY) if self.labels else answer)

    def _gather(self, items: Item, wanted: Tensor, state: Gathered) -> Gathered:
        """Append the items [B, T, ...] that are `wanted` [B, T]; the oldest fall out."""
        keep = torch.cat([torch.ones_like(state.valid), wanted], 1)
        rank = keep.flip(1).cumsum(1).flip(1)  # 1 for the newest
        order = (keep & (rank <= self.slots)).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        order = order[:, : self.slots]
        valid = torch.cat([state.valid, wanted], 1).gather(1, order)
        shown = torch.cat([state.shown, torch.zeros_like(wanted)], 1).gather(1, order)
        keys, cues, outcomes = (
            torch.cat([old, new.detach()], 1).gather(1, order[..., None].expand(-1, -1, old.shape[-1]))
            for old, new in zip(state[:3], items, strict=True)
        )
        return Gathered(keys, cues, outcomes, valid, shown, state.pending)

    def _write(self, addresses: Tensor, outcomes: Tensor, run: str) -> Written:
        """Addresses [M, K + C] and outcomes [M, V]; the last of equal addresses counts."""
        kind = Filter(kinds=["result"])
        ids, known = self.store.vectors(f"{self.name}.address", where=kind)
        _, said = self.store.vectors(f"{self.name}.outcome", where=kind)
        full = 2.0 if self.binding.cue_size else 1.0  # an address holds two unit vectors
        chosen: list[int] = []
        again = torch.zeros(len(addresses), dtype=torch.bool)  # a newer one is the same
        for m in reversed(range(len(addresses))):
            if not again[m]:
                chosen.append(m)
                again |= addresses @ addresses[m] > self.same * full
        news, met = [], []
        changed: dict[str, New] = {}
        for m in reversed(chosen):
            new = self._item(addresses[m], outcomes[m], run)
            near = known @ addresses[m] if len(ids) else torch.zeros(0)
            best = int(near.argmax()) if len(ids) else -1
            if best < 0 or float(near[best]) <= self.same * full:
                news.append(new)
            elif float(F.cosine_similarity(said[best], outcomes[m], dim=0)) > self.same:
                met.append(ids[best])
            elif ids[best] in changed:  # it gives way once; what else came to lie near it is new
                news.append(new)
            else:
                changed[ids[best]] = new
        done = self.store.put_many(news)
        if met:
            done = Written((*done.ids, *met), self.store.touch(list(dict.fromkeys(met)), useful=True).generation)
        for old, new in changed.items():
            made = self.store.supersede(old, New(new.text, kind=new.kind, vectors=new.vectors, run=run))
            done = Written((*done.ids, made.id), made.generation)
        return done

    def _item(self, address: Tensor, outcome: Tensor, run: str) -> New:
        mark = hashlib.sha256(address.numpy().tobytes() + outcome.numpy().tobytes()).hexdigest()[:16]
        what = f"label {int(outcome.argmax())}" if self.labels else "outcome"
        vectors = {f"{self.name}.address": address, f"{self.name}.outcome": outcome}
        return New(f"{what} at {mark}", key=f"{self.name}:{mark}", kind="result", vectors=vectors, run=run)


def reinstate(memory: NestedMemory, state: NestedState, cue: Tensor, many: int = 32) -> NestedState:
    """A context is back: write what the store level has under cues [B, C] into the episodic level nearest to it."""
    levels = list(memory.levels)
    place = next((n for n, level in enumerate(levels) if isinstance(level, StoreLevel)), None)
    fast = [n for n, level in enumerate(levels) if isinstance(level, Episodic)]
    if place is None or not fast:
        raise ValueError("reinstate: expected a NestedMemory with an Episodic and a StoreLevel")
    items, valid = levels[place].reinstate(cue, many)
    states = list(state.levels)
    for n in reversed(range(valid.shape[1])):  # the nearest last, so that it is the newest
        item = Item(*(part[:, n] for part in items))
        written = levels[fast[-1]].write(item, states[fast[-1]])
        states[fast[-1]] = where_rows(valid[:, n], written, states[fast[-1]])
    return state._replace(levels=tuple(states))


def _alike(new: Item, held: Item, same: float) -> Tensor:
    """Where items [B, N, ...] are the same as held ones [B, S, ...]: bool [B, N, S]."""
    close = torch.einsum("bnk,bsk->bns", new.key, held.key) > same
    if new.cue.shape[-1]:
        close = close & (torch.einsum("bnc,bsc->bns", new.cue, held.cue) > same)
    outcomes = (F.normalize(o, dim=-1) for o in (new.outcome, held.outcome))
    return close & (torch.einsum("bnv,bsv->bns", *outcomes) > same)


def _number(past: Reader) -> int:
    """The hash of a generation's whole past as an integer that fits in a tensor."""
    return int(past.stamp()[:15] or "0", 16)


def _restored(level: nn.Module, keys: Any) -> None:
    """A checkpoint was loaded: show the generation it belongs to, if this store has had it."""
    assert isinstance(level, StoreLevel)
    wanted, stamp, newest = int(level.generation), int(level.stamp), level.store.generation
    if wanted > newest or _number(level.store.as_of(generation=wanted)) != stamp:
        level.look()
        raise StoreError(
            f"store: the checkpoint belongs to generation {wanted} of another store (this one is at {newest})"
        )
    if wanted < newest:
        warnings.warn(
            f"store: reading generation {wanted}, as the checkpoint did; the newest is {newest}", stacklevel=2
        )
    level.look(wanted)
