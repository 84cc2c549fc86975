"""Synthetic streams of tokens that ask for what came before: recall of pairs, needles, copies.

A stream is tokens [B, T] and the answers that are wanted [B, T], -1 where nothing is asked; a token that asks stands where its
answer is wanted. Keys come from the lower half of the vocabulary, values from the upper one, and 0 is a blank.
    mqar     N key-value pairs, then every key again, once, at a power-law distance (Arora et al. 2023)
    delayed  N pairs, some random tokens, every key
    gapped   random tokens before every pair, then every key
    needle   N marked pairs anywhere among random tokens, of which one is asked for at the very end
    copy     N tokens anywhere among blanks, to be said again in their order at the end (selective copying, Gu & Dao 2023)
Legend: B rows, T steps, N pairs, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nestmem.errors import UserError

Stream = tuple[Tensor, Tensor]
VOCABULARY = 8192
BLANK, MARK, ASK = 0, 1, 2  # the last two only in `needle` and `copy`, where keys begin above them
RESERVED = 3


def pairs(rows: int, n: int, g: torch.Generator, vocabulary: int = VOCABULARY, first: int = 1) -> tuple[Tensor, Tensor]:
    """Keys and values [B, N], without repeats in a row."""
    half = vocabulary // 2
    keys = torch.rand(rows, half - first, generator=g).topk(n).indices + first
    return keys, half + torch.rand(rows, half, generator=g).topk(n).indices


def filler(
    rows: int, steps: int, noise: bool, g: torch.Generator, vocabulary: int = VOCABULARY, first: int = 1
) -> Tensor:
    if noise:
        return torch.randint(first, vocabulary, (rows, steps), generator=g)
    return torch.full((rows, steps), BLANK)


def mqar(rows: int, steps: int, n: int, noise: bool, g: torch.Generator, vocabulary: int = VOCABULARY) -> Stream:
    keys, values = pairs(rows, n, g, vocabulary)
    tokens, wanted = filler(rows, steps, noise, g, vocabulary), torch.full((rows, steps), -1)
    tokens[:, 0 : 2 * n : 2], tokens[:, 1 : 2 * n : 2] = keys, values
    places = torch.arange(1, (steps - 2 * n) // 2 + 1).double() ** (0.01 - 1)
    at = 2 * n + 2 * torch.multinomial(places.expand(rows, -1), n, generator=g)
    return tokens.scatter(1, at, keys), wanted.scatter(1, at, values)


def asked(parts: list[Tensor], keys: Tensor, values: Tensor) -> Stream:
    """The parts one after the other, then every key as a question, with a blank after each."""
    questions = torch.stack([keys, torch.full_like(keys, BLANK)], -1).flatten(1)
    answers = torch.stack([values, torch.full_like(keys, -1)], -1).flatten(1)
    before = torch.cat(parts, 1)
    return torch.cat([before, questions], 1), torch.cat([torch.full_like(before, -1), answers], 1)


def delayed(rows: int, n: int, delay: int, g: torch.Generator) -> Stream:
    """N pairs, then `delay` random tokens, then the questions."""
    keys, values = pairs(rows, n, g)
    return asked([torch.stack([keys, values], -1).flatten(1), filler(rows, delay, True, g)], keys, values)


def gapped(rows: int, n: int, gap: int, g: torch.Generator) -> Stream:
    """`gap` random tokens before every pair."""
    keys, values = pairs(rows, n, g)
    noise = filler(rows, n * gap, True, g).view(rows, n, gap)
    return asked([torch.cat([noise, keys[..., None], values[..., None]], -1).flatten(1)], keys, values)


def scattered(rows: int, steps: int, n: int, width: int, g: torch.Generator) -> Tensor:
    """Places [B, N] in order where things of `width` tokens lie without touching, each way equally likely."""
    free = steps - n * (width - 1)
    return torch.rand(rows, free, generator=g).topk(n).indices.sort(-1).values + (width - 1) * torch.arange(n)


def needle(rows: int, steps: int, n: int, noise: bool, g: torch.Generator, vocabulary: int = VOCABULARY) -> Stream:
    keys, values = pairs(rows, n, g, vocabulary, RESERVED)
    tokens, wanted = filler(rows, steps, noise, g, vocabulary, RESERVED), torch.full((rows, steps), -1)
    at = scattered(rows, steps - 2, n, 3, g)
    for offset, part in enumerate((torch.full_like(keys, MARK), keys, values)):
        tokens = tokens.scatter(1, at + offset, part)
    chosen = torch.randint(n, (rows, 1), generator=g)
    tokens[:, -2], tokens[:, -1] = ASK, keys.gather(1, chosen)[:, 0]
    wanted[:, -1] = values.gather(1, chosen)[:, 0]
    return tokens, wanted


def copy(rows: int, steps: int, n: int, noise: bool, g: torch.Generator, vocabulary: int = VOCABULARY) -> Stream:
    """noise: never; what is to be copied stands out because all else is blank."""
    tokens, wanted = torch.full((rows, steps), BLANK), torch.full((rows, steps), -1)
    said = torch.randint(RESERVED, vocabulary, (rows, n), generator=g)
    tokens = tokens.scatter(1, scattered(rows, steps - n, n, 1, g), said)
    tokens[:, -n:] = ASK
    wanted[:, -n:] = said
    return tokens, wanted


KINDS = {"mqar": mqar, "needle": needle, "copy": copy}


def draw(kind: str, rows: int, steps: int, n: int, noise: bool, g: torch.Generator, vocabulary: int) -> Stream:
    """A stream of a kind; refused where the pairs do not fit."""
    room = {"mqar": 4 * n, "needle": 3 * n + 2, "copy": 2 * n}
    if kind not in KINDS:
        raise UserError(f"env.kind: expected one of {', '.join(KINDS)}, grammar, got {kind!r}")
    if n < 1 or steps < room[kind] or vocabulary // 2 - RESERVED < n:
        raise UserError(
            f"env.pairs: {n} do not fit into {steps} tokens of a vocabulary of {vocabulary}; expected 1 or more, "
            f"{room[kind]} tokens and {2 * (n + RESERVED)} words at least"
        )
    return KINDS[kind](rows, steps, n, noise, g, vocabulary)
