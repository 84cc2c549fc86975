"""Claims rollout-efficiency, rl2-vs-sb3-bandit, rl2-vs-sb3-ml1 and rollout-runner: how fast trials are played and learned from.

    python -m benchmarks.rl2_speed [ROUNDS]            all but the last
    python -m benchmarks.rl2_speed runners [ROUNDS]    rollout-runner; wants every core of the machine for itself

rollout-efficiency: steps per second of whole updates of experiment=ml1_reach over those of the package's own simulators under
random actions with their own resets, in percent. rl2-vs-sb3: steps per second of whole updates over those of sb3-contrib's
RecurrentPPO with an LSTM of the same size, the same trials, epochs and minibatches, the same token contents. One thread. Rounds are
interleaved in one process, a round of either being one update; intervals are over rounds (Fieller). rollout-runner: the same
robots and random actions, an episode a round, stepped one after the other in one process as `envs.meta_world` does, by gymnasium's
SyncVectorEnv, and by its AsyncVectorEnv with a process for each.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv

from algos import build
from algos.config import configure
from algos.trainer import Trainer
from benchmarks.results import load, row, save
from envs import meta_world
from envs.meta_world_simulator import package, simulator
from envs.trials import Array, Trials
from nestmem.probes import Interval, mean_interval, ratio_interval

BANDIT = ["experiment=bandit10", "memory=lstm", "memory.hidden=64", "env.episodes=100", "trainer.tasks=100"]
ML1 = [
    "experiment=ml1_reach", "env.episodes=1", "trainer.tasks=32", "algo.baseline=critic", "algo.infer=0", "algo.max_kl=0",
]  # fmt: skip


class AsVecEnv(VecEnv):
    """Trials as stable-baselines3 takes them: an episode of its own is a whole trial, and what RL^2 is told is the observation."""

    def __init__(self, env: Trials):
        self.trials = env
        space, action = env.single_observation_space, env.single_action_space
        seen = int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape or (1,)))
        self.count = int(action.n) if isinstance(action, Discrete) else int(np.prod(action.shape or (1,)))
        super().__init__(env.num_envs, Box(-np.inf, np.inf, (seen + self.count + 2,), np.float32), action)
        self.seen = seen

    def told(self, observation: Array, actions: Array | None, reward: Array, over: Array) -> Array:
        n = self.num_envs
        look = np.eye(self.seen)[observation] if observation.ndim == 1 else observation
        before = np.zeros((n, self.count))
        if actions is not None:
            before = np.eye(self.count)[actions] if actions.ndim == 1 else actions
        return np.concatenate([look, before, reward[:, None] / self.trials.unit, over[:, None]], 1).astype(np.float32)

    def reset(self) -> Array:
        nothing = np.zeros(self.num_envs)
        return self.told(self.trials.reset()[0], None, nothing, nothing)

    def step_async(self, actions: Array) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observation, reward, ended, _, infos = self.trials.step(self.actions)
        told, done = self.told(observation, self.actions, reward, ended), infos["trial_over"]
        notes: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.all():
            notes = [{"terminal_observation": seen} for seen in told]
            told = self.reset()
        return told, reward, done, notes

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.trials, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.trials, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def ours(options: list[str]) -> tuple[Any, Callable[[], None]]:
    config = configure([*options, "run=runs/unused"])
    trainer = Trainer(config, build.problem(config))
    return trainer, lambda: trainer.problem.update(trainer._optimize) and None  # noqa: SLF001


def theirs(trainer: Any) -> Callable[[], None]:
    """An update of RecurrentPPO in the same sizes."""
    algo, env = trainer.config.algo, trainer.problem.make_env(trainer.options.tasks)
    steps = env.num_envs * env.steps
    model = RecurrentPPO(
        "MlpLstmPolicy", AsVecEnv(env), n_steps=env.steps, batch_size=steps // algo.minibatches, n_epochs=algo.epochs,
        gamma=algo.gamma, gae_lambda=algo.lam, clip_range=algo.clip, ent_coef=algo.entropy, device="cpu",
        learning_rate=trainer.options.lr,
        policy_kwargs={
            "lstm_hidden_size": trainer.config.memory.hidden or algo.width, "net_arch": {"pi": [algo.width], "vf": [algo.width]},
            "shared_lstm": True, "enable_critic_lstm": False,
        },
    )  # fmt: skip
    return lambda: model.learn(steps, reset_num_timesteps=False) and None


def simulators(env: Any) -> Callable[[], None]:
    """As many steps in the package's own simulators: random actions, their own resets."""
    env.reset()
    sims = [package().ALL_V3_ENVIRONMENTS[env.task(i).name]() for i in range(env.num_envs)]
    rng = np.random.default_rng(0)

    def play() -> None:
        for i, sim in enumerate(sims):
            meta_world.settle(sim, env.task(i))
        for t in range(env.steps):
            for sim, action in zip(sims, rng.uniform(-1, 1, (env.num_envs, 4)), strict=True):
                if t % env.horizon == 0:
                    sim.reset()
                sim.step(action)

    return play


def runners(rounds: int) -> list[dict[str, Any]]:
    env = ours(ML1)[0].problem.env
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (env.horizon, env.num_envs, 4)).astype(np.float32)

    def robot(i: int) -> Callable[[], Any]:
        def make() -> Any:
            sim = simulator(env.task(i).name)
            meta_world.settle(sim, env.task(i))
            return sim

        return make

    makers = [robot(i) for i in range(env.num_envs)]
    others = {"SyncVectorEnv": SyncVectorEnv(makers), "AsyncVectorEnv": AsyncVectorEnv(makers)}

    def player(vector: Any) -> Callable[[], None]:
        def play() -> None:
            vector.reset()
            for some in actions:
                vector.step(some)

        return play

    players = {"in one process": player(env)} | {name: player(vector) for name, vector in others.items()}
    found = rates(actions[..., 0].size, rounds, **players)
    for vector in others.values():
        vector.close()
    note = f"{env.num_envs} robots, {os.cpu_count()} cores; resets are in it"
    return [
        row("rollout-runner", name, mean.mean, low=mean.low, high=mean.high, unit="steps/s", n=rounds, note=note)
        for name, mean in ((name, mean_interval(values)) for name, values in found.items())
    ]


def rates(steps: int, rounds: int, **players: Callable[[], None]) -> dict[str, list[float]]:
    """Steps per second of each, round by round; one round before that counts for nothing."""
    found: dict[str, list[float]] = {name: [] for name in players}
    for turn in range(rounds + 1):
        for name, play in players.items():
            started = time.perf_counter()
            play()
            if turn:
                found[name].append(steps / (time.perf_counter() - started))
    return found


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    rows = []
    for claim, options in (("rl2-vs-sb3-bandit", BANDIT), ("rl2-vs-sb3-ml1", ML1)):
        trainer, update = ours(options)
        torch.set_num_threads(1)
        env = trainer.problem.env
        players = {"ours": update, "theirs": theirs(trainer)}
        if claim.endswith("ml1"):
            players["simulators"] = simulators(trainer.problem.make_env(env.num_envs))
        found = rates(env.num_envs * env.steps, rounds, **players)
        ours_rate, theirs_rate = np.median(found["ours"]), np.median(found["theirs"])
        note = f"{ours_rate:.0f} against {theirs_rate:.0f} steps/s; LSTM {trainer.config.memory.hidden}"
        rows.append(
            _ratio(claim, "RL2 over RecurrentPPO (sb3-contrib)", found["ours"], found["theirs"], 1, "ratio", note)
        )
        if "simulators" in found:
            note = f"{np.median(found['ours']):.0f} of {np.median(found['simulators']):.0f} steps/s"
            rows.append(
                _ratio(
                    "rollout-efficiency",
                    "updates over simulators",
                    found["ours"],
                    found["simulators"],
                    100,
                    "percent",
                    note,
                )
            )
    save("rl2_speed", rows + [r for r in load("rl2_speed") if r["claim"] == "rollout-runner"])


def _ratio(
    claim: str, method: str, over: list[float], under: list[float], scale: float, unit: str, note: str
) -> dict[str, Any]:
    found = ratio_interval(over, under, paired=True)
    assert isinstance(found, Interval), found
    return row(
        claim,
        method,
        scale * found.mean,
        low=scale * found.low,
        high=scale * found.high,
        unit=unit,
        n=len(over),
        note=note,
    )


if __name__ == "__main__":
    Path("runs").mkdir(exist_ok=True)
    if sys.argv[1:2] == ["runners"]:
        found = runners(int(sys.argv[2]) if len(sys.argv) > 2 else 5)
        save("rl2_speed", [r for r in load("rl2_speed") if r["claim"] != "rollout-runner"] + found)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
