"""NestedMemory: a stack of memories, fastest first, each with its own clock.

Every level answers every query; what is said is a mixture, with one learned weight per level and step:
    y = sum_l g_l y_l,   g = softmax(MLP(confidence of every level))
Where outcomes are labels the mixture is over the levels' label distributions: y = log sum_l g_l softmax(y_l).
A level that can `absorb` is slow: between two ticks of its clock (`spec.period` steps) it is constant, and at a tick it
takes over what the nearest faster episodic level offers. The other levels see every token; with `known` < 1 an outcome that
a slow level foresaw with that probability takes no slot of the level that feeds it. Reads are mixed *or* fed to a
core, never both: with both, the mixture leans on the core and its weights say nothing about timescales.
Legend: B rows, T steps, L levels, D token, V outcome.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nestmem.consolidation import RULES, Rule
from nestmem.memory.associative import Associative
from nestmem.memory.base import (
    Aux,
    Consolidation,
    Fields,
    Lifetime,
    Memory,
    MemorySpec,
    State,
    check_fields,
    stack_aux,
    traced,
)
from nestmem.memory.episodic import Episodic
from nestmem.memory.lstm import LSTM
from nestmem.memory.registry import register
from nestmem.memory.slow import SlowMLP
from nestmem.memory.tensor_product import TensorProduct

EVIDENCE = 4  # numbers a level gives the gate: largest, margin, norm, and its own confidence


@runtime_checkable
class Absorbs(Protocol):
    """A slow level: it can take over what a faster one offers."""

    def absorb(self, state: State, given: Consolidation, due: Tensor, rule: Rule) -> State: ...


class NestedState(NamedTuple):
    levels: tuple[State, ...]
    step: Tensor  # [B] the clock


class NestedMemory(Memory):
    """Any memories as levels, `NestedMemory([LSTM(64), Episodic(64), SlowMLP(64, period=16)])`, fastest first.

    Levels share `d_model` and `fields`. consolidation: the rule by which a slow level takes items over,
    "replay" (default), "distill", "reptile" or "hebb"; see `nestmem.consolidation`. known: probability from which on a
    label that a slow level foresaw is not written into the slots below it; 1 (default): all are written. What fills the
    slots is then what the slow level does not know, so slots last longer, and that there is one says that it is needed.
    tokens_too: slow levels that take items over also see all tokens, as they do without a faster level.
    """

    def __init__(
        self,
        levels: Sequence[Memory],
        fields: Fields | None = None,
        consolidation: str = "replay",
        known: float = 1.0,
        tokens_too: bool = False,
    ):
        super().__init__()
        if not levels:
            raise ValueError("levels: expected at least one memory, got none")
        if len(widths := {level.d_model for level in levels}) > 1:
            raise ValueError(f"levels: expected one d_model for all, got {sorted(widths)}")
        if consolidation not in RULES:
            raise ValueError(f"consolidation: expected one of {', '.join(RULES)}, got {consolidation!r}")
        self.d_model, self.fields = levels[0].d_model, fields
        check_fields(fields, self.d_model)
        self.labels = fields is not None and fields.labels
        self.levels: Any = nn.ModuleList(levels)  # Any: a ModuleList forgets what its modules are
        self.rule = RULES[consolidation]
        self.spec = MemorySpec(
            role="slow",
            lifetime="life",
            differentiable_write=all(level.spec.differentiable_write for level in levels),
            vmap=all(level.spec.vmap for level in levels),
            compiles=all(level.spec.compiles for level in levels),
        )
        last = nn.Linear(16, len(levels))
        nn.init.zeros_(last.weight)  # every level is heard equally at first
        nn.init.zeros_(last.bias)
        self.gate = nn.Sequential(nn.Linear(EVIDENCE * len(levels), 16), nn.Tanh(), last)
        # A slow level is fed by the nearest faster episodic one; without one it sees the tokens and ticks by itself.
        self.source = {
            slow: max(fast for fast in range(slow) if levels[fast].spec.role == "episodic")
            for slow in range(len(levels))
            if isinstance(levels[slow], Absorbs) and any(m.spec.role == "episodic" for m in levels[:slow])
        }
        if not 0 < known <= 1:
            raise ValueError(f"known: expected a probability in (0, 1], got {known}")
        selective = self.labels and all(isinstance(levels[fast], Associative) for fast in self.source.values())
        if known < 1 and not selective:
            raise ValueError(
                "known: expected 1 unless outcomes are labels and slow levels are fed by key-value memories"
            )
        self.known, self.tokens_too = known, tokens_too

    def initial_state(self, batch_size: int) -> NestedState:
        states = tuple(level.initial_state(batch_size) for level in self.levels)
        device = next(self.parameters()).device
        return NestedState(states, torch.zeros(batch_size, dtype=torch.long, device=device))

    def step(self, x: Tensor, state: NestedState) -> tuple[Tensor, NestedState, Aux]:
        y, state, aux = self._advance(x, state, steps=1)
        return y, self._tick(state), aux

    def read(self, query: Tensor, state: NestedState) -> tuple[Tensor, Aux]:
        answers = [level.read(query, held) for level, held in zip(self.levels, state.levels, strict=True)]
        return self.combine([y for y, _ in answers], [aux for _, aux in answers])

    def write(self, item: Tensor, state: NestedState, *, signal: Tensor | None = None) -> NestedState:
        """Take in a token [B, D] without reading."""
        return self.step(item, state)[1]

    def run(self, x: Tensor, state: NestedState) -> tuple[Tensor, NestedState, Aux]:
        """A slow level is constant between two ticks, so each stretch between ticks runs in parallel."""
        periods = [self.levels[i].spec.period for i in self.source]
        if periods and (traced(x) or traced(state.step) or bool((state.step != state.step[0]).any())):
            return super().run(x, state)
        clock, steps = int(state.step[0]) if periods else 0, x.shape[1]
        ticks = {t + 1 for t in range(steps) if any((clock + t + 1) % period == 0 for period in periods)}
        edges = sorted({0, steps} | ticks)
        ys, auxes = [], []
        for start, stop in itertools.pairwise(edges):
            y, state, aux = self._advance(x[:, start:stop], state, steps=stop - start)
            state = self._tick(state)
            ys.append(y)
            auxes.append(aux)
        return torch.cat(ys, 1), state, stack_aux(auxes, torch.cat)

    def _advance(self, x: Tensor, state: NestedState, steps: int) -> tuple[Tensor, NestedState, Aux]:
        """One step [B, D], or a stretch [B, T, D] without ticks: slow levels are read, the others read and write."""
        reads, auxes, states = ([None] * len(self.levels) for _ in range(3))  # type: list[Any], list[Any], list[Any]
        # Slow levels first: what they foresaw decides what is written below them.
        for i in sorted(range(len(self.levels)), key=lambda i: i not in self.source):
            level, held = self.levels[i], state.levels[i]
            if i in self.source and not self.tokens_too:
                y, aux = level.read(x, held)
            elif self.known < 1 and i in self.source.values():
                y, held, aux = self._selectively(i, x, state, reads)
            else:
                y, held, aux = level.step(x, held) if x.dim() == 2 else level.run(x, held)
            reads[i], states[i], auxes[i] = y, held, aux
        y, aux = self.combine(reads, auxes)
        return y, NestedState(tuple(states), state.step + steps), aux

    def _selectively(self, fast: int, x: Tensor, state: NestedState, reads: list[Any]) -> tuple[Tensor, State, Aux]:
        """`_advance` of a level that feeds slow ones, whose reads are at hand, and takes only what these do not know."""
        assert self.fields is not None, "checked at the start"
        level, held = self.levels[fast], state.levels[fast]
        tokens = x if x.dim() == 3 else x[:, None]
        outcomes = level.items(tokens, held.pending).outcome
        pending = torch.cat([held.pending, torch.zeros_like(outcomes[:, 0])], -1)
        unknown = torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device)
        for slow in (slow for slow, source in self.source.items() if source == fast):
            foresaw = self.levels[slow].read(pending, state.levels[slow])[0][:, None]
            if x.dim() == 3:
                foresaw = torch.cat([foresaw, reads[slow][:, :-1]], 1)  # an outcome comes one step after its key
            probability = (self.fields.split(foresaw)[2].softmax(-1) * outcomes).sum(-1)
            unknown = unknown & (probability < self.known)
        y, held, aux = level.run_writing(tokens, held, unknown)
        if x.dim() == 3:
            return y, held, aux
        return y[:, 0], held, Aux(aux.confidence[:, 0], None if aux.weights is None else aux.weights[:, 0])

    def combine(self, reads: Sequence[Tensor], auxes: Sequence[Aux]) -> tuple[Tensor, Aux]:
        """Mix one read per level [..., D]. A probe may pass reads of its own making (interchange, lesions)."""
        answers = [self.fields.split(y)[2] if self.fields is not None else y for y in reads]
        evidence = [_evidence(y, aux.confidence, self.labels) for y, aux in zip(answers, auxes, strict=True)]
        log_gates = self.gate(torch.cat(evidence, -1)).log_softmax(-1)
        stacked = torch.stack(answers, -2)  # [..., L, V]
        if self.labels:
            mixed = torch.logsumexp(log_gates[..., None] + stacked.log_softmax(-1), -2)
        else:
            mixed = (log_gates.exp()[..., None] * stacked).sum(-2)
        y = mixed if self.fields is None else self.fields.token(mixed)
        confidence = torch.cat([aux.confidence for aux in auxes], -1).amax(-1, keepdim=True)
        return y, Aux(confidence=confidence, gates=log_gates.exp(), reads=tuple(reads))

    def reset(self, state: NestedState, done: Tensor, *, until: Lifetime = "episode") -> NestedState:
        """Clears every level that does not outlive `until`; the clock restarts when all do."""
        levels = tuple(
            level.reset(held, done, until=until) for level, held in zip(self.levels, state.levels, strict=True)
        )
        step = torch.where(done, 0, state.step) if until == "life" else state.step
        return NestedState(levels, step)

    def consolidate(self, state: NestedState) -> tuple[NestedState, Consolidation]:
        """What the slowest level offers to whatever lies beyond this memory."""
        *faster, slowest = state.levels
        slowest, given = self.levels[-1].consolidate(slowest)
        return state._replace(levels=(*faster, slowest)), given

    def _tick(self, state: NestedState) -> NestedState:
        """Let each slow level whose clock says so take over the items of the level that feeds it."""
        states = list(state.levels)
        for slow, fast in self.source.items():
            due = state.step % self.levels[slow].spec.period == 0
            if not traced(due) and not bool(due.any()):
                continue
            states[fast], given = self.levels[fast].consolidate(states[fast])
            states[slow] = self.levels[slow].absorb(states[slow], given, due, self.rule)
        return state._replace(levels=tuple(states))


def _evidence(answer: Tensor, confidence: Tensor, labels: bool) -> Tensor:
    """What the gate may know of a level's answer [..., V]: largest, margin, norm, own confidence: [..., 4].

    The raw answer is withheld: from it a small gate cannot work out how sure a level is.
    """
    sure = answer.softmax(-1) if labels else answer
    top = sure.topk(min(2, sure.shape[-1]), dim=-1).values
    return torch.cat([top[..., :1], top[..., :1] - top[..., -1:], sure.norm(dim=-1, keepdim=True), confidence], -1)


@register("nested")
def nested(
    d_model: int,
    fields: Fields | None = None,
    hidden: int = 64,
    reset_every: int = 64,
    slots: int = 64,
    threshold: float = 0.95,
    slow_hidden: int = 128,
    period: int = 16,
    consolidation: str = "replay",
    key_bits: int = 32,
    slow: str = "mlp",
    ridge: float = 2.0,
    key_code: int = 0,
    slow_sees: str = "items",
    known: float = 1.0,
    store: str = "",
) -> NestedMemory:
    """LSTM, episodic and slow memory behind one gate, consolidated upwards by replay.

    hidden, reset_every: of the LSTM, which forgets so that slower levels have something left to learn. slots, threshold:
    of the episodic memory. slow_hidden, period: of the slow MLP.
    For many conflicting bindings in few bytes: key_bits=8 (of slots and slow weights) and slow=product, a tensor product
    instead of the MLP, with its ridge and key_code; slow=none leaves the slow level out.
    slow_sees: the episodic level's "items" at each tick, which suits what is arbitrary; or "tokens", all of them as they come,
    which suits a rule: then the level comes before the episodic one and has its own pace; or "both".
    known: probability from which on what the slow level foresaw is not written into slots; 1: all is.
    store: path or URL of a persistent store as the slowest level (docs/store.md); a finished run writes back what it learned.
    """
    if slow_sees not in ("items", "tokens", "both"):
        raise ValueError(f"slow_sees: expected items, tokens or both, got {slow_sees!r}")
    levels: list[Memory] = [
        LSTM(d_model, fields, hidden=hidden, reset_every=reset_every),
        Episodic(d_model, fields, slots=slots, threshold=threshold, key_bits=key_bits),
    ]
    place = 1 if slow_sees == "tokens" else 2
    match slow:
        case "mlp":
            levels.insert(place, SlowMLP(d_model, fields, hidden=slow_hidden, period=period))
        case "product":
            levels.insert(place, TensorProduct(d_model, fields, key_code, ridge, period, bits=key_bits))
        case "none":
            pass
        case _:
            raise ValueError(f"slow: expected mlp, product or none, got {slow!r}")
    if store:  # only then the extra `store` is needed
        from nestmem.store.level import StoreLevel
        from nestmem.store.store import Store

        levels.append(StoreLevel(Store(store), d_model, fields))
    return NestedMemory(levels, fields, consolidation=consolidation, known=known, tokens_too=slow_sees == "both")
