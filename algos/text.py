"""Text: predict the next byte of documents, for ever; judged by bits per byte on held-out ones, by place in the document.

Truncated backpropagation with the state carried from piece to piece and emptied where a document begins (`envs.text`). With
`env.phase`, sources follow one another, and what is asked besides is what is left of the first when the second has been learned
(`algos.text_drift`).
Score: mean over held-out documents of their bits per byte, lower is better.
Scalars: val/bits_per_byte; train/bits per token. Lines: bits per byte by place. Numbers: all bytes together, the gain from the
first to the last place, lesions of the memory.
Legend: B lanes, T tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from algos import episodes, figures, text_judge
from algos.adapt import FastHead
from algos.decoder import Decoder, cross_entropy, layers
from algos.parts import drawn, memory
from algos.problem import Judged, Metrics, Optimize
from algos.stream import Piece, StreamLearner, StreamProblem
from algos.text_drift import Phases
from envs.documents import SPLITS, Document, source
from envs.text import Lanes, Text
from envs.vocabulary import Bytes, Pairs, vocabulary
from nestmem.errors import UserError
from nestmem.memory.base import State
from nestmem.probes import mean_interval

ALGOS = ("text",)
LESIONED = 1 << 13  # tokens of each document that lesions are judged on
LARGER = 4  # an intact memory reads so many training pieces at once, which changes nothing but speed


class TextLearner(StreamLearner):
    """A decoder; its loss is the cross-entropy of what is wanted. level_loss: weight of that of the layers alone, which would
    otherwise lean on what adapts to a document and be worse where it has just begun."""

    memory: Any  # a Decoder, whose state is what is carried

    def __init__(self, decoder: Decoder, level_loss: float = 0.0):
        super().__init__()
        self.memory, self.level_loss = decoder, level_loss

    def loss(self, batch: Text, state: State) -> tuple[Tensor, State, Metrics]:
        state = self.memory.reset(state, batch.fresh)
        hidden, memory = self.memory.hidden(batch.tokens, state.memory)
        alone = self.memory.answer(hidden)
        logits, state = self.memory.together(batch.tokens, hidden, alone, state._replace(memory=memory))

        def nats(said: Tensor) -> Tensor:
            return (cross_entropy(said.float(), batch.targets) * batch.wanted).sum() / batch.wanted.sum()

        loss = nats(logits)
        bits = loss.detach() / math.log(2)
        if self.level_loss and logits is not alone:
            loss = loss + self.level_loss * nats(alone)
        return loss, state, {"bits": bits}


def decoder(config: DictConfig, size: int) -> Decoder:
    """A decoder for a vocabulary, with freshly drawn weights."""
    algo = config.algo
    with drawn(config):
        path = layers(lambda: memory(config, algo.width), algo.width, algo)
        if algo.adapt and algo.tied:
            raise UserError("algo.tied: algo.adapt needs a readout of its own, expected false")
        head = FastHead(size, algo.width, algo.chunk, algo.consolidate) if algo.adapt else None
        exact = episodes.Episodes(size, algo.width, list(algo.orders), algo.bits) if algo.orders else None
        return Decoder(size, path, head, exact, algo.tied)


def learner(config: DictConfig) -> TextLearner:
    """For the sizes of runs; a vocabulary that is trained is as large as was asked for, or smaller."""
    return TextLearner(decoder(config, config.env.vocabulary or Bytes.size), config.algo.level_loss)


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> TextProblem:
    env, options = config.env, config.trainer
    steps = [config.algo.chunk] * config.algo.adapt + [episodes.CHUNK] * bool(config.algo.orders)
    if wrong := [chunk for chunk in steps if env.steps % chunk]:  # lanes would be out of step
        raise UserError(
            f"env.steps: expected a multiple of {wrong[0]}, the chunk of algo.adapt or algo.orders, got {env.steps}"
        )
    if not env.data:
        raise UserError("env.data: expected at least one source, as in [generated], got none")
    names = list(dict.fromkeys(env.data))
    sources = [source(name) for name in names]
    learned = [document for each in sources for document in each.documents["train"]]
    tokens = vocabulary(learned, env.vocabulary)
    parts = {split: [tokens.documents(s.documents[split]) for s in sources] for split in SPLITS}
    visits = [names.index(name) for name in env.data]
    ordered = [each.ordered for each in sources]
    if env.phase == 0:  # all at once
        parts["train"], visits, ordered = [list(itertools.chain(*parts["train"]))], [0], [all(ordered)]
    lanes = Lanes(
        parts["train"], options.tasks, env.steps, tokens.size, seed=seeds["train"], ordered=ordered,
        visits=visits, phase=env.phase, mixing=env.mixing, longest=env.longest,
    )  # fmt: skip
    made = TextLearner(decoder(config, tokens.size), config.algo.level_loss).to(device)
    phases = Phases(names, visits, env.phase) if env.phase else None
    return TextProblem(made, lanes, parts, tokens, env, options, phases, device)


class Pieces:
    """Lanes as the source of a stream problem: pieces on the device. The learner itself begins documents."""

    def __init__(self, lanes: Lanes, device: torch.device):
        self.lanes, self.device = lanes, device

    def next(self) -> Piece:
        return Piece(Text(*(part.to(self.device) for part in self.lanes.next())), self.lanes.rows, False)

    def state_dict(self) -> dict[str, Tensor]:
        return self.lanes.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.lanes.load_state_dict(state)


class TextProblem(StreamProblem):
    """A decoder on lanes of text. parts: documents by split and source. phases: what is recorded where sources change."""

    learner: TextLearner
    measure, counted, unit, lower_is_better = "bits_per_byte", "documents", "bits per byte", True

    def __init__(
        self,
        learner: TextLearner,
        lanes: Lanes,
        parts: dict[str, list[list[Document]]],
        tokens: Bytes | Pairs,
        env: DictConfig,
        options: DictConfig,
        phases: Phases | None,
        device: torch.device,
    ):
        super().__init__(learner, Pieces(lanes, device), device, options.amp)
        self.lanes, self.parts, self.tokens, self.env, self.options = lanes, parts, tokens, env, options
        self.phases = phases
        self.lengths = torch.from_numpy(tokens.lengths)

    def update(self, optimize: Optimize) -> dict[str, float]:
        visit = self.lanes.visit(self.lanes.rows // 2)
        piece, head = self.source.next(), self.learner.memory.head
        if head is not None and self.carried is not None:
            head.consolidate(self.learner.memory.readout, self.carried.head, piece.batch.fresh)
        metrics = optimize(self._parts(piece))
        self.learner.memory.track(self.carried)
        if self.phases is not None:
            self.phases.saw(visit, metrics["bits"])
            if self.phases.ended(self.lanes.count):
                self.phases.asked([self._ask(documents) for documents in self.parts["test"]])
        return metrics

    def _ask(self, documents: Sequence[Document]) -> float:
        """Bits per byte of a source's test documents, their beginnings."""
        return float(self.read(documents, self.env.eval_length).per_byte().mean())

    def read(self, documents: Sequence[Document], longest: int, lesion: str = "") -> text_judge.Record:
        return text_judge.judge(
            self.learner.memory, documents, self.lengths,
            rows=self.options.chunk, steps=self.env.steps * (1 if lesion else LARGER), longest=longest, lesion=lesion,
        )  # fmt: skip

    def validate(self) -> Judged:
        return self._judged(self.read(self._documents("val"), self.env.eval_length))

    def test(self) -> Judged:
        documents = self._documents("test")
        judged = self._judged(self.read(documents, self.env.test_length))
        judged.details["numbers"] |= self.lesions(documents)
        if self.phases is not None:
            numbers, lines, matrices = self.phases.report()
            judged.details["numbers"] |= numbers
            judged.details["lines"] |= lines
            judged.details["matrices"] = matrices
            judged.figures.update(
                {k: figures.lines({"this run": v["points"]}, v["x"], v["y"]) for k, v in lines.items()}
            )
        return judged

    def lesions(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Bits per byte with the memory out of order, on the same beginnings of documents."""
        longest = min(LESIONED, self.env.test_length or LESIONED)
        return {
            f"bits per byte, memory {what or 'on'}": mean_interval(
                self.read(documents, longest, what).per_byte().tolist()
            )
            for what in ("", *text_judge.lesions(self.learner.memory))
        }

    def _documents(self, split: str) -> list[Document]:
        return list(itertools.chain(*self.parts[split]))

    def _judged(self, record: text_judge.Record) -> Judged:
        score = mean_interval(record.per_byte().tolist())
        points = text_judge.by_place(record)
        line = {
            "caption": "Bits per byte by place in the document (held-out documents, 95 % band)",
            "x": "tokens before", "y": "bits per byte", "points": points, "log": True,
        }  # fmt: skip
        numbers: dict[str, Any] = {
            "bits per byte, all bytes together": float(record.bits.sum() / record.bytes.sum()),
            "bytes judged": float(record.bytes.sum()),
            "gain from the first to the last place": text_judge.late_gain(record),
        }
        drawn = {"place": figures.lines({"this run": points}, line["x"], line["y"], log=True)}
        return Judged(score, {}, drawn, {"lines": {"place": line}, "numbers": numbers})

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict() | {
            "vocabulary": torch.frombuffer(bytearray(self.tokens.saved() or b"\0"), dtype=torch.uint8)
        }
        return state | ({} if self.phases is None else {f"phases.{k}": v for k, v in self.phases.state_dict().items()})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["vocabulary"].numpy().tobytes() != (self.tokens.saved() or b"\0"):
            raise UserError("env.data: the texts have changed since this run began: they give another vocabulary")
        super().load_state_dict(state)
        if self.phases is not None:
            self.phases.load_state_dict({k.removeprefix("phases."): v for k, v in state.items() if k[:7] == "phases."})
