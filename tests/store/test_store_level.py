"""A store as a level of a nested memory: what one session learned is there in the next, and in another process."""

import os

import pytest
import torch
from torch.nn import functional as F

from nestmem import Episodic, Fields, NestedMemory
from nestmem.memory.base import Item, state_from_dict, state_to_dict
from nestmem.store import Store, StoreError
from nestmem.store.hits import AGES, Hits
from nestmem.store.level import StoreLevel, reinstate
from tests.store.conftest import Clock
from tests.store.helpers import forked

FIELDS = Fields(content=16, cue=8, outcome=5)
D = FIELDS.width


def lesson(context, rows=2, pairs=12, seed=0):
    """A visit to a context [B, 2 * pairs, D]: each content with the context's cue, its label one step later; and labels [B, pairs].

    The same contents mean other labels in other contexts.
    """
    generator = torch.Generator().manual_seed(seed)
    contents = F.normalize(torch.randn(rows, pairs, 16, generator=generator), dim=-1)
    generator = torch.Generator().manual_seed(100 + context)
    cue = F.normalize(torch.randn(rows, 1, 8, generator=generator), dim=-1)
    labels = torch.randint(5, (rows, pairs), generator=generator)
    x = torch.zeros(rows, 2 * pairs, D)
    x[:, 0::2, :16], x[:, 0::2, 16:24] = contents, cue
    x[:, 1::2, 24:] = F.one_hot(labels, 5).float()
    return x, labels, cue[:, 0]


def nested(store, **options):
    torch.manual_seed(0)
    return NestedMemory([Episodic(D, FIELDS, slots=32), StoreLevel(store, D, FIELDS, **options)], FIELDS)


def first_guesses(memory, state, context):
    """Accuracy of what is said of a context's contents before any of its labels is shown, and the state as it was."""
    x, labels, _ = lesson(context)
    y, _ = memory.read(x[:, 0::2], state)
    return float((FIELDS.split(y)[2].argmax(-1) == labels).float().mean())


def session(path, contexts):
    """Meet contexts one after the other, the episodic memory being cleared between them; first guesses at each, then write back."""
    with Store(path) as store:
        memory = nested(store)
        state, guesses = memory.initial_state(2), []
        done = torch.ones(2, dtype=torch.bool)
        for context in contexts:
            guesses.append(first_guesses(memory, state, context))
            _, state = memory(lesson(context)[0], state)
            states = list(state.levels)  # what the episodic level holds goes to the store's level before it is cleared
            _, given = memory.levels[0].consolidate(states[0])
            states[1] = memory.levels[1].absorb(states[1], given, done, memory.rule)
            state = memory.reset(state._replace(levels=tuple(states)), done, until="task")
        memory.levels[1].write_back(state.levels[1], run="session")
    return guesses


def test_a_warm_store_knows_what_returns_and_a_cleared_one_does_not(tmp_path):
    path = tmp_path / "memory.db"
    cold = session(path, [0, 1, 2])
    child = forked(lambda _: _expect_warm(path), None)
    assert os.waitpid(child, 0)[1] == 0, "a second process has the gain"
    warm = session(path, [2, 0, 1])
    assert max(cold) < 0.5 and min(warm) > 0.95
    with Store(path) as store:
        store.forget([i.id for i in store.items()])
    assert session(path, [0, 1, 2]) == cold, "the gain vanishes with what was stored"


def _expect_warm(path):
    assert min(session(path, [0, 1, 2])) > 0.95


@pytest.fixture
def taught(tmp_path):
    """A store that knows contexts 0 and 1."""
    session(tmp_path / "memory.db", [0, 1])
    with Store(tmp_path / "memory.db") as store:
        yield store


def test_what_is_known_is_not_put_again_and_what_changed_is_superseded(taught):
    items = taught.items()
    level = nested(taught).levels[1]
    x, labels, _ = lesson(0)
    state = level.run(x, level.initial_state(2))[1]
    level.write_back(state)
    assert {i.id for i in taught.items()} == {i.id for i in items}
    assert any(taught.dynamics(i.id).useful for i in items), "met again, it is strengthened"
    changed = x.clone()
    changed[:, 1, 24:] = F.one_hot((labels[:, 0] + 1) % 5, 5).float()
    level.write_back(level.run(changed, level.initial_state(2))[1])
    now = taught.items()
    assert len(now) == len(items) and sorted(i.version for i in now)[-2:] == [2, 2]
    assert taught.verify().clean


def test_two_that_came_to_lie_on_one_are_both_kept(taught):
    """Both are near an old address and have another outcome, but are not near each other: one takes its place."""
    level, many = nested(taught).levels[1], len(taught.items())
    key, cue = level.keys[0], level.cues[0]
    aside = torch.zeros_like(key)
    aside[key.abs().argmin()] = 1.0
    aside = F.normalize(aside - (aside @ key) * key, dim=-1) / 4
    other = F.one_hot((level.outcomes[0].argmax() + 1) % 5, 5).float()
    state = level.initial_state(1)
    for near in (key + aside, key - aside):
        state = level.write(Item(F.normalize(near, dim=-1)[None], cue[None], other[None]), state)
    level.write_back(state)
    assert len(taught.items()) == many + 1 and taught.verify().clean


def test_a_session_reads_one_generation(taught):
    memory = nested(taught)
    level = memory.levels[1]
    before, seen = int(level.generation), len(level.keys)
    _, state = level(lesson(7)[0])
    level.write_back(state)
    assert len(level.keys) == seen and int(level.generation) == before
    level.look()
    assert len(level.keys) == seen + 24 and int(level.generation) == taught.generation > before


def test_a_checkpoint_names_its_generation(taught, tmp_path):
    memory = nested(taught)
    saved = memory.state_dict()
    y, _ = memory(lesson(1)[0])
    _, state = memory.levels[1](lesson(7)[0])
    memory.levels[1].write_back(state)
    fresh = nested(taught)
    assert int(fresh.levels[1].generation) > int(saved["levels.1.generation"])
    with pytest.warns(UserWarning, match="reading generation"):
        fresh.load_state_dict(saved)
    assert torch.equal(fresh(lesson(1)[0])[0], y), "whatever was written since, it reads what it read"
    with Store(tmp_path / "other.db") as other, pytest.raises(StoreError, match="of another store"):
        nested(other).load_state_dict(saved)


def test_reading_is_differentiable_and_batched(taught):
    level = nested(taught, k=4).levels[1].double()
    level.keys, level.cues, level.outcomes = (t.double() for t in (level.keys, level.cues, level.outcomes))
    x = lesson(0)[0][:, 0:6:2].double().requires_grad_()

    def read(x):
        return level.read(x, None)[0][..., 24:].exp()

    assert torch.autograd.gradcheck(read, (x,))
    read(x).sum().backward()
    together = read(x)
    for b in range(2):
        assert torch.allclose(read(x[b : b + 1])[0], together[b])
    assert level.log_beta.grad is not None
    assert torch.allclose(torch.func.vmap(read)(x), together)


def test_the_next_session_of_a_process_reads_what_the_next_process_would(tmp_path):
    """What a row gathered is read again before it is in the store as it is when it is there, and only by that row."""
    with Store(tmp_path / "memory.db") as store:
        level = nested(store).levels[1]
        state = level.session(level.run(lesson(0)[0], level.initial_state(2))[1])
        _, state = level(lesson(1)[0], state)
        query = torch.cat([lesson(context)[0][:, 0::2] for context in (0, 1)], 1)
        read = [level.read(asked, state) for asked in (query, query[:, 0])]
        assert torch.allclose(read[0][0][:, 0].exp(), read[1][0].exp(), atol=1e-5)
        assert state.valid.sum() == 48, "and all of it is kept"
        labels = lesson(0)[1]
        guesses = FIELDS.split(read[0][0])[2].argmax(-1)
        assert (guesses[:, :12] == labels).all() and (read[0][1].confidence[:, 12:] < 0.95).all()
        other, aux = level.read(query, state._replace(shown=state.shown & torch.tensor([[True], [False]])))
        assert torch.allclose(other[0].exp(), read[0][0][0].exp(), atol=1e-5) and (aux.confidence[1] == -1).all()
        level.write_back(level.run(lesson(0)[0], level.initial_state(2))[1])
        level.look()
        stored, said = level.read(query, level.initial_state(2))
        known = slice(0, 12)
        assert torch.allclose(stored[:, known].exp(), read[0][0][:, known].exp(), atol=1e-4)
        assert torch.allclose(said.confidence[:, known], read[0][1].confidence[:, known], atol=1e-5)


def test_hits_are_counted_by_level_and_age(tmp_path):
    clock = Clock()
    with Store(tmp_path / "memory.db", clock=clock) as store:
        level = nested(store).levels[1]
        for context in (0, 1):
            level.write_back(level.run(lesson(context)[0], level.initial_state(2))[1])
            clock.days(3)
        level.look()
        clock.days(30)
        x = lesson(0)[0][:, 0::2]
        own = level.session(level.run(lesson(2)[0], level.initial_state(2))[1])
        with Hits(level) as hits:
            level.read(x, level.initial_state(2))  # 24 queries, all known since the first day
            level.read(x[:, 0], own)
            level.read(lesson(2)[0][:, 0::2], own)
            level.read(lesson(5)[0][:, 0::2], own)
        level.read(x, own)
        assert hits.by_level() == ({"L0": 48}, {"L0": 26, "this run": 24, "nothing alike": 24})
        items, found = hits.by_age()
        assert items == dict.fromkeys(AGES, 0) | {"older": 48} and found["older"] == 26
        assert hits.days() == {"items": pytest.approx(34.5, abs=1e-3), "hits": pytest.approx(36, abs=1e-3)}
        items, _ = Hits(nested(store, generation=level.store.generation - 1).levels[1]).by_level()
        assert items == {"L0": 24}


def test_whole_sequences_equal_single_steps(taught):
    level = nested(taught, slots=5).levels[1]
    x = lesson(3)[0]
    y, state = level(x)
    stepped, ys = level.initial_state(2), []
    for t in range(x.shape[1]):
        one, stepped, _ = level.step(x[:, t], stepped)
        ys.append(one)
    assert torch.allclose(torch.stack(ys, 1), y, atol=1e-5)
    for name, tensor in state_to_dict(state).items():
        assert torch.equal(tensor, state_to_dict(stepped)[name]), name
    again = state_from_dict(state_to_dict(state), level.initial_state(1))
    assert again.valid.all() and torch.equal(again.keys, state.keys)


def test_a_context_that_comes_back_is_reinstated(taught):
    memory = nested(taught)
    state = memory.initial_state(2)
    x, labels, cue = lesson(1)
    state = reinstate(memory, state, cue)
    episodic = memory.levels[0]
    assert int(state.levels[0].slots.valid.sum()) == 24, "its items, and none of the other context's"
    y, _ = episodic.read(x[:, 0::2], state.levels[0])
    assert (FIELDS.split(y)[2].argmax(-1) == labels).float().mean() > 0.95
    unknown = reinstate(memory, memory.initial_state(2), lesson(50)[2])
    assert not unknown.levels[0].slots.valid.any()


def test_a_level_absorbs_at_ticks_and_nothing_twice(tmp_path):
    with Store(tmp_path / "memory.db") as store:
        memory = nested(store, period=6)
        _, state = memory(lesson(0)[0])
        assert int(state.levels[1].valid.sum()) == 24, "12 items a row, though offered at four ticks"
        memory.levels[1].write_back(state.levels[1])
        assert len(store.items()) == 24


def test_bad_input_is_one_sentence(tmp_path):
    with Store(tmp_path / "memory.db") as store:
        with pytest.raises(ValueError, match="fields"):
            StoreLevel(store, D)
        with pytest.raises(ValueError, match="k: expected at least 1"):
            StoreLevel(store, D, FIELDS, k=0)
        StoreLevel(store, D, FIELDS, encoder="one")
        with pytest.raises(ValueError, match="give a new encoder a new name"):
            StoreLevel(store, D, FIELDS, encoder="two")
