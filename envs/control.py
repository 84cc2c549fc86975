"""Control with hidden dynamics: gymnasium's pendulum, cart and pole, and cheetah, each trial with masses, lengths, a gravity or a
direction of its own, which may drift from one episode to the next. Nothing of it is observed.

    world              hidden                                  reward of a step, at most 1
    pendulum           gravity, mass, length                   1 - cost / 16.27, the cost of Pendulum-v1
    cartpole           gravity, mass of the pole, its length,  1 until the pole falls, then 0
                       force of a push (its sign, too)
    inverted_pendulum  gravity, mass of the pole, strength     the same, in MuJoCo; real actions
                       of the motor (its sign, too)
    cheetah            direction, strength of its motors       speed in that direction over 2 m/s, within -1 and 1, less 0.05 times
                                                               the mean square of the action
Each hidden number h is uniform in -1 to 1 and stands for low + (high - low) (h + 1) / 2; a sign is that of its number. Before each
episode after the first, h moves by drift times a normal draw and is reflected at the ends.
Legend: N trials, H hidden numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from envs.simulated import Simulated
from envs.trials import Array
from nestmem.errors import UserError

COST = np.pi**2 + 0.1 * 8**2 + 0.001 * 2**2  # the largest of the pendulum


class World(NamedTuple):
    """id: of gymnasium. hidden: how many numbers. apply(env, h): give a simulator its dynamics.
    reward(env, h, action, reward, info): what is paid."""

    id: str
    hidden: int
    apply: Callable[[Any, Array], None]
    reward: Callable[[Any, Array, Array, float, dict[str, Any]], float]


def between(h: float, low: float, high: float) -> float:
    return float(low + (high - low) * (h + 1) / 2)


def sign(h: float) -> float:
    return 1.0 if h >= 0 else -1.0


def _pendulum(env: Any, h: Array) -> None:
    env.g, env.m, env.l = between(h[0], 5, 15), between(h[1], 0.5, 1.5), between(h[2], 0.75, 1.25)


def _cartpole(env: Any, h: Array) -> None:
    env.gravity, env.masspole, env.length = between(h[0], 5, 15), between(h[1], 0.05, 0.5), between(h[2], 0.25, 1.0)
    env.total_mass, env.polemass_length = env.masspole + env.masscart, env.masspole * env.length
    env.force_mag = sign(h[3]) * between(abs(h[3]), 5, 10)


def _inverted_pendulum(env: Any, h: Array) -> None:
    pole = env.model.body("pole").id
    env.model.opt.gravity[2] = -between(h[0], 5, 15)
    env.model.body_mass[pole] = env.usual_mass[pole] * between(h[1], 0.5, 2.0)
    env.model.actuator_gear[:, 0] = env.usual_gear[:, 0] * sign(h[2]) * between(abs(h[2]), 0.5, 1.0)


def _cheetah(env: Any, h: Array) -> None:
    env.model.actuator_gear[:, 0] = env.usual_gear[:, 0] * between(h[1], 0.6, 1.2)


def _ahead(env: Any, h: Array, action: Array, reward: float, info: dict[str, Any]) -> float:
    speed = sign(h[0]) * info["x_velocity"] / 2
    return float(np.clip(speed, -1, 1) - 0.05 * np.square(action).mean())


WORLDS = {
    "pendulum": World("Pendulum-v1", 3, _pendulum, lambda env, h, a, reward, info: 1 + reward / COST),
    "cartpole": World("CartPole-v1", 4, _cartpole, lambda env, h, a, reward, info: reward),
    "inverted_pendulum": World("InvertedPendulum-v5", 3, _inverted_pendulum, lambda env, h, a, reward, info: reward),
    "cheetah": World("HalfCheetah-v5", 2, _cheetah, _ahead),
}


class Control(Simulated):
    """trials: N. world: see the module. drift: of the hidden numbers from episode to episode."""

    def __init__(
        self,
        trials: int,
        world: str = "pendulum",
        episodes: int = 3,
        horizon: int = 100,
        drift: float = 0.0,
        patience: float = 60.0,
    ):
        if world not in WORLDS:
            raise UserError(f"env.world: expected one of {', '.join(WORLDS)}, got {world!r}")
        if not 0 <= drift <= 1:
            raise UserError(f"env.drift: expected 0 to 1, got {drift}")
        self.name, self.world, self.drift, self.hidden_size = world, WORLDS[world], drift, WORLDS[world].hidden
        one = self._make()
        size = int(np.prod(one.observation_space.shape))
        observation = Box(-np.inf, np.inf, (size,), np.float32)
        super().__init__(trials, episodes, horizon, observation, one.action_space, patience)

    def _make(self) -> Any:
        env: Any = gymnasium.make(self.world.id).unwrapped
        if hasattr(env, "model"):
            env.usual_mass, env.usual_gear = env.model.body_mass.copy(), env.model.actuator_gear.copy()
        return env

    def sample(self) -> None:
        self.h = self.np_random.uniform(-1, 1, (self.num_envs, self.hidden_size))
        self.last = 0  # episode the hidden numbers are of

    def begin(self) -> None:
        if self.episode != self.last:
            self.last = self.episode
            moved = self.h + self.drift * self.np_random.normal(size=self.h.shape)
            self.h = 1 - np.abs((moved + 1) % 4 - 2)  # reflected at -1 and 1
        super().begin()

    def build(self, row: int) -> Any:
        return self._make()

    def place(self, row: int) -> Array:
        self.world.apply(self.sims[row], self.h[row])
        observation: Array = self.sims[row].reset(seed=int(self.np_random.integers(2**31)))[0]
        return observation

    def paid(self, row: int, action: Array, reward: float, info: dict[str, Any]) -> float:
        return self.world.reward(self.sims[row], self.h[row], action, float(reward), info)

    def title(self, row: int) -> str:
        return f"{self.world.id}, hidden {np.round(self.h[row], 3).tolist()}"

    def hidden(self) -> Array:
        return self.h

    def known(self) -> Array:
        """What rewards allow at most; nobody gets quite as much."""
        return np.full((self.num_envs, self.episodes), float(self.horizon))
