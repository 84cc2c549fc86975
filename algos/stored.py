"""What a run does with a store that is a level of its memory: sessions in it, what it read, and writing back at its end."""

from __future__ import annotations

from typing import Any

import torch

from algos.problem import Problem
from nestmem.memory.base import Memory, State
from nestmem.nested import NestedMemory


def level_of(memory: object) -> Any:
    """The store level of a memory, or None. Any: the class needs the extra `store`."""
    if isinstance(memory, NestedMemory) and memory.levels[-1].spec.role == "persistent":
        return memory.levels[-1]
    return None


def settled(memory: Memory, state: State) -> State:
    """A session ends: what the episodic level still holds is offered to the store's, whatever its clock says."""
    if (level := level_of(memory)) is None or (last := len(memory.levels) - 1) not in memory.source:
        return state
    fast, states = memory.source[last], list(state.levels)
    _, given = memory.levels[fast].consolidate(states[fast])
    states[last] = level.absorb(states[last], given, torch.ones_like(state.step, dtype=torch.bool), memory.rule)
    return state._replace(levels=tuple(states))


def new_session(memory: Memory, state: State, rows: int) -> State:
    """The state in which the same rows go on in a new process: empty but for what a store level gathered."""
    begin = memory.initial_state(rows)
    if (level := level_of(memory)) is None:
        return begin
    gathered = level.session(settled(memory, state).levels[-1])
    return begin._replace(levels=(*begin.levels[:-1], gathered))


def write_back(problem: Problem, run: str) -> dict[str, Any]:
    """Write what the store level gathered on the streams a run ends in. What RUN/result.json says of it; {} without a store."""
    memory = getattr(problem.learner, "memory", None)
    if (level := level_of(memory)) is None:
        return {}
    said: dict[str, Any] = {"generation_read": int(level.generation), "generation_written": None, "items": 0}
    if (carried := getattr(problem, "carried", None)) is not None:
        carried = settled(memory, carried)
        state, done = level.write_back(carried.levels[-1], run=run)
        problem.carried = carried._replace(levels=(*carried.levels[:-1], state))  # type: ignore[attr-defined]
        said |= {"generation_written": done.generation, "items": len(done.ids)}
    return {"store": said}
