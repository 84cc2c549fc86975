"""Nothing is overwritten: versions, the past, forgetting and erasing."""

import numpy as np
import pytest

from nestmem.store import (
    Filter,
    New,
    StoreError,
)
from tests.store.helpers import fill


def test_a_stream_of_conflicts_keeps_one_current_value_and_all_of_the_past(store):
    rng, current, generations = np.random.default_rng(0), {}, []
    for step in range(30):
        key = f"user{rng.integers(4)}.city"
        text = f"{key} is city number {step}"
        if key in current:
            made = store.supersede(current[key], text)
        else:
            made = store.put(text, key=key)
        current[key] = made.id
        generations.append((made.generation, {k: store.get(i).text for k, i in current.items()}))
    for key, ident in current.items():
        assert store.find(key).id == ident
        versions = store.history(key)
        assert [v.version for v in versions] == list(range(1, len(versions) + 1))
        assert [v.died is None for v in versions] == [False] * (len(versions) - 1) + [True]
        assert store.search(key, k=100).ids.count(ident) == 1
    assert len(store.items()) == len(current), "no second current value, no lost one"
    for generation, said in generations[::5]:
        past = store.as_of(generation=generation)
        assert {i.key: i.text for i in past.items()} == said
    assert store.verify().clean


def test_the_past_answers_searches_as_it_did(store, vectors, place):
    ids = fill(store, vectors, 30)
    then, asked = store.generation, dict(vector=vectors[3], space="w", k=8)
    found, words = store.search("cats", **asked), store.search("cats", k=8)
    place.clock.days(1)
    store.supersede(ids[3], "note 3 is about birds now", vectors={"w": vectors[60]})
    store.forget(ids[5:9])
    store.put_many([New(f"cats cats {i}", vectors={"w": vectors[40 + i]}) for i in range(9)])
    assert store.search("cats", **asked).ids != found.ids
    past = store.as_of(generation=then)
    assert past.search("cats", **asked).ids == found.ids and past.search("cats", k=8).ids == words.ids
    assert store.as_of(time=place.clock.now - 1).generation == then
    assert past.get(ids[6]).text == "note 6 about dogs"
    with pytest.raises(StoreError, match="no item"):
        store.get(ids[6])


def test_a_change_of_the_world_is_not_a_correction(store):
    old = store.put("lives in Paris", key="home", event_from=10.0).id
    new = store.supersede(old, "lives in Rome", event_from=50.0).id
    assert store.search("lives", where=Filter(valid_at=30.0)).ids == (old,)
    assert store.search("lives", where=Filter(valid_at=60.0)).ids == (new,)
    right = store.supersede(new, "lives in Bern", event_from=None).id
    assert store.search("lives").ids == (right,)
    assert new not in store.search("lives", where=Filter(valid_at=60.0)).ids, "it was wrong at any time"
    with pytest.raises(ValueError, match="where the old version begins"):
        store.supersede(store.put("b", event_from=9.0).id, "c", event_from=1.0)


def test_a_new_version_takes_the_old_ones_place_in_the_tree(store):
    leaf = store.put("leaf").id
    branch = store.put("branch", level=1, parents=[leaf]).id
    store.link(branch, leaf, "contains")
    new = store.supersede(leaf, "leaf, corrected").id
    newer = store.supersede(branch, "branch, corrected").id
    assert [i.id for i in store.children(newer)] == [new] and [i.id for i in store.parents(new)] == [newer]
    assert [e.text for e in store.evidence(newer)] == ["leaf, corrected"]
    assert store.supersede(leaf, "leaf, corrected").id == new, "the same call again is nothing"
    with pytest.raises(StoreError, match="no item"):
        store.supersede(leaf, "leaf, corrected otherwise")
    assert [i.id for i in store.roots()] == [newer]
    store.forget(newer)
    assert [i.id for i in store.roots()] == [new], "what a hidden item contained stands free"


def test_what_is_forgotten_can_be_remembered_and_what_is_erased_cannot(store, vectors):
    ids = fill(store, vectors, 6)
    before = store.generation
    store.forget(ids[:2])
    store.forget(ids[:2])
    assert not set(ids[:2]) & set(store.search("note", vector=vectors[0], space="w", k=20).ids)
    forgotten = store.generation
    store.remember(ids[0])
    assert ids[0] in store.search("note", vector=vectors[0], space="w", k=20).ids
    store.erase(ids[2])
    assert ids[2] not in {i.id for i in store.as_of(generation=before).items()}, "erasure reaches into the past"
    with pytest.raises(StoreError, match="does not come back"):
        store.remember(ids[2])
    after = store.diff(before)
    assert set(after.forgotten) == set(ids[:2]) and after.remembered == (ids[0],) and after.erased == (ids[2],)
    assert ids[0] not in {i.id for i in store.as_of(generation=forgotten).items()}, "also the gap is history"
    assert store.verify().clean
