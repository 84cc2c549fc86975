"""The past may be let go of: what is visible stays, evidence stays, files shrink."""

import os

import pytest

from benchmarks.store_soak import CAPACITY, soak
from nestmem.store import New, PyramidMerge, Store, StoreError
from tests.store.helpers import fill


def test_the_present_is_as_it_was_and_the_past_is_gone(store, vectors, tmp_path, place):
    ids = fill(store, vectors, 20, roots=3)
    for n in range(4):
        store.supersede(ids[n], f"note {n}, newer", vectors={"w": vectors[40 + n]})
    store.forget(ids[5])
    middle = store.generation
    newer = store.find(store.as_of(generation=1 + (middle > 1)).get(ids[0]).key)
    newest = store.supersede(newer.id, "note 0, newest").id
    store.forget(ids[6])
    seen = {i.id: i.text for i in store.items()}
    found = store.search("note", vector=vectors[7], space="w", k=9).ids
    gone = store.compact(middle)
    assert set(gone.ids) == {*ids[:4], ids[5]}
    assert {i.id: i.text for i in store.items()} == seen
    assert store.search("note", vector=vectors[7], space="w", k=9).ids == found
    assert store.as_of(generation=middle).get(newer.id).text == "note 0, newer", "from the horizon on, all is there"
    assert [i.id for i in store.history(store.get(newest).key)] == [newer.id, newest]
    with pytest.raises(ValueError, match=f"expected {middle} to"):
        store.as_of(generation=middle - 1)
    store.remember(ids[6])
    with pytest.raises(StoreError, match="no current item"):
        store.remember(ids[5])
    assert store.verify().clean and store.compact(middle).ids == ()
    store.export(tmp_path / "out")
    with Store(tmp_path / "other.db", clock=place.clock) as other:
        other.import_(tmp_path / "out")
        assert other.fingerprint() == store.fingerprint() and other.verify().clean
        with pytest.raises(ValueError, match=f"expected {middle} to"):
            other.as_of(generation=0)


def test_evidence_is_kept_however_old(store):
    span = store.put("Anna lives in Paris", key="home").id
    fact = store.put("Paris", level=1, kind="fact", parents=[span]).id
    lonely = store.put("lonely").id
    store.supersede(span, "Anna lives in Rome")
    store.forget(lonely)
    assert store.compact().ids == (lonely,)
    assert [e.text for e in store.evidence(fact)] == ["Anna lives in Paris"] and store.verify().clean
    store.erase(span)
    assert store.verify().clean and set(store.compact().ids) >= {span, fact}
    assert store.verify().clean and store.items() == []


def test_consolidation_goes_on_after_compaction(store, vectors):
    fill(store, vectors, 30)
    policy = PyramidMerge("w", capacities=(6, 4))
    store.consolidate(policy)
    store.put_many([New(f"more {i}", event_from=100.0 + i, vectors={"w": vectors[30 + i]}) for i in range(10)])
    store.consolidate(policy)
    tree = {i.id: {c.id for c in store.children(i.id)} for i in store.items()}
    assert store.compact().ids
    assert {i.id: {c.id for c in store.children(i.id)} for i in store.items()} == tree
    assert store.consolidate(policy).created == () and store.verify().clean


@pytest.mark.slow
def test_soak(tmp_path):
    """As many calls as NESTMEM_SOAK says; benchmarks/store_soak.py does a million and says what grows."""
    calls = int(os.environ.get("NESTMEM_SOAK", "4000"))
    marks = list(soak(tmp_path, calls, look=calls // 4))
    first, last = marks[0], marks[-1]
    assert [m.calls for m in marks] == [calls // 4 * n for n in range(1, 5)] and last.missed == 0
    assert max(m.items for m in marks) <= CAPACITY
    assert max(m.files for m in marks) < 2 * first.files, "bounded, but for the journal"
    assert last.journal < 300 * last.commits
    assert max(m.resident for m in marks) < first.resident + 100e6
