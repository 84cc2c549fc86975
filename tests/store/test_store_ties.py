"""Links, hyperedges, use and decay."""

import pytest

from nestmem.store import (
    Filter,
    Retention,
    StoreError,
)
from tests.store.helpers import fill


def test_links_are_checked_by_the_store(store):
    a, b = store.put_many(["a", "b"]).ids
    up = store.put("up", level=1, parents=[a]).id
    other = store.put("other", level=2, parents=[a]).id
    store.link(up, a, "contains")
    generation = store.link(up, a, "contains").generation
    assert generation == store.generation, "the same tie again is nothing"
    with pytest.raises(StoreError, match="already inside"):
        store.link(other, a, "contains")
    with pytest.raises(ValueError, match="above its child"):
        store.link(a, up, "contains")
    with pytest.raises(ValueError, match="supersede"):
        store.link(a, b, "supersedes")
    with pytest.raises(ValueError, match="from a later one"):
        store.link(a, up, "derived_from")
    with pytest.raises(ValueError, match="twice"):
        store.link(a, a, "similar")
    store.link(a, b, "contradicts", weight=0.5, evidence="they cannot both be")
    store.link(a, b, "contradicts", weight=0.7)
    assert [(x.weight, x.type) for x in store.links(a, "contradicts")] == [(0.7, "contradicts")]
    store.unlink(a, b, "contradicts")
    assert store.links(a, "contradicts") == []
    assert store.as_of(generation=store.generation - 1).links(a, "contradicts")


def test_the_database_keeps_the_rules_by_itself(store):
    """Even a program that goes around the store cannot break them."""
    from sqlalchemy import insert
    from sqlalchemy.exc import IntegrityError

    from nestmem.store.schema import link

    low, high = store.put("low").id, store.put("high", level=2, prior=True).id
    ends = dict(src=low, src_level=0, dst=high, dst_level=2, type="contains")
    place = store._shards.place("default", "main")
    with store._shards.write("link", [place]) as writing:
        change = writing.changes[place]
        upside_down = insert(link).values(**ends, weight=1.0, evidence="", recorded_at=0.0, born=9)
        with pytest.raises(IntegrityError):
            change.conn.execute(upside_down)


def test_hyperedges_tie_any_number_of_items(store):
    a, b, c = store.put_many(["Ann", "Bob", "sold the boat"]).ids
    edge = store.relate("sale", {a: "seller", b: "buyer", c: "what"}, description=c)
    assert store.relate("sale", {a: "seller", b: "buyer", c: "what"}, description=c).id == edge.id
    assert store.hyperedges(b)[0].members == {a: "seller", b: "buyer", c: "what"}
    store.unrelate(edge.id)
    assert store.hyperedges(b) == []
    assert store.relate("sale", {a: "seller", b: "buyer", c: "what"}, description=c).id != edge.id


def test_use_strengthens_late_recall_more_and_mere_retrieval_not_at_all(store, place):
    early, late, seen = store.put_many(["early", "late", "seen"]).ids
    place.clock.days(1)
    store.touch([early, seen])
    store.touch(early, useful=True)
    place.clock.days(20)
    store.touch([seen])
    store.touch(late, useful=True)
    strengths = {i: store.dynamics(i).strength for i in (early, late, seen)}
    assert strengths[late] > strengths[early] > strengths[seen] == 1.0
    assert store.dynamics(seen).retrievals == 2 and store.dynamics(seen).useful == 0


def test_a_tick_at_an_equal_clock_changes_nothing(store, vectors, place):
    ids = fill(store, vectors, 10)
    pinned = store.put("pinned", pinned=True).id
    place.clock.days(30)
    first = store.decay_tick()
    assert first.states == {"archived": 10, "active": 1} and pinned not in first.moved
    second = store.decay_tick()
    assert second.generation == first.generation and second.moved == ()
    assert store.search("note", k=20, where=Filter(states=["archived"])).ids != ()
    assert len(store.items()) == 11, "decay deletes nothing"
    store.touch(ids[0], useful=True)
    assert store.search("note", k=1, decay=True).ids == (ids[0],)


def test_room_is_made_from_what_is_least_worth_but_never_from_sole_evidence(store, vectors, place):
    ids = fill(store, vectors, 10)
    store.put("rests on note 0 alone", level=1, parents=[ids[0]], pinned=True)
    place.clock.days(5)
    store.touch(ids[1:4], useful=True)
    tick = store.decay_tick(capacity=5)
    assert len(store.items()) == 5 and set(tick.forgotten) == set(ids[4:])
    assert store.decay_tick(capacity=5).forgotten == ()
    store.decay_tick(capacity=0)
    assert {i.id for i in store.items(Filter(levels=[0]))} == {ids[0]}
    assert store.verify().clean


def test_retention_of_the_store_is_the_one_it_was_given(place):
    slow = place.open(retention=Retention(strengths={0: 1000.0}))
    slow.put("old")
    place.clock.days(30)
    assert slow.decay_tick().states == {"active": 1}
