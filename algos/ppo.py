"""Proximal policy optimisation over whole trials: what is collected, what it was worth, and the loss.

Schulman et al. 2016 and 2017, with a trial as the unit (Duan et al. 2016): value goes on from one episode to the next, for the
future of a trial is what exploring pays into; it ends with the trial.
    delta_t = r_t + gamma V_{t+1} - V_t;   A_t = delta_t + gamma lambda A_{t+1};   V_T = 0
    loss = -mean min(rho A, clip(rho, 1 - eps, 1 + eps) A) + c_v mean (V - R)^2 - c_e mean entropy
R is the return itself, not A + V_old: with the small lambda that suits bandits, a critic that learns from its own guesses is slow,
and until it is right the policy follows its errors (on a hundred pulls the return fell from 73 to 67).
Legend: N trials, T steps, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from algos.agent import Agent, Seen
from envs.trials import Trials
from nestmem.memory.base import State


class Rollout(NamedTuple):
    """N whole trials. reset [N, T]: where the memory was told that an episode begins (None: never). end: its state after all."""

    seen: Seen
    actions: Tensor  # [N, T] or [N, T, A]
    log_probs: Tensor  # [N, T]
    values: Tensor  # [N, T]
    rewards: Tensor  # [N, T]
    reset: Tensor | None
    hidden: Tensor  # [N, T, H] what the task was, in numbers, in families that have them
    success: Tensor  # [N, T] whether the goal was met, in families that have one; else zero
    regret: Tensor  # [N, T] see `envs.trials`; zero in families that do not know it
    end: State = ()

    def rows(self, index: Tensor) -> Rollout:
        """Some of the trials, without `end`."""
        seen = Seen(*(part[index] for part in self.seen))
        return Rollout(seen, *(None if part is None else part[index] for part in self[1:-1]))


@torch.no_grad()
def collect(
    agent: Agent,
    env: Trials,
    clear: str,
    generator: torch.Generator,
    seed: int | None = None,
    greedy: bool = False,
    blind: bool = False,
) -> Rollout:
    """New tasks (those of `seed`, if given), one whole trial of each. clear: "episode" resets, where an episode begins, what
    lives only for an episode; "task" keeps everything to the end of the trial. greedy: the likeliest action. Controls: blind,
    rewards are not told; clear="all", every episode begins as the first did."""
    device = next(agent.parameters()).device
    observation, _ = env.reset(seed=seed)
    n = env.num_envs
    nothing = torch.zeros(n, 1, device=device)
    known = torch.zeros(n, 0, device=device)
    before = torch.zeros(n, agent.actions, device=device)
    look = agent.observed(observation, device)
    rest = agent.moves(look, look, True)
    seen = Seen(look, before, nothing, nothing, known, rest, nothing)
    state = agent.memory.initial_state(n)
    moments: list[Rollout] = []  # of one step each, [N, ...]
    for t in range(env.steps):
        begins = seen.ended[:, 0] > 0
        if clear == "episode" and bool(begins.any()):
            state = agent.memory.reset(state, begins)
        if clear == "all" and t % env.horizon == 0:
            state, seen = (
                agent.memory.initial_state(n),
                seen._replace(before=before, paid=nothing, ended=nothing, gained=nothing),
            )
        if env.hidden_moves or t % env.horizon == 0:
            task = torch.as_tensor(env.hidden(), dtype=torch.float32, device=device)
        if agent.informed:
            clock = torch.tensor([t % env.horizon / env.horizon, t / env.steps], device=device)
            seen = seen._replace(known=torch.cat([task, clock.expand(n, 2)], -1))
        policy, value, state = agent.step(seen, state)
        if greedy:
            action = policy.mode
        elif agent.discrete:
            action = torch.multinomial(policy.probs, 1, generator=generator)[:, 0]
        else:
            noise = torch.randn(policy.mean.shape, generator=generator, device=device)
            action = policy.mean + policy.stddev * noise
        observation, reward, ended, _, _ = env.step(agent.bounded(action).cpu().numpy())
        paid, met, cost = (
            torch.zeros(n, device=device) if x is None else torch.as_tensor(x, dtype=torch.float32, device=device)
            for x in (reward, env.success, env.regret)
        )
        moments.append(Rollout(seen, action, policy.log_prob(action), value, paid, begins, task, met, cost))
        over = torch.as_tensor(ended, dtype=torch.float32, device=device)
        look, last = agent.observed(observation, device), look
        compared = not blind and t % env.horizon > 0
        seen = Seen(
            look,
            agent.encoded(action),
            nothing if blind else paid[:, None],
            over[:, None],
            known,
            agent.moves(look, last, (t + 1) % env.horizon == 0),
            (paid - moments[-2].rewards)[:, None] if compared else nothing,
        )
    whole = Seen(*(torch.stack(parts, 1) for parts in zip(*(moment.seen for moment in moments), strict=True)))
    rest = (torch.stack(parts, 1) for parts in zip(*(moment[1:-1] for moment in moments), strict=True))
    found = Rollout(whole, *rest, end=state)
    return found if clear == "episode" else found._replace(reset=None)


def advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates [N, T]."""
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = rewards + gamma * after - values
    found, running = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = delta[:, t] + gamma * lam * running
        found[:, t] = running
    return found


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted return to come at every step [N, T]."""
    return advantages(rewards, torch.zeros_like(rewards), gamma, 1.0)


def linear_values(observation: Tensor, rewards: Tensor, gamma: float, ridge: float = 1e-5) -> Tensor:
    """A baseline fitted to the rollout itself by least squares (Duan et al. 2016, benchmarking): returns on
    [x, x^2, t, t^2, t^3, 1], with the reward so far beside the observation in x. Returns [N, T]."""
    n, steps = rewards.shape
    so_far = (rewards.cumsum(1) - rewards)[..., None] / steps
    x = torch.cat([observation, so_far], -1).double().clamp(-10, 10)
    t = torch.linspace(0, 1, steps, dtype=torch.float64, device=x.device).expand(n, -1)[..., None]
    features = torch.cat([x, x.square(), t, t**2, t**3, torch.ones_like(t)], -1).flatten(0, 1)
    target = discounted(rewards.double(), gamma).flatten()
    gram = features.mT @ features + ridge * len(features) * torch.eye(features.shape[1]).to(features)
    weights = torch.linalg.solve(gram, features.mT @ target)
    return (features @ weights).view(n, steps).to(rewards)


class Terms(NamedTuple):
    """Weights of the loss. scale: of returns; the value head says returns in this unit. infer: of telling the task."""

    clip: float
    entropy: float
    value: float
    scale: float
    infer: float = 0.0


def loss(
    agent: Agent, part: Rollout, advantage: Tensor, target: Tensor, terms: Terms
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of some trials and metrics. advantage, target [N, T]; target is in units of terms.scale."""
    policy, values, guess = agent.whole(part.seen, part.reset)
    change = policy.log_prob(part.actions) - part.log_probs
    ratio = change.exp()
    clipped = ratio.clamp(1 - terms.clip, 1 + terms.clip)
    gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
    error = (values - target).square().mean()
    entropy = policy.entropy().mean()
    metrics = {
        "value_error": error.detach(),
        "entropy": entropy.detach(),
        "kl": (ratio - 1 - change).mean().detach(),  # Schulman's estimate, never negative
        "clipped": (clipped != ratio).float().mean(),
    }
    total = terms.value * error - gain - terms.entropy * entropy
    if guess is not None:
        missed = (guess - part.hidden).square().mean()
        total, metrics["task_error"] = total + terms.infer * missed, missed.detach()
    return total, metrics
