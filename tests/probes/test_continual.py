"""Metrics of the R matrix, worked out by hand."""

import json

import numpy as np
import pytest

from nestmem.probes import (
    anytime_accuracy,
    average_accuracy,
    backward_transfer,
    continual_metrics,
    forgetting,
    forward_transfer,
    half_life,
    held_out_transfer,
    jsonable,
    minimum_accuracy,
    retention_curve,
    worst_case_accuracy,
)

nan = float("nan")
# Three tasks. Task 0 dips to .5 and comes back to .7; task 1 improves after it was learned.
R = np.array([[0.9, 0.3, 0.2], [0.5, 0.8, 0.4], [0.7, 0.85, 0.95]])


def test_by_hand():
    assert average_accuracy(R) == pytest.approx((0.7 + 0.85 + 0.95) / 3)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.85 - 0.8)) / 2)
    assert forward_transfer(R, [0.1, 0.2, 0.1]) == pytest.approx(((0.3 - 0.2) + (0.4 - 0.1)) / 2)
    assert forgetting(R) == pytest.approx(((0.9 - 0.7) + 0) / 2), "what improved at the end was not forgotten"
    assert anytime_accuracy(R) == pytest.approx((0.9 + (0.5 + 0.8) / 2 + (0.7 + 0.85 + 0.95) / 3) / 3)
    assert minimum_accuracy(R) == pytest.approx((0.5 + 0.85) / 2)
    assert worst_case_accuracy(R) == pytest.approx(0.95 / 3 + 2 / 3 * (0.5 + 0.85) / 2)


def test_what_was_not_measured_is_not_guessed():
    lower = np.where(np.tri(3) > 0, R, nan)  # class-incremental: later tasks do not exist yet
    assert backward_transfer(lower) == backward_transfer(R)
    assert forgetting(lower) == forgetting(R) and worst_case_accuracy(lower) == worst_case_accuracy(R)
    assert forward_transfer(lower, [0.1] * 3) == (
        "undefined: accuracy on a task before it was trained was not measured for 2 of 2"
    )
    assert "needs the accuracy of an untrained model" in forward_transfer(R, None)
    gone = R.copy()
    gone[2, 0] = nan
    found = continual_metrics(gone, [0.1, 0.2, 0.1])
    assert found["acc"] == "undefined: accuracy at the last evaluation was not measured for 1 of 3"
    assert found["fwt"] == pytest.approx(0.2), "one missing number leaves the others alone"
    json.dumps(jsonable(found), allow_nan=False)
    one = continual_metrics([[0.8]])
    assert one["acc"] == one["wc_acc"] == 0.8 and "no such task" in one["bwt"] and "no task" in one["forgetting"]


def test_evaluations_between_tasks_see_the_dip_that_ends_of_tasks_miss():
    often = np.array([[0.9, 0.2], [0.1, 0.5], [0.8, 0.9]])  # the middle row is inside the training of task 1
    assert minimum_accuracy(often, learned=[0, 2]) == pytest.approx(0.1)
    assert worst_case_accuracy(often, learned=[0, 2]) == pytest.approx(0.9 / 2 + 0.1 / 2)
    assert minimum_accuracy(often[[0, 2]]) == pytest.approx(0.8)
    assert forgetting(often, learned=[0, 2]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="learned: expected the row at which each task was learned"):
        forgetting(often)


def test_held_out_tasks_are_transfer_and_nothing_else():
    wide = np.concatenate([R, [[0.2, 0.1], [0.3, 0.1], [0.5, 0.3]]], axis=1)
    learned = [0, 1, 2, -1, -1]
    assert held_out_transfer(wide, [0, 0, 0, 0.2, 0.2], learned) == pytest.approx(((0.5 - 0.2) + (0.3 - 0.2)) / 2)
    for metric in (average_accuracy, backward_transfer, forgetting, anytime_accuracy, worst_case_accuracy):
        assert metric(wide, learned) == metric(R)
    assert "no such task" in held_out_transfer(R, [0, 0, 0])


def test_retention_by_age_and_its_half_life():
    ages = np.arange(12)
    truth = 0.2 + 0.7 * 2 ** (-ages / 3)
    r = np.full((12, 12), nan)
    for j in range(12):
        r[j:, j] = truth[: 12 - j]
    curve = retention_curve(r, floor=0.2)
    assert curve.ages == list(range(12)) and curve.tasks == list(range(12, 0, -1))
    np.testing.assert_allclose(curve.accuracy, truth)
    assert curve.half_life == pytest.approx(3, rel=1e-3)
    assert retention_curve(r).half_life != pytest.approx(3, rel=0.2), "the floor matters"
    assert "no decay within the 11 steps seen" in half_life(ages, np.full(12, 0.9), floor=0.2)
    assert "nothing above the floor" in half_life(ages, np.full(12, 0.19), floor=0.2)
