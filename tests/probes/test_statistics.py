"""Intervals against values worked out by hand, and their coverage on synthetic data."""

import json
import math

import numpy as np
import pytest

from nestmem.probes import (
    Interval,
    Undefined,
    bootstrap_interval,
    fit_decay,
    geometric_ratio,
    iqm,
    jsonable,
    mean_interval,
    over_runs,
    probability_of_improvement,
    ratio_interval,
)


def test_an_undefined_metric_is_its_reason_wherever_a_number_would_stand():
    value = Undefined("no task was revisited")
    assert str(value) == f"{value:.2f}" == f"{value:>8}" == "undefined: no task was revisited"
    assert value.reason == "no task was revisited" and math.isnan(float(value))
    assert json.loads(json.dumps({"bwt": value})) == {"bwt": "undefined: no task was revisited"}
    assert Undefined(str(value)) == value, "what was read back from a log is itself again"
    with pytest.raises(TypeError):
        value - 1
    with pytest.raises(TypeError):
        value < 0.5  # noqa: B015


def test_results_become_plain_json():
    value = {"a": Interval(1.0, -math.inf, math.inf, 1), "r": np.array([[1.0, math.nan]]), "n": np.int64(3)}
    plain = jsonable(value | {"why": [Undefined("x")]})
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "a": {"mean": 1.0, "low": None, "high": None, "n": 1},
        "r": [[1.0, None]],
        "n": 3,
        "why": ["undefined: x"],
    }


def test_mean_interval_is_students():
    mean, low, high, n = mean_interval([1.0, 2.0, 3.0, 4.0])  # sd 1.2910, t(3) 3.182: half width 2.0540
    assert (mean, n) == (2.5, 4) and low == pytest.approx(0.4460, abs=1e-4) and high == pytest.approx(4.5540, abs=1e-4)
    assert over_runs([1.0, Undefined("no baseline"), 2.0]) == "undefined: in 1 of 3 runs: no baseline"
    assert over_runs([1.0, 3.0]) == mean_interval([1.0, 3.0])


def test_interquartile_mean_by_hand():
    assert iqm([1, 2, 3, 4, 5, 6, 7, 800]) == 4.5  # 3, 4, 5, 6
    assert iqm([[0, 10], [20, 1000], [5, 30]]) == pytest.approx((5 + 10 + 20 + 30) / 4)  # runs and tasks together
    assert iqm([1, 2, 6]) == 3, "fewer than four: the mean"


def test_bootstrap_is_seeded_and_stratified():
    scores = np.random.default_rng(0).normal(size=(10, 3))
    assert bootstrap_interval(scores) == bootstrap_interval(scores) != bootstrap_interval(scores, seed=1)
    # Tasks that differ by far and runs that do not: only within-task spread may enter.
    far = np.array([[0.0, 100.0], [1.0, 101.0], [0.0, 100.0], [1.0, 101.0]])
    value, low, high, n = bootstrap_interval(far, np.mean)
    assert value == 50.5 and n == 4 and low >= 50.0 and high <= 51.0 and low < value < high
    assert bootstrap_interval([3.0])[1:] == (-math.inf, math.inf, 1), "one run says nothing about others"


def test_bootstrap_covers():
    inside = 0
    for trial in range(200):
        scores = np.random.default_rng(trial).normal(2.0, 1.0, size=(20, 2)) + np.array([0.0, 4.0])
        _, low, high, _ = bootstrap_interval(scores, np.mean, resamples=200)
        inside += low <= 4.0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_probability_of_improvement_by_hand():
    # Task one: 3 > 1, 3 > 2, 2 > 1, 2 = 2 give 3.5 of 4. Task two: never.
    value, low, high, n = probability_of_improvement([[3.0, 0.0], [2.0, 0.0]], [[1.0, 1.0], [2.0, 1.0]])
    assert value == pytest.approx((3.5 / 4 + 0) / 2) and n == 2 and low <= value <= high
    same = np.random.default_rng(0).normal(size=(8, 2))
    assert probability_of_improvement(same, same).mean == 0.5
    assert probability_of_improvement(same + 10, same)[:3] == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="theirs: expected 2 tasks as in ours, got 3"):
        probability_of_improvement(same, np.zeros((8, 3)))


def test_ratio_interval_is_fiellers():
    # a: mean 4, variance 1; b: mean 2, variance 1; n = 3, t(2) = 4.303: t^2/n = 6.1719, b too noisy.
    assert "cannot be told from zero" in ratio_interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    # b: 9, 10, 11: p = 40, q = 16 - 6.1719 = 9.8281, r = 100 - 6.1719 = 93.8281; sqrt(1600 - 922.15) = 26.0356.
    value, low, high, n = ratio_interval([3.0, 4.0, 5.0], [9.0, 10.0, 11.0])
    assert (value, n) == (0.4, 3)
    assert low == pytest.approx((40 - 26.0356) / 93.8281, abs=1e-4)
    assert high == pytest.approx((40 + 26.0356) / 93.8281, abs=1e-4)
    # Proportional pairs leave no doubt at all about their ratio.
    assert ratio_interval([8.0, 10.0, 12.2], [4.0, 5.0, 6.1], paired=True)[:3] == pytest.approx((2.0, 2.0, 2.0))


def test_geometric_ratio_by_hand():
    # Logarithms of the ratios, base 2: 1, 2, 3; sd 1, t(2) = 4.303: 2 -+ 2.4843.
    value, low, high, n = geometric_ratio([2.0, 4.0, 8.0], [1.0, 1.0, 1.0], paired=True)
    assert n == 3 and (value, low, high) == pytest.approx((4, 2**-0.4843, 2**4.4843), rel=1e-3)
    assert geometric_ratio([2.0, 4.0, 8.0], [1.0, 1.0, 1.0]) == pytest.approx((value, low, high, 3))
    assert geometric_ratio([1.0, 16.0], [0.5, 8.0], paired=True)[:3] == pytest.approx((2, 2, 2))
    with pytest.raises(ValueError, match="positive"):
        geometric_ratio([1.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("paired", [False, True])
def test_ratio_interval_covers_with_five_seeds(paired):
    inside = 0
    for trial in range(400):
        rng = np.random.default_rng(trial)
        shared = rng.normal(size=5) * paired
        found = ratio_interval(
            6 + rng.normal(size=5) + 2 * shared, 3 + 0.3 * rng.normal(size=5) + 0.5 * shared, paired=paired
        )
        inside += isinstance(found, Undefined) or found.low <= 2 <= found.high
    assert inside / 400 >= 0.92


def test_an_exponential_is_found_again_and_its_absence_said():
    x = np.arange(1, 40)
    amplitude, timescale = fit_decay(x, 3 * np.exp(-x / 7) + 0.001 * np.random.default_rng(0).normal(size=39))
    assert amplitude == pytest.approx(3, rel=0.01) and timescale == pytest.approx(7, rel=0.01)
    assert "no decay" in fit_decay(x, np.ones(39))
    assert "nothing above the floor" in fit_decay(x, -np.exp(-x / 7))
    assert "gone within one interval" in fit_decay([0, 1, 2, 3], [1.0, 0.0, 0.0, 0.0])
    assert "three points" in fit_decay([0, 1], [1.0, 0.5])
