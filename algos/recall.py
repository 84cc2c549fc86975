"""Recall: learn to answer from what came before on short streams, and be asked on streams many times as long.

Every update sees new streams from an empty memory (`envs.recall`, `envs.grammar`, `envs.babilong`), with gradients all through. In
tests a long stream is read in pieces with the state carried, so that memory does not grow with its length.
Score: accuracy in percent at the last of `env.lengths`. Line: accuracy by length, in times the training's or in words.
Legend: B rows, T tokens, N answers, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from algos import figures, text
from algos.decoder import Decoder
from algos.problem import Judged, Metrics, Optimize
from algos.stream import Piece, StreamLearner, StreamProblem
from envs import recall as streams
from envs.babilong import Haystack
from envs.documents import SPLITS, source
from envs.grammar import Grammar
from envs.recall import Stream
from nestmem.errors import UserError
from nestmem.memory.base import State
from nestmem.probes import mean_interval

NAMES = ("recall", "babilong")
ALGOS = ("text",)
WORDS = "babilong"
PIECE = 4096  # tokens of a test stream read at once
Draw = Callable[[str, int, int, int], Stream]  # split, rows, length, seed


class RecallLearner(StreamLearner):
    """A decoder that is asked where an answer is wanted, and nowhere else."""

    memory: Any  # a Decoder

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.memory = decoder

    def loss(self, batch: Stream, state: State) -> tuple[Tensor, State, Metrics]:
        logits, answers, state = self.asked(batch, state)
        loss = F.cross_entropy(logits.float(), answers)
        return loss, state, {"accuracy": (logits.argmax(-1) == answers).float().mean()}

    def asked(self, batch: Stream, state: State) -> tuple[Tensor, Tensor, State]:
        """Logits [N, V] where an answer is wanted, the answers [N], and the state after the stream."""
        tokens, wanted = batch
        hidden, memory = self.memory.hidden(tokens, state.memory)
        return self.memory.answer(hidden[wanted >= 0]), wanted[wanted >= 0], state._replace(memory=memory)


class Draws:
    """New streams for every update. A place is the state of a generator, out of which each update has its seed."""

    def __init__(self, draw: Draw, rows: int, lengths: tuple[int, int], seed: int, device: torch.device):
        self.draw, self.rows, self.lengths, self.device = draw, rows, lengths, device
        self.generator = torch.Generator().manual_seed(seed)

    def next(self) -> Piece:
        seed = int(torch.randint(2**31, (), generator=self.generator))
        least, most = self.lengths
        share = float(torch.rand((), generator=self.generator))
        length = round(least * (most / least) ** share)
        tokens, wanted = self.draw("train", self.rows, length, seed)
        return Piece((tokens.to(self.device), wanted.to(self.device)), self.rows, True)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


def drawer(env: DictConfig) -> tuple[Draw, int]:
    """What draws streams, and the size of their vocabulary."""
    if env.name == WORDS:
        sources = [source(name) for name in env.data]
        books = {split: list(itertools.chain(*(s.documents[split] for s in sources))) for split in SPLITS}
        haystack = Haystack(env.task, books, env.vocabulary, env.stories)
        return haystack.draw, len(haystack.words)
    if env.kind == "grammar":
        grammar = Grammar(env.vocabulary, min(env.pairs, env.vocabulary), env.pairs, seed=0)
        if len(env.gap) != 2:
            raise UserError(f"env.gap: expected two numbers, got {list(env.gap)}")

        def strings(split: str, rows: int, length: int, seed: int) -> Stream:
            least, most = env.gap if length == env.steps else [length // env.steps * env.gap[1]] * 2
            return grammar.draw(rows, env.steps, (least, most), env.noise, seed)

        return strings, max(grammar.states, grammar.symbols)

    def tokens(split: str, rows: int, length: int, seed: int) -> Stream:
        chance = torch.Generator().manual_seed(seed)
        return streams.draw(env.kind, rows, length, env.pairs, env.noise, chance, env.vocabulary)

    tokens("train", 1, env.steps, 0)  # refuse what does not fit before any work starts
    return tokens, env.vocabulary


def learner(config: DictConfig) -> RecallLearner:
    if config.algo.adapt or config.algo.orders:
        raise UserError(
            f"algo.adapt, algo.orders: env={config.env.name} asks for answers, not for text; expected neither"
        )
    size = config.env.vocabulary
    if config.env.name == "recall" and config.env.kind == "grammar":
        size = drawer(config.env)[1]
    return RecallLearner(text.decoder(config, size))


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> RecallProblem:
    made = learner(config)
    draw, size = drawer(config.env)
    if size != made.memory.vocabulary:  # of books with few words
        made = RecallLearner(text.decoder(config, size))
    return RecallProblem(made.to(device), draw, config.env, config.trainer, seeds, device)


class RecallProblem(StreamProblem):
    """A decoder on streams that ask."""

    learner: RecallLearner
    measure, counted = "accuracy", "streams"

    def __init__(
        self,
        learner: RecallLearner,
        draw: Draw,
        env: DictConfig,
        options: DictConfig,
        seeds: dict[str, int],
        device: torch.device,
    ):
        words = env.name == WORDS
        span = (env.steps[0], env.steps[-1]) if words else (env.steps, env.steps)
        if not env.lengths or min(span) < 1:
            raise UserError(f"env.lengths, env.steps: expected positive lengths, got {list(env.lengths)} and {span}")
        super().__init__(learner, Draws(draw, options.tasks, span, seeds["train"], device), device, options.amp)
        self.draw, self.options, self.seeds = draw, options, seeds
        self.lengths = list(env.lengths) if words else [env.steps * times for times in env.lengths]
        self.piece = env.pieces if words else PIECE
        self.axis = "words" if words else "length of a stream"

    def update(self, optimize: Optimize) -> dict[str, float]:
        metrics = super().update(optimize)
        self.learner.memory.track(self.carried)
        return metrics

    def validate(self) -> Judged:
        return self._judged("val", self.options.eval_tasks)

    def test(self) -> Judged:
        return self._judged("test", self.options.test_tasks)

    @torch.no_grad()
    def right(self, split: str, length: int, streams: int) -> list[float]:
        """Share of right answers, in percent, of each of so many streams of a length; always the same ones."""
        self.learner.eval()
        found: list[float] = []
        for number, first in enumerate(range(0, streams, self.options.chunk)):
            rows = min(self.options.chunk, streams - first)
            tokens, wanted = self.draw(split, rows, length, self.seeds[split] % 2**31 + 7919 * number)
            state = self.learner.memory.initial_state(rows)
            right, asked = torch.zeros(rows), (wanted >= 0).sum(1)
            for part, want in zip(tokens.split(self.piece, 1), wanted.split(self.piece, 1), strict=True):
                hidden, memory = self.learner.memory.hidden(part.to(self.device), state.memory)
                state = state._replace(memory=memory)
                if bool((want >= 0).any()):
                    logits = self.learner.memory.answer(hidden[(want >= 0).to(self.device)])
                    right.index_add_(
                        0, (want >= 0).nonzero()[:, 0], (logits.argmax(-1).cpu() == want[want >= 0]).float()
                    )
            found += (100 * right / asked).tolist()
        self.learner.train()
        return found

    def _judged(self, split: str, streams: int) -> Judged:
        each = {length: mean_interval(self.right(split, length, streams)) for length in self.lengths}
        points = [[float(length), *found[:3]] for length, found in each.items()]
        line = {
            "caption": f"Accuracy by length (95 % band over streams, trained on at most {self.source.lengths[1]})",
            "x": self.axis, "y": "accuracy, %", "points": points, "log": True,
        }  # fmt: skip
        drawn = {"length": figures.lines({"this run": points}, self.axis, "accuracy, %", log=True)}
        numbers: dict[str, Any] = {f"accuracy at {length} {self.axis}": found for length, found in each.items()}
        scalars = {f"accuracy/{length}": found.mean for length, found in each.items()}
        return Judged(each[self.lengths[-1]], scalars, drawn, {"lines": {"length": line}, "numbers": numbers})
