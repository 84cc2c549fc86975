"""What can be done with a trained decoder: read any file and say how well it was predicted; go on where a prompt ends.

Only the run's folder is needed, not the texts it learned from. Both use `Reader`, which carries the state over any length.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from algos import checkpoint, text, text_judge
from algos.checkpoint import below
from algos.decoder import Decoder, Segments
from algos.jobs import stored_config
from envs.documents import one
from envs.vocabulary import Bytes, Pairs, vocabulary
from nestmem.errors import UserError

console = Console()
Tokens = Bytes | Pairs


def loaded(run: str) -> tuple[Decoder, Tokens, DictConfig, int]:
    """The decoder of a run's newest checkpoint, its vocabulary, configuration and step."""
    config = stored_config(Path(run))
    if config.env.name != "text":
        raise UserError(f"{run}: not a run on text (env={config.env.name}); expected one of env=text")
    found, notes = checkpoint.read(Path(run))
    for note in notes:
        console.print(f"{note}; step {found.step} is used instead")
    saved = found.tensors["problem.vocabulary"].numpy().tobytes()
    tokens = vocabulary([], config.env.vocabulary, saved)
    made = text.decoder(config, tokens.size)
    try:
        made.load_state_dict(below(found.tensors, "learner.memory."))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{found.path}: does not fit its configuration ({reason})") from None
    return made.eval(), tokens, config, found.step


def options(verb: str, given: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    """`name=value` arguments over defaults, each of its default's type."""
    found = dict(known)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name not in known or not equals:
            raise UserError(f"{verb}: no option {name!r}; known: {', '.join(known)}")
        kind = type(known[name])
        try:
            found[name] = kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{name}: expected {what}, got {value!r}") from None
    return found


def evaluate(run: str, given: Sequence[str]) -> dict[str, Any]:
    """`nestmem eval RUN text=FILE [tokens=N]`: bits per byte of a file, by place; read from an empty memory."""
    asked = options("eval", given, {"text": "", "tokens": 0})
    decoder, tokens, config, step = loaded(run)
    document = one(asked["text"])
    (encoded,) = tokens.documents([document])
    lengths = torch.from_numpy(tokens.lengths)
    record = text_judge.judge(
        decoder, [encoded], lengths, rows=1, steps=config.env.steps, longest=max(asked["tokens"], 0)
    )
    score = float(record.per_byte()[0])
    bins = [0, *(text_judge.FIRST * 2**k for k in range(record.bits.shape[1]))]
    table = Table(title=f"{asked['text']}, read by {run} at step {step}")
    for column in ("tokens before", "bytes", "bits per byte"):
        table.add_column(column, justify="right")
    points = []
    for k in range(record.bits.shape[1]):
        bits = float(record.bits[0, k] / record.bytes[0, k])
        points.append([bins[k], bins[k + 1], bits])
        table.add_row(f"{bins[k]:,} to {bins[k + 1]:,}", f"{int(record.bytes[0, k]):,}", f"{bits:.3f}")
    console.print(table)
    console.print(f"{score:.4f} bits per byte over {int(record.bytes.sum()):,} bytes")
    return {"run": run, "step": step, "text": asked["text"], "score": score, "unit": "bits per byte",
            "bytes": int(record.bytes.sum()), "points": points}  # fmt: skip


def generate(run: str, given: Sequence[str]) -> bytes:
    """`nestmem generate RUN [prompt=TEXT] [file=FILE] [tokens=N] [temperature=T] [seed=S]`: the prompt's continuation.

    file: text that primes the memory before the prompt.
    """
    asked = options("generate", given, {"prompt": "", "file": "", "tokens": 300, "temperature": 0.8, "seed": 0})
    if asked["tokens"] < 1 or asked["temperature"] < 0:
        raise UserError(
            f"generate: expected tokens of at least 1 and a temperature of at least 0, got {asked['tokens']} and "
            f"{asked['temperature']}"
        )
    decoder, tokens, config, _ = loaded(run)
    before = asked["prompt"].encode()
    reader = Reader(decoder, config.env.steps)
    reader.read([tokens.size])
    if asked["file"]:
        document = one(asked["file"])
        for start in range(0, len(document), 1 << 16):
            reader.read(tokens.encode(document.read(start, start + (1 << 16)).tobytes()).tolist())
    reader.read(tokens.encode(before).tolist())
    said = reader.sample(asked["tokens"], asked["temperature"], asked["seed"])
    whole = before + tokens.decode(said)
    sys.stdout.write(whole.decode("utf-8", "replace") + "\n")
    return whole


class Reader:
    """One row of text, taken in bit by bit. Within a segment of HMT the tokens so far are read again with each new one."""

    def __init__(self, decoder: Decoder, steps: int):
        self.decoder, self.steps = decoder, steps
        self.segment = decoder.layers.segment if isinstance(decoder.layers, Segments) else 0
        self.state = decoder.initial_state(1)
        self.open: list[int] = []  # tokens of the segment under way
        self.logits: Tensor | None = None  # of what comes next

    @torch.no_grad()
    def read(self, tokens: list[int]) -> None:
        step = self.segment or self.steps
        while tokens:
            room = step - len(self.open)
            piece, tokens = self.open + tokens[:room], tokens[room:]
            logits, after = self.decoder(torch.tensor([piece]), self.state)
            self.logits = logits[0, -1].float()
            if self.segment and len(piece) < step:
                self.open = piece
            else:
                self.open, self.state = [], after

    def sample(self, count: int, temperature: float, seed: int) -> list[int]:
        """Tokens drawn one after another, each read before the next; the likeliest ones at temperature 0."""
        generator, said = torch.Generator().manual_seed(seed), []
        if self.logits is None:
            raise UserError("generate: nothing was read yet")
        for _ in range(count):
            if temperature == 0:
                token = int(self.logits.argmax())
            else:
                share = torch.softmax(self.logits / temperature, -1)
                token = int(torch.multinomial(share, 1, generator=generator))
            said.append(token)
            self.read([token])
        return said
