"""Bandits: Bernoulli arms that are new in every trial, and contextual ones that come back with a barcode.

`Bandits` (Duan et al. 2016): k arms, p_a ~ U[0, 1]; a pull is an episode, n of them a trial, and nothing is observed but rewards.
`Barcodes` (after Ritter et al. 2018, episodic LSTM): an episode is `pulls` pulls of a bandit with one arm that pays with
probability .9 and others with .1, under a random barcode of bits. In a trial `tasks` bandits come `visits` times each, in rounds
of random order and never twice in a row (the last pull of an episode is still seen at the first of the next), so only who
remembers the barcode need not explore again. Shuffled barcodes say nothing, the control. The sizes are ours.
Legend: N trials, k arms.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Discrete, MultiBinary

from envs.returning import barcodes, check_barcodes, nth_visit, rounds, spelled
from envs.trials import Array, Trials
from nestmem.errors import UserError

HIGH, LOW = 0.9, 0.1  # how often the good arm of a barcode bandit pays, and the others


class Bandits(Trials):
    """trials: N. episodes: pulls of a trial, n. arms: k."""

    def __init__(self, trials: int, episodes: int = 10, arms: int = 5):
        if arms < 2:
            raise UserError(f"arms: expected at least 2, got {arms}")
        super().__init__(trials, episodes, 1, Discrete(1), Discrete(arms))
        self.arms, self.hidden_size, self.regret = arms, arms, np.zeros(trials)

    def sample(self) -> None:
        self.p = self.np_random.random((self.num_envs, self.arms))
        self.lost = self.p.max(1, keepdims=True) - self.p

    def observe(self) -> Array:
        return np.zeros(self.num_envs, np.int64)

    def act(self, actions: Array) -> Array:
        self.regret = self.lost[self.rows, actions]
        return self.np_random.random(self.num_envs) < self.p[self.rows, actions]

    def known(self) -> Array:
        return np.repeat(self.p.max(1, keepdims=True), self.episodes, 1)

    def hidden(self) -> Array:
        """What every arm would cost one who knows them."""
        return self.lost


class Barcodes(Trials):
    """trials: N. tasks: bandits of a trial. visits: to each. pulls: of a visit. arms: k. bits: of a barcode."""

    def __init__(
        self,
        trials: int,
        tasks: int = 5,
        visits: int = 4,
        pulls: int = 10,
        arms: int = 10,
        bits: int = 10,
        shuffled: bool = False,
    ):
        for name, value, least in (("arms", arms, 2), ("tasks", tasks, 1), ("visits", visits, 1), ("bits", bits, 1)):
            if value < least:
                raise UserError(f"{name}: expected at least {least}, got {value}")
        check_barcodes("bits", bits, tasks)
        super().__init__(trials, tasks * visits, pulls, MultiBinary(bits), Discrete(arms))
        self.tasks, self.visits, self.arms, self.bits, self.shuffled, self.cue = (
            tasks,
            visits,
            arms,
            bits,
            shuffled,
            bits,
        )
        self.hidden_size, self.regret = arms, np.zeros(trials)

    def sample(self) -> None:
        rng, n = self.np_random, self.num_envs
        self.codes = barcodes(rng, n, self.tasks, self.bits)
        self.good = rng.integers(self.arms, size=(n, self.tasks))
        self.lost = (HIGH - LOW) * (np.arange(self.arms) != self.good[..., None])
        self.order = rounds(rng, n, self.tasks, self.visits)
        self.shown = rng.permuted(self.order, axis=1) if self.shuffled else self.order

    def observe(self) -> Array:
        return spelled(self.codes[self.rows, self.shown[:, self.episode]], self.bits)

    def act(self, actions: Array) -> Array:
        self.regret = self.hidden()[self.rows, actions]
        return self.np_random.random(self.num_envs) < HIGH - self.regret

    def known(self) -> Array:
        return np.full((self.num_envs, self.episodes), HIGH * self.horizon)

    def hidden(self) -> Array:
        """What every arm of the bandit that is there now would cost one who knows it."""
        return self.lost[self.rows, self.order[:, self.episode]]

    def visit(self) -> Array:
        """How often the task of each episode was met before, in the trial: [N, episodes]."""
        return nth_visit(self.order)
