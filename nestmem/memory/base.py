"""The contract of a memory: what every level of a nested memory offers, and nothing more.

Legend: B rows (sequences), T steps, Q queries, D token width (`d_model`), S slots, K key, C cue, V outcome.

A memory maps tokens `[B, T, D]` to tokens `[B, T, D]` and carries a State, a NamedTuple of batch-first tensors. No fast
weight lives in a parameter or buffer, so a state can be detached, indexed by row, saved, vmapped and forked by reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Role = Literal["working", "episodic", "slow", "persistent"]
Lifetime = Literal["episode", "task", "life"]
LIFETIMES: tuple[Lifetime, ...] = ("episode", "task", "life")

S = TypeVar("S")
State = Any  # a NamedTuple of batch-first tensors (or of such NamedTuples)


class Regression(NamedTuple):
    """A memory as test-time regression (Wang et al. 2025): at every step t it minimises, over m in some class,

        1/2 sum_{i<=t} weight_{t,i} loss(outcome_i - m(key_i)),   and answers m(query).

    weights: how the past counts ("uniform", "geometric" decay at a fixed rate, "learned" decay).
    function: the class of m ("linear", "mlp", "slots" for a local average of stored items).
    solver: how far each step goes ("hebb" ignores what the keys have in common, "sgd", "momentum sgd", "exact").
    """

    weights: str
    function: str
    solver: str


class MemorySpec(NamedTuple):
    """What a learner must know before it uses a memory.

    lifetime: the event that clears the memory; it survives every shorter one.
    period: steps between two changes of what is read (1: every step).
    differentiable_write: gradients pass through writes, so that writing itself can be meta-learned.
    parallel: `forward` over a sequence is faster than a loop over `step`.
    vmap: usable inside `torch.func.vmap` and twice differentiable (a MAML inner loop).
    compiles: `step` and `run` each trace into one graph under `torch.compile`.
    regression: which fit of outcomes to keys the memory is, where it is one.
    """

    role: Role
    lifetime: Lifetime
    period: int = 1
    differentiable_write: bool = True
    parallel: bool = True
    vmap: bool = True
    compiles: bool = True
    regression: Regression | None = None


class Fields(NamedTuple):
    """How the last axis of a token is laid out: content, then cue, then outcome.

    With `labels`, outcomes are one-hot classes and what a memory answers in that field are logits.
    """

    content: int
    cue: int = 0
    outcome: int = 0
    labels: bool = True

    @property
    def width(self) -> int:
        return self.content + self.cue + self.outcome

    def split(self, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[..., D]` to content `[..., content]`, cue `[..., cue]`, outcome `[..., outcome]`."""
        content, cue, outcome = token.split([self.content, self.cue, self.outcome], dim=-1)
        return content, cue, outcome

    def token(self, outcome: Tensor) -> Tensor:
        """An outcome `[..., V]` as a token `[..., D]` whose other fields are zero."""
        return nn.functional.pad(outcome, (self.content + self.cue, 0))


class Aux(NamedTuple):
    """What probes may look at. `confidence` [..., 1] says how well the query matches what is held."""

    confidence: Tensor
    weights: Tensor | None = None  # attention over what is held [..., S]
    gates: Tensor | None = None  # weight of each level [..., L]
    reads: tuple[Tensor, ...] = ()  # what each level answered, each [..., D]


class Item(NamedTuple):
    """One thing to remember, or N of them: key [B, (N,) K], cue [B, (N,) C], outcome [B, (N,) V]."""

    key: Tensor
    cue: Tensor
    outcome: Tensor


class Consolidation(NamedTuple):
    """What a level offers to the slower one above it. The caller decides and applies; the giver only describes.

    items: stored items [B, N, ...] with `valid` [B, N]; deltas: change of fast weights since reset, each [B, ...].
    """

    items: Item | None = None
    valid: Tensor | None = None
    deltas: dict[str, Tensor] | None = None


class Memory(nn.Module):
    """Base of every memory. A subclass gives `initial_state`, `read`, `write`, `step`, and perhaps a faster `run`."""

    spec: MemorySpec
    d_model: int

    def initial_state(self, batch_size: int) -> State:
        """The state of `batch_size` rows that have seen nothing."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        """One token [B, D]: the definition of the memory, written for reading."""
        raise NotImplementedError

    def read(self, query: Tensor, state: State) -> tuple[Tensor, Aux]:
        """Answer queries [B, D] or [B, Q, D] from the state, which stays as it is; their outcome field is ignored."""
        raise NotImplementedError

    def write(self, item: Any, state: State, *, signal: Tensor | None = None) -> State:
        """Store an item (associative memories: `Item`; recurrent ones: a token). `signal` [B] replaces own surprise."""
        raise NotImplementedError

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        """A whole sequence [B, T, D] without resets: equal to a loop over `step` in outputs and gradients, and faster.

        Here: the loop itself, for memories that have no faster form.
        """
        ys, auxes = [], []
        for token in x.unbind(1):
            y, state, aux = self.step(token, state)
            ys.append(y)
            auxes.append(aux)
        return torch.stack(ys, 1), state, stack_aux(auxes)

    def forward(
        self, x: Tensor, state: State | None = None, *, reset: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Read and write a sequence, like `nn.LSTM`: `y, state = memory(x, state)`.

        x [B, T, D]. reset [B, T] bool: an episode begins at this step, clear the working memory first.
        mask [B, T] bool: where False the step does not happen (state kept, output zero). Returns y [B, T, D].
        """
        y, state, _ = self.trace(x, state, reset=reset, mask=mask)
        return y, state

    def trace(
        self, x: Tensor, state: State | None = None, *, reset: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State, Aux]:
        """`forward` that also returns what probes need, per step."""
        check_tokens(x, self.d_model)
        for name, flags in (("reset", reset), ("mask", mask)):
            if flags is not None and flags.shape != x.shape[:2]:
                raise ValueError(f"{name}: expected bool {list(x.shape[:2])} ([B, T] of x), got {list(flags.shape)}")
        if state is None:
            state = self.initial_state(x.shape[0])
        # Between two resets the fast form applies; the sequence is cut there.
        cuts = [] if reset is None else reset.any(0).nonzero()[:, 0].tolist()
        pieces = []
        for start, stop in itertools.pairwise(sorted({0, *cuts, x.shape[1]})):
            if reset is not None and start in cuts:
                state = self.reset(state, reset[:, start])
            if mask is None or bool(mask[:, start:stop].all()):
                y, state, aux = self.run(x[:, start:stop], state)
            else:
                y, state, aux = self.run_masked(x[:, start:stop], state, mask[:, start:stop])
            pieces.append((y, aux))
        return torch.cat([y for y, _ in pieces], 1), state, stack_aux([aux for _, aux in pieces], torch.cat)

    def run_masked(self, x: Tensor, state: State, mask: Tensor) -> tuple[Tensor, State, Aux]:
        """`run` where steps that `mask` [B, T] rules out do not happen. Here: cut at every step that misses a row."""
        missing = (~mask.all(0)).nonzero()[:, 0].tolist()
        pieces = []
        for start, stop in itertools.pairwise(sorted({0, *missing, *(t + 1 for t in missing), x.shape[1]})):
            y, after, aux = self.run(x[:, start:stop], state)
            if start in missing:
                keep = mask[:, start]
                y, after = where_rows(keep, y, torch.zeros_like(y)), where_rows(keep, after, state)
            state = after
            pieces.append((y, aux))
        return torch.cat([y for y, _ in pieces], 1), state, stack_aux([aux for _, aux in pieces], torch.cat)

    def reset(self, state: State, done: Tensor, *, until: Lifetime = "episode") -> State:
        """Where `done` [B] is True, clear the memory if it does not outlive `until`."""
        if until not in LIFETIMES:
            raise ValueError(f"until: expected one of {', '.join(LIFETIMES)}, got {until!r}")
        if LIFETIMES.index(self.spec.lifetime) > LIFETIMES.index(until):
            return state
        return where_rows(done, self.initial_state(done.shape[0]), state)

    def consolidate(self, state: State) -> tuple[State, Consolidation]:
        """Describe what a slower level should take over. By default nothing."""
        return state, Consolidation()


def check_tokens(x: Tensor, d_model: int) -> None:
    if x.dim() != 3 or x.shape[-1] != d_model:
        raise ValueError(f"x: expected tokens [B, T, {d_model}], got {list(x.shape)}")


def check_fields(fields: Fields | None, d_model: int) -> None:
    if fields is not None and fields.width != d_model:
        raise ValueError(f"fields: {fields} describe {fields.width} numbers a token, but d_model is {d_model}")


def map_state(fn: Callable[..., Tensor], *states: State) -> State:
    """Apply `fn` to the tensors of one state, or to matching tensors of several."""
    first = states[0]
    if isinstance(first, Tensor):
        return fn(*states)
    if first is None:
        return None
    parts = [map_state(fn, *group) for group in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def where_rows(keep: Tensor, new: S, old: S) -> S:
    """Rows of `new` where `keep` [B] is True, else rows of `old`."""
    picked: S = map_state(lambda n, o: torch.where(keep.view(-1, *[1] * (o.dim() - 1)), n, o), new, old)
    return picked


def detach(state: State) -> State:
    """The same state without its graph: the cut of truncated backpropagation."""
    return map_state(lambda t: t.detach(), state)


def select(state: State, rows: Tensor) -> State:
    """The state of the given rows (indices or a bool mask)."""
    return map_state(lambda t: t[rows], state)


def state_bytes(state: State) -> int:
    """Bytes one row carries."""
    return sum(t[:1].numel() * t.element_size() for t in state_to_dict(state).values())


def state_to_dict(state: State, prefix: str = "") -> dict[str, Tensor]:
    """Flat named copies, for safetensors. A NamedTuple's fields and a tuple's positions become dotted names."""
    if isinstance(state, Tensor):
        return {prefix: state.detach().clone(memory_format=torch.contiguous_format)}
    names = getattr(state, "_fields", None) or [str(i) for i in range(len(state))]
    flat: dict[str, Tensor] = {}
    for name, part in zip(names, state, strict=True):
        flat |= state_to_dict(part, f"{prefix}.{name}" if prefix else name)
    return flat


def state_from_dict(flat: dict[str, Tensor], like: State, prefix: str = "") -> State:
    """The inverse of `state_to_dict`; `like` gives the shape of the tree (any batch size)."""
    if isinstance(like, Tensor):
        if prefix not in flat:
            raise ValueError(f"state: no tensor {prefix!r} among {', '.join(sorted(flat)) or 'none'}")
        if flat[prefix].shape[1:] != like.shape[1:]:
            raise ValueError(f"state: {prefix} expected [B, *{list(like.shape[1:])}], got {list(flat[prefix].shape)}")
        return flat[prefix].to(like, copy=True)  # memory of its own: sums can depend on where a file's numbers lie
    names = getattr(like, "_fields", None) or [str(i) for i in range(len(like))]
    parts = [
        state_from_dict(flat, part, f"{prefix}.{name}" if prefix else name)
        for name, part in zip(names, like, strict=True)
    ]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def stack_aux(auxes: list[Aux], join: Callable[[list[Tensor], int], Tensor] = torch.stack) -> Aux:
    """Join per-step (or per-piece) Aux along time."""

    def joined(parts: list[Any]) -> Any:
        return None if parts[0] is None else join(parts, 1)

    first = auxes[0]
    same_slots = first.weights is not None and len({a.weights.shape[-1] for a in auxes if a.weights is not None}) == 1
    return Aux(
        confidence=joined([a.confidence for a in auxes]),
        weights=joined([a.weights for a in auxes]) if same_slots else None,
        gates=joined([a.gates for a in auxes]),
        reads=tuple(joined(list(level)) for level in zip(*(a.reads for a in auxes), strict=True)),
    )


def traced(x: Tensor) -> bool:
    """Whether a functorch transform or a compiler traces `x`: then there are no fused kernels and no numbers to read."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.is_functorch_wrapped_tensor(x)  # noqa: SLF001  (no public name exists)
