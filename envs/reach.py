"""Reach without the robot: Meta-World's hidden goal, its reward and its pace, for a point that follows its target with a lag.

Much faster than the arm, for trying out what makes a memory look for a goal and keep it (docs/rl.md). As in reach-v3 the hand
starts at one place, an action moves its target by at most a centimetre along each axis, goals lie in a box of 20 x 10 x 25 cm,
    reward = 10 / (1 + (3 (d - .05) / m)^2), 10 where d <= .05;   d distance to the goal, m that of the start
and a thing that plays no part lies on the table. Each of the `goals` tasks of a split has its goal and a place of that thing, drawn
once: in training the place gives the task away. mixed: places and goals of training tasks are paired anew in every trial.
Legend: N trials.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box

from envs.trials import Array, Trials
from nestmem.errors import UserError

SPLITS = ("train", "val", "test")
START = np.array([0.0, 0.6, 0.15])
LOW, HIGH = np.array([-0.1, 0.8, 0.05]), np.array([0.1, 0.9, 0.3])  # of goals
THING_LOW, THING_HIGH = np.array([-0.1, 0.6]), np.array([0.1, 0.7])
REACH, STRIDE, FOLLOWS = 0.05, 0.01, 0.2  # of the way to its target that the hand makes in a step: a lag as the arm has


class Reach(Trials):
    """trials: N. episodes, horizon: of a trial. split: train, val or test; outside training, trials go through the goals in order.
    goals: of each split. mixed: see the module. seed: of the goals."""

    unit = 10.0
    hidden_size = 3

    def __init__(
        self,
        trials: int,
        episodes: int = 5,
        horizon: int = 100,
        goals: int = 50,
        mixed: bool = True,
        seed: int = 0,
        split: str = "train",
    ):
        if split not in SPLITS:
            raise UserError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        if goals < 1:
            raise UserError(f"env.goals: expected at least 1, got {goals}")
        super().__init__(
            trials, episodes, horizon, Box(-np.inf, np.inf, (8,), np.float32), Box(-1.0, 1.0, (3,), np.float32)
        )
        self.split, self.mixed = split, mixed
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        self.all_goals, self.all_things = (
            rng.uniform(LOW, HIGH, (goals, 3)),
            rng.uniform(THING_LOW, THING_HIGH, (goals, 2)),
        )
        self.success = np.zeros(trials, bool)

    def sample(self) -> None:
        count = len(self.all_goals)
        goal = thing = self.rows % count
        if self.split == "train":
            goal = thing = self.np_random.integers(count, size=self.num_envs)
            if self.mixed:
                thing = self.np_random.integers(count, size=self.num_envs)
        self.goal, self.thing = self.all_goals[goal], self.all_things[thing]

    def begin(self) -> None:
        self.hand = np.tile(START, (self.num_envs, 1))
        self.before, self.target = self.hand.copy(), self.hand.copy()

    def observe(self) -> Array:
        return np.concatenate([self.hand, self.before, self.thing], 1).astype(np.float32)

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
