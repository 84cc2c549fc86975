"""What a run does with a store that is a level of its memory: sessions in it, what it read, and writing back at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from algos import figures
from algos.problem import Judged, Problem
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


def watched(problem: Problem, judge: Callable[[], Judged]) -> Judged:
    """A judgement that also says what the store level was asked and what it found; as it is without one."""
    if (level := level_of(getattr(problem.learner, "memory", None))) is None:
        return judge()
    from nestmem.store.hits import Hits  # needs the extra `store`, which is there if the level is

    with Hits(level) as hits:
        judged = judge()
    tables = {"levels": hits.by_level(), "ages": hits.by_age()}
    asked = max(1, sum(tables["levels"].hits.values()))
    scalars = {f"store/items/{name}": float(many) for name, many in tables["levels"].items.items()}
    scalars |= {f"store/hits/{name}, %": 100 * many / asked for name, many in tables["levels"].hits.items()}
    scalars |= {f"store/age of {what}, days": days for what, days in hits.days().items()}
    scalars["store/generation"] = float(level.generation)
    bars = {f"store-{key}": _bars(key, table, asked) for key, table in tables.items()}
    drawn = {key.replace("-", "/"): figures.bars(b["groups"], b["columns"], b["y"]) for key, b in bars.items()}
    details = dict(judged.details)
    if details:  # a validation has none
        numbers = {name.replace("/", ", "): value for name, value in scalars.items()}
        details |= {"numbers": details.get("numbers", {}) | numbers, "bars": details.get("bars", {}) | bars}
    return judged._replace(scalars=judged.scalars | scalars, figures=judged.figures | drawn, details=details)


def _bars(key: str, table: Any, asked: int) -> dict[str, Any]:
    columns = list(table.hits)
    items = max(1, sum(table.items.values()))
    shares = {
        "items": [100 * table.items.get(name, 0) / items for name in columns],
        "queries that hit one": [100 * table.hits[name] / asked for name in columns],
    }
    what = {"levels": "which level of the store", "ages": "how old"}[key]
    return {
        "caption": f"Store: {what} the items are, and those that queries hit",
        "y": "%",
        "columns": columns,
        "groups": shares,
    }


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
