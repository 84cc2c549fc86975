"""RL^2: a recurrent policy is trained by reinforcement learning over whole trials, so that within one its memory learns to act.

Duan et al. 2016, "RL^2: fast reinforcement learning via slow reinforcement learning"; Wang et al. 2016. The state of the memory
goes through all episodes of a trial and starts anew with the next one; gradients do the same, across the borders of episodes. Any
registered memory can be the core. With algo.clear=episode, what a memory holds only for an episode is cleared where one begins, and
slower levels have to carry what was learned: the control for "does it adapt across episodes", and the way of the barcode task.
Score: mean return of a trial, actions drawn from the policy, in percent of what one who knows every task would get.
Scalars: val/return in percent of the known optimum, val/reward per step; train/reward per step, entropy, kl, clipped,
value_error, explained (variance of the returns). Figures: reward against the episode; barcodes: regret against the visit.
Legend: N trials, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from algos import checkpoint, figures, goal_trials, ppo
from algos.agent import Agent
from algos.checkpoint import below
from algos.parts import drawn, memory
from algos.problem import Judged, Optimize, Part
from envs.bandit_baselines import bandit_rewards, barcode_rewards
from envs.bandits import Bandits, Barcodes
from envs.control import Control
from envs.mdp_baselines import mdp_rewards
from envs.mdps import MDPs
from envs.meta_world import MetaWorld
from envs.meta_world_sweeps import open_loop
from envs.reach import Reach
from envs.trials import Array, Trials
from nestmem.errors import UserError
from nestmem.memory.leaky import track
from nestmem.probes import mean_interval

ALGOS = ("rl2",)
Line = dict[str, Any]
POINTS = 50  # at most, of a line


class RL2Problem:
    """An agent on trials. make_env(n, split, **changes): n trials side by side; others: rewards of known policies on the tasks of
    a seed, with successes where a family has them. protocol: episodes to adapt in and to score, and steps of the longer ones."""

    counted = "trials"

    def __init__(
        self,
        learner: Any,  # an Agent
        make_env: Callable[..., Trials],
        others: Callable[[Trials, int], dict[str, Any]],
        algo: DictConfig,
        options: DictConfig,
        seeds: dict[str, int],
        device: torch.device,
        protocol: tuple[int, int, int],
    ):
        self.check(algo, options)
        self.learner, self.make_env, self.others, self.protocol = learner, make_env, others, protocol
        self.algo, self.options, self.seeds, self.device = algo, options, seeds, device
        self.env = make_env(options.tasks)
        self.measure = "return" if self.env.success is None else "success"
        self.env.reset(seed=seeds["train"])  # its random numbers go on from here
        self.generator = torch.Generator(device).manual_seed(seeds["strategy"])
        self.prepare(algo)

    def check(self, algo: DictConfig, options: DictConfig) -> None:
        """Refuse options that cannot be, before any work."""
        if not 1 <= algo.minibatches <= options.tasks:
            raise UserError(f"algo.minibatches: expected 1 to trainer.tasks ({options.tasks}), got {algo.minibatches}")
        names = {
            "clear": ("task", "episode"),
            "baseline": ("critic", "informed", "linear"),
            "credit": ("reward", "regret"),
        }
        for name, known in names.items():
            if algo[name] not in known:
                raise UserError(f"algo.{name}: expected {' or '.join(known)}, got {algo[name]!r}")
        for name in ("gamma", "lam"):
            if not 0 <= algo[name] <= 1:
                raise UserError(f"algo.{name}: expected 0 to 1, got {algo[name]}")

    def prepare(self, algo: DictConfig) -> None:
        """What only this learner needs, once the trials are there."""
        if algo.credit == "regret" and self.env.regret is None:
            raise UserError("algo.credit: expected reward, as what an action costs is not known in this env")
        if algo.bonus and self.env.success is None:
            raise UserError(f"algo.bonus: expected 0, as this env has no goal to meet, got {algo.bonus}")
        longest = self.env.steps if algo.gamma == 1 else min(self.env.steps, 1 / (1 - algo.gamma))
        critic = algo.baseline != "linear"
        scale = float(longest) * self.env.unit
        self.terms = ppo.Terms(algo.clip, algo.entropy, algo.value if critic else 0.0, scale, algo.infer)

    def update(self, optimize: Optimize) -> dict[str, float]:
        """One rollout, some epochs of minibatches; every minibatch holds whole trials."""
        algo = self.algo
        found = ppo.collect(self.learner, self.env, algo["clear"], self.generator)  # algo.clear is a method of configs
        values = self.terms.scale * found.values
        rewards = self.credited(found)
        if algo.baseline == "linear":
            values = ppo.linear_values(found.seen.observation, rewards, algo.gamma)
        advantage = ppo.advantages(rewards, values, algo.gamma, algo.lam)
        returns = ppo.discounted(rewards, algo.gamma)
        target = returns / self.terms.scale
        if algo.normalize:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        explained = 1 - (returns - values).var() / returns.var().clamp_min(1e-8)
        steps: list[dict[str, float]] = []
        for _ in range(algo.epochs):
            order = torch.randperm(len(advantage), generator=self.generator, device=self.device)
            for rows in order.chunk(algo.minibatches):
                part = Part(*ppo.loss(self.learner, found.rows(rows), advantage[rows], target[rows], self.terms))
                steps.append(optimize([part]))
            last = steps[-algo.minibatches :]
            if algo.max_kl and sum(step["kl"] for step in last) / len(last) > algo.max_kl:
                break
        self.learner.see(found.seen)
        track(self.learner.memory, found.end)
        metrics = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        metrics |= {"reward": float(found.rewards.mean()), "explained": float(explained)}
        return metrics | self.reached(found)

    def credited(self, found: ppo.Rollout) -> Tensor:
        """What learning takes the steps to have paid [N, T]; the agent is told the rewards themselves."""
        if self.algo.credit == "regret":
            return -found.regret
        return found.rewards + self.algo.bonus * found.success

    def reached(self, found: ppo.Rollout) -> dict[str, float]:
        """Success in percent and simulators started anew, for the log, where a family has them."""
        if self.env.success is None:
            return {}
        ends = goal_trials.played(found.rewards.cpu().numpy(), found.success.cpu().numpy(), self.env.episodes)
        success = {"any_step": 100 * float(ends.any.mean()), "last_step": 100 * float(ends.last.mean())}
        return success | {"restarts": float(self.env.restarts)}

    def validate(self) -> Judged:
        return self.judge("val", self.options.eval_tasks, thorough=False)

    def test(self) -> Judged:
        return self.judge("test", self.options.test_tasks, thorough=True)

    def evaluate(self, split: str, trials: int, greedy: bool = False) -> tuple[Trials, Array]:
        """The tasks of a split, always the same ones, and rewards [N, T] on them."""
        env, found = self.play(split, trials, greedy)
        return env, found.rewards.cpu().numpy()

    def play(
        self, split: str, trials: int, greedy: bool = False, blind: bool = False, clear: str = "", **changes: int
    ) -> tuple[Trials, ppo.Rollout]:
        """Trials of a split; see `ppo.collect` for what can be different from training, and `make_env` for changes of sizes."""
        env, seed = self.make_env(trials, split, **changes), self.seeds[split]
        generator = torch.Generator(self.device).manual_seed(seed)
        self.learner.eval()
        found = ppo.collect(self.learner, env, clear or self.algo["clear"], generator, seed, greedy, blind)
        self.learner.train()
        return env, found

    def judge(self, split: str, trials: int, thorough: bool) -> Judged:
        """thorough: also the likeliest actions, and the policies to compare with."""
        if self.env.success is not None:
            return goal_trials.judge(self, split, trials, thorough)
        env, rewards = self.evaluate(split, trials)
        best = float(env.known().sum(1).mean())
        score = mean_interval(100 * rewards.sum(1) / best)
        lines = curves(env, rewards)
        numbers: dict[str, Any] = {"return": mean_interval(rewards.sum(1))}
        if thorough:
            numbers["return, likeliest actions"] = mean_interval(self.evaluate(split, trials, greedy=True)[1].sum(1))
            played = {name: r.sum(1) for name, r in self.others(env, self.seeds[split]).items()}
            numbers |= {f"return, {name}": mean_interval(r) for name, r in played.items()}
            numbers["return, who knows the task"] = best
        drawn = {key: figures.lines({"this run": line["points"]}, line["x"], line["y"]) for key, line in lines.items()}
        return Judged(score, {"reward": float(rewards.mean())}, drawn, {"lines": lines, "numbers": numbers})

    def state_dict(self) -> dict[str, Tensor]:
        """An update sees whole trials, so all that goes on from one to the next are random numbers."""
        return {"generator": self.generator.get_state()} | {f"env.{k}": v for k, v in self.env.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self.env.load_state_dict(below(state, "env."))


def curves(env: Trials, rewards: Array) -> dict[str, Line]:
    """Lines (see `algos.report`) from rewards [N, T]: reward per step by episode, and regret by visit where tasks come back."""
    by_episode = rewards.reshape(len(rewards), env.episodes, env.horizon).mean(2)
    points = []
    for some in np.array_split(np.arange(env.episodes), min(POINTS, env.episodes)):
        points.append([float(some[-1] + 1), *mean_interval(by_episode[:, some].mean(1))[:3]])
    lines = {
        "adaptation_in_trial": {
            "caption": "Reward per step by episode of a trial (new tasks, 95 % band over trials)",
            "x": "episode", "y": "reward per step", "points": points,
        }
    }  # fmt: skip
    if isinstance(env, Barcodes):
        lines["regret"] = {
            "caption": "Regret per pull by visit to a task (95 % band over trials)",
            "x": "visit", "y": "regret per pull", "points": regret_by_visit(env, rewards),
        }  # fmt: skip
    return lines


def regret_by_visit(env: Barcodes, rewards: Array) -> list[list[float]]:
    """Points (visit, mean, low, high): what was missed of the best arm's expected reward, per pull."""
    missed = (env.known() - rewards.reshape(len(rewards), env.episodes, env.horizon).sum(2)) / env.horizon
    visit = env.visit()
    return [
        [float(i + 1), *mean_interval((missed * (visit == i)).sum(1) / (visit == i).sum(1))[:3]]
        for i in range(env.visits)
    ]


FAMILIES: dict[str, tuple[Callable[..., Trials], Callable[..., dict[str, Array]]]] = {
    "bandits": (Bandits, bandit_rewards),
    "barcodes": (Barcodes, barcode_rewards),
    "mdps": (MDPs, mdp_rewards),
    "metaworld": (MetaWorld, open_loop),
    "reach": (Reach, lambda env, seed: {}),
    "control": (Control, lambda env, seed: {}),
}
HELD_OUT = ("metaworld", "reach")  # families whose splits have tasks of their own, where others draw new ones
PROTOCOL = ("adapt", "scored", "test_horizon")


def maker(env: DictConfig) -> Callable[..., Trials]:
    """(trials, split, **changes) -> that many trials of the configured family, of other sizes where changes say so."""
    sizes = {str(k): v for k, v in OmegaConf.to_container(env).items() if k not in ("name", *PROTOCOL)}

    def make(trials: int, split: str = "train", **changes: int) -> Trials:
        held_out = {"split": split} if env.name in HELD_OUT else {}
        return FAMILIES[env.name][0](trials, **(sizes | changes | held_out))

    return make


def protocol(env: DictConfig) -> tuple[int, int, int]:
    """Episodes to adapt in and to score, and steps of the longer ones, of families with a goal."""
    adapt, scored, horizon = (env.get(key, default) for key, default in zip(PROTOCOL, (10, 3, 500), strict=True))
    return adapt, scored, horizon


def learner(config: DictConfig) -> Agent:
    """An agent with freshly drawn weights, or with those of the run algo.start names."""
    informed = config.algo.baseline == "informed"
    with drawn(config):
        env = maker(config.env)(1)
        infer = bool(config.algo.infer)
        made = Agent(env, lambda fields: memory(config, fields.width, fields), config.algo.width, informed, infer)
    if config.algo.start:
        found, _ = checkpoint.read(Path(config.algo.start))
        try:
            made.load_state_dict(below(found.tensors, "learner."))
        except RuntimeError as error:
            raise UserError(
                f"algo.start: {config.algo.start} does not fit ({str(error).splitlines()[-1].strip()})"
            ) from None
    return made


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> RL2Problem:
    """The problem of a configuration with algo=rl2."""
    return RL2Problem(
        learner(config).to(device), maker(config.env), FAMILIES[config.env.name][1],
        config.algo, config.trainer, seeds, device, protocol(config.env),
    )  # fmt: skip
