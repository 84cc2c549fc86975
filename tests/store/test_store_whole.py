"""The whole of a store: erasure, snapshots, export."""

import json

import pytest

from nestmem.store import (
    PyramidMerge,
    Store,
    StoreError,
)
from tests.store.helpers import fill


def test_erasure_leaves_no_byte_of_a_marker_in_any_live_file(store, place, vectors):
    marker = "xyzzyplugh"
    fields = dict(key=marker, source=marker, writer=marker, digest={"a": marker})
    first = store.put(f"the word is {marker}", vectors={"w": vectors[0]}, **fields)
    new = store.supersede(first.id, f"the word was {marker}", vectors={"w": vectors[1]})
    made = store.put(f"about {marker}", level=1, parents=[new.id]).id
    other = store.put("stays").id
    store.link(other, new.id, "supports", evidence=marker)
    store.relate("told", {other: "by", new.id: marker})
    store.put_many([f"filler {i} {marker[::-1]}" for i in range(50)])
    store.search(vector=vectors[1], space="w")
    kept = place.folder / "kept.snapshot"
    store.snapshot(kept)
    store.close()
    store = place.open()
    gone = store.erase(new.id)
    assert set(gone.ids) == {first.id, new.id, made} and gone.snapshots == (str(kept.resolve()),)
    for path in place.files():
        if not path.name.startswith("kept"):
            data = path.read_bytes()
            assert marker.encode() not in data, path.name
            assert vectors[1].numpy().tobytes() not in data, path.name
    assert store.verify().clean and store.get(other).text == "stays"
    assert store.history(marker) == [] and store.search(marker).ids == ()


def test_a_snapshot_restores_to_the_same_hash(store, place, vectors):
    from nestmem.store import restore

    ids = fill(store, vectors, roots=4)
    store.touch(ids[:3], useful=True)
    before, found = store.fingerprint(), store.search("cats", vector=vectors[2], space="w").ids
    snap = place.folder / "snap"
    store.snapshot(snap)
    with pytest.raises(StoreError, match="never overwritten"):
        store.snapshot(snap)
    store.supersede(ids[0], "changed")
    store.erase(ids[1])
    if not isinstance(place.url, list) and "://" not in str(place.url):
        with pytest.raises(StoreError, match="in use"):
            restore(snap, place.url)
    with Store(snap, read_only=True) as copy:
        assert copy.fingerprint() == before, "a snapshot of any engine is a store by itself"
    place.close()
    restore(snap, place.url)
    store = place.open()
    assert store.fingerprint() == before and store.verify().clean
    assert store.search("cats", vector=vectors[2], space="w").ids == found
    data = bytearray(snap.read_bytes())
    data[len(data) // 2] ^= 1
    snap.write_bytes(data)
    place.close()
    with pytest.raises(StoreError, match="sha256"):
        restore(snap, place.url)


def test_an_export_is_the_whole_history_in_plain_data(store, place, vectors, tmp_path):
    ids = fill(store, vectors, 12)
    store.supersede(ids[0], "new version", vectors={"w": vectors[50]})
    store.forget(ids[1])
    store.erase(ids[2])
    store.touch(ids[3], useful=True)
    store.consolidate(PyramidMerge("w", capacities=(4, 2)))
    folder = tmp_path / "out"
    store.export(folder)
    with Store(tmp_path / "second.db", clock=place.clock) as second:
        second.import_(folder)
        assert second.fingerprint() == store.fingerprint() and second.verify().clean
        assert (
            second.search("note", vector=vectors[3], space="w").ids
            == store.search("note", vector=vectors[3], space="w").ids
        )
        with pytest.raises(StoreError, match="not empty"):
            second.import_(folder)
        assert second.put("goes on").generation == store.generation + 1


def test_a_bad_export_is_refused_before_a_row_is_written(store, place, vectors, tmp_path):
    fill(store, vectors, 5)
    store.export(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    good = manifest.read_text()

    def refused(match):
        with Store(tmp_path / "third.db") as third:
            with pytest.raises(StoreError, match=match):
                third.import_(tmp_path / "out")
            assert third.generation == 0 and third.verify().clean

    evil = json.loads(good)
    evil["files"]["../../evil.jsonl"] = {"rows": 0, "sha256": "0"}
    manifest.write_text(json.dumps(evil))
    refused("do not belong")
    manifest.write_text("{}")
    refused("not one of an export")
    manifest.write_text(good)
    items = tmp_path / "out" / "item.jsonl"
    items.write_bytes(items.read_bytes()[:-20])
    refused("sha256")
