"""Tales: made-up documents, for text experiments where there is no text.

A tale has a cast of its own: names of people, places and things, made of syllables, that it repeats to its end. So its beginning
says much about its end, as in a book, and a memory that keeps what a document is about predicts it better and better. Every
dialect has other syllables and other words: drift from one to another is drift of the language.
"""

from __future__ import annotations

import random

import numpy as np

from nestmem.errors import UserError

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiouy"
PLOTS = (
    "{a} {went} {to} {place}",
    "{a} {took} {the} {thing} {from} {b}",
    "{b} {saw} {a} {in} {place}",
    "{the} {thing} {was} {in} {place}",
    "{a} {gave} {b} {the} {thing}",
    "{a} {and} {b} {went} {to} {place}",
    "{b} {sought} {the} {thing} {in} {place}",
)
WORDS = ("went", "to", "took", "the", "from", "saw", "in", "was", "gave", "and", "sought", "then", "but")


def tale(seed: int, length: int, dialect: int = 0) -> np.ndarray:
    """One document of `length` bytes, uint8."""
    if length < 1:
        raise UserError(f"tales: expected a length of at least 1 byte, got {length}")
    speech = random.Random(f"dialect {dialect}")
    syllables = [c + v for c in speech.sample(CONSONANTS, 9) for v in speech.sample(VOWELS, 3)]
    words = {word: _word(speech, syllables, 1, 2) for word in WORDS}
    here = random.Random(f"tale {dialect} {seed}")
    people, places, things = ([_word(here, syllables, 2, 4).capitalize() for _ in range(count)] for count in (8, 5, 5))
    text, size = [], 0
    while size < length:
        a, b = here.sample(people, 2)
        said = here.choice(PLOTS).format(
            a=a, b=b, place=here.choice(places), thing=here.choice(things).lower(), **words
        )
        joint = here.choice((". ", ". ", ".\n", f", {words['then']} ", f", {words['but']} "))
        text.append(said + joint)
        size += len(text[-1])
    return np.frombuffer("".join(text)[:length].encode(), np.uint8)


def _word(chance: random.Random, syllables: list[str], least: int, most: int) -> str:
    return "".join(chance.choices(syllables, k=chance.randint(least, most)))
