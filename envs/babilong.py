"""BABILong: the facts of a bAbI story hidden among sentences of books, and a question about them at the end.

Construction after Kuratov et al. 2024, arXiv:2406.10149: the story's facts keep their order and are put at random places between
sentences that follow one another in a book, from a random one on; the last sentence is cut so that the whole has the asked
length. Ours is in words, not in a language model's tokens: a closed vocabulary of bAbI's words and the commonest words of
the books; every other word is one token. Tested on bAbI's own test stories (en, 1,000 questions for each task); learned
from stories of our own making in the same words, since 1,000 are few to learn a language from. Those have as many facts as fit,
all of them, and as many questions in between as there is room for, each with its answer asked for where it stands; they ask the
questions of the easier tasks too.
    qa1  where is a person?   qa2  where is a thing?   qa3  where was a thing before it was in some place?
Legend: B rows, T words, F facts.
"""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from envs.archives import Archive, check, fetch
from envs.documents import Document
from envs.recall import Stream
from nestmem.errors import UserError

ARCHIVE = Archive(
    "babi_en_1k", "babi_en_1k.zip", "", "f7afe5a05f0ad32d5db2ca87b55e074a895f0229d7d19e1e7b8f547341d21107",
    "env.stories=made, whose test stories are made too",
)  # fmt: skip
TASKS = {1: "qa1_single-supporting-fact", 2: "qa2_two-supporting-facts", 3: "qa3_three-supporting-facts"}
PEOPLE = ("mary", "john", "sandra", "daniel")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
GOES = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKES = ("got", "grabbed", "took", "picked up")
LEAVES = ("dropped", "discarded", "left", "put down")
THERE = ("", "", "there ")
WORD = re.compile(r"[a-z']+|[.?!,;]")
END = re.compile(r"(?<=[.?!])\s+")
UNKNOWN, START = "<unknown>", "<start>"
FACTS = {1: 12, 2: 40, 3: 100}  # of a story to learn from, at most; nine in ten of bAbI's have fewer
SAMPLE = 1 << 17  # bytes of each book that sentences are taken from


class Line(NamedTuple):
    """A sentence in words, and the answer if it is a question."""

    words: list[str]
    answer: str = ""


Story = list[Line]


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def told(task: int, split: str) -> list[Story]:
    """bAbI's stories: for every question the lines up to it without earlier questions."""
    path = fetch(ARCHIVE)
    check(ARCHIVE, path)
    with zipfile.ZipFile(path) as archive:
        text = archive.read(f"en/{TASKS[task]}_{split}.txt").decode()
    found: list[Story] = []
    facts: list[Line] = []
    for line in io.StringIO(text):
        number, _, rest = line.strip().partition(" ")
        if number == "1":
            facts = []
        if "\t" in rest:
            question, answer, _ = rest.split("\t")
            found.append([*facts, Line(words(question), answer)])
        else:
            facts.append(Line(words(rest)))
    return found


def made(task: int, chance: random.Random, facts: int = 10) -> Story:
    """A story of our own with questions in between, the last line being one."""
    at = dict(zip(PEOPLE, chance.choices(PLACES, k=len(PEOPLE))))
    known: set[str] = set()
    lies: dict[str, list[str]] = {thing: [] for thing in THINGS}  # places a thing was in, without repeats
    holder: dict[str, str] = {}
    story: Story = []
    for count in range(max(facts, 2)):
        person = chance.choice(PEOPLE)
        holds = [thing for thing, who in holder.items() if who == person]
        free = [thing for thing in THINGS if thing not in holder]
        move = task == 1 or person not in known or chance.random() < 0.6 or not (holds or free)
        if move:
            at[person] = chance.choice([p for p in PLACES if p != at[person]])
            known.add(person)
            story.append(Line(words(f"{person} {chance.choice(GOES)} the {at[person]} .")))
        elif holds and (not free or chance.random() < 0.5):
            thing = chance.choice(holds)
            del holder[thing]
            story.append(Line(words(f"{person} {chance.choice(LEAVES)} the {thing} {chance.choice(THERE)}.")))
        else:
            thing = chance.choice(free)
            if lies[thing] and lies[thing][-1] != at[person]:  # things stay where they were left
                continue
            holder[thing] = person
            story.append(Line(words(f"{person} {chance.choice(TAKES)} the {thing} {chance.choice(THERE)}.")))
        for thing, who in holder.items():
            if who in known and (not lies[thing] or lies[thing][-1] != at[who]):
                lies[thing].append(at[who])
        if task == 1 and not (count % 2 or count == facts - 1):
            continue
        for asked in range(1, task + 1):  # where a thing is cannot be learned before where a person is
            if question := _question(asked, chance, at, known, lies):
                story.append(question)
    if task > 1 or not story or not story[-1].answer:
        question = _question(task, chance, at, known, lies)
        return [*story, question] if question else made(task, chance, facts + 4)
    return story


def _question(
    task: int, chance: random.Random, at: dict[str, str], known: set[str], lies: dict[str, list[str]]
) -> Line | None:
    if task == 1:
        if not known:
            return None
        person = chance.choice(sorted(known))
        return Line(words(f"where is {person} ?"), at[person])
    seen = [thing for thing, places in lies.items() if len(places) >= task - 1]
    if not seen:
        return None
    thing = chance.choice(seen)
    if task == 2:
        return Line(words(f"where is the {thing} ?"), lies[thing][-1])
    after = chance.randrange(1, len(lies[thing]))
    if lies[thing][after] in lies[thing][after + 1 :]:
        after = len(lies[thing]) - 1
    return Line(words(f"where was the {thing} before the {lies[thing][after]} ?"), lies[thing][after - 1])


def _some(body: Story, room: float, chance: random.Random) -> set[int]:
    """Which questions to keep: at random, until their words fill the room."""
    kept: set[int] = set()
    questions = [i for i, line in enumerate(body) if line.answer]
    for i in chance.sample(questions, len(questions)):
        room -= len(body[i].words)
        if room < 0:
            break
        kept.add(i)
    return kept


class Haystack:
    """Stories of one task among sentences of books. vocabulary: words, of which the commonest of `train` are kept."""

    def __init__(self, task: int, books: dict[str, Sequence[Document]], vocabulary: int = 2048, stories: str = "babi"):
        if task not in TASKS or stories not in ("babi", "made"):
            raise UserError(f"env.task, env.stories: expected 1, 2 or 3 and babi or made, got {task} and {stories!r}")
        own = {UNKNOWN, START, *PEOPLE, *PLACES, *THINGS}
        for text in (*GOES, *TAKES, *LEAVES, "the to there where is was before . ? , ; !"):
            own |= set(words(text))
        held = {split: told(task, split) if stories == "babi" else [] for split in ("train", "test")}
        own |= {word for part in held.values() for story in part for line in story for word in line.words}
        self.task, self.stories = task, held
        self.sentences = {split: [s for d in documents for s in _sentences(d)] for split, documents in books.items()}
        if empty := [split for split, found in self.sentences.items() if not found]:
            raise UserError(f"env.data: no sentence of 10 words or more in the {empty[0]} documents")
        common = Counter(word for sentence in self.sentences["train"] for word in sentence)
        more = [w for w, _ in sorted(common.items(), key=lambda pair: (-pair[1], pair[0])) if w not in own]
        self.words = [*sorted(own), *more[: max(vocabulary - len(own), 0)]]
        self.index = {word: i for i, word in enumerate(self.words)}

    def draw(self, split: str, rows: int, length: int, seed: int) -> Stream:
        """Rows of exactly `length` words (more where the facts alone are more): tokens and wanted answers [B, T]."""
        chance = random.Random(seed)
        lines = [self._one(split, length, chance) for _ in range(rows)]
        longest = max(len(tokens) for tokens, _ in lines)
        start = self.index[START]  # shorter rows begin later
        padded = [([start] * (longest - len(t)) + t, [-1] * (longest - len(t)) + w) for t, w in lines]
        tokens, wanted = (torch.tensor(part) for part in zip(*padded))
        return tokens, wanted

    def story(self, split: str, length: int, chance: random.Random) -> Story:
        """Training stories are made; the others are bAbI's where there are any: its training part to validate on, its test."""
        told_here = self.stories["train" if split == "val" else "test"] if split != "train" else []
        if told_here:
            return chance.choice(told_here)
        task = self.task if split != "train" else chance.randint(1, self.task)  # the easier ones are learned on the way
        most = max(2, min(FACTS[task], length // 10))  # a fact has seven words at most
        return made(task, chance, chance.randint(2, most))

    def _one(self, split: str, length: int, chance: random.Random) -> tuple[list[int], list[int]]:
        *body, question = self.story(split, length, chance)
        facts = [line for line in body if not line.answer]
        room = length - sum(len(line.words) for line in (*facts, question))
        asked = _some(body, room * chance.random(), chance) if split == "train" else set()
        body = [line for i, line in enumerate(body) if not line.answer or i in asked]
        room = length - sum(len(line.words) for line in (*body, question))
        filler = self._filler(split, room, chance)
        places = sorted(chance.randrange(len(filler) + 1) for _ in body)
        tokens: list[int] = []
        wanted: list[int] = []
        following = iter([*zip(places, body), (len(filler), question)])
        at, line = next(following)
        for i in range(len(filler) + 1):
            while line is not None and at == i:
                tokens += [self.index.get(word, self.index[UNKNOWN]) for word in line.words]
                wanted += [-1] * (len(line.words) - 1) + [self.index[line.answer] if line.answer else -1]
                at, line = next(following, (0, None))
            if i < len(filler):
                tokens += [self.index.get(word, self.index[UNKNOWN]) for word in filler[i]]
                wanted += [-1] * len(filler[i])
        return tokens, wanted

    def _filler(self, split: str, room: int, chance: random.Random) -> list[list[str]]:
        """Sentences that follow one another, `room` words in all."""
        sentences, found = self.sentences[split], []
        at = chance.randrange(len(sentences))
        while room > 0:
            found.append(sentences[at % len(sentences)][:room])
            room -= len(found[-1])
            at += 1
        return found


def _sentences(document: Document) -> list[list[str]]:
    text = document.read(0, min(len(document), SAMPLE)).tobytes().decode("utf-8", "replace")
    return [found for part in END.split(text) if len(found := words(part)) >= 10]
