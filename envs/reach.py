"""Reach without the robot: Meta-World's hidden goal, its reward and its pace, for a point that follows its target with a lag.

Much faster than the arm, for trying out what makes a memory look for a goal and keep it (docs/rl.md). As in reach-v3 the hand
starts at one place, an action moves its target by at most a centimetre along each axis, goals lie in a box of 20 x 10 x 25 cm,
    reward = 10 / (1 + (3 (d - .05) / m)^2), 10 where d <= .05;   d distance to the goal, m that of the start
and a thing that plays no part lies on the table. Each of the `goals` tasks of a split has its goal and a place of that thing, drawn
once: in training the place gives the task away. mixed: places and goals of training tasks are paired anew in every trial.
A trial holds `tasks` goals, each visited `visits` times for `episodes` episodes, under a barcode of `bits` (envs/returning.py).
Legend: N trials, K tasks.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box

from envs.returning import barcodes, check_barcodes, rounds, spelled
from envs.trials import Array, Trials
from nestmem.errors import UserError

SPLITS = ("train", "val", "test")
START = np.array([0.0, 0.6, 0.15])
LOW, HIGH = np.array([-0.1, 0.8, 0.05]), np.array([0.1, 0.9, 0.3])  # of goals
THING_LOW, THING_HIGH = np.array([-0.1, 0.6]), np.array([0.1, 0.7])
REACH, STRIDE, FOLLOWS = 0.05, 0.01, 0.2  # of the way to its target that the hand makes in a step: a lag as the arm has


class Reach(Trials):
    """trials: N. tasks, visits, episodes: K, to each and of each; horizon: of an episode. split: train, val or test; outside
    training, trials go through the goals in order. goals: of each split. mixed, bits: see the module. seed: of the goals."""

    unit = 10.0
    hidden_size = 3

    def __init__(
        self,
        trials: int,
        tasks: int = 1,
        visits: int = 1,
        episodes: int = 5,
        horizon: int = 100,
        goals: int = 50,
        mixed: bool = True,
        bits: int = 0,
        seed: int = 0,
        split: str = "train",
    ):
        if split not in SPLITS:
            raise UserError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        for name, value in (("tasks", tasks), ("visits", visits), ("episodes", episodes), ("goals", goals)):
            if value < 1:
                raise UserError(f"env.{name}: expected at least 1, got {value}")
        if bits:
            check_barcodes("env.bits", bits, tasks)
        seen = Box(-np.inf, np.inf, (8 + bits,), np.float32)
        super().__init__(trials, tasks * visits * episodes, horizon, seen, Box(-1.0, 1.0, (3,), np.float32))
        self.tasks, self.visits, self.stay, self.cue = tasks, visits, episodes, bits
        self.revisits = tasks * visits > 1
        self.split, self.mixed = split, mixed
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        self.all_goals, self.all_things = (
            rng.uniform(LOW, HIGH, (goals, 3)),
            rng.uniform(THING_LOW, THING_HIGH, (goals, 2)),
        )
        self.success = np.zeros(trials, bool)

    def sample(self) -> None:
        rng, n, count = self.np_random, self.num_envs, len(self.all_goals)
        goal = thing = (self.rows[:, None] * self.tasks + np.arange(self.tasks)) % count
        if self.split == "train":
            goal = thing = rng.integers(count, size=(n, self.tasks))
            if self.mixed:
                thing = rng.integers(count, size=(n, self.tasks))
        self.goals_of, self.things_of = self.all_goals[goal], self.all_things[thing]  # [N, K, ...]
        self.order = rounds(rng, n, self.tasks, self.visits)  # [N, visits of a trial]
        if self.cue:
            self.codes = barcodes(rng, n, self.tasks, self.cue)

    def begin(self) -> None:
        """An episode starts, perhaps in another task."""
        self.task = self.order[:, self.episode // self.stay]
        self.goal, self.thing = self.goals_of[self.rows, self.task], self.things_of[self.rows, self.task]
        self.hand = np.tile(START, (self.num_envs, 1))
        self.before, self.target = self.hand.copy(), self.hand.copy()

    def observe(self) -> Array:
        seen = [self.hand, self.before, self.thing]
        if self.cue:
            seen.append(2.0 * spelled(self.codes[self.rows, self.task], self.cue) - 1)
        return np.concatenate(seen, 1).astype(np.float32)

    def act(self, actions: Array) -> Array:
        self.target = self.target + STRIDE * np.clip(actions, -1, 1)
        self.before = self.hand
        self.hand = self.hand + FOLLOWS * (self.target - self.hand)
        distance = np.linalg.norm(self.hand - self.goal, axis=1)
        margin = np.linalg.norm(START - self.goal, axis=1)
        self.success = distance <= REACH
        return 10 / (1 + (3 * np.maximum(distance - REACH, 0) / margin) ** 2)

    def hidden(self) -> Array:
        """Where the goal is in the box of goals, each side -1 to 1."""
        return 2 * (self.goal - LOW) / (HIGH - LOW) - 1
