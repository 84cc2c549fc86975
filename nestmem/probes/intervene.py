"""Interventions on running models: swap what a level says, clear or freeze what it holds, replace a module's output.

Everything here runs a model; what it returns are recorded arrays for the pure probes. Nothing is left behind in the module.
Legend: B streams, T steps, D token, L levels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from nestmem.memory.base import Aux, State, stack_aux, where_rows
from nestmem.nested import NestedMemory, NestedState
from nestmem.probes.statistics import Interval, mean_interval


class Spoken(NamedTuple):
    """What every level of a nested memory answered on a sequence: y [B, T, D], reads L of [B, T, D], their Aux."""

    y: Tensor
    reads: tuple[Tensor, ...]
    auxes: tuple[Aux, ...]
    state: State


def spoken(memory: NestedMemory, x: Tensor, state: State | None = None, *, reset: Tensor | None = None) -> Spoken:
    """Run a nested memory over tokens [B, T, D] and keep what each level told the gate."""
    heard: list[tuple[tuple[Tensor, ...], tuple[Aux, ...]]] = []
    combine = memory.combine

    def listening(reads: Sequence[Tensor], auxes: Sequence[Aux]) -> tuple[Tensor, Aux]:
        heard.append((tuple(reads), tuple(auxes)))
        return combine(reads, auxes)

    vars(memory)["combine"] = listening
    try:
        y, state, _ = memory.trace(x, state, reset=reset)
    finally:
        del vars(memory)["combine"]
    stretches = heard[0][0][0].dim() == 3  # else single steps [B, D]
    join = torch.cat if stretches else torch.stack
    reads = tuple(join(parts, 1) for parts in zip(*(reads for reads, _ in heard), strict=True))
    auxes = tuple(stack_aux(list(parts), join) for parts in zip(*(auxes for _, auxes in heard), strict=True))
    return Spoken(y, reads, auxes, state)


def interchanged(memory: NestedMemory, host: Spoken, donor: Spoken) -> Tensor:
    """The host's outputs with one level's answer (read and confidence) replaced by the donor's at every step: [L, B, T, D].

    Entry l is for level l. States are the host's throughout: only what is said changes, not what is remembered.
    """
    if host.y.shape != donor.y.shape:
        raise ValueError(f"donor: expected the shape of the host {list(host.y.shape)}, got {list(donor.y.shape)}")
    answers = []
    for level in range(len(host.reads)):
        reads, auxes = list(host.reads), list(host.auxes)
        reads[level], auxes[level] = donor.reads[level], donor.auxes[level]
        answers.append(memory.combine(reads, auxes)[0])
    return torch.stack(answers)


def lesion(
    memory: NestedMemory,
    x: Tensor,
    level: int,
    how: Literal["clear", "freeze"] = "clear",
    *,
    state: NestedState | None = None,
    at: Tensor | None = None,
) -> tuple[Tensor, NestedState]:
    """Run a nested memory [B, T, D] with one level out of order at the steps `at` [B, T] bool (default: all of them).

    clear: the level holds nothing before such a step. freeze: such a step leaves the level as it was. Slower levels that
    are fed by this one feel it too, as they would. Returns outputs [B, T, D] and the last state.
    """
    if not 0 <= level < len(memory.levels) or how not in ("clear", "freeze"):
        raise ValueError(
            f"level, how: expected a level below {len(memory.levels)} and clear or freeze, got {level}, {how!r}"
        )
    rows, steps = x.shape[:2]
    if at is None:
        at = torch.ones(rows, steps, dtype=torch.bool, device=x.device)
    if at.shape != x.shape[:2]:
        raise ValueError(f"at: expected bool {[rows, steps]} ([B, T] of x), got {list(at.shape)}")
    state = memory.initial_state(rows) if state is None else state
    empty, ys = memory.levels[level].initial_state(rows), []
    for t in range(steps):
        before = state.levels[level]
        if how == "clear":
            state = _with(state, level, where_rows(at[:, t], empty, before))
        y, state, _ = memory.step(x[:, t], state)
        if how == "freeze":
            state = _with(state, level, where_rows(at[:, t], before, state.levels[level]))
        ys.append(y)
    return torch.stack(ys, 1), state


def lesion_cost(intact: ArrayLike, lesioned: ArrayLike) -> Interval:
    """Accuracy lost by a lesion: mean over streams of intact - lesioned, both correct [B, T] (or accuracies [B])."""
    before, after = np.asarray(intact, dtype=np.float64), np.asarray(lesioned, dtype=np.float64)
    if before.shape != after.shape or before.ndim not in (1, 2):
        raise ValueError(f"intact, lesioned: expected the same [B, T] or [B], got {before.shape} and {after.shape}")
    lost = before - after
    return mean_interval(lost.mean(1) if lost.ndim == 2 else lost)


@contextlib.contextmanager
def edited(module: nn.Module, edit: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, `module`'s output is edit(output). A lesion of any model: `edited(level, torch.zeros_like)`."""
    handle = module.register_forward_hook(lambda _module, _args, output: edit(output))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def recorded(module: nn.Module) -> Iterator[list[Any]]:
    """Within the block, keeps the outputs of `module`, one for each call: what `swapped` takes as a donor."""
    outputs: list[Any] = []
    with edited(module, lambda output: outputs.append(output)):  # None from a hook leaves the output as it is
        yield outputs


@contextlib.contextmanager
def swapped(module: nn.Module, donor_outputs: Sequence[Any]) -> Iterator[None]:
    """Within the block, calls of `module` return the donor's outputs instead, in the order they were recorded.

    For models that are not made of nestmem's memories:
        with recorded(model.slow) as donor: model(donor_x)
        with swapped(model.slow, donor): y = model(host_x)
    Pick a module that only reads (a projection of a level's state, say): whatever it returns is replaced, a recurrent
    state too, and the host then remembers the donor's past. Shapes and the number of calls must be those recorded.
    """
    calls = 0

    def replace(output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > len(donor_outputs):
            raise ValueError(f"donor_outputs: expected one for every call, but there are {len(donor_outputs)}")
        given = donor_outputs[calls - 1]
        if _shapes(given) != _shapes(output):
            raise ValueError(f"donor_outputs: expected shapes {_shapes(output)} as in the host, got {_shapes(given)}")
        return given

    with edited(module, replace):
        yield
    if calls < len(donor_outputs):
        raise ValueError(f"donor_outputs: expected {calls}, one for every call of the module, got {len(donor_outputs)}")


def _with(state: NestedState, level: int, held: State) -> NestedState:
    return state._replace(levels=(*state.levels[:level], held, *state.levels[level + 1 :]))


def _shapes(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, tuple | list):
        return [_shapes(part) for part in output]
    if isinstance(output, dict):
        return {name: _shapes(part) for name, part in output.items()}
    return None
