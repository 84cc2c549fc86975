"""The stream of three timescales: how much of what can be known a memory learns to know, and which level knows what.

Tokens are predicted one step ahead; the exact filter says how well that can be done (`envs.timescales`). After training:
    gain       share of the filter's gain over knowing nothing, for each variable (`nestmem.probes.gain_fraction`)
    interchange  level l's read is taken from another stream: how often does the prediction of variable v follow?
    decodability  of variable v from level l by a linear readout, beside the same model before training
Levels are those of a nested memory of three, fastest first, each meant for one variable. The output units of any other
memory are ordered by their own timescale and cut into thirds, and the assignment that suits them best is taken.
Legend: B streams, T steps, D token, L levels, V = 3 variables of 4 values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from algos import figures
from algos.filtering import Filter, Pieces
from algos.parts import drawn, memory
from algos.problem import Judged, Optimize
from algos.stream import StreamProblem
from envs.timescales import VALUES, VARIABLES, Chunk, Process, Timescales, bayes_filter, nll
from nestmem.errors import UserError
from nestmem.memory.base import select, stack_aux
from nestmem.memory.leaky import track
from nestmem.nested import NestedMemory
from nestmem.probes import (
    Undefined,
    decodability,
    gain_fraction,
    interchange_matrix,
    interchanged,
    mean_interval,
    spoken,
)
from nestmem.probes.interchange import Interchange
from nestmem.probes.intervene import Spoken
from nestmem.probes.timescales import autocorrelation

ALGOS = ("filtering",)

PIECE = 256  # steps of a held-out stream computed at once
STRIDE = 16  # decodability is fitted on every 16th step
GROUPS = ["fastest third", "middle third", "slowest third"]


class Held(NamedTuple):
    """Held-out streams, and the nats of the exact filter on them [B, V] after the first steps."""

    chunk: Chunk
    bayes: Tensor


class Said(NamedTuple):
    """What a memory answered [B, T, D], what each level or group of units said, and the answer with one level swapped."""

    memory: Any
    y: Tensor
    reads: tuple[Tensor, ...]
    spoken: Spoken | None
    groups: list[list[int]]

    def swapped(self) -> Iterator[Tensor]:
        """The answer [B, T, D] with each level in turn taken from the next stream."""
        donor = torch.arange(len(self.y), device=self.y.device).roll(1)
        if self.spoken is not None:
            auxes = tuple(aux._replace(weights=None, gates=None, reads=()) for aux in self.spoken.auxes)
            host = self.spoken._replace(auxes=auxes, state=None)
            yield from interchanged(self.memory, host, select(host, donor))
            return
        for group in self.groups:
            y = self.y.clone()
            y[..., group] = self.y[donor][..., group]
            yield y


def nested(memory: Any) -> bool:
    return isinstance(memory, NestedMemory) and len(memory.levels) == len(VARIABLES)


def names(memory: Any) -> list[str]:
    return [f"{i + 1}: {type(level).__name__}" for i, level in enumerate(memory.levels)] if nested(memory) else GROUPS


def levels(memory: Any, encoded: Tensor) -> Said:
    """Run a memory on encoded streams [B, T, D] and keep what its levels, or its units in thirds, say."""
    state, parts = memory.initial_state(len(encoded)), []
    # In pieces, since an episodic memory compares all steps of a sequence with one another.
    for piece in encoded.split(PIECE, 1):
        if nested(memory):
            parts.append(spoken(memory, piece, state))
        else:
            y, after = memory(piece, state)
            parts.append(Spoken(y, (), (), after))
        state = parts[-1].state
    y = torch.cat([part.y for part in parts], 1)
    if nested(memory):
        reads = tuple(torch.cat(level, 1) for level in zip(*(part.reads for part in parts), strict=True))
        auxes = tuple(stack_aux(list(level), torch.cat) for level in zip(*(part.auxes for part in parts), strict=True))
        return Said(memory, y, reads, Spoken(y, reads, auxes, state), [])
    order = np.argsort([_lag(y[..., unit].cpu().numpy()) for unit in range(y.shape[-1])], kind="stable")
    groups = [part.tolist() for part in np.array_split(order, 3)]
    return Said(memory, y, tuple(y[..., group] for group in groups), None, groups)


def _lag(trace: NDArray[np.float32]) -> int:
    """The lag at which the autocorrelation of a unit [B, T] first falls below 1/e; 0 for a unit that does not move."""
    rho = autocorrelation(trace[..., None])
    if isinstance(rho, Undefined):
        return 0
    below = np.flatnonzero(rho < 1 / math.e)
    return int(below[0]) if len(below) else len(rho)


def learner(config: DictConfig) -> Filter:
    algo = config.algo
    with drawn(config):
        return Filter(memory(config, algo.width), (algo.encoder, algo.decoder), algo.frozen)


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> TimescalesProblem:
    return TimescalesProblem(learner(config).to(device), config.env, config.trainer, seeds, device)


class TimescalesProblem(StreamProblem):
    """A learner on the stream. seeds: one for each of train, val and test."""

    learner: Filter
    measure = "gain"

    def __init__(
        self, learner: Filter, env: DictConfig, options: DictConfig, seeds: dict[str, int], device: torch.device
    ):
        self.env, self.options, self.seeds = env, options, seeds
        self.process = Process(env.advance, (env.dwell_b, env.dwell_c), (env.right_b, env.right_c))
        if not 0 <= env.dropped < env.length or min(options.eval_tasks, options.test_tasks) < 2:
            raise UserError(
                f"env.dropped, trainer.eval_tasks, trainer.test_tasks: expected fewer steps dropped than the {env.length} "
                f"judged and at least two streams, got {env.dropped}, {options.eval_tasks}, {options.test_tasks}"
            )
        if env.restart < 0:
            raise UserError(f"env.restart: expected 0 or a number of updates, got {env.restart}")
        source = Pieces(options.tasks, env.steps, env.restart, seeds["train"], self.process, device)
        super().__init__(learner, source, device, options.amp)
        self.untrained = copy.deepcopy(learner)
        self.held: dict[str, Held] = {}

    def update(self, optimize: Optimize) -> dict[str, float]:
        metrics = super().update(optimize)
        track(self.learner.memory, self.carried)
        return metrics

    def validate(self) -> Judged:
        return self.judge("val", self.options.eval_tasks)

    def test(self) -> Judged:
        return self.judge("test", self.options.test_tasks)

    @torch.no_grad()
    def judge(self, split: str, streams: int) -> Judged:
        """The learner on streams of its own, from an empty memory; the first steps do not count."""
        held, late = self._held(split, streams), slice(self.env.dropped, None)
        self.learner.eval()
        said = levels(self.learner.memory, self.learner.encode(held.chunk.tokens))
        logits = self.learner.decode(said.y[:, late])
        ours = nll(logits.double().softmax(-1), held.chunk.targets[:, late]).mean(1).cpu()  # [B, V]
        nothing = torch.full_like(ours, math.log(VALUES))
        shares = ((nothing - ours) / (nothing - held.bayes).mean(0)).mean(1)
        gains = {v: gain_fraction(nothing[:, i], ours[:, i], held.bayes[:, i]) for i, v in enumerate(VARIABLES)}
        found = self._interchange(
            said, held, late, [0.0 if isinstance(g, Undefined) else g.mean for g in gains.values()]
        )
        swap = [[None if isinstance(x, Undefined) else x.mean for x in row] for row in found.swap]
        trained, before = (self._decodability(model, held, late) for model in (self.learner, self.untrained))
        self.learner.train()

        shape: dict[str, Any] = {
            "y": "level",
            "rows": names(self.learner.memory),
            "x": "variable",
            "columns": VARIABLES,
        }
        matrices: dict[str, dict[str, Any]] = {
            "interchange": {"caption": "how often a prediction follows the level that is swapped", "values": swap},
            "decodability": {"caption": "linear decodability", "values": trained},
            "decodability-untrained": {"caption": "linear decodability before training", "values": before},
        }
        numbers: dict[str, Any] = {f"gain {v}": g for v, g in gains.items()}
        numbers |= {"interchange diagonal": found.diagonal, "interchange off-diagonal": found.off_diagonal}
        numbers["interchange index"] = found.index
        scalars = {k.replace(" ", "/"): v.mean for k, v in numbers.items() if not isinstance(v, Undefined)}
        drawn = {
            key: figures.matrix(m["values"], shape["rows"], shape["columns"], shape["y"], shape["x"])
            for key, m in matrices.items()
        }
        details = {"numbers": numbers, "matrices": {k: m | shape for k, m in matrices.items()}, "own": found.own}
        return Judged(mean_interval(100 * shares.numpy()), scalars, drawn, details)

    def _interchange(self, said: Said, held: Held, late: slice, gains: list[float]) -> Interchange:
        """Each stream is a host once; its donor is the next one."""
        hidden = held.chunk.hidden[:, late].cpu().numpy()
        others = np.roll(hidden, 1, 0)
        # A token of b or c carries a with it: they count where host and donor agree in a.
        where = np.ones(hidden.shape, dtype=bool)
        where[..., 1:] = hidden[..., :1] == others[..., :1]
        following, answers = (hidden[..., :1] + 1) % VALUES, []
        for y in said.swapped():
            tokens = self.learner.decode(y[:, late]).argmax(-1).cpu().numpy()
            answers.append(np.concatenate([tokens[..., :1] - 1, tokens[..., 1:] - following], -1) % VALUES)
        own = list(range(len(VARIABLES))) if nested(self.learner.memory) else None
        return interchange_matrix(np.stack(answers), hidden, others, gains, own=own, where=where)

    def _held(self, split: str, streams: int) -> Held:
        if split not in self.held:
            chunk = Timescales(streams, self.seeds[split], self.process).sample(self.env.length)
            predicted = bayes_filter(chunk.tokens, self.process).predicted
            bayes = nll(predicted, chunk.targets)[:, self.env.dropped :].mean(1)
            self.held[split] = Held(Chunk(*(part.to(self.device) for part in chunk)), bayes)
        return self.held[split]

    def _decodability(self, model: Filter, held: Held, late: slice) -> list[list[float | None]]:
        steps = slice(late.start, None, STRIDE)
        model.eval()
        said = levels(model.memory, model.encode(held.chunk.tokens))
        reads = {str(i): read[:, steps].cpu().numpy() for i, read in enumerate(said.reads)}
        hidden = held.chunk.hidden[:, steps].cpu().numpy()
        table = decodability(reads, {v: hidden[..., i] for i, v in enumerate(VARIABLES)})
        return [[None if isinstance(x, Undefined) else x for x in row.values()] for row in table.values()]
