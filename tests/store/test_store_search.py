"""Searching: exact under any filter, fused, explained, never fewer than k."""

import numpy as np
import pytest

from nestmem.store import (
    Budget,
    Filter,
    New,
    ReciprocalRank,
)
from tests.store.helpers import fill


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
    ids = fill(store, vectors, roots=5)
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
    fill(store, vectors, roots=5)
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
