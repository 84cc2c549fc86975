"""The sampler: right classes, right drawings, right labels, by indexing alone."""

import pytest
import torch

from envs.fewshot import FewShot, ImageSet, affine_jitter
from nestmem.errors import UserError

C, E = 30, 20


@pytest.fixture
def coded():
    """Every image is filled with its class in the left half and its drawing in the right half."""
    images = torch.zeros(C, E, 4, 4, dtype=torch.uint8)
    images[..., :2] = torch.arange(C).view(C, 1, 1, 1).to(torch.uint8)
    images[..., 2:] = torch.arange(E).view(1, E, 1, 1).to(torch.uint8)
    return ImageSet(images, [f"c{i}" for i in range(C)])


def decode(x):
    return (x[:, :, 0, 0, 0] * 255).round().long(), (x[:, :, 0, 0, 3] * 255).round().long()


@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 1, 3), (20, 1, 1), (3, 5, 15), (30, 2, 2)])
def test_tasks_are_what_they_say(coded, ways, shots, queries):
    batch = FewShot(coded, ways=ways, shots=shots, queries=queries, seed=0).sample(7)
    classes, drawings = decode(batch.support_x)
    query_classes, query_drawings = decode(batch.query_x)
    assert batch.support_x.shape == (7, ways * shots, 1, 4, 4) and batch.query_x.shape[1] == ways * queries
    for task in range(7):
        meaning = dict(zip(batch.support_y[task].tolist(), classes[task].tolist()))
        assert len(set(meaning.values())) == ways == len(meaning), "classes are distinct"
        assert [meaning[y] for y in batch.support_y[task].tolist()] == classes[task].tolist()
        assert [meaning[y] for y in batch.query_y[task].tolist()] == query_classes[task].tolist()
        for c in set(meaning.values()):
            seen = drawings[task][classes[task] == c].tolist() + query_drawings[task][query_classes[task] == c].tolist()
            assert len(seen) == len(set(seen)) == shots + queries, "no drawing is used twice"
        for shot in range(shots):
            assert sorted(batch.support_y[task, shot * ways : (shot + 1) * ways].tolist()) == list(range(ways))


def test_classes_are_uniform(coded):
    sampler = FewShot(coded, ways=2, shots=1, queries=1, seed=1)
    classes, _ = decode(sampler.sample(6000).support_x)
    counts = torch.bincount(classes.flatten(), minlength=C).double()
    assert ((counts - 400).abs() < 5 * 400**0.5).all()


def test_same_seed_same_tasks_and_state_goes_on(coded):
    a, b = (FewShot(coded, ways=5, shots=1, queries=1, seed=4, augment=0.5) for _ in range(2))
    torch.testing.assert_close(a.sample(3).query_x, b.sample(3).query_x, rtol=0, atol=0)
    b.generator.set_state(a.generator.get_state())
    assert torch.equal(a.sample(2).support_y, b.sample(2).support_y)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (dict(ways=31, shots=1, queries=1), "31 ways asked for, but this split has 30 classes"),
        (dict(ways=5, shots=11, queries=10), "11 shots \\+ 10 queries asked for, but a class has 20 drawings"),
        (dict(ways=0, shots=1, queries=1), "env.ways: expected at least 1, got 0"),
    ],
)
def test_impossible_tasks_are_refused(coded, sizes, says):
    with pytest.raises(UserError, match=says):
        FewShot(coded, seed=0, **sizes)


def test_rotations_are_new_classes(coded):
    turned = coded.rotated()
    assert turned.images.shape[0] == 4 * C == len(set(turned.names))
    assert torch.equal(turned.images[C], torch.rot90(coded.images[0], 1, (1, 2)))


def test_jitter_moves_ink_but_keeps_it():
    g = torch.Generator().manual_seed(0)
    images = torch.zeros(8, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 1
    moved = affine_jitter(images, 1.0, g)
    assert not torch.equal(moved, images)
    assert ((moved.sum((1, 2, 3)) / 64 - 1).abs() < 0.6).all()
    torch.testing.assert_close(affine_jitter(images, 0.0, g), images, atol=1e-4, rtol=0)
