"""Trials: many tasks of one family side by side, each met for several episodes; reinforcement learning learns to learn in them.

A trial (Duan et al. 2016, RL^2) is `episodes` episodes of `horizon` steps in one task that nobody names. All trials run in step, so
a batch of them is one gymnasium `VectorEnv`: `reset` draws new tasks, `terminated` says that an episode is over (the observation
beside it is already the first of the next one, in the same task), and after `steps` steps the trials are over and `reset` is due.
Legend: N trials, T steps of a trial.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from nestmem.errors import UserError

Array = NDArray[Any]


class Trials(VectorEnv[Array, Array, Array]):
    """Base of families of tasks; a subclass gives `sample`, `begin`, `observe`, `act`, `known`, `hidden` and its size.

    trials: N. episodes, horizon: of a trial. observation, action: spaces of one trial. Discrete observations are one-hot for a
    learner, binary ones -1 or 1, real ones normalised. cue: how many numbers, the last of an observation, name the task.
    unit: a large reward. success [N]: whether the last step met the goal, in families that have one. hidden_size: of `hidden`.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012  (as gymnasium has it)
    cue = 0
    unit = 1.0
    success: Array | None = None
    hidden_size: int
    hidden_moves = False  # whether `hidden` changes from step to step, not from episode to episode
    # [N]: what the last action cost one who knows the task and goes on best, where that is known
    regret: Array | None = None
    restarts = 0  # of simulators that failed
    revisits = False  # whether a trial has several tasks, to which it returns

    def __init__(self, trials: int, episodes: int, horizon: int, observation: Space[Any], action: Space[Any]):
        for name, value in (("trials", trials), ("episodes", episodes), ("horizon", horizon)):
            if value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}")
        self.num_envs, self.episodes, self.horizon, self.steps = trials, episodes, horizon, episodes * horizon
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space, self.action_space = batch_space(observation, trials), batch_space(action, trials)
        self.rows, self.time = np.arange(trials), self.steps

    def sample(self) -> None:
        """Draw the task of every trial."""
        raise NotImplementedError

    def begin(self) -> None:
        """An episode starts. Nothing to do where steps do not depend on each other."""

    def observe(self) -> Array:
        """What is seen now: [N, ...]."""
        raise NotImplementedError

    def act(self, actions: Array) -> Array:
        """One step of all tasks; rewards [N]."""
        raise NotImplementedError

    def known(self) -> Array:
        """Expected return of each episode for one who knows the task and acts best: [N, episodes]."""
        raise NotImplementedError

    def hidden(self) -> Array:
        """What the task is now, in a few small numbers that are kept from the learner: [N, hidden_size]."""
        raise NotImplementedError

    @property
    def episode(self) -> int:
        """Which episode of the trial it is."""
        return min(self.time // self.horizon, self.episodes - 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """New tasks. Observations [N, ...]."""
        super().reset(seed=seed)
        self.time = 0
        self.sample()
        self.begin()
        return self.observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """actions [N, ...]. Observations [N, ...], rewards [N] float32, terminated [N], truncated [N] (never), infos."""
        if self.time >= self.steps:
            raise ResetNeeded("the trials are over; call reset for new tasks")
        rewards = self.act(np.asarray(actions)).astype(np.float32)
        self.time += 1
        over = self.time % self.horizon == 0
        if over:
            self.begin()
        flags = np.full(self.num_envs, over)
        infos = {"trial_over": np.full(self.num_envs, self.time == self.steps)}
        return self.observe(), rewards, flags, np.zeros_like(flags), infos

    def state_dict(self) -> dict[str, Tensor]:
        """Where the random numbers stand: all that goes on from one trial to the next."""
        state = json.dumps(self.np_random.bit_generator.state).encode()
        return {"rng": torch.frombuffer(bytearray(state), dtype=torch.uint8)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.np_random.bit_generator.state = json.loads(bytes(state["rng"].tolist()))
