"""A trained memory in one session of streams that go on over several: what a store keeps between two processes.

    nestmem eval RUN session=1 store=memory.db      the first half of every stream; what was learned is written back
    nestmem eval RUN session=2 store=memory.db      the second half, in another process, whenever that is

A recurring stream (`algos.visits`) is cut into `of` sessions of equal length. Each begins with an empty memory; only what the
store holds is left of the sessions before. Judged are, within the session,
    known, visit n     the n-th visit of this session to a context that an earlier session met
    new                first visits to contexts that no session met
by shots (how often a class was shown in this visit) and by the shots and steps until the mean accuracy is LEVEL.
Legend: B rows, V visits, T steps of a visit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from algos import build, checkpoint, stored
from algos.checkpoint import below
from algos.jobs import stored_config
from algos.visits import LEVEL, VisitProblem, over_streams
from nestmem.errors import UserError
from nestmem.probes import Interval, Undefined, mean_interval, steps_to
from nestmem.probes.value import jsonable

OPTIONS: dict[str, Any] = {"session": 1, "of": 2, "store": "", "streams": 32, "split": "test"}
OPTIONS |= {"carry": False, "write": True}
VISITS = 3  # of a session to a known context that are told apart
console = Console()


def evaluate(run: str, overrides: list[str]) -> dict[str, Any]:
    """Judge a run's newest checkpoint in one session, write back to the store, print a table.

    streams: B. carry: the memory is not emptied, as if the process had never ended. write: false to leave the store as it is.
    """
    given = _options(overrides)
    made, step = _loaded(Path(run), given["store"])
    visits = made.streams[given["split"]].visits
    if given["of"] < 1 or visits % given["of"] or not 1 <= given["session"] <= given["of"]:
        raise UserError(
            f"session: expected 1 to of={given['of']}, which must divide the {visits} visits of a stream, "
            f"got {given['session']}"
        )
    each = visits // given["of"]
    memory = made.learner.memory
    level = stored.level_of(memory)
    said = {"generation_read": int(level.generation), "items_read": len(level.keys)} if level else {}
    correct, context, state = follow(made, given, each)
    numbers = judged(correct, context[:, : each * given["session"]], each)
    if level is not None and given["write"]:
        gathered = stored.settled(memory, state).levels[-1]
        done = level.write_back(gathered, run=f"{run} session {given['session']}")[1]
        said |= {"generation_written": done.generation, "items_written": len(done.ids)}
        level.store.close()
    _print(f"{run} at step {step}, session {given['session']} of {given['of']}", numbers, said)
    result: dict[str, Any] = jsonable({"run": run, "step": step} | given | {"numbers": numbers, "stored": said})
    return result


@torch.no_grad()
def follow(made: VisitProblem, given: dict[str, Any], each: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Correct answers of the session's visits [B, V, T], contexts of all visits [B, all V], and the state in the end."""
    source, memory = made.streams[given["split"]], made.learner.eval().memory
    source.generator.set_state(made.starts[given["split"]])
    stream = source.sample(given["streams"])
    tokens, labels = (part.unflatten(1, (-1, source.steps)) for part in (stream.tokens, stream.labels))
    state, right = memory.initial_state(given["streams"]), []
    begin, end = each * (given["session"] - 1), each * given["session"]
    for visit in range(0 if given["carry"] else begin, end):
        y, state, _ = memory.trace(tokens[:, visit].to(made.device), state)
        right.append(made.learner.logits(y).argmax(-1).cpu() == labels[:, visit].cpu())
    shown = torch.stack(right, 1)[:, -each:]
    seen = stream.seen.unflatten(1, (-1, source.steps))[:, begin:end]
    context = stream.context.unflatten(1, (-1, source.steps))[..., 0]
    return np.stack([shown.numpy(), seen.cpu().numpy()]), context.cpu().numpy(), state


def judged(record: np.ndarray, context: np.ndarray, each: int) -> dict[str, dict[str, Any]]:
    """record [2, B, V, T]: whether right, and how often the class came before in this visit; contexts [B, all V so far]."""
    kinds = kind_of_visit(context, each)
    wanted = {f"known, visit {n + 1}": n for n in range(VISITS)} | {"new": -1}
    return {name: adaptation(record, kinds == kind) for name, kind in wanted.items()}


def kind_of_visit(context: np.ndarray, each: int) -> np.ndarray:
    """Of the last `each` visits of contexts [B, V]: n where a context of earlier sessions is visited for the n-th time (from 0)
    in this one, -1 where a context is met for the first time at all, -2 elsewhere."""
    before, now = context[:, :-each], context[:, -each:]
    kinds = np.full(now.shape, -2)
    for b, v in np.ndindex(*now.shape):
        earlier = int((now[b, :v] == now[b, v]).sum())
        if now[b, v] in before[b]:
            kinds[b, v] = earlier
        elif not earlier:
            kinds[b, v] = -1
    return kinds


def adaptation(record: np.ndarray, visits: np.ndarray) -> dict[str, Any]:
    """Accuracy in percent by shots, and shots and steps to LEVEL, within the chosen visits [B, V]."""
    if not visits.any():
        return {"visits": 0}
    right, seen = record[0].astype(float), record[1]
    shots = [over_streams(right, (seen == k) & visits[..., None]) for k in range(int(seen.max()) + 1)]
    by_shot = [shot.mean / 100 for shot in shots if isinstance(shot, Interval)]
    by_step = right[visits].mean(0)
    found: dict[str, Any] = {"visits": int(visits.sum())} | {f"after {k} shots": shot for k, shot in enumerate(shots)}
    found["all"] = mean_interval(100 * right[visits].mean(1))
    for what, curve in (("shots", by_shot), ("steps", by_step)):
        reached = steps_to(np.array(curve)[None], LEVEL).summary
        if isinstance(reached, Interval):  # steps count from 1, and the first guess comes after no shot
            reached = reached.mean - (what == "shots")
        found[f"{what} to {100 * LEVEL:.0f} %"] = reached
    return found


def _options(overrides: list[str]) -> dict[str, Any]:
    known = dict(OPTIONS)
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in known:
            raise UserError(f"eval: no option {name!r} beside session; known: {', '.join(known)}")
        if isinstance(known[name], bool):
            if value not in ("true", "false"):
                raise UserError(f"{name}: expected true or false, got {value!r}")
            known[name] = value == "true"
        elif isinstance(known[name], int):
            if not value.isdigit() or int(value) < 1:
                raise UserError(f"{name}: expected a whole number of at least 1, got {value!r}")
            known[name] = int(value)
        else:
            known[name] = value
    if known["split"] not in ("val", "test"):
        raise UserError(f"split: expected val or test, got {known['split']!r}")
    return known


def _loaded(run: Path, store: str) -> tuple[VisitProblem, int]:
    """The newest checkpoint of a run on recurring streams, reading this store and not the one it was trained with."""
    config = stored_config(run)
    if "test_visits" not in config.env:
        raise UserError(f"{run}: sessions are of recurring streams (experiment=recurring), got env={config.env.name}")
    if bool(store) != bool(config.memory.get("store")):
        raise UserError(
            f"store: {run} was trained {'without' if store else 'with'} a store as a level (memory.store=PATH); "
            f"{'leave store= out' if store else 'expected store=PATH'}"
        )
    if store:
        config.memory.store = store
    config.env.session = 0
    made = build.problem(config)
    assert isinstance(made, VisitProblem)
    found, notes = checkpoint.read(run)
    for note in notes:
        console.print(f"{note}; step {found.step} is used instead")
    tensors = below(found.tensors, "learner.")
    # The generation that training read is one of another store.
    weights = {name: t for name, t in tensors.items() if not name.endswith((".generation", ".stamp"))}
    missing, unexpected = made.learner.load_state_dict(weights, strict=False)
    if unexpected or any(not name.endswith((".generation", ".stamp")) for name in missing):
        raise UserError(f"{found.path}: does not fit this configuration ({[*missing, *unexpected][0]})")
    return made, found.step


def _print(title: str, numbers: dict[str, dict[str, Any]], said: dict[str, Any]) -> None:
    columns = [name for name in numbers["new"] or numbers["known, visit 1"] if name != "visits"]
    columns = columns or [name for name in numbers["known, visit 1"] if name != "visits"]
    table = Table(title=title)
    for column in ("contexts", "visits", *columns):
        table.add_column(column)
    for kind, found in numbers.items():
        table.add_row(kind, str(found["visits"]), *(_cell(found.get(column)) for column in columns))
    console.print(table)
    if said:
        written = f", wrote {said['items_written']} as {said['generation_written']}" if "items_written" in said else ""
        console.print(f"store: read {said['items_read']} items of generation {said['generation_read']}{written}")


def _cell(value: Any) -> str:
    if isinstance(value, Interval):
        return f"{value.mean:.1f}"
    if isinstance(value, Undefined):
        return "not reached"
    return "" if value is None else f"{value:g}"
