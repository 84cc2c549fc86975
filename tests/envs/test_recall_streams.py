"""Streams that ask: what is asked was said, it can be answered, nothing else can; grammars; stories in books."""

import itertools
import random

import numpy as np
import pytest
import torch

from envs import archives, babilong, recall
from envs.babilong import Haystack, made, told
from envs.documents import Document
from envs.grammar import Grammar
from nestmem.errors import UserError

V = 64


def drawn(kind, rows=16, steps=40, n=4, noise=True, seed=0):
    return recall.draw(kind, rows, steps, n, noise, torch.Generator().manual_seed(seed), V)


@pytest.mark.parametrize("noise", [True, False])
def test_mqar_asks_for_every_key_once_and_its_value_stood_behind_it(noise):
    tokens, wanted = drawn("mqar", noise=noise)
    for row, answers in zip(tokens, wanted):
        pairs = dict(zip(row[0:8:2].tolist(), row[1:8:2].tolist()))
        places = (answers >= 0).nonzero()[:, 0]
        assert sorted(row[places].tolist()) == sorted(pairs) and (places >= 8).all()
        assert [pairs[k] for k in row[places].tolist()] == answers[places].tolist()
        assert noise or (row[8:][answers[8:] < 0] == recall.BLANK).all()


def test_a_needle_is_marked_and_one_is_asked_for_at_the_end():
    tokens, wanted = drawn("needle")
    for row, answers in zip(tokens, wanted):
        marks = (row == recall.MARK).nonzero()[:, 0]
        pairs = {int(row[at + 1]): int(row[at + 2]) for at in marks}
        assert len(pairs) == 4 and row[-2] == recall.ASK
        assert (answers[:-1] < 0).all() and pairs[int(row[-1])] == answers[-1]


def test_a_copy_is_in_order_and_everything_else_is_blank():
    tokens, wanted = drawn("copy")
    for row, answers in zip(tokens, wanted):
        assert row[:-4][row[:-4] != recall.BLANK].tolist() == answers[-4:].tolist()
        assert (row[-4:] == recall.ASK).all() and (answers[:-4] < 0).all()


def test_what_does_not_fit_is_refused():
    for kind, steps, n in (("mqar", 15, 4), ("needle", 13, 4), ("copy", 7, 4), ("mqar", 4000, 40)):
        with pytest.raises(UserError, match=r"env.pairs: .* do not fit"):
            drawn(kind, steps=steps, n=n)
    with pytest.raises(UserError, match="expected one of mqar, needle, copy, grammar, got 'nothing'"):
        drawn("nothing")


def test_symbols_determine_the_hidden_state_and_every_state_leads_to_the_end():
    grammar = Grammar(8, 4, 3, seed=0)
    assert grammar.states == 1 + 4 + 4 * 3
    for state, edges in enumerate(grammar.edges):
        symbols = grammar.symbol[edges]
        assert len(set(symbols)) == len(symbols) and (len(edges) > 0) == (state > 0)
    states = grammar.strings(3000, np.random.default_rng(1))
    for before, after in itertools.pairwise(states):
        assert after in (grammar.edges[before] if before else grammar.starts)
    assert (states == 0).sum() > 20
    again = Grammar(8, 4, 3, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(grammar.edges, again.edges))


def test_gaps_are_blank_or_cannot_follow():
    grammar = Grammar(8, 4, 3, seed=0)
    tokens, wanted = grammar.draw(4, 30, (2, 2), False, seed=0)
    assert tokens.shape == (4, 90) and (wanted[:, ::3] >= 0).all()
    assert (tokens[wanted < 0] == recall.BLANK).all()
    assert (grammar.symbol[wanted[wanted >= 0]] == tokens[wanted >= 0].numpy()).all()
    tokens, wanted = grammar.draw(4, 30, (0, 5), True, seed=0)
    for row, states in zip(tokens.tolist(), wanted.tolist()):
        state = states[0]
        for token, now in zip(row, states):
            state = now if now >= 0 else state
            if now < 0 and token != recall.BLANK:
                assert token not in grammar.symbol[grammar.edges[state]]


def answer(facts, question):
    """The answer of a story, worked out from its words."""
    at, holder, places = {}, {}, {}
    for words in facts:
        verb = " ".join(words[1:])
        person = words[0]
        if any(verb.startswith(go) for go in babilong.GOES):
            at[person] = words[-2]
        else:
            thing = next(w for w in words if w in babilong.THINGS)
            if any(verb.startswith(take) for take in babilong.TAKES):
                holder[thing] = person
            else:
                del holder[thing]
        for thing, who in holder.items():
            if who in at and places.setdefault(thing, [])[-1:] != [at[who]]:
                places[thing].append(at[who])
    asked = next((w for w in question if w in babilong.THINGS), None)
    if asked is None:
        return at[next(w for w in question if w in babilong.PEOPLE)]
    if "before" not in question:
        return places[asked][-1]
    last = len(places[asked]) - 1 - places[asked][::-1].index(question[-2])
    return places[asked][last - 1]


@pytest.mark.parametrize("task", [1, 2, 3])
def test_our_stories_have_the_answers_that_follow_from_them(task):
    chance = random.Random(0)
    for facts in (2, 6, 12) * 30:
        story = made(task, chance, facts)
        forms = [1 + ("the" in line.words) + ("before" in line.words) for line in story if line.answer]
        assert story[-1].answer and forms[-1] == task >= max(forms), "easier questions may come before"
        for i, line in enumerate(story):
            if line.answer:
                assert answer([fact.words for fact in story[:i] if not fact.answer], line.words) == line.answer


@pytest.fixture(scope="module")
def books():
    sentence = "it was a very long and quiet day in the house of the old man, said {}. "
    text = "".join(sentence.format(f"name{chr(97 + i % 26)}") for i in range(200)).encode()
    one = Document("book", 0, len(text), data=np.frombuffer(text, np.uint8))
    return {"train": [one], "val": [one], "test": [one]}


@pytest.mark.parametrize("length", [128, 500])
def test_facts_lie_in_order_among_sentences_and_the_whole_has_the_asked_length(books, length):
    hay = Haystack(1, books, stories="made")
    tokens, wanted = hay.draw("test", 4, length, seed=1)
    assert tokens.shape == (4, length) and ((wanted >= 0).sum(1) == 1).all() and (wanted[:, -1] >= 0).all()
    for row, last in zip(tokens.tolist(), wanted[:, -1].tolist()):
        text = [hay.words[i] for i in row]
        moves, i = [], 0
        while i < len(text):
            if text[i] in babilong.PEOPLE and any(" ".join(text[i + 1 :]).startswith(go) for go in babilong.GOES):
                end = text.index(".", i)
                moves.append(text[i : end + 1])
                i = end
            i += 1
        assert answer(moves, text[-4:]) == hay.words[last]
    assert all(torch.equal(a, b) for a, b in zip(hay.draw("test", 2, 64, 5), hay.draw("test", 2, 64, 5)))
    assert (hay.draw("train", 8, 300, 0)[1] >= 0).sum() > 8, "training asks more than once"


@pytest.mark.parametrize("task", [1, 2, 3])
@pytest.mark.parametrize("length", [32, 200])
def test_what_training_asks_follows_from_the_facts_it_shows(books, task, length):
    hay = Haystack(task, books, stories="made")
    tokens, wanted = hay.draw("train", 16, length, seed=2)
    asked = 0
    for row, want in zip(tokens.tolist(), wanted.tolist(), strict=True):
        text, facts = [hay.words[i] for i in row], []
        for i, word in enumerate(text):
            if word in babilong.PEOPLE and text[i - 1] != "is":
                facts.append(text[i : text.index(".", i) + 1])
            if want[i] >= 0:
                start = max(j for j in range(i) if text[j] == "where")
                assert answer(facts, text[start : i + 1]) == hay.words[want[i]]
                asked += 1
    assert asked > 16 or length < 100, "a longer text has room for more than one question"


def test_babi_itself(books):
    if archives.locate(babilong.ARCHIVE) is None:
        pytest.skip("bAbI is not under NESTMEM_DATA")
    for task in (1, 2, 3):
        stories = told(task, "test")
        assert len(stories) == 1000
        right = [answer([line.words for line in s if not line.answer], s[-1].words) == s[-1].answer for s in stories]
        assert np.mean(right) == 1, "our reading of the task is bAbI's"
    hay = Haystack(2, books)
    tokens, wanted = hay.draw("test", 2, 2000, seed=0)
    assert tokens.shape == (2, 2000) and hay.words[int(wanted[0, -1])] in babilong.PLACES


def test_an_unknown_task_or_books_without_sentences_are_refused(books):
    with pytest.raises(UserError, match="expected 1, 2 or 3 and babi or made, got 4"):
        Haystack(4, books, stories="made")
    none = Document("none", 0, 3, data=np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="no sentence of 10 words or more in the val documents"):
        Haystack(1, books | {"val": [none]}, stories="made")
