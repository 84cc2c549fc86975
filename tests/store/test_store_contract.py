"""What every engine of the store must do: the tests that define it as done, and the complaints people have about such stores."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sqlalchemy import text

from nestmem.store import (
    Budget,
    Filter,
    New,
    PredictCalibrate,
    PyramidMerge,
    ReciprocalRank,
    Retention,
    Store,
    StoreError,
)
from nestmem.store.engine import seqs_of


def fill(store, vectors, many=40, **fields):
    news = [
        New(f"note {i} about {'cats' if i % 2 else 'dogs'}", vectors={"w": vectors[i]}, event_from=float(i), **fields)
        for i in range(many)
    ]
    return store.put_many(news).ids


# Putting.


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


# Searching. (4)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("chosen", [range(0, 64, 2), [7], range(64)])
def test_filtered_search_equals_brute_force(store, vectors, metric, chosen):
    store.space("s", 8, metric=metric)
    chosen = set(chosen)
    ids = store.put_many(
        [New(f"n{i}", vectors={"s": vectors[i] * (1 + i)}, kind="fact" if i in chosen else None) for i in range(64)]
    ).ids
    matrix = np.stack([vectors[i].numpy() * (1 + i) for i in range(64)])
    query = vectors[5].numpy()
    if metric == "l2":
        scores = -np.linalg.norm(matrix - query, axis=1)
    else:
        scores = matrix @ query / (np.linalg.norm(matrix, axis=1) if metric == "cosine" else 1)
    expected = sorted(chosen, key=lambda i: (-round(float(scores[i]), 6), ids[i]))[:10]
    found = store.search(vector=vectors[5], space="s", k=10, where=Filter(kinds=["fact"]))
    assert found.ids == tuple(ids[i] for i in expected)
    assert found.stopped == ("k" if len(chosen) >= 10 else "exhausted")


def test_equal_scores_are_ordered_by_id(store, vectors):
    ids = store.put_many([New(f"same {i}", vectors={"w": vectors[0]}) for i in range(30)]).ids
    assert store.search(vector=vectors[0], space="w", k=7).ids == tuple(sorted(ids)[:7])


def test_channels_are_fused_by_rank_and_explained(store, vectors):
    ids = fill(store, vectors)
    found = store.search("cats", vector=vectors[6], space="w", near=6.0, k=5, explain=True)
    best = found.hits[0]
    assert best.item.id == ids[6] or "words" in best.channels
    for hit in found.hits:
        assert hit.score == pytest.approx(sum(1 / (60 + r.rank) for r in hit.channels.values()))
        assert all(r.part == pytest.approx(1 / (60 + r.rank)) for r in hit.channels.values())
        assert hit.path == (hit.item.id,)
    heavy = ReciprocalRank(weights={"time": 100.0})
    assert store.search("cats", near=20.0, k=1, fusion=heavy).ids == (ids[20],)


def test_there_are_never_fewer_than_k_while_k_match(store, vectors):
    store.put_many([New("same words", key=f"k{i}", vectors={"w": vectors[i % 64]}) for i in range(300)])
    others = store.put_many([New(f"same words, number {i}", vectors={"w": vectors[i]}) for i in range(12)]).ids
    found = store.search("same words", vector=vectors[0], space="w", k=13, fusion=ReciprocalRank(depth=5))
    assert len(found.hits) == 13 and set(others) < set(found.ids), "duplicates are folded, then others fill up"
    assert len(store.search("same words", k=50, distinct=False).hits) == 50


def test_budgets_say_what_stopped_the_search(store, vectors):
    fill(store, vectors)
    assert store.search("cats", k=5, budget=Budget(items=2)).stopped == "items"
    found = store.search("cats", k=5, budget=Budget(bytes=40))
    assert found.stopped == "bytes" and 0 < sum(len(t.encode()) for t in found.texts) <= 40
    assert store.search("cats", vector=vectors[0], space="w", k=40, budget=Budget(ms=0)).stopped == "ms"


def test_filters_agree_with_their_meaning(store, vectors, place):
    ids = fill(store, vectors, 20, root="a", writer="x")
    more = store.put(
        "note late cats", root="b", writer="y", run="r1", trust=0.2, pinned=True, event_from=100.0, event_to=200.0
    ).id
    every = {*ids, more}
    for where, expected in (
        (Filter(roots=["b"]), {more}),
        (Filter(writers=["x"]), set(ids)),
        (Filter(runs=["r1"]), {more}),
        (Filter(min_trust=0.5), set(ids)),
        (Filter(pinned=True), {more}),
        (Filter(ids=[ids[3], more]), {ids[3], more}),
        (Filter(event_between=(150.0, 400.0)), {more}),
        (Filter(event_between=(3.0, 4.0)), {ids[3], ids[4]}),
        (Filter(levels=[1]), set()),
        (Filter(kinds=["span"]), every),
        (Filter(states=["active"]), every),
        (Filter(states=["cold"]), set()),
    ):
        assert {i.id for i in store.items(where)} == expected
        assert set(store.search("note", k=100, where=where).ids) == expected


def test_namespaces_do_not_see_each_other(store, vectors):
    store.put("secret of anna", namespace="anna", vectors={"w": vectors[0]})
    assert store.search("secret", vector=vectors[0], space="w").ids == ()
    assert store.search("secret", namespace="anna").texts == ("secret of anna",)
    assert store.namespaces() == ["anna"]


# History. (7)


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


# Ties.


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
    with store._engine.write("link") as change:
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


# Use and decay.


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


# Consolidation.


def test_consolidation_is_declared_repeatable_and_dry_first(store, vectors):
    fill(store, vectors, 40, root="a")
    store.put_many([New(f"other {i}", root="b", vectors={"w": vectors[i]}) for i in range(3)])
    policy = PyramidMerge("w", capacities=(8, 4, 2))
    dry = store.consolidate(policy, dry_run=True)
    assert store.generation == dry.generation and dry.roots == ("a",) and len(dry.created) == 6
    done = store.consolidate(policy)
    assert done.created == dry.created
    assert store.consolidate(policy).created == () and store.consolidate(policy).generation == done.generation
    free = {level: sum(i.level == level and i.root == "a" for i in store.roots()) for level in (0, 1, 2)}
    assert free == {0: 8, 1: 4, 2: 2}, "every level fills, none overflows"
    top = next(i for i in store.roots() if i.level == 2)
    assert len(store.children(top.id)) == top.digest["count"] == len(store.evidence(top.id))
    assert len(store.items(Filter(levels=[0]))) == 43, "verbatim items all stay"
    assert store.verify().clean


def test_consolidation_follows_what_is_put_superseded_and_erased(store, vectors):
    ids = fill(store, vectors, 20)
    policy = PyramidMerge("w", capacities=(6, 4))
    store.consolidate(policy)
    store.put_many([New(f"more {i}", event_from=100.0 + i, vectors={"w": vectors[30 + i]}) for i in range(10)])
    second = store.consolidate(policy)
    assert second.retired and second.created and store.verify().clean
    top = next(i for i in store.roots() if i.level == 1)
    gone = store.children(top.id)[0].id
    assert top.id in store.erase(gone).ids, "what was made of it goes with it"
    third = store.consolidate(policy)
    remade = {e.id for i in store.items(Filter(levels=[1])) for e in store.evidence(i.id)}
    assert third.created and gone not in remade and store.verify().clean
    assert ids[0] in {i.id for i in store.items()} or gone == ids[0]


def test_a_replayed_episode_adds_no_fact_and_one_changed_fact_adds_one(store, vectors):
    known = torch.eye(8)
    policy = PredictCalibrate("w")
    store.put_many([New(f"fact {i}", event_from=float(i), vectors={"w": known[i]}) for i in range(4)])
    assert len(store.consolidate(policy).created) == 4
    store.put_many([New(f"fact {i}", event_from=10.0 + i, vectors={"w": known[i]}) for i in range(4)])
    assert store.consolidate(policy).created == ()
    replay = [New(f"fact {i}", event_from=20.0 + i, vectors={"w": known[4] if i == 2 else known[i]}) for i in range(4)]
    store.put_many(replay)
    (added,) = store.consolidate(policy).created
    assert store.evidence(added)[0].text == "fact 2"


def test_a_dear_description_is_asked_for_once(store, vectors):
    said = []

    def dear(members, rows):
        said.append(len(members))
        return f"{len(members)} notes"

    policy = PyramidMerge("w", capacities=(8, 4, 2), summarise=dear)
    fill(store, vectors, 30)
    made = store.consolidate(policy).created
    assert len(said) == len(made) > 3 and {store.get(i).text for i in made} == {f"{n} notes" for n in said}
    store.consolidate(policy)
    store.put("the newest", event_from=99.0, vectors={"w": vectors[40]})
    again = store.consolidate(policy)
    assert len(said) == len(made) + len(again.created), "what stays is not described again"


def test_inputs_that_change_meanwhile_are_noticed(store, place, vectors):
    fill(store, vectors, 20)
    other, meddled = place.open(), []

    class Meddling(PyramidMerge):
        """A policy during whose first thoughts somebody else writes."""

        def derive(self, items, rows):
            if not meddled:
                meddled.append(other.put("meanwhile", event_from=0.5, vectors={"w": vectors[0]}))
            return super().derive(items, rows)

    done = store.consolidate(Meddling("w", capacities=(6, 4)))
    assert store.consolidate(PyramidMerge("w", capacities=(6, 4))).created == (), "as if it had been there before"
    free = [i for i in store.roots() if i.level == 0]
    assert len(free) <= 6 and done.created and store.verify().clean
    assert len(store.items(Filter(levels=[0]))) == 21


def test_what_a_person_forgot_is_not_made_again(store, vectors):
    fill(store, vectors, 20)
    policy = PyramidMerge("w", capacities=(6, 4))
    made = store.consolidate(policy).created
    store.forget(made[0])
    assert store.consolidate(policy).created == ()


# The whole: erasure (8), snapshots (9), export, caches (5), processes (3).


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
    for path in place.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("kept"):
            data = path.read_bytes()
            assert marker.encode() not in data, path.name
            assert vectors[1].numpy().tobytes() not in data, path.name
    assert store.verify().clean and store.get(other).text == "stays"
    assert store.history(marker) == [] and store.search(marker).ids == ()


def test_a_snapshot_restores_to_the_same_hash(store, place, vectors):
    from nestmem.store import restore

    ids = fill(store, vectors)
    store.touch(ids[:3], useful=True)
    before, found = store.fingerprint(), store.search("cats", vector=vectors[2], space="w").ids
    snap = place.folder / "snap"
    store.snapshot(snap)
    with pytest.raises(StoreError, match="never overwritten"):
        store.snapshot(snap)
    store.supersede(ids[0], "changed")
    store.erase(ids[1])
    with pytest.raises(StoreError, match="in use"):
        restore(snap, place.url)
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

    children = [_forked(write, w) for w in ("x", "y")] + [_forked(read, r) for r in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert len(store.items()) == 1 + 2 * 3 * rounds
    assert store.dynamics(shared).retrievals == 2 * rounds, "no update was lost"
    assert store.verify().clean


def _forked(work, argument):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(argument)
        status = 0
    finally:
        os._exit(status)


def test_a_forked_child_may_go_on_using_the_store(store, vectors):
    fill(store, vectors, 5)
    child = _forked(lambda _: store.put("from the child"), None)
    assert os.waitpid(child, 0)[1] == 0
    store.put("from the parent")
    assert {"from the child", "from the parent"} <= {i.text for i in store.items()} and store.verify().clean


def test_retention_of_the_store_is_the_one_it_was_given(place):
    slow = place.open(retention=Retention(strengths={0: 1000.0}))
    slow.put("old")
    place.clock.days(30)
    assert slow.decay_tick().states == {"active": 1}


def test_threads_share_one_store(store, vectors):
    def work(who):
        for step in range(6):
            store.put(f"{who} {step}", vectors={"w": vectors[8 * who + step]})
            assert f"{who} {step}" in store.search(vector=vectors[8 * who + step], space="w", k=30).texts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(store.items()) == 24 and store.verify().clean


def test_a_broken_word_index_is_seen_and_repaired(store, vectors):
    ids = fill(store, vectors, 6)
    with store._engine.write("put") as change:
        (seq,) = seqs_of(change.conn, ids[:1]).values()
        store._engine.unindex_words(change.conn, [(seq, "note 0 about dogs")])
    assert ids[0] not in store.search("dogs").ids
    (problem,) = store.verify().problems
    assert "1 items are missing" in problem
    assert "word index rebuilt" in store.repair()
    assert ids[0] in store.search("dogs").ids and store.verify().clean


def test_an_erasure_that_a_reader_holds_up_is_finished_later(place, vectors):
    store = place.open(timeout=0.3)
    marked = store.put("the marker is quuxquux").id
    with store.as_of(generation=1)._read() as conn:
        conn.execute(text("SELECT count(*) FROM item")).scalar()  # a reader that stays
        with pytest.raises(StoreError, match="a reader holds old pages"):
            store.erase(marked)
        assert store.items() == [], "it is erased all the same"
        assert place.open(timeout=0.3).items() == [], "and the store opens"
    place.close()
    place.open()
    place.close()
    assert not any(b"quuxquux" in p.read_bytes() for p in place.folder.rglob("*") if p.is_file())
