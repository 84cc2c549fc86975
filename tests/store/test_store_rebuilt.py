"""What can be thrown away at any time: the vector cache and the word index."""

import os

import pytest

from nestmem.store import (
    New,
    Store,
)
from nestmem.store.engine import seqs_of
from tests.store.helpers import ON_SQLITE, fill


@ON_SQLITE
@pytest.mark.parametrize("harm", ["stale", "truncated", "flipped", "other", "empty"])
def test_a_harmed_vector_cache_is_noticed_and_rebuilt(store, place, vectors, harm):
    fill(store, vectors)
    asked = dict(vector=vectors[9], space="w", k=12)
    store.search(**asked)
    place.close()
    (path,) = (place.folder / "memory.db.cache").glob("*.safetensors")
    good = path.read_bytes()
    if harm == "stale":
        store = place.open()
        store.put("newest", vectors={"w": vectors[9]})
        store.forget(store.search(**asked).ids[3])
        expected = store.search(**asked).ids
        place.close()
        path.write_bytes(good)
    else:
        expected = place.open().search(**asked).ids
        place.close()
        flipped = bytearray(good)
        flipped[-100] ^= 4
        path.write_bytes({"truncated": good[:-300], "flipped": bytes(flipped), "other": b"x" * 999, "empty": b""}[harm])
    assert place.open().search(**asked).ids == expected
    assert place.open().verify().clean


@ON_SQLITE
def test_another_file_in_this_ones_place_is_noticed(store, place, vectors, tmp_path):
    """A vector cache belongs to one past: the stamp of its generation tells."""
    fill(store, vectors, 10)
    store.search(vector=vectors[0], space="w")
    place.close()
    with Store(tmp_path / "other.db", clock=place.clock) as other:
        other.space("w", 8)
        mine = other.put_many([New(f"mine {i}", vectors={"w": vectors[20 + i]}) for i in range(10)]).ids
    os.replace(tmp_path / "other.db", place.url)
    assert set(place.open().search(vector=vectors[0], space="w").ids) == set(mine)


def test_a_broken_word_index_is_seen_and_repaired(store, vectors):
    ids = fill(store, vectors, 6)
    place = store._shards.place("default", "main")
    with store._shards.write("put", [place]) as writing:
        conn = writing.changes[place].conn
        (seq,) = seqs_of(conn, ids[:1]).values()
        store._shards.engines[place].unindex_words(conn, [(seq, "note 0 about dogs")])
    assert ids[0] not in store.search("dogs").ids
    (problem,) = store.verify().problems
    assert "1 items are missing" in problem
    assert "word index rebuilt" in store.repair()
    assert ids[0] in store.search("dogs").ids and store.verify().clean
