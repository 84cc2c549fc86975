"""What a run does with a store that is a level of its memory: says which generation it read, and writes back at its end."""

from __future__ import annotations

from typing import Any

from algos.problem import Problem
from algos.stream import StreamProblem
from nestmem.nested import NestedMemory


def write_back(problem: Problem, run: str) -> dict[str, Any]:
    """Write what the store level gathered on the streams a run ends in. What RUN/result.json says of it; {} without a store."""
    memory = getattr(problem.learner, "memory", None)
    if not isinstance(memory, NestedMemory) or memory.levels[-1].spec.role != "persistent":
        return {}
    level = memory.levels[-1]
    said: dict[str, Any] = {"generation_read": int(level.generation), "generation_written": None, "items": 0}
    if isinstance(problem, StreamProblem) and (carried := problem.carried) is not None:
        state, done = level.write_back(carried.levels[-1], run=run)
        problem.carried = carried._replace(levels=(*carried.levels[:-1], state))
        said |= {"generation_written": done.generation, "items": len(done.ids)}
    return {"store": said}
