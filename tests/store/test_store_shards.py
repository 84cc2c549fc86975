"""A store on several databases: subtrees stay together, ties cross, and nothing depends on the order of the shards."""

import os
import random
import resource
import sqlite3

import pytest

from nestmem.store import Filter, New, PyramidMerge, ReciprocalRank, Store, StoreError
from nestmem.store.shards import Shards
from tests.store.helpers import SERVED, SHARDED, fill, forked, roots_on


def on_each(store):
    """One verbatim item on every shard."""
    return [store.put(f"from shard {n}", root=roots_on(store, n, 1)[0]).id for n in range(3)]


@SHARDED
def test_a_subtree_lies_on_one_shard_and_all_shards_are_used(store, place, vectors):
    roots = [root for n in range(3) for root in roots_on(store, n, 13)]  # places are drawn with the shards' names
    store.put_many([New(f"note {i}", root=roots[i % 39]) for i in range(78)])
    used = []
    for url in place.urls:
        with Store(url, read_only=True) as one:
            used.append({i.root for i in one.items()})
    assert all(map(len, used)) and sum(map(len, used)) == len(set().union(*used)) == 39
    assert store.verify().clean


@SHARDED
def test_ties_cross_shards_and_evidence_follows_them(store):
    spans = on_each(store)
    roots = [store.get(i).root for i in spans]
    fact = store.put("all three agree", level=1, kind="fact", parents=spans, root=roots[0]).id
    theme = store.put("agreement", level=2, parents=[fact], root=roots[1]).id
    assert {e.id for e in store.evidence(theme)} == set(spans)
    store.link(spans[0], spans[2], "contradicts", evidence="they differ")
    assert [x.dst for x in store.links(spans[2], "contradicts")] == [spans[2]], "seen from the other end too"
    new = store.supersede(spans[1], "from shard 1, corrected").id
    again = store.supersede(fact, "all three agree, still").id
    assert new in {e.id for e in store.evidence(again)}
    assert store.put("what worked", level=-1, root=roots[2], parents=[spans[0]]).id in store.search("worked").ids
    with pytest.raises(ValueError, match="within one subtree"):
        store.relate("pair", {spans[0]: "a", spans[2]: "b"})
    assert store.verify().clean


@SHARDED
def test_erasure_takes_along_what_rests_on_it_on_other_shards(store):
    a, b, c = on_each(store)
    first = store.put("about a", level=1, parents=[a], root=store.get(b).root).id
    second = store.put("about that", level=2, parents=[first], root=store.get(c).root).id
    before = store.generation
    assert set(store.erase(a).ids) == {a, first, second}
    assert {i.id for i in store.items()} == {b, c} and store.verify().clean
    assert set(store.diff(before).erased) == {a, first, second}


@SHARDED
def test_a_key_is_one_item_wherever_its_subtree_lies(store):
    here, there, _ = (roots_on(store, n, 1)[0] for n in range(3))
    first = store.put("Paris", key="home", root=here)
    assert store.put("Paris", key="home", root=here) == first
    for text in ("Paris", "Rome"):
        with pytest.raises(ValueError, match="stands in the subtree"):
            store.put_many([New("other", root=there), New(text, key="home", root=there)])
    assert [i.text for i in store.items()] == ["Paris"], "and nothing of the call was done"


@SHARDED
def test_many_are_put_on_all_shards_or_none(store, vectors):
    roots = [roots_on(store, n, 1)[0] for n in range(3)]
    before = store.fingerprint()
    with pytest.raises(StoreError, match="no item"):
        store.put_many([*(New(f"x {r}", root=r) for r in roots), New("y", level=1, parents=["0" * 32], root=roots[2])])
    assert store.fingerprint() == before
    done = store.put_many([New(f"x {r}", root=r) for r in roots])
    assert {store.get(i).born for i in done.ids} == {done.generation}, "one call is one generation"
    assert [store.get(i).root for i in done.ids] == roots, "ids come back in the order given"


@SHARDED
def test_shards_answer_as_one_store_would(store, vectors, place, tmp_path):
    """Dense and time channels are equal to those of a single file; words are ranked shard by shard."""
    ids = fill(store, vectors, 48, roots=9)
    store.forget(ids[5:9])
    store.supersede(ids[20], "note 20 is about birds", vectors={"w": vectors[50]})
    store.export(tmp_path / "out")
    with Store(tmp_path / "one.db", clock=place.clock) as one:
        one.import_(tmp_path / "out")
        for asked in (
            dict(vector=vectors[3], space="w", k=12),
            dict(near=17.0, k=9),
            dict(vector=vectors[3], space="w", near=30.0, k=12),
            dict(vector=vectors[9], space="w", where=Filter(roots=["r1", "r2", "r5"]), k=7),
            dict(vector=vectors[3], space="w", k=12, decay=True, fusion=ReciprocalRank(k=10)),
        ):
            assert store.search(**asked).ids == one.search(**asked).ids
            past = dict(generation=2)
            assert store.as_of(**past).search(**asked).ids == one.as_of(**past).search(**asked).ids
        assert set(store.search("birds").ids) == set(one.search("birds").ids)
        assert [i.id for i in store.items()] == [i.id for i in one.items()]
        policy = PyramidMerge("w", capacities=(3, 2))
        assert set(store.consolidate(policy).created) == set(one.consolidate(policy).created)
        assert set(store.decay_tick(capacity=20).forgotten) == set(one.decay_tick(capacity=20).forgotten)
        assert store.stats()["levels"] == one.stats()["levels"]


@SHARDED
def test_shards_know_each_other(store, vectors, place):
    roots = [root for n in range(3) for root in roots_on(store, n, 2)]
    ids = store.put_many([New(f"note {i}", root=roots[i % 6], vectors={"w": vectors[i]}) for i in range(20)]).ids
    before = store.fingerprint()
    place.close()
    shuffled = Store(place.urls[::-1], clock=place.clock)
    assert shuffled.fingerprint() == before and shuffled.verify().clean, "their order does not matter"
    shuffled.put("more", root=roots[3])
    shuffled.close()
    with pytest.raises(StoreError, match="not of one store"):
        Store(place.urls[:2])
    with pytest.raises(StoreError, match="one of 3 shards"):
        Store(place.urls[0])
    with Store(place.urls[0], read_only=True) as alone:
        assert 0 < len(alone.items()) < 21 and alone.verify().rows
    with Store(";".join(map(str, place.urls)), read_only=True) as whole:
        assert {i.id for i in whole.items()} > set(ids)
    with pytest.raises(ValueError, match="one twice"):
        Store([place.urls[0], place.urls[0]])


@SHARDED
def test_a_store_by_itself_does_not_become_a_shard(place, tmp_path):
    with Store(place.urls[0]) as alone:
        alone.put("mine")
    with pytest.raises(StoreError, match="export it and import"):
        place.open()
    with Store(place.urls[0]) as alone:
        assert alone.search("mine").texts == ("mine",)


def test_one_shard_more_moves_only_what_it_takes():
    class Named:
        def __init__(self, names):
            self.names = names

        __len__ = lambda self: len(self.names)

    roots = [f"root {n}" for n in range(600)]
    three, four = Named(("a", "b", "c")), Named(("a", "b", "c", "d"))
    before = {r: three.names[Shards.place(three, "n", r)] for r in roots}
    after = {r: four.names[Shards.place(four, "n", r)] for r in roots}
    moved = [r for r in roots if before[r] != after[r]]
    assert {after[r] for r in moved} == {"d"} and 100 < len(moved) < 200
    assert min(list(before.values()).count(n) for n in "abc") > 150


@SHARDED
def test_writers_on_several_shards_lose_nothing(place):
    store = place.open(timeout=60.0)
    rounds = 8

    def write(who):
        rng = random.Random(who)
        with place.open(timeout=60.0) as mine:
            for step in range(rounds):
                roots = rng.sample(range(30), 3)
                mine.put_many([New(f"{who} {step} {r}", root=f"r{r}", run=f"{who}-{step}") for r in roots])

    children = [forked(write, w) for w in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    by = {}
    for item in store.items():
        by.setdefault(item.run, []).append(item)
    assert len(by) == 3 * rounds and all(len(group) == 3 for group in by.values())
    assert store.verify().clean


@SHARDED
def test_a_shard_that_is_held_says_so_and_the_others_go_on(store, place, vectors):
    roots = [roots_on(store, n, 1)[0] for n in range(3)]
    ids = store.put_many([New(f"before {n}", root=root, vectors={"w": vectors[n]}) for n, root in enumerate(roots)]).ids
    impatient, before = place.open(timeout=0.3), store.fingerprint()
    news = [New(f"during {n}", root=root) for n, root in enumerate(roots)]
    with place.open()._shards.engines[1].write("put"):
        for refused in (
            lambda: impatient.put(news[1]),
            lambda: impatient.put_many(news),
            lambda: impatient.supersede(ids[1], "never"),
            lambda: impatient.decay_tick(capacity=1),
        ):
            with pytest.raises(StoreError, match=r"another process has been writing for 0\.3 s") as caught:
                refused()
            assert "\n" not in str(caught.value)
        assert store.fingerprint() == before, "a call that needs that shard did nothing on the others"
        assert set(impatient.search(vector=vectors[0], space="w").ids) == set(ids), "readers do not wait"
        assert {impatient.put(news[n]).generation for n in (0, 2)} == {store.generation, store.generation - 1}
        impatient.touch(ids[2], useful=True)
    done = impatient.put_many(news)
    assert {store.get(i).text for i in done.ids} == {f"during {n}" for n in range(3)}
    assert len(store.items()) == 6 and store.verify().clean


@pytest.mark.parametrize("place", ["files"], indirect=True)
def test_a_shard_locked_by_another_program_says_so_and_the_others_go_on(store, place):
    """With SQLite's own lock, as a backup tool would hold it."""
    place_of = {engine.path: n for n, engine in enumerate(store._shards.engines)}
    roots = [roots_on(store, n, 1)[0] for n in range(3)]
    impatient = place.open(timeout=0.3)
    other = sqlite3.connect(place.urls[0], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    held = place_of[place.urls[0]]
    with pytest.raises(StoreError, match=r"locked by another program for 0\.3 s"):
        impatient.put("never", root=roots[held])
    for n in {0, 1, 2} - {held}:
        impatient.put(f"on {n}", root=roots[n])
    other.execute("ROLLBACK")
    other.close()
    impatient.put("now", root=roots[held])
    assert len(store.items()) == 3 and store.verify().clean


@pytest.mark.parametrize("place", ["files"], indirect=True)
def test_a_shard_whose_disk_is_full_loses_nothing_that_was_acknowledged(store, place):
    """A limit on the size of files stands for the disk; one subtree is much larger, so one shard meets it first."""
    roots = [roots_on(store, n, 1)[0] for n in range(3)]
    read, write = os.pipe()
    place.close()

    def fill_up(_):
        with place.open(timeout=60.0) as mine:
            resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
            for step in range(200):
                try:
                    mine.put_many([New(f"{step} " + "x" * (20_000 if n == 1 else 10), root=roots[n]) for n in range(3)])
                except StoreError as error:
                    os.write(write, b"full\n" if "nothing was written" in str(error) else b"unclear\n")
                    break
                os.write(write, f"{step}\n".encode())
            for engine in mine._shards.engines:
                engine._pool.dispose(close=False)
            os._exit(0)

    assert os.waitpid(forked(fill_up, None), 0)[1] == 0
    os.close(write)
    said = os.read(read, 100_000).decode().split()
    os.close(read)
    assert said[-1] == "full" and len(said) > 3
    store = place.open()
    found = [i.text.split()[0] for i in store.items()]
    assert all(found.count(step) == 3 for step in said[:-1]), "what was acknowledged is on every shard"
    assert set(found) <= {*said[:-1], str(len(said) - 1)} and store.verify().clean
    step = len(said) - 1
    store.put_many([New(f"{step} " + "x" * (20_000 if n == 1 else 10), root=roots[n]) for n in range(3)])
    assert [i.text.split()[0] for i in store.items()].count(str(step)) == 3, "the same call again does the rest"


@SERVED
def test_two_stores_fit_in_one_database(place):
    from tests.store.conftest import database

    with place.open() as one, Store(database(None)) as two:
        one.put("mine")
        assert two.items() == [] and one.search("mine").texts == ("mine",)
