"""The sequential benchmark: counts, splits that do not meet, the order of a trajectory, and one listing for a seed."""

import pytest
import torch

from envs.fewshot import ImageSet
from envs.manifest import manifest
from envs.sequential_omniglot import LEARNED, SPLITS, Trajectories, lessons, subset
from nestmem.errors import UserError

C, E = 60, 20


@pytest.fixture
def coded():
    """A table whose entries are (class, drawing)."""
    pairs = torch.cartesian_prod(torch.arange(C), torch.arange(E)).view(C, E, 2)
    return ImageSet(pairs, [f"A{i // 12}/c{i % 12:02d}" for i in range(C)])


def test_splits_of_the_real_set(omniglot):
    names = {split: set(subset(omniglot, split).names) for split in SPLITS}
    assert {split: len(found) for split, found in names.items()} == {
        "meta_train": 963, "remember": 481, "inner": 482, "train": 763, "val": 200, "meta_test": 650,
    }  # fmt: skip
    assert not names["meta_train"] & names["meta_test"] and not names["train"] & names["val"]
    assert names["inner"] | names["remember"] == names["meta_train"] == names["train"] | names["val"]
    assert not {n.split("/")[0] for n in names["meta_train"]} & {n.split("/")[0] for n in names["meta_test"]}
    test = subset(omniglot, "meta_test")
    assert test.names == sorted(test.names) and test.names[0] == "Angelic/character01"
    assert subset(omniglot, "meta_train").names[0] == "Alphabet_of_the_Magi/character01"
    whole = Trajectories(test, seed=0, trajectories=2)
    x, y = whole.learned(torch.zeros(650, 20))
    assert x.shape == y.shape == (2, 9000) and whole.held_out(torch.zeros(650, 20))[1].shape == (2, 3000)
    assert manifest(whole).sha256 == "50fc7a587d7910e036dd208183d075daf5c05828667327ee814c393681a64878"


@pytest.mark.parametrize("order", ["listing", "random"])
@pytest.mark.parametrize("drawings", ["first", "random"])
def test_a_trajectory_shows_each_class_once(coded, order, drawings):
    t = Trajectories(coded, seed=1, classes=40, trajectories=5, order=order, drawings=drawings)
    pairs, labels = t.learned(coded.images)
    asked, asked_labels = t.held_out(coded.images)
    assert torch.equal(pairs[..., 0], labels) and torch.equal(asked[..., 0], asked_labels)
    for row in range(5):
        by_class = pairs[row].view(40, LEARNED, 2)
        assert (by_class[..., 0] == by_class[:, :1, 0]).all(), "class after class"
        shown = by_class[:, 0, 0].tolist()
        assert len(set(shown)) == 40 and (shown == sorted(shown)) == (order == "listing")
        learned, held = set(map(tuple, pairs[row].tolist())), set(map(tuple, asked[row].tolist()))
        assert len(learned) == 600 and len(held) == 200 and not learned & held
    assert (pairs.view(5, 40, 15, 2)[..., 1] == torch.arange(15)).all() == (drawings == "first")
    assert len({tuple(sorted(row)) for row in t.classes.tolist()}) == 5, "a draw of its own for each trajectory"


def test_fewer_classes_are_a_prefix_of_a_random_order_alone(coded):
    t = Trajectories(coded, seed=2, classes=40, trajectories=3, order="random")
    pairs, _ = t.held_out(coded.images, after=10)
    assert pairs.shape == (3, 50, 2) and torch.equal(pairs, t.held_out(coded.images)[0][:, :50])
    again, labels = t.relearned(coded.images, after=10)
    assert torch.equal(again, t.learned(coded.images)[0][:, :150]) and torch.equal(labels, again[..., 0])
    listed = Trajectories(coded, seed=2, classes=40, trajectories=3)
    with pytest.raises(UserError, match="its first alphabets, not a draw"):
        listed.held_out(coded.images, after=10)
    with pytest.raises(UserError, match="40 classes, got 41"):
        t.held_out(coded.images, after=41)


def test_a_seed_is_one_benchmark(coded):
    a, b, c = (manifest(Trajectories(coded, seed=s, classes=40, order="random")) for s in (3, 3, 4))
    assert a.sha256 == b.sha256 != c.sha256
    assert a.sha256 == "4743fb219376014bfcd0bd4e24fe009d8d827cc16cf4fad60fd0f524d6907e74"


def test_lessons_of_oml_and_anml():
    g = torch.Generator().manual_seed(0)
    oml = lessons(g, 50)
    assert oml.inner.shape == (50, 15, 2) and oml.outer.shape == (50, 30, 2)
    for inner, outer in zip(oml.inner.tolist(), oml.outer.tolist()):
        runs = [c for c, _ in inner]
        assert runs == [c for c in dict.fromkeys(runs) for _ in range(5)] and len(set(runs)) == 3
        assert min(runs) >= 481 and {c for c, _ in outer[:15]} == set(runs) and max(c for c, _ in outer[15:]) < 481
        assert len({*map(tuple, inner), *map(tuple, outer[:15])}) == 30
    anml = lessons(g, 4, ways=1, shots=20, queries=0, remember=64, inner=SPLITS["meta_train"])
    assert anml.inner.shape == (4, 20, 2) and anml.outer.shape == (4, 84, 2)
    assert torch.equal(anml.outer[:, :20], anml.inner)


def test_what_is_refused(coded):
    with pytest.raises(UserError, match="got 61 classes of 20 drawings"):
        Trajectories(coded, seed=0, classes=61)
    with pytest.raises(UserError, match="expected one of listing, random"):
        Trajectories(coded, seed=0, classes=5, order="sorted")
    with pytest.raises(UserError, match="shots \\+ queries <= 20"):
        lessons(torch.Generator(), 1, shots=20)
    with pytest.raises(UserError, match="expected one of meta_train"):
        subset(coded, "test")
