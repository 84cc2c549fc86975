"""Strategies of the store, each on a case with a known answer."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from nestmem.store import (
    PROC,
    Budget,
    Communities,
    Episodes,
    Filter,
    Layered,
    New,
    Prototypes,
    ReciprocalRank,
    associate,
    descend,
)
from nestmem.store.associate import upper
from nestmem.store.associations import names
from nestmem.store.codebook import learn, usage
from nestmem.store.communities import communities
from nestmem.store.descend import sure
from nestmem.store.retention import DAY, harmful
from nestmem.store.segment import boundaries
from tests.store.helpers import ON_SQLITE


def planted(groups, each, dim=16, noise=0.3, seed=0, shuffled=False):
    """Unit vectors around `groups` orthogonal centres, and the group of each; group after group, or mixed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(groups).repeat_interleave(each)
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    vectors = torch.eye(dim)[labels] + noise * torch.randn(len(labels), dim, generator=generator) / math.sqrt(dim)
    return F.normalize(vectors, dim=-1), labels.tolist()


def same_groups(found, labels):
    """Share of pairs on which two groupings agree."""
    pairs = list(itertools.combinations(range(len(labels)), 2))
    return sum((found[a] == found[b]) == (labels[a] == labels[b]) for a, b in pairs) / len(pairs)


# Segmentation.


@pytest.mark.parametrize("mode", ["dip", "surprise"])
def test_planted_episodes_are_found(mode):
    vectors, _ = planted(6, 7)
    assert boundaries(vectors, mode) == [7, 14, 21, 28, 35]
    assert Episodes("w", mode=mode).spans(vectors) == [(n, n + 7) for n in range(0, 35, 7)], "the last may go on"
    assert Episodes("w", longest=3).spans(vectors)[:2] == [(0, 3), (3, 6)]
    assert boundaries(torch.ones(9, 4)) == [], "where nothing changes nothing is cut"
    with pytest.raises(ValueError, match="mode"):
        Episodes("w", mode="topic")


def test_episodes_stay_when_the_stream_goes_on(store):
    store.space("s", 16)
    vectors, _ = planted(5, 6)
    news = [New(f"turn {i}", vectors={"s": v}, event_from=float(i)) for i, v in enumerate(vectors)]
    store.put_many(news[:20])
    first = store.consolidate(Episodes("s")).created
    store.put_many(news[20:])
    second = store.consolidate(Episodes("s"))
    assert len(first) == 3 and set(first) <= set(second.kept) and len(second.created) == 1
    assert [i.text for i in store.children(first[1])] == [f"turn {n}" for n in range(6, 12)]
    assert store.verify().clean


# Communities.


def test_planted_communities_are_recovered_in_any_order_of_time():
    vectors, labels = planted(3, 20, shuffled=True)
    found = communities(vectors)
    assert same_groups(found, labels) > 0.99 and found == communities(vectors)


def test_a_fact_of_a_scene_is_found_through_another(store):
    """Two facts of one scene with nothing in common: the question meets one, activation reaches the other."""
    store.space("s", 16)
    basis = torch.eye(16)
    chain = [F.normalize(basis[a] + basis[b], dim=0) for a, b in ((0, 1), (1, 2), (2, 3))]
    ids = store.put_many([New(f"fact {n}", vectors={"s": v}) for n, v in enumerate(chain)]).ids
    store.put_many([New(f"noise {n}", vectors={"s": basis[8 + n] + 0.2 * basis[0]}) for n in range(6)])
    made = store.consolidate(Communities("s", threshold=0.4)).created
    assert len(made) == 1 and {e.id for e in store.evidence(made[0])} == set(ids)
    asked = dict(vector=basis[0], space="s", k=4, where=Filter(levels=[0]))
    heard = ReciprocalRank(weights={"spreading": 3.0})
    assert set(ids) <= set(store.search(**asked, also=["spreading"], fusion=heard).ids)
    assert len(set(ids) & set(store.search(**asked).ids)) == 1
    explained = store.search(**asked, also=["spreading"], explain=True)
    assert any("spreading" in hit.channels for hit in explained.hits)


# Association.


def test_two_components_are_told_apart_and_one_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    low, high = 0.1 + 0.05 * torch.randn(22, generator=generator), 0.8 + 0.05 * torch.randn(8, generator=generator)
    mixed = torch.cat([low, high])
    assert upper(mixed).tolist() == [False] * 22 + [True] * 8
    assert not upper(low).any() and not upper(torch.full((30,), 0.5)).any() and not upper(torch.tensor([0.9])).any()


@ON_SQLITE
def test_items_are_tied_to_what_they_belong_to(store):
    store.space("s", 16)
    vectors, labels = planted(4, 8, shuffled=True)
    ids = store.put_many([New(f"n{i}", vectors={"s": v}) for i, v in enumerate(vectors)]).ids
    made = associate(store, "s")
    group = dict(zip(ids, labels))
    ties = [tie for ident in ids for tie in store.links(ident, "similar") if tie.src == ident]
    assert len(ties) > 20 and all(group[tie.src] == group[tie.dst] for tie in ties)
    assert made.ids and associate(store, "s").ids == () and store.verify().clean


# Codebook.


def test_dead_codes_come_back_to_life():
    """All first codes lie in one of eight clusters: without renewal most are never used."""
    vectors, labels = planted(8, 21, noise=0.05)
    order = torch.tensor(labels).argsort(stable=True).view(8, 21).T.reshape(-1)  # every eighth is of the first cluster
    plain, renewed = (learn(vectors[order], 21, renew=renew) for renew in (False, True))
    assert torch.equal(renewed, learn(vectors[order], 21))
    used = [usage((vectors @ book.T).argmax(1), 21) for book in (plain, renewed)]
    assert used[1] >= 0.5 * 21 > used[0]


def test_an_old_codebook_means_what_it_meant(store):
    store.space("s", 16)
    vectors, _ = planted(4, 6)
    store.put_many([New(f"n{i}", vectors={"s": v}, event_from=float(i)) for i, v in enumerate(vectors[:12])])
    first = store.consolidate(Prototypes("s", codes=4))
    then = {i: store.vector(i, "s") for i in first.created}
    store.put_many([New(f"m{i}", vectors={"s": v}, event_from=50.0 + i) for i, v in enumerate(vectors[12:])])
    second = store.consolidate(Prototypes("s", codes=4))
    assert second.created and second.retired
    past = store.as_of(generation=first.generation)
    assert all(torch.equal(past.vector(i, "s"), v) for i, v in then.items())
    assert {i.kind for i in store.items(Filter(levels=[1]))} == {"prototype"} and store.verify().clean


# Layers, and experience that does harm.


def test_layers_promote_by_use_and_purge_what_was_never_used():
    layers = Layered()
    day = [layers.place(n * DAY, 0, 1.0, "cold")[1] for n in range(12)]
    assert day.index("archived") == 9, "exp(-9 / 3) is below .05"
    thrice = 1.0
    for _ in range(3):
        thrice = layers.strengthened(thrice, 0.5)
    assert layers.place(0, 0, thrice, "cold")[1] == "warm" and layers.place(0, 0, 1.7, "warm")[1] == "active"
    assert layers.place(5 * DAY, 0, thrice, "warm")[1] == "warm"


def test_one_threshold_for_both_ways_flaps_and_two_do_not():
    def moves(layers):
        state, seen = "warm", []
        for tick in range(8):
            seconds = (3 if tick % 2 else 0) * DAY  # now and then a useful access, importance around 60
            state = layers.place(seconds, 0, 1.2, state)[1]
            seen.append(state)
        return sum(a != b for a, b in itertools.pairwise(seen))

    assert moves(Layered()) == 0 < moves(Layered(hysteresis=False))


def test_a_store_ages_in_layers(place):
    store = place.open(retention=Layered())
    used, idle = store.put_many(["used", "idle"]).ids
    for _ in range(5):
        store.touch(used, useful=True)
    place.clock.days(9)
    tick = store.decay_tick()
    assert store.dynamics(used).state == "warm" and store.dynamics(idle).state == "archived"
    assert store.decay_tick().generation == tick.generation


def test_harmful_experience_goes_and_useful_experience_stays(place):
    store = place.open()
    ground = store.put("seen").id
    good, bad, new = (
        store.put(t, level=PROC, parents=[ground]).id for t in ("good advice", "bad advice", "new advice")
    )
    for step in range(10):
        store.touch(good, useful=step % 10 < 7)
        store.touch(bad, useful=step % 10 < 1)
    store.touch(new)
    assert store.decay_tick().forgotten == ()
    assert store.decay_tick(prune=True).forgotten == (bad,)
    assert {i.id for i in store.items(Filter(levels=[PROC]))} == {good, new}


def test_the_published_rule_drops_what_is_useful_by_chance():
    """Of advice useful six times in ten, five retrievals show at most half useful in a third of the cases."""
    generator = torch.Generator().manual_seed(0)
    trials = (torch.rand(400, 5, generator=generator) < 0.6).sum(1).tolist()
    literal = sum(harmful(u, 5, literal=True) for u in trials) / 400
    assert literal > 0.25 > 0.05 > sum(harmful(u, 5) for u in trials) / 400


# Channels.


def test_names_are_what_is_capitalised_inside_numbers_and_quoted():
    assert names("Where did Anna Smith meet the mayor of Rome in 1989?").split() == ["1989", "Anna", "Smith", "Rome"]
    assert "blue door" in names('Who said "blue door"?') and names("where is it") == ""


def test_the_entity_channel_prefers_who_is_asked_about(store):
    store.put_many([f"the meeting about the budget was moved {n}" for n in range(8)])
    named = store.put("Anna came late").id
    found = store.search("when was the meeting about the budget with Anna moved", k=9, also=["entities"], explain=True)
    assert found.ids[0] == named or "entities" in next(h for h in found.hits if h.item.id == named).channels
    assert [h.item.id for h in found.hits if "entities" in h.channels] == [named]


def test_completion_finds_what_a_broken_question_meant(store):
    store.space("s", 64)
    generator = torch.Generator().manual_seed(0)
    patterns = F.normalize(torch.randn(40, 64, generator=generator), dim=-1)
    ids = store.put_many([New(f"p{n}", vectors={"s": v}) for n, v in enumerate(patterns)]).ids
    broken = F.normalize(patterns[5] + 1.2 * F.normalize(torch.randn(64, generator=generator), dim=0), dim=0)
    found = store.search(vector=broken, space="s", k=1, also=["hopfield"], explain=True).hits[0]
    assert found.item.id == ids[5]
    plain = store.search(vector=broken, space="s", k=1, explain=True).hits[0].channels["dense"].score
    assert found.channels["hopfield"].score > plain + 0.1, "the completed question is nearer to the pattern"


def test_levels_are_weighed_by_how_sure_they_are(store):
    store.space("s", 16)
    vectors, _ = planted(6, 6)
    news = [New(f"turn {i}", vectors={"s": v}, event_from=float(i)) for i, v in enumerate(vectors)]
    store.put_many(news)
    store.consolidate(Episodes("s"))
    found = store.search(vector=torch.eye(16)[1], space="s", k=40, also=["levels"], explain=True)
    top = found.hits[0]
    assert set(top.channels) <= {"dense/L0", "dense/L1"}
    parts = {name: rank.part * (60 + rank.rank) for hit in found.hits for name, rank in hit.channels.items()}
    assert sum(parts.values()) == pytest.approx(2.0, rel=1e-6) and parts["dense/L1"] != parts["dense/L0"]
    with pytest.raises(ValueError, match="also: expected one of"):
        store.search("a", also=["everything"])
    with pytest.raises(ValueError, match="needs a vector"):
        store.search("a", also=["hopfield"])


# Descent.


def test_a_clear_question_stays_above_and_an_unclear_one_goes_down(store):
    store.space("s", 16)
    vectors, _ = planted(4, 5, noise=0.5)
    ids = store.put_many([New(f"turn {i}", vectors={"s": v}, event_from=float(i)) for i, v in enumerate(vectors)]).ids
    store.consolidate(Communities("s"))
    clear = descend(store, torch.eye(16)[2], "s", k=3)
    assert clear.why == "sure" and clear.levels == (1,) and clear.found.hits[0].item.level == 1
    between = F.normalize(torch.eye(16)[0] + torch.eye(16)[1], dim=0)
    unclear = descend(store, between, "s", k=4)
    assert unclear.why == "bottom" and unclear.levels == (1, 0)
    assert set(unclear.found.ids) <= set(ids[:15]), "among what the three best were made of"
    assert descend(store, vectors[7], "s", k=1, margin=2.0).found.ids == (ids[7],), "never sure: the verbatim item"
    assert descend(store, between, "s", budget=Budget(bytes=1)).why == "budget"
    assert sure([0.9, 0.1], 0.1, 0.9) and not sure([0.5, 0.49], 0.1, 0.9) and not sure([], 0.1, 0.9)
