"""Policies and formulas by themselves; each formula that is wrong as printed stands beside its correction."""

import itertools
import math

import numpy as np
import pytest
import torch

from nestmem.store import L0, L3, NoveltyGate, Pyramid, ReciprocalRank, Retention
from nestmem.store.formulas import complete, copy_distance, granularity_weights, rank_copies
from nestmem.store.retention import DAY, salience, utility_bound


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# Pyramid.


def stream(pyramid, many=200, rare=100):
    """The same frame again and again, slightly noisy, and one rare frame. The group sizes after every step."""
    common, odd = unit(2, 16)
    noise = 0.01 * torch.randn(many, 16, generator=torch.Generator().manual_seed(1))
    sizes = []
    for step in range(many):
        pyramid.add((odd if step == rare else common) + noise[step])
        sizes.append([len(g) for g in pyramid.groups])
    return odd, sizes


def test_the_pyramid_fills_every_level_and_keeps_what_is_rare():
    pyramid = Pyramid([4, 4, 4])
    odd, sizes = stream(pyramid)
    assert max(max(s) for s in sizes) <= 4 and sizes[-1] == [4, 4, 4]
    assert sorted(m for g in pyramid.groups for e in g for m in e.members) == list(range(200)), (
        "every leaf is somewhere, once"
    )
    for group in pyramid.groups:
        assert [e.members[0] for e in group] == sorted(e.members[0] for e in group)
    alone = [e for g in pyramid.groups for e in g if 100 in e.members]
    assert len(alone) == 1 and alone[0].members == (100,)
    assert torch.cosine_similarity(alone[0].vector, odd, dim=0) > 0.99


def test_the_pyramid_as_published_loses_what_leaves_the_second_group():
    pyramid = Pyramid([4, 4, 4], literal=True)
    _, sizes = stream(pyramid)
    assert sizes[-1] == [4, 4, 0], "the third group never fills"
    assert sum(len(e.members) for g in pyramid.groups for e in g) == 8, "and 192 of 200 are in none"


def test_merged_vectors_are_means_over_leaves():
    vectors = unit(30, 8)
    pyramid = Pyramid([3, 2])
    for row in vectors:
        pyramid.add(row)
    for group in pyramid.groups:
        for entry in group:
            assert entry.vector.allclose(vectors[list(entry.members)].mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="capacities"):
        Pyramid([4, 0])


# Novelty.


@pytest.mark.parametrize("mode", ["nearest", "ridge"])
def test_novelty_is_nothing_for_the_known_and_all_for_the_unrelated(mode):
    gate, known = NoveltyGate(mode=mode), torch.eye(8)[:4]
    assert gate.novelty(known[2], known) < 0.01 and not gate.passes(known[2] * 3, known)
    assert gate.novelty(torch.eye(8)[6], known) > 0.99 and gate.passes(torch.eye(8)[6], known)
    assert gate.novelty(known[0], known[:0]) == 1.0
    with pytest.raises(ValueError, match="mode"):
        NoveltyGate(mode="farthest")


def test_a_mixture_of_the_known_is_new_to_the_nearest_and_known_to_the_ridge():
    known = torch.eye(8)[:4]
    mixture = torch.nn.functional.normalize(known.sum(0), dim=0)
    assert NoveltyGate(mode="nearest").passes(mixture, known)
    assert not NoveltyGate(mode="ridge").passes(mixture, known)


# Retention.


def test_retention_falls_with_time_and_rises_with_strength():
    policy = Retention()
    left = [policy.retention(day * DAY, L0) for day in range(0, 200, 10)]
    assert left[0] == 1.0 and all(a > b for a, b in itertools.pairwise(left)) and left[-1] >= policy.floor
    assert policy.retention(50 * DAY, L0, strength=3.0) > policy.retention(50 * DAY, L0)
    assert policy.retention(1e6 * DAY, L3) == 1.0
    assert policy.strengthened(1.0, 0.2) > policy.strengthened(1.0, 0.9) > 1.0, "spacing"
    assert policy.strengthened(99.0, 0.0) == policy.ceiling
    with pytest.raises(ValueError, match="floor"):
        Retention(floor=1.0)


def test_counting_hours_as_published_forgets_everything_in_a_day():
    """S = 2 ln(1 + 0) + 1.5 * 0 + 1 * 1 + 0.5 * 0 = 1 for an untouched item, 100 at most."""
    literal = Retention(strengths={0: 1.0}, floor=0.0, hours=True)
    assert literal.retention(DAY, 0) < 1e-10
    assert literal.retention(14 * DAY, 0, strength=100.0) < 0.05
    assert Retention(strengths={0: 1.0}, floor=0.0).retention(DAY, 0) == pytest.approx(math.exp(-1))


def test_of_two_chunks_of_one_age_the_used_one_stays_and_the_published_sign_does_the_reverse():
    assert salience(500, used=True) > salience(500, used=False)
    assert salience(500, used=True, literal=True) == pytest.approx(0.368, abs=1e-3)
    assert salience(500, used=False, literal=True) == pytest.approx(0.868, abs=1e-3)


def test_the_bound_on_utility_is_cautious():
    assert utility_bound(0, 0) == utility_bound(0, 50) == 0.0
    assert utility_bound(1, 1) < utility_bound(10, 10) < utility_bound(100, 100) < 1.0


# Fusion.


def test_reciprocal_ranks_add_up():
    parts = ReciprocalRank(k=60, weights={"b": 2.0}).fuse({"a": ["x", "y"], "b": ["y"]})
    assert parts["x"]["a"].part == 1 / 61
    assert sum(p.part for p in parts["y"].values()) == pytest.approx(1 / 62 + 2 / 61)


# Formulas.


@pytest.mark.parametrize("n", [5, 30, 300, 1000])
def test_a_peaked_granularity_outweighs_a_flat_one(n):
    flat = 0.05 * unit(n)
    peaked = flat.clone()
    peaked[0] += 1.0
    weights = granularity_weights([peaked, flat])
    assert weights[0] > 0.9 and weights.sum() == pytest.approx(1.0)


def test_the_published_weights_of_granularities_invert():
    """Thirty items: both entropies exceed one nat, so both weights are negative before they are divided by their sum."""
    sharp = torch.zeros(30)
    sharp[0] = 0.5
    flat = torch.zeros(30)
    good, bad = granularity_weights([sharp, flat]), granularity_weights([sharp, flat], literal=True)
    assert good[0] > 0.95
    assert bad[0] < bad[1]
    assert granularity_weights([torch.ones(1), flat]).tolist() == pytest.approx([1.0, 0.0])
    assert granularity_weights([flat, flat]).tolist() == [0.5, 0.5]


def test_completion_finds_its_pattern_and_the_published_temperature_finds_the_mean():
    patterns = unit(1000, 768)
    target = patterns[7]
    cue = torch.nn.functional.normalize(target + 0.3 * unit(768, seed=2), dim=0)
    assert torch.cosine_similarity(complete(patterns, cue), target, dim=0) > 0.95
    assert torch.cosine_similarity(complete(patterns, cue, literal=True), target, dim=0) < 0.2


def quantised(x, bits):
    step = x.abs().max() / (2 ** (bits - 1) - 1)
    return (x / step).round() * step


def test_distances_between_copies_rank_copies_and_nothing_else():
    wrong = []
    for seed in range(20):
        query, unrelated = unit(2, 768, seed=seed)
        relevant = torch.nn.functional.normalize(query + 0.8 * unit(768, seed=100 + seed), dim=0)
        vectors, bits = [unrelated, quantised(relevant, 4), relevant], [32, 4, 32]
        order = rank_copies(query, vectors, bits, ["other", "it", "it"])
        assert order == [2, 1, 0], "the item first, its finer copy before its coarser"
        literal = rank_copies(query, vectors[:2], bits[:2], ["other", "it"], literal=True)
        wrong.append(literal[0] == 0)
        assert copy_distance(relevant, relevant, 32, 32) == pytest.approx(0.0, abs=1e-3)
    assert np.mean(wrong) == 1.0, "by itself it prefers the unrelated vector of more bits"
