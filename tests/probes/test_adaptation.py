"""Adaptation speed, savings and gaps, worked out by hand."""

import numpy as np
import pytest

from nestmem.probes import accuracy_by_gap, adaptation_speed, area, elimination_floor, savings, steps_to

CURVES = np.array([[0.2, 0.5, 0.9, 1.0], [0.2, 0.9, 1.0, 1.0]])


def test_steps_to_a_level_count_from_one():
    reached = steps_to(CURVES, 0.9)
    assert reached.steps == [3, 2] and reached.censored == 0 and reached.summary.mean == reached.median == 2.5
    assert steps_to(CURVES, 0.1).steps == [1, 1], "known before anything was shown"
    assert steps_to(CURVES, [1.0, 0.9]).steps == [4, 2], "a level for each run"
    lucky = [[0.2, 1.0, 0.2, 0.2, 1.0, 1.0]]
    assert steps_to(lucky, 0.9).steps == [2] and steps_to(lucky, 0.9, window=2).steps == [6]


def test_runs_that_never_get_there_are_censored_not_averaged():
    reached = steps_to([*CURVES, [0.2] * 4], 0.9)
    assert reached.censored == 1 and np.isnan(reached.steps[2])
    assert reached.summary == "undefined: 1 of 3 runs never reached 0.9 in 4 steps"
    assert reached.median == 3, "the middle one of 2, 3 and later"
    assert steps_to([CURVES[0], [0.2] * 4], 0.9).median == "undefined: 1 of 2 runs never reached 0.9 in 4 steps"


def test_adaptation_speed_is_relative_to_the_floor():
    t = np.arange(40)
    curves = 0.2 + 0.6 * (1 - np.exp(-t / 5)) + np.zeros((3, 1))
    speed = adaptation_speed(curves, floor=0.2)
    # exp(-t / 5) <= .1 from t = 11.52 on: the twelfth index, the 13th step.
    assert speed.reached.steps == [13] * 3 and speed.final.mean == pytest.approx(0.8, abs=1e-3)
    assert speed.area == area(curves) and speed.area.mean == pytest.approx(curves.mean())
    noise = 0.2 + 0.05 * np.random.default_rng(0).normal(size=(5, 40))
    assert "cannot be told from the floor 0.2" in adaptation_speed(noise, floor=0.2).reached
    one_failed = np.concatenate([curves, curves, np.full((1, 40), 0.2)])
    assert adaptation_speed(one_failed, floor=0.2).reached.censored == 1


def test_savings_are_first_over_return():
    first = [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    again = [[1.0] * 4, [0.0, 1.0, 1.0, 1.0], [1.0] * 4]
    assert savings(first, again, 0.9).mean == pytest.approx((4 / 1 * 3 / 2 * 4 / 1) ** (1 / 3))
    assert savings(first, first, 0.9)[:3] == pytest.approx((1, 1, 1))
    assert savings(first, [[0.0] * 4, *again[1:]], 0.9) == (
        "undefined: returns: 1 of 3 runs never reached 0.9 in 4 steps"
    )
    assert "first visits" in savings([[0.0] * 4] * 3, again, 0.9)


def test_accuracy_by_gap_weighs_runs_equally_and_names_empty_bins():
    gap = np.array([0, 0, 5, 8, 8, 9, 13, 40, 3])
    correct = np.array([0, 1, 1, 1, 0, 1, 0, 1, 0])
    run = np.array([0, 1, 0, 1, 1, 0, 0, 0, 0])
    found = accuracy_by_gap(correct, gap, run)
    assert list(found) == ["new", "1-4", "5-8", "9-13", "14-20", "21-30", "31+"]
    assert found["new"].mean == 0.5 and found["1-4"].mean == 0 and found["31+"].mean == 1
    assert found["5-8"].mean == pytest.approx((1 + 0.5) / 2) and found["5-8"].n == 2
    assert found["9-13"].mean == 0.5 and found["9-13"].n == 1
    assert found["14-20"] == "undefined: no record with a gap of 14-20"
    assert list(accuracy_by_gap(correct, gap, run, bins=(1, 2, 10))) == ["new", "1", "2-9", "10+"]


def test_striking_off_used_labels_alone_gives_46_percent_in_5_way():
    assert elimination_floor(5) == pytest.approx(0.4567, abs=1e-4) and elimination_floor(1) == 1
    # By simulation: a player who only knows which labels are taken guesses among the others.
    rng = np.random.default_rng(0)
    hits = [rng.integers(5 - k) == 0 for _ in range(4000) for k in range(5)]
    assert np.mean(hits) == pytest.approx(elimination_floor(5), abs=0.02)
