"""Rows about bandits that come back: how soon the good arm is pulled, and ratios of seeds that both have."""

import numpy as np
import pytest

from benchmarks import rl2
from envs.bandits import Barcodes


def test_pulls_are_counted_on_the_visit_that_is_meant():
    env = Barcodes(50, tasks=2, visits=2, pulls=4, arms=3)
    env.reset(seed=0)
    second = env.visit() == 1
    rewards = np.zeros((50, env.episodes, 4))
    rewards[second, 1:] = 0.9
    assert rl2.pulls_to_most(env, rewards.reshape(50, -1), 1) == 2
    assert rl2.pulls_to_most(env, rewards.reshape(50, -1), 0) == 5  # never: one more than there are


def test_ratios_pair_seeds_and_leave_controls_and_other_memories_out():
    def row(method, claim, each):
        return {"method": method, "claim": claim, "each": each}

    rows = [
        row("RL2, LSTM, visit 2", "barcode-regret", {"0": 0.2, "1": 0.4}),
        row("RL2, nested, visit 2", "barcode-regret", {"0": 0.02, "1": 0.02, "2": 9.0}),
        row("RL2, nested, barcodes shuffled, visit 2", "barcode-regret", {"0": 0.3}),
        row("RL2, episodic LSTM, visit 2", "barcode-regret", {"0": 0.3}),
        row("RL2, LSTM, visit 2", "barcode-pulls", {"0": 8.0, "1": 8.0}),
        row("RL2, nested, visit 2", "barcode-pulls", {"0": 1.0, "1": 4.0}),
    ]
    regret, pulls = rl2.ratios(rows)
    assert (regret["claim"], regret["n"]) == ("barcode-second-visit", 2)
    assert regret["value"] == pytest.approx((0.1 + 0.05) / 2)
    assert (pulls["claim"], pulls["n"]) == ("recurrence-savings-rl", 2)
    assert pulls["value"] == pytest.approx(4)  # the geometric mean of 8 and 2
