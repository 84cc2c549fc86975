"""Threads and processes on one store."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from nestmem.store import (
    New,
    StoreError,
)
from tests.store.helpers import fill, forked


def test_two_writers_and_four_readers_lose_and_tear_nothing(place, vectors):
    store = place.open(timeout=60.0)
    store.space("w", 8)
    shared = store.put("shared").id
    rounds = 12

    def write(who):
        with place.open(timeout=60.0) as mine:
            for step in range(rounds):
                mine.put_many(
                    [New(f"{who} {step} {part}", run=f"{who}-{step}", vectors={"w": vectors[step]}) for part in "abc"]
                )
                mine.touch(shared)

    def read(_):
        with place.open(timeout=60.0) as mine:
            last = 0
            while last < 1 + 2 * 3 * rounds:
                items = mine.items()
                by = {}
                for item in items:
                    by.setdefault(item.run, []).append(item)
                assert all(len(group) == 3 for run, group in by.items() if run), "half a transaction was seen"
                assert len(items) >= last, "something vanished"
                last = len(items)
                hits = mine.search("a", vector=vectors[0], space="w", k=200).hits
                assert all(h.item.text for h in hits)

    children = [forked(write, w) for w in ("x", "y")] + [forked(read, r) for r in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert len(store.items()) == 1 + 2 * 3 * rounds
    assert store.dynamics(shared).retrievals == 2 * rounds, "no update was lost"
    assert store.verify().clean


def test_a_forked_child_may_go_on_using_the_store(store, vectors):
    fill(store, vectors, 5)
    child = forked(lambda _: store.put("from the child"), None)
    assert os.waitpid(child, 0)[1] == 0
    store.put("from the parent")
    assert {"from the child", "from the parent"} <= {i.text for i in store.items()} and store.verify().clean


def test_threads_share_one_store(store, vectors):
    def work(who):
        for step in range(6):
            store.put(f"{who} {step}", vectors={"w": vectors[8 * who + step]})
            assert f"{who} {step}" in store.search(vector=vectors[8 * who + step], space="w", k=30).texts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(store.items()) == 24 and store.verify().clean


def test_an_erasure_that_a_reader_holds_up_is_finished_later(place, vectors):
    store = place.open(timeout=0.3)
    marked = store.put("the marker is quuxquux").id
    with store.as_of(generation=1)._read() as conns:
        for conn in conns:
            conn.execute(text("SELECT count(*) FROM item")).scalar()  # a reader that stays
        with pytest.raises(StoreError, match="a reader holds old pages"):
            store.erase(marked)
        assert store.items() == [], "it is erased all the same"
        assert place.open(timeout=0.3).items() == [], "and the store opens"
    place.close()
    place.open()
    place.close()
    assert not any(b"quuxquux" in p.read_bytes() for p in place.files())
