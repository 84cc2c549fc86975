"""Putting: once, all or none, on grounds."""

import pytest

from nestmem.store import (
    Filter,
    New,
    StoreError,
)


def test_putting_twice_is_putting_once(store, vectors):
    first = store.put("hello", vectors={"w": vectors[0]})
    assert store.put("hello", vectors={"w": vectors[0]}) == first
    assert store.generation == first.generation
    again = store.put_many(["hello", "hello", "other"])
    assert again.ids[0] == again.ids[1] == first.id and len(store.items()) == 2


def test_the_same_words_at_another_time_or_place_are_another_item(store):
    ids = {
        store.put("yes", **where).id
        for where in ({}, {"event_from": 1.0}, {"source": "b"}, {"root": "r"}, {"start": 3})
    }
    assert len(ids) == 5


def test_a_key_never_changes_its_text_by_a_put(store):
    kept = store.put("lives in Paris", key="home")
    with pytest.raises(ValueError, match="already holds another text"):
        store.put("lives in Rome", key="home")
    assert store.get(kept.id).text == "lives in Paris"


def test_many_are_put_or_none(store, vectors):
    with pytest.raises(ValueError, match="finite"):
        store.put_many([New("good", vectors={"w": vectors[0]}), New("bad", vectors={"w": vectors[0] * float("nan")})])
    assert store.items() == []


def test_a_vector_may_come_later_and_is_returned_as_it_was_put(store, vectors):
    ident = store.put("late").id
    with pytest.raises(StoreError, match="has none"):
        store.vector(ident, "w")
    store.put("late", vectors={"w": 3 * vectors[1]})
    assert store.vector(ident, "w").equal(3 * vectors[1])
    store.put("late", vectors={"w": 3 * vectors[1] + 1e-6})
    with pytest.raises(ValueError, match="already has another vector"):
        store.put("late", vectors={"w": vectors[2]})
    assert store.search(vector=vectors[1], space="w", k=1).ids == (ident,)


def test_derived_items_rest_on_verbatim_ones(store):
    a, b = store.put_many(
        [New("a sees b", source="book", start=0, stop=8), New("b sees c", source="book", start=9)]
    ).ids
    fact = store.put("a and b see", level=1, kind="fact", parents=[a, b]).id
    theme = store.put("seeing", level=3, parents=[fact]).id
    spans = store.evidence(theme)
    assert [(e.id, e.text, e.start, e.verified) for e in spans] == [(a, "a sees b", 0, True), (b, "b sees c", 9, True)]
    with pytest.raises(ValueError, match="needs the ids it was made from"):
        store.put("from nowhere", level=1)
    assert store.get(store.put("from outside", level=2, prior=True).id).prior
    assert store.put("what worked", level=-1, parents=[a]).id in store.search("worked", where=Filter(levels=[-1])).ids
    assert store.verify().clean


def test_taint_is_inherited(store):
    bad = store.put("rumour", taint=True).id
    made = store.put("summary of it", level=1, parents=[bad]).id
    assert store.get(made).taint
    assert made not in store.search("summary", where=Filter(tainted=False)).ids
