"""Any sequence of operations does what a plain dictionary would do: the store against a model in memory."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nestmem.store import Filter, New, PyramidMerge
from tests.store.conftest import ENGINES, Place

WORDS = ("red", "green", "blue", "cat", "dog")
VECTORS = torch.nn.functional.normalize(torch.randn(32, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
PICK = st.integers(0, 10_000)


def of(key):
    """The fields of an item that its key decides: some subtrees, so that shards all have some."""
    return {"key": key, "root": f"r{int(key[1:]) % 3}"}


class AgainstModel(RuleBasedStateMachine):
    """model: id -> (key, text, level, vector number, parents); what is visible now. hidden: the same, forgotten."""

    engine = "sqlite"

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.place = Place(ENGINES[self.engine](Path(self.folder.name)), self.folder.name)
        self.store = self.place.open()
        self.store.space("w", 4)
        self.model, self.hidden, self.past = {}, {}, {}
        self.numbers = itertools.count()

    def teardown(self):
        if hasattr(self, "place"):
            self.place.close()
            self.folder.cleanup()

    def chosen(self, pick, among):
        return sorted(among)[pick % len(among)]

    @rule(
        words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
        vector=st.integers(0, 31),
        count=st.integers(1, 3),
    )
    def put(self, words, vector, count):
        news = [
            New(" ".join(words), **of(f"k{next(self.numbers)}"), vectors={"w": VECTORS[(vector + i) % 32]})
            for i in range(count)
        ]
        for ident, new, i in zip(self.store.put_many(news).ids, news, range(count)):
            self.model[ident] = (new.key, new.text, 0, (vector + i) % 32, ())

    @precondition(lambda self: any(v[0].startswith("k") for v in self.model.values()))
    @rule(pick=PICK)
    def put_again(self, pick):
        ident = self.chosen(pick, [i for i, v in self.model.items() if v[0].startswith("k")])
        key, text, level, vector, parents = self.model[ident]
        before = self.store.generation
        new = New(
            text, **of(key), level=level, vectors={"w": VECTORS[vector]} if vector is not None else {}, parents=parents
        )
        assert self.store.put(new).id == ident and self.store.generation == before

    @precondition(lambda self: self.model)
    @rule(pick=PICK, other=PICK)
    def derive(self, pick, other):
        parents = tuple(sorted({self.chosen(p, self.model) for p in (pick, other)}))
        key = f"k{next(self.numbers)}"
        ident = self.store.put("made of others", **of(key), level=4, parents=parents).id
        self.model[ident] = (key, "made of others", 4, None, parents)

    @precondition(lambda self: any(v[2] == 0 for v in self.model.values()))
    @rule(pick=PICK, vector=st.integers(0, 31))
    def supersede(self, pick, vector):
        ident = self.chosen(pick, [i for i, v in self.model.items() if v[2] == 0])
        text = f"newer {next(self.numbers)}"
        made = self.store.supersede(ident, text, vectors={"w": VECTORS[vector]}).id
        key = self.model.pop(ident)[0]
        self.model[made] = (key, text, 0, vector, ())

    @precondition(lambda self: self.model)
    @rule(pick=PICK)
    def forget(self, pick):
        ident = self.chosen(pick, self.model)
        self.store.forget(ident)
        self.hidden[ident] = self.model.pop(ident)

    @precondition(lambda self: self.hidden)
    @rule(pick=PICK)
    def remember(self, pick):
        ident = self.chosen(pick, self.hidden)
        self.store.remember(ident)
        self.model[ident] = self.hidden.pop(ident)

    @precondition(lambda self: self.model)
    @rule(pick=PICK)
    def erase(self, pick):
        gone = set(self.store.erase(self.chosen(pick, self.model)).ids)
        self.model = {i: v for i, v in self.model.items() if i not in gone}
        self.hidden = {i: v for i, v in self.hidden.items() if i not in gone}
        self.past = {g: {i: t for i, t in texts.items() if i not in gone} for g, texts in self.past.items()}

    @precondition(lambda self: self.model)
    @rule(pick=PICK, useful=st.booleans(), days=st.integers(0, 40))
    def touch(self, pick, useful, days):
        ident = self.chosen(pick, self.model)
        self.place.clock.days(days)
        before = self.store.dynamics(ident)
        self.store.touch(ident, useful=useful)
        after = self.store.dynamics(ident)
        assert after.retrievals == before.retrievals + 1 and after.useful == before.useful + useful
        assert after.strength >= before.strength

    @rule()
    def tick(self):
        self.store.decay_tick()
        generation = self.store.generation
        assert self.store.decay_tick().generation == generation

    @rule()
    def consolidate(self):
        policy = PyramidMerge("w", capacities=(3, 2))
        done = self.store.consolidate(policy)
        assert self.store.consolidate(policy).generation == done.generation
        known = {**self.model, **self.hidden}
        for ident in [i for i, v in known.items() if v[0].startswith("pyramid:")]:
            self.model.pop(ident, None)
        for item in self.store.items(Filter(writers=["consolidate:pyramid"])):
            self.model[item.id] = (item.key, item.text, item.level, None, ())

    @rule()
    def note_the_past(self):
        self.past[self.store.generation] = {i: v[1] for i, v in self.model.items()}

    @rule()
    def reopen(self):
        self.place.close()
        self.store = self.place.open()

    @invariant()
    def the_store_holds_what_the_model_holds(self):
        if not hasattr(self, "store"):
            return
        assert {i.id: (i.key, i.text, i.level) for i in self.store.items()} == {i: v[:3] for i, v in self.model.items()}

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 31), word=st.sampled_from(WORDS))
    def search(self, number, word):
        verbatim = {i: v for i, v in self.model.items() if v[2] == 0}
        scores = {i: round(float(VECTORS[v[3]] @ VECTORS[number]), 5) for i, v in verbatim.items()}
        found = self.store.search(vector=VECTORS[number], space="w", k=5, where=Filter(levels=[0]), distinct=False)
        assert len(found.ids) == min(5, len(scores))
        best = sorted(scores.values(), reverse=True)[:5]
        assert np.allclose([scores[i] for i in found.ids], best, atol=2e-5)
        named = {i for i, v in self.model.items() if word in v[1].split()}
        assert set(self.store.search(word, k=1000, distinct=False).ids) == named

    @rule()
    def the_past_is_as_it_was(self):
        for generation, texts in self.past.items():
            assert {i.id: i.text for i in self.store.as_of(generation=generation).items()} == texts

    @rule()
    def verify(self):
        assert self.store.verify().clean


@pytest.mark.parametrize("engine", ENGINES)
def test_any_sequence_of_operations(engine):
    _run(engine, examples=6 if engine == "sqlite" else 2, steps=25)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_many_long_sequences_of_operations(engine):
    _run(engine, examples=40, steps=50)


def _run(engine, examples, steps):
    machine = type("Machine", (AgainstModel,), {"engine": engine})
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    options = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
        suppress_health_check=quiet,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=options)
