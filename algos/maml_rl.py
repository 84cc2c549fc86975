"""MAML and ANIL for acting: meta-learn a policy that a few policy-gradient steps fit to a task (Finn et al. 2017).

A trial is dealt to K + 1 phases. Each of the first K is played with the weights so far, one set for each task, and followed by
    theta_{k+1} = theta_k + alpha grad J(theta_k; phase k)
The meta-gradient is that of what phase K brings, through all inner steps; `algos.policy_gradient` says how J is written so that its
second derivative is right. The outer objective is PPO's, for some epochs on the same trials; the inner steps then rest on how
likely their actions have become (ProMP, Rothfuss et al. 2019). Baselines are least squares for each task and phase.
ANIL (Raghu et al. 2020): algo.adapt=head, the last layer alone adapts. The policy has no memory: a task is kept in its weights.
Scalars beside those of `algos.rl2`: train/gained, reward per step after adapting less that before.
Legend: N trials, E episodes of a phase, H steps, K inner steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.func import functional_call, grad, vmap

from algos import ppo
from algos.agent import Seen
from algos.parts import drawn, no_memory
from algos.policy_gradient import ESTIMATORS, Policy, Weights
from algos.problem import Optimize, Part
from algos.rl2 import FAMILIES, RL2Problem, maker, protocol
from envs.trials import Trials
from nestmem.errors import UserError

ALGOS = ("maml_rl",)


class Phase(NamedTuple):
    """Some episodes of N tasks, each played with weights of its own: all [N, E, H, ...]."""

    seen: Tensor  # as the layers take it
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor  # in units of the spread of advantages
    baseline: Tensor


class MamlPolicyProblem(RL2Problem):
    """Trials as `algos.rl2` has them, judged alike; the learner is a `Policy`."""

    def check(self, algo: DictConfig, options: DictConfig) -> None:
        if algo.estimator not in ESTIMATORS:
            raise UserError(f"algo.estimator: expected {' or '.join(ESTIMATORS)}, got {algo.estimator!r}")
        if not 0 <= algo.gamma <= 1:
            raise UserError(f"algo.gamma: expected 0 to 1, got {algo.gamma}")

    def prepare(self, algo: DictConfig) -> None:
        if not 1 <= algo.inner < self.env.episodes:
            raise UserError(f"algo.inner: expected 1 to {self.env.episodes - 1}, episodes less one, got {algo.inner}")

    def update(self, optimize: Optimize) -> dict[str, float]:
        """Trials of new tasks, and some epochs through their inner loops."""
        phases, found = self.trials(self.env, self.generator)
        *inner, last = phases
        advantage = torch.stack([ppo.discounted(task, self.algo.gamma) for task in last.rewards]) - last.baseline
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        steps = []
        for _ in range(self.algo.epochs):
            losses, kl = vmap(self.outer)(inner, last, advantage)
            steps.append(optimize([Part(losses.mean(), {"kl": kl.detach().mean()})]))
        if self.learner.normal is not None:
            self.learner.normal.see(found.seen.observation)
        metrics = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        before, after = (float(found.rewards[:, at].mean()) for at in (self.parts()[0], self.parts()[-1]))
        return metrics | {"reward": after, "gained": after - before} | self.reached(found)

    def outer(self, inner: list[Phase], last: Phase, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """One task: PPO's loss of the last phase after the inner steps, and how far the policy has moved."""
        parameters = dict(self.learner.named_parameters())
        fast = {name: parameters[name] for name in self.learner.fast}
        for phase in inner:
            fast = self.inner_step(fast, phase, self.algo.second_order)
        change = self.learner.log_prob(fast, last.seen, last.actions) - last.log_probs
        ratio = change.exp()
        clipped = ratio.clamp(1 - self.algo.clip, 1 + self.algo.clip)
        return -torch.minimum(ratio * advantage, clipped * advantage).mean(), (ratio - 1 - change).mean()

    def inner_step(self, fast: Weights, phase: Phase, second_order: bool) -> Weights:
        """One step uphill for one task."""

        def objective(fast: Weights) -> Tensor:
            log_probs = self.learner.log_prob(fast, phase.seen, phase.actions)
            return ESTIMATORS[self.algo.estimator](
                log_probs, phase.log_probs, phase.rewards, phase.baseline, self.algo.gamma
            )

        if second_order:
            gradient = grad(objective)(fast)
        else:
            with torch.no_grad():
                gradient = grad(objective)(fast)
        return {name: w + self.algo.rate * gradient[name] for name, w in fast.items()}

    def parts(self, env: Trials | None = None) -> list[slice]:
        """Which steps of a trial belong to each of the K + 1 phases: whole episodes, dealt evenly."""
        env = env or self.env
        dealt = np.array_split(np.arange(env.episodes), self.algo.inner + 1)
        return [slice(int(some[0]) * env.horizon, (int(some[-1]) + 1) * env.horizon) for some in dealt]

    @torch.no_grad()
    def trials(
        self,
        env: Trials,
        generator: torch.Generator,
        seed: int | None = None,
        greedy: bool = False,
        adapting: bool = True,
    ) -> tuple[list[Phase], ppo.Rollout]:
        """One trial of each task, as phases and as a whole; without `adapting` with the same weights throughout."""
        policy, n = self.learner, env.num_envs
        observation, _ = env.reset(seed=seed)
        parameters = dict(policy.named_parameters())
        fast = {name: parameters[name].detach().expand(n, *parameters[name].shape) for name in policy.fast}
        act = vmap(lambda weights, seen: functional_call(policy, weights, (seen,)))
        phases, raw, rewards, success = [], [], [], []
        for k, part in enumerate(self.parts(env)):
            log_std = fast.get("log_std", getattr(policy, "log_std", None))
            looks, taken = [], []
            for _ in range(part.start, part.stop):
                raw.append(torch.as_tensor(observation, dtype=torch.float32).reshape(n, -1))
                looks.append(policy.look(raw[-1]))
                action = policy.draw(act(fast, looks[-1]), log_std, generator, greedy)
                taken.append(action)
                done = action if policy.discrete else action.clamp(policy.low, policy.high)
                observation, reward, *_ = env.step(done.numpy())
                rewards.append(torch.as_tensor(reward))
                success.append(torch.zeros(n) if env.success is None else torch.as_tensor(env.success).float())
            played = (torch.stack(x, 1) for x in (looks, taken, raw[part], rewards[part]))
            phase = self.phase(fast, *(x.unflatten(1, (-1, env.horizon)) for x in played))
            phases.append(phase)
            if adapting and k < self.algo.inner:
                fast = vmap(lambda weights, phase: self.inner_step(weights, phase, False))(fast, phase)
        whole, paid = torch.stack(raw, 1), torch.stack(rewards, 1)
        nothing = paid[..., None][..., :0]
        told = Seen(whole, *[nothing] * 6)
        return phases, ppo.Rollout(told, nothing, paid, paid, paid, None, nothing, torch.stack(success, 1), paid)

    def phase(self, fast: Weights, seen: Tensor, actions: Tensor, raw: Tensor, rewards: Tensor) -> Phase:
        """Log probabilities, baselines and units of what was played."""
        log_probs = vmap(self.learner.log_prob)(fast, seen, actions)
        baseline = torch.stack([ppo.linear_values(o, r, self.algo.gamma) for o, r in zip(raw, rewards, strict=True)])
        returns = torch.stack([ppo.discounted(r, self.algo.gamma) for r in rewards])
        unit = (returns - baseline).std() + 1e-8
        return Phase(seen, actions, log_probs, rewards / unit, baseline / unit)

    def play(
        self, split: str, trials: int, greedy: bool = False, blind: bool = False, clear: str = "", **changes: int
    ) -> tuple[Trials, ppo.Rollout]:
        """As in `RL2Problem`; without rewards, or begun anew in every episode, nothing adapts."""
        env, seed = self.make_env(trials, split, **changes), self.seeds[split]
        generator = torch.Generator(self.device).manual_seed(seed)
        return env, self.trials(env, generator, seed, greedy, adapting=not (blind or clear == "all"))[1]


def learner(config: DictConfig) -> Policy:
    """A policy with freshly drawn weights."""
    no_memory(config)
    with drawn(config):
        return Policy(maker(config.env)(1), config.algo.width, config.algo.adapt)


def problem(config: DictConfig, seeds: dict[str, int], device: torch.device) -> MamlPolicyProblem:
    """The problem of a configuration with algo=maml_rl; on a CPU, where trials are played."""
    return MamlPolicyProblem(
        learner(config), maker(config.env), FAMILIES[config.env.name][1],
        config.algo, config.trainer, seeds, torch.device("cpu"), protocol(config.env),
    )  # fmt: skip
