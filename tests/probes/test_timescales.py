"""Timescale probes find what was put into synthetic traces, and say when there is nothing to find."""

import numpy as np
import pytest

from nestmem.probes import (
    decodability,
    gain_fraction,
    gate_usage,
    intrinsic_timescale,
    steps_since,
    update_spectrum,
)


def leaky_noise(tau, streams=8, steps=1000, units=3, seed=0):
    rng, x = np.random.default_rng(seed), np.zeros((streams, steps, units))
    for t in range(1, steps):
        x[:, t] = np.exp(-1 / tau) * x[:, t - 1] + rng.normal(size=(streams, units))
    return x


@pytest.mark.parametrize("tau", [2, 10, 40])
def test_the_intrinsic_timescale_of_leaky_noise_is_its_time_constant(tau):
    x = leaky_noise(tau)
    assert intrinsic_timescale(x) == pytest.approx(tau, rel=0.25)
    noisy = x + x.std() * np.random.default_rng(1).normal(size=x.shape)
    assert intrinsic_timescale(noisy) == pytest.approx(tau, rel=0.35), "observation noise does not shorten it"


def test_timescales_that_are_not_there():
    assert intrinsic_timescale(np.full(100, 3.7)) == "undefined: the trace is constant"
    assert "no positive autocorrelation at lag 1" in intrinsic_timescale(
        np.random.default_rng(0).normal(size=(4, 500, 2))
    )
    assert "longer than a tenth" in intrinsic_timescale(leaky_noise(400, streams=4))
    assert "too few" in intrinsic_timescale([1.0, 2.0, 3.0])
    half = np.concatenate([leaky_noise(10), np.ones((8, 1000, 2))], axis=-1)
    assert intrinsic_timescale(half) == intrinsic_timescale(leaky_noise(10)), "units that never move do not count"


def test_decodability_reads_what_is_linear_and_not_what_is_not():
    rng = np.random.default_rng(0)
    a, b = rng.integers(4, size=(2, 16, 200))
    features = np.concatenate([np.eye(4)[a], rng.normal(size=(16, 200, 3))], -1)
    found = decodability(
        {"a": features, "noise": rng.normal(size=(16, 200, 5))},
        {"a": a, "b": b, "real": 2.0 * (a == 1) - 0.5, "constant": np.zeros_like(a)},
    )
    assert found["a"]["a"] == 1 and found["a"]["real"] == pytest.approx(1, abs=1e-3)
    assert abs(found["a"]["b"]) < 0.1 and abs(found["noise"]["a"]) < 0.1
    assert "single value" in found["a"]["constant"]
    parity = decodability({"two": np.stack([a % 2, b % 2], -1)}, {"xor": (a + b) % 2})
    assert abs(parity["two"]["xor"]) < 0.15


def test_gate_usage_by_steps_since_a_switch():
    switch = np.zeros((3, 40), dtype=bool)
    switch[:, [4, 20]] = True
    since = steps_since(switch)
    assert since[0, :8].tolist() == [-1, -1, -1, -1, 0, 1, 2, 3] and since[0, 20] == 0 and since[0, 39] == 19
    slow = np.where(since < 4, 0.1, 0.9)[..., None]  # the slow level is trusted from the fourth step on
    usage = gate_usage(np.concatenate([1 - slow, slow], -1), since, bins=(0, 2, 4, 8, 64))
    assert [round(usage[name][1].mean, 6) for name in ("0-1", "2-3", "4-7", "8-63")] == [0.1, 0.1, 0.9, 0.9]
    assert usage["0-1"][0].n == 3 and usage["64+"] == "undefined: no step lies 64+ after a switch"


def test_update_energy_lies_at_the_period_of_the_change():
    t = np.arange(512)
    for period, band in ((3, 0), (6, 1), (48, 4), (200, 6)):
        spectrum = update_spectrum(np.sin(2 * np.pi * t / period))
        assert int(np.argmax(spectrum.share)) == band and spectrum.share[band] > 0.8
        assert spectrum.periods[band] <= period < 2 * spectrum.periods[band] and sum(spectrum.share) == pytest.approx(1)
    fast, slow = (update_spectrum(leaky_noise(tau, units=1)) for tau in (1, 1e9))
    assert fast.period < slow.period, "a random walk changes more slowly than what reverts at once"
    assert update_spectrum(2 * leaky_noise(5)).energy == pytest.approx(4 * update_spectrum(leaky_noise(5)).energy)
    assert update_spectrum(np.ones((100, 2))) == "undefined: the state does not change"


def test_gain_fraction_of_what_the_filter_gains():
    assert gain_fraction([1.4] * 3, [1.0, 1.1, 1.2], [0.9, 1.0, 1.1]).mean == pytest.approx(0.3 / 0.4)
    assert gain_fraction(1.4, 1.4, 0.9).mean == 0 and gain_fraction(1.4, 1.5, 0.9).mean < 0
    assert "gains nothing" in gain_fraction(1.4, 1.2, 1.4)
    rng = np.random.default_rng(0)
    nothing = 1.4 + 0.1 * rng.normal(size=20)
    assert "gains nothing" in gain_fraction(nothing, nothing - 0.01, nothing + 0.01 * rng.normal(size=20))
