"""Recurring streams: contexts come, go, and come back; what is kept, for how long, at what cost to what is new.

An update is one visit (truncated backpropagation, state carried); after `env.visits` visits fresh streams begin. Judged on
streams of `env.test_visits` visits over classes never trained on. Everything is about *first guesses* (k = 0: a class not yet
shown in this visit), by visits since the context was last here:
    new0, new1    first guess and one-shot guess on a first visit       ret0   first guess on a return
    gap/5-8 ...   ret0 by gap                                           floors: chance, and striking out used labels
    steps to 90 % accuracy within first visits and within returns; savings is their ratio
Legend: B rows, T steps of a visit, V visits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from algos import figures, stored
from algos.embedding import embedding
from algos.parts import drawn, memory
from algos.problem import Judged, Metrics
from algos.stream import Piece, StreamLearner, StreamProblem
from envs.bindings import Bindings
from envs.rules import Rules, principal
from envs.visits import Stream, Visits
from nestmem import Fields, NestedMemory
from nestmem.errors import UserError
from nestmem.memory.base import Memory, State
from nestmem.probes import Interval, Undefined, accuracy_by_gap, mean_interval, steps_to
from nestmem.probes.adaptation import GAPS

NAMES = ("bindings", "rules")
ALGOS = ("blackbox",)
LEVEL = 0.9  # of the steps-to numbers
ROWS = 64  # streams judged at once
LESIONED = 32  # streams that lesions are judged on
LOGGED = ("new0", "new1", "ret0")
MIDDLES = {"5-8": 6.5, "9-13": 11, "14-20": 17, "21-30": 25.5, "31+": 40}


def fields(env: DictConfig) -> Fields:
    return Fields(env.features, env.cue_size, env.ways if env.name == "bindings" else env.labels)


def learner(config: DictConfig) -> VisitLearner:
    """The memory alone is the learner: features are frozen."""
    layout = fields(config.env)
    with drawn(config):
        return VisitLearner(memory(config, layout.width, layout), layout, config.algo.level_loss)


def streams(env: DictConfig, encoder: DictConfig, seeds: dict[str, int], device: torch.device) -> dict[str, Visits]:
    """Streams over training, validation and test classes."""
    features = {split: f.to(device) for split, f in embedding(env, encoder).items()}
    common = {name: env[name] for name in ("ways", "shots", "first", "returns", "cue_size", "cue_noise")}
    if len(env.gaps) != 2:
        raise UserError(f"env.gaps: expected two numbers, got {list(env.gaps)}")
    made: dict[str, Visits] = {}
    for split, table in features.items():
        options = common | {
            "seed": seeds[split],
            "visits": env.visits if split == "train" else env.test_visits,
            "gaps": (env.gaps[0], env.gaps[1]),
        }
        if env.name == "bindings":
            made[split] = Bindings(table, labels=env.labels, pool=env.pool, **options)
        else:
            if env.rule == "group":
                raise UserError("env.rule: expected linear or xor, got group, whose groups need names of alphabets")
            by = principal(features["train"], env.size)
            made[split] = Rules(table, by, rule=env.rule, labels=env.labels, drift=env.drift, **options)
    return made


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> VisitProblem:
    made = learner(config).to(device)
    source = streams(config.env, config.encoder, seeds, device)
    test = source["test"]
    floor = test.elimination if isinstance(test, Bindings) else test.chance
    return VisitProblem(made, source, config.trainer, floor, device, config.env.session)


class VisitLearner(StreamLearner):
    """Any memory with fields, run on the tokens as they are. level_loss: weight of each level's own cross-entropy."""

    def __init__(self, memory: Memory, fields: Fields, level_loss: float = 0.2):
        super().__init__()
        self.memory, self.fields, self.level_loss = memory, fields, level_loss

    def loss(self, batch: tuple[Tensor, Tensor], state: State) -> tuple[Tensor, State, Metrics]:
        """batch: tokens [B, T, D] and labels [B, T]."""
        tokens, labels = batch
        y, state, aux = self.memory.trace(tokens, state)
        logits = self.logits(y)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        metrics = {"loss": loss.detach(), "accuracy": (logits.argmax(-1) == labels).float().mean()}
        for read in aux.reads:
            loss = loss + self.level_loss * F.cross_entropy(self.logits(read).flatten(0, 1), labels.flatten())
        if aux.gates is not None:
            metrics |= {f"gate/{i}": gate for i, gate in enumerate(aux.gates.detach().mean((0, 1)))}
        return loss, state, metrics

    def logits(self, y: Tensor) -> Tensor:
        return self.fields.split(y)[2].float()


class VisitSource:
    """Visit after visit of B streams at once. A place in it is the generator's state before these streams, and a number."""

    def __init__(self, streams: Visits, rows: int, session: int = 0):
        self.streams, self.rows, self.session = streams, rows, session
        self.at, self.began, self.current = 0, streams.generator.get_state(), None  # type: int, Tensor, Stream | None

    def next(self) -> Piece:
        fresh = self.at == 0
        if fresh or self.current is None:
            if fresh:
                self.began = self.streams.generator.get_state()
            self.current = self.streams.sample(self.rows)
        steps = slice(self.at * self.streams.steps, (self.at + 1) * self.streams.steps)
        renewed = begins_session(self.at, self.session)
        self.at = (self.at + 1) % self.streams.visits
        return Piece((self.current.tokens[:, steps], self.current.labels[:, steps]), self.rows, fresh, renewed)

    def state_dict(self) -> dict[str, Tensor]:
        # Between two sets of streams the generator stands where the next ones begin.
        return {"at": torch.tensor(self.at), "began": self.began if self.at else self.streams.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.at, self.began, self.current = int(state["at"]), state["began"], None
        self.streams.generator.set_state(self.began)


def begins_session(visit: int, session: int) -> bool:
    """Whether a new session of `session` visits (0: all are one) begins with this visit of a stream."""
    return visit > 0 and session > 0 and visit % session == 0


class Record(NamedTuple):
    """What happened at every step of the judged streams, each [B, V, T]; gates [B, V, T, L] of a nested memory."""

    correct: np.ndarray
    gap: np.ndarray
    seen: np.ndarray
    gates: np.ndarray | None = None


class VisitProblem(StreamProblem):
    """streams: what to train and judge on, for train, val and test; each judgement is on the same streams again."""

    learner: VisitLearner

    def __init__(
        self,
        learner: VisitLearner,
        streams: dict[str, Visits],
        options: DictConfig,
        floor: float,
        device: torch.device,
        session: int = 0,
    ):
        super().__init__(learner, VisitSource(streams["train"], options.tasks, session), device, options.amp)
        self.streams, self.options, self.floor, self.session = streams, options, floor, session
        self.starts = {split: each.generator.get_state() for split, each in streams.items()}

    def validate(self) -> Judged:
        return self.judge(self.evaluate("val", self.options.eval_tasks), short=True)

    def test(self) -> Judged:
        judged = self.judge(self.evaluate("test", self.options.test_tasks))
        judged.details["numbers"] |= self.lesions(min(self.options.test_tasks, LESIONED))
        return judged

    @torch.no_grad()
    def evaluate(self, split: str, tasks: int, lesion: str = "") -> Record:
        """The learner on `tasks` streams of a split, as it is or with a lesion (see `lesions`)."""
        source = self.streams[split]
        source.generator.set_state(self.starts[split])
        self.learner.eval()
        parts = [self._follow(source.sample(min(ROWS, tasks - n)), source, lesion) for n in range(0, tasks, ROWS)]
        self.learner.train()
        correct, gap, seen = (np.concatenate([part[i] for part in parts]) for i in range(3))
        gates = [part.gates for part in parts if part.gates is not None]
        return Record(correct, gap, seen, np.concatenate(gates) if gates else None)

    def _follow(self, stream: Stream, source: Visits, lesion: str) -> Record:
        """One pass over whole streams, a visit at a time."""
        memory, steps = self.learner.memory, source.steps
        state, rights, gates = memory.initial_state(len(stream.tokens)), [], []
        for start in range(0, stream.tokens.shape[1], steps):
            tokens = stream.tokens[:, start : start + steps].to(self.device)
            if begins_session(start // steps, self.session):
                state = stored.new_session(memory, state, len(tokens))
            y, after, aux = memory.trace(tokens, state)
            if lesion:  # only this visit feels it: what is carried on is intact
                y, _, aux = memory.trace(*damaged(memory, source.fields, lesion, tokens, state))
            rights.append(self.learner.logits(y).argmax(-1).cpu() == stream.labels[:, start : start + steps].cpu())
            if aux.gates is not None:
                gates.append(aux.gates.float().cpu())
            state = after
        gap, seen = (record.cpu().unflatten(1, (-1, steps)).numpy() for record in (stream.gap, stream.seen))
        return Record(torch.stack(rights, 1).numpy(), gap, seen, torch.stack(gates, 1).numpy() if gates else None)

    def judge(self, record: Record, short: bool = False) -> Judged:
        """The score is the accuracy over all steps; `short` leaves out what only a report shows."""
        new, back, first = record.gap == 0, record.gap > 0, record.seen == 0
        numbers: dict[str, Any] = {
            "new0": over_streams(record.correct, new & first),
            "new1": over_streams(record.correct, new & (record.seen == 1)),
            "ret0": over_streams(record.correct, back & first),
        }
        numbers |= {f"gap/{name}": value for name, value in by_gap(record).items()}
        numbers |= steps_numbers(record)
        numbers["floor: chance"] = 100 * self.streams["test"].chance
        numbers["floor: striking out used labels"] = 100 * self.floor
        levels = [type(level).__name__ for level in _levels(self.learner.memory)]
        if record.gates is not None:
            for what, where in (("new", new & first), ("returns", back & first)):
                mean = record.gates[where].mean(0)
                numbers |= {f"gate on first guesses, {what}: {n}": float(g) for n, g in zip(levels, mean, strict=True)}
        score = mean_interval(100 * record.correct.mean((1, 2)))
        scalars = {
            k: v.mean if isinstance(v, Interval) else float(v)
            for k, v in numbers.items()
            if k in LOGGED or k[:4] == "gap/"
        }
        scalars = {k: v for k, v in scalars.items() if v == v}
        lines = curves(record)
        drawn: dict[str, Figure] = {
            key: figures.lines({"this run": line["points"]}, line["x"], line["y"])
            for key, line in lines.items()
            if line["points"]
        }
        if short:
            return Judged(score, scalars, drawn, {})
        shots = int(record.seen.max()) + 1
        by_shot = [over_streams(record.correct, new & (record.seen == k)) for k in range(shots)]
        details: dict[str, Any] = {
            "numbers": numbers,
            "lines": {k: v for k, v in lines.items() if v["points"]},
            "point": "shots of a first visit",
            "curve": [[i.mean, i.low, i.high] for i in by_shot if isinstance(i, Interval)],
            "chance": 100 * self.streams["test"].chance,
            "axes": {
                "adaptation": {"value": value(numbers["new1"]), "what": "one-shot accuracy on first visits, %"},
                "retention": {"value": value(numbers["ret0"]), "what": "first guesses on returns, %"},
            },
        }
        return Judged(score, scalars, drawn, details)

    def lesions(self, tasks: int) -> dict[str, Any]:
        """First guesses on returns with one thing out of order during that visit alone; the same streams intact."""
        memory = self.learner.memory
        found = {}
        for what in ("", *lesions_of(memory, self.streams["test"].fields)):
            record = self.evaluate("test", tasks, lesion=what)
            rows = (record.gap > 0) & (record.seen == 0)
            found[f"lesion, ret0: {what or 'intact'}"] = over_streams(record.correct, rows)
        return found if len(found) > 1 else {}


def lesions_of(memory: Memory, fields: Fields) -> list[str]:
    """A nested memory's levels that can be emptied, and the cue if there is one."""
    names = [f"{type(level).__name__} empty" for level in _levels(memory)]
    return [*names, *(["cue of another stream"] if fields.cue else [])]


def damaged(memory: Memory, fields: Fields, what: str, tokens: Tensor, state: State) -> tuple[Tensor, State]:
    """Tokens and state as a lesion leaves them."""
    if what == "cue of another stream":
        content, cue, outcome = fields.split(tokens)
        return torch.cat([content, cue.roll(1, 0), outcome], -1), state
    levels, states = _levels(memory), list(state.levels)
    index = [f"{type(level).__name__} empty" for level in levels].index(what)
    states[index] = levels[index].initial_state(len(tokens))
    return tokens, state._replace(levels=tuple(states))


def _levels(memory: Memory) -> list[Memory]:
    return list(memory.levels) if isinstance(memory, NestedMemory) else []


def over_streams(correct: np.ndarray, rows: np.ndarray) -> Interval | Undefined:
    """Accuracy in percent where `rows`, each stream counting once."""
    each = [100 * float(c[r].mean()) for c, r in zip(correct, rows, strict=True) if r.any()]
    return mean_interval(each) if each else Undefined("no such step in these streams")


def by_gap(record: Record) -> dict[str, Interval | Undefined]:
    """First guesses on returns by visits since the context was last here, in percent."""
    first = record.seen == 0
    run = np.broadcast_to(np.arange(len(first))[:, None, None], first.shape)
    found = accuracy_by_gap(100 * record.correct[first], record.gap[first], run[first], bins=GAPS)
    return {name: found[name] for name in MIDDLES}


def curves(record: Record) -> dict[str, dict[str, Any]]:
    """What the report draws: accuracy by gap, and within first visits and returns step by step."""
    gaps = {name: i for name, i in by_gap(record).items() if isinstance(i, Interval)}
    lines = {
        "gap": {
            "caption": "First guesses on returns by visits since the context was last here",
            "x": "visits since last here (middle of the bin)",
            "y": "accuracy, %",
            "points": [[MIDDLES[name], i.mean, i.low, i.high] for name, i in gaps.items()],
        }
    }
    for key, name, rows in (("first-visit", "first visits", record.gap == 0), ("return", "returns", record.gap > 0)):
        each = [over_streams(record.correct[:, :, t], rows[:, :, t]) for t in range(rows.shape[2])]
        lines[key] = {
            "caption": f"Accuracy within {name}, step by step",
            "x": "step of the visit",
            "y": "accuracy, %",
            "points": [[t + 1, i.mean, i.low, i.high] for t, i in enumerate(each) if isinstance(i, Interval)],
        }
    return lines


def steps_numbers(record: Record) -> dict[str, Any]:
    """Steps until the mean accuracy is LEVEL, on first visits and on returns, and their ratio."""
    found: dict[str, Any] = {}
    for name, rows in (("first visits", record.gap == 0), ("returns", record.gap > 0)):
        visits = record.correct[rows[:, :, 0]]
        key = f"steps to {100 * LEVEL:.0f} %, {name}"
        found[key] = steps_to(visits.mean(0)[None], LEVEL).summary if len(visits) else Undefined(f"no {name}")
        if isinstance(found[key], Interval):
            found[key] = found[key].mean
    first, back = found.values()
    undefined = [v for v in (first, back) if isinstance(v, Undefined)]
    found["savings (first / return)"] = undefined[0] if undefined else first / back
    return found


def value(number: Any) -> float | None:
    return number.mean if isinstance(number, Interval) else None
