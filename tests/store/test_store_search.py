"""Searching: exact under any filter, fused, explained, never fewer than k."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nestmem.store import (
    Budget,
    CalibratedSum,
    Filter,
    New,
    ReciprocalRank,
)
from tests.store.conftest import ENGINES, Place
from tests.store.helpers import ON_SQLITE, fill


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


MANY = 300
CHOICES = {  # a filter, and whether an item of a number meets it
    "half": lambda n: (Filter(kinds=["fact"]), lambda i: i % 2 == 0),
    "one in a hundred": lambda n: (Filter(runs=[f"run {n % 100}"]), lambda i: i % 100 == n % 100),
    "one": lambda n: (Filter(event_between=(float(n), n + 0.5)), lambda i: i == n),
    "a few subtrees": lambda n: (Filter(roots=[f"r{n % 7}", "r2"]), lambda i: i % 7 in (n % 7, 2)),
    "the trusted": lambda n: (Filter(min_trust=n / MANY), lambda i: i >= n),
    "half of the trusted": lambda n: (Filter(kinds=["fact"], min_trust=n / MANY), lambda i: i % 2 == 0 and i >= n),
    "none": lambda n: (Filter(writers=["nobody"]), lambda i: False),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_any_filtered_search_equals_brute_force(engine, tmp_path):
    """Half of the rows, one in a hundred, one, none; now, and as of a generation before some were forgotten or replaced."""
    place = Place(ENGINES[engine](tmp_path), tmp_path)
    store = place.open()
    store.space("w", 8)
    generator = torch.Generator().manual_seed(1)
    rows, queries = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (MANY + 44, 16))
    news = [
        New(
            f"row {i}", key=f"k{i}", root=f"r{i % 7}", kind="fact" if i % 2 == 0 else "span", run=f"run {i % 100}",
            trust=i / MANY, event_from=float(i), event_to=i + 0.25, vectors={"w": rows[i]},
        )
        for i in range(MANY)
    ]  # fmt: skip
    past = store.put_many(news)
    number = {ident: i for i, ident in enumerate(past.ids)}
    then = {i: rows[i] for i in range(MANY)}
    now = dict(then)
    store.forget(past.ids[10:30])
    for i in range(10, 30):
        del now[i]
    for i in range(40, 44):
        about = dict(kind=news[i].kind, run=news[i].run, trust=news[i].trust, event_from=float(i), event_to=i + 0.25)
        number[store.supersede(past.ids[i], f"row {i}, newer", vectors={"w": rows[MANY + i]}, **about).id] = i
        now[i] = rows[MANY + i]

    @settings(
        max_examples=60 if engine in ("sqlite", "files") else 25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        choice=st.sampled_from(sorted(CHOICES)),
        n=st.integers(0, MANY - 1),
        query=st.integers(0, 15),
        k=st.integers(1, 20),
        before=st.booleans(),
    )
    def agrees(choice, n, query, k, before):
        where, meets = CHOICES[choice](n)
        scores = {i: float(row @ queries[query]) for i, row in (then if before else now).items() if meets(i)}
        reader = store.as_of(generation=past.generation) if before else store
        found = reader.search(vector=queries[query], space="w", k=k, where=where)
        got = [number[ident] for ident in found.ids]
        assert len(set(got)) == len(got) == min(k, len(scores)) and set(got) <= set(scores)
        assert np.allclose([scores[i] for i in got], sorted(scores.values(), reverse=True)[:k], atol=2e-5)
        assert found.stopped == ("k" if len(scores) >= k else "exhausted")

    try:
        agrees()
    finally:
        place.close()


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


# What is alike gives way, and what an item is worth by itself.


def test_those_that_are_alike_give_way_to_others(store):
    store.space("s", 16)
    generator = torch.Generator().manual_seed(0)
    topics = F.normalize(
        torch.eye(16)[1:6] * 0.6 + torch.eye(16)[0], dim=-1
    )  # all near the question, apart by themselves
    near = F.normalize(topics.repeat_interleave(6, 0) + 0.02 * torch.randn(30, 16, generator=generator), dim=-1)
    ids = store.put_many([New(f"topic {i // 6}, once more {i}", vectors={"s": v}) for i, v in enumerate(near)]).ids
    ask = dict(vector=torch.eye(16)[0] + 0.1 * torch.eye(16)[1], space="s", k=5)

    def topics_of(found):
        return {ids.index(i) // 6 for i in found.ids}

    assert topics_of(store.search(**ask)) == {0}, "six times the first topic, a little nearer"
    spread = store.search(**ask, diversity=0.5)
    assert topics_of(spread) == {0, 1, 2, 3, 4} and spread.hits[0] == store.search(**ask).hits[0]
    assert spread.stopped == "k" and store.search(**ask, diversity=0.5) == spread
    assert len(store.search(**{**ask, "k": 30}, diversity=1.0).ids) == 30, "and none is lost"
    store.put("no vector, but the words once more")
    mixed = store.search("words once more", **ask, diversity=0.3, explain=True)
    assert len(mixed.ids) == 5 and "words" in mixed.hits[0].channels
    assert store.search(**ask, where=Filter(runs=["none"]), diversity=0.5).ids == ()


def test_a_sum_counts_what_an_item_is_worth(place, vectors):
    store = place.open()
    store.space("w", 8)
    same = dict(vectors={"w": vectors[0]})
    plain, dear, used, misled, old = (
        store.put("plain", **same).id, store.put("dear", importance=1.0, **same).id, store.put("used", **same).id,
        store.put("misled", **same).id, store.put("other words, less alike", vectors={"w": vectors[0] + vectors[1]}).id,
    )  # fmt: skip
    for _ in range(4):
        store.touch(used, useful=True)
        store.touch(misled)
    ask = dict(vector=vectors[0], space="w", k=5, explain=True)
    found = store.search(**ask, fusion=CalibratedSum(similarity=1.0, retention=0.2, importance=0.2, utility=0.2))
    score = {hit.item.id: hit.score for hit in found.hits}
    assert score[plain] == pytest.approx(1 + 0.2 * (1 + 0.5 + 1 / 2), abs=1e-5)
    assert score[dear] - score[plain] == pytest.approx(0.2 * 0.5, abs=1e-5)
    assert score[used] - score[plain] == pytest.approx(0.2 * (5 / 6 - 1 / 2), abs=1e-5)
    assert score[misled] - score[plain] == pytest.approx(0.2 * (1 / 6 - 1 / 2), abs=1e-5)
    for hit in found.hits:
        assert hit.score == pytest.approx(sum(rank.part for rank in hit.channels.values())) and hit.decay == 1.0
        assert set(hit.channels) == {"dense", "retention", "importance", "utility"}
    place.clock.days(60)
    store.touch(old, useful=True)
    faded = store.search(**ask, fusion=CalibratedSum(similarity=0.1, retention=1.0, importance=0, utility=0))
    assert faded.ids[0] == old, "all the others have faded"
    assert store.search(**ask, fusion=CalibratedSum(retention=0, importance=0, utility=0)).ids[-1] == old
    store.space("d", 8, metric="dot")
    with pytest.raises(ValueError, match="metric cosine"):
        store.search(vector=vectors[0], space="d", fusion=CalibratedSum())
    with pytest.raises(ValueError, match="weights >= 0"):
        CalibratedSum(similarity=-1.0)


@ON_SQLITE
def test_a_sum_and_diversity_are_found_among_many(store, vectors):
    """More items than the candidates of one round: the ranking goes deeper until k are there."""
    store.put_many([New("same words", key=f"k{i}", vectors={"w": vectors[i % 64]}) for i in range(300)])
    store.put_many([New(f"word {i}", vectors={"w": vectors[i]}) for i in range(12)])
    ask = dict(vector=vectors[0], space="w", k=13)
    assert len(store.search(**ask, fusion=CalibratedSum(depth=5)).ids) == 13
    assert len(store.search(**ask, diversity=0.4).ids) == 13
