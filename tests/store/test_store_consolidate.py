"""Consolidation: declared, repeatable, and fair to what people did meanwhile."""

import torch

from nestmem.store import (
    Filter,
    New,
    PredictCalibrate,
    PyramidMerge,
)
from tests.store.helpers import fill


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
