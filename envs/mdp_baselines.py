"""Model-based baselines on tabular MDPs: keep the posterior of the world, plan in some world at the start of each episode, or,
what is not usual but an RL^2 policy is free to do as well, anew at every step.

    random     any action
    greedy     the world is the posterior mean
    BEB        that world, with a bonus beta / (1 + visits) on rewards (Kolter & Ng 2009), beta tuned
    PSRL       the world is a draw of the posterior (Strens 2000, Osband et al. 2013)
The posterior is exact: Dirichlet(1 + counts) for transitions, Normal((1 + sum of r) / (1 + n), 1 / (1 + n)) for mean rewards.
A prior mean of 0 in place of 1 gives PSRL the returns that are published for it (Duan et al. 2016: 138.1 and 408.8).
Legend: N trials, S states, A actions, T steps.
"""

from __future__ import annotations

import numpy as np

from envs.mdps import MDPs, dirichlet, plan
from envs.trials import Array

KINDS = ("random", "greedy", "beb", "psrl")


def play(env: MDPs, kind: str, seed: int, beta: float = 0.5, prior: float = 1.0, every: int = 0) -> Array:
    """Rewards [N, T] of a baseline (one of KINDS) on the tasks `seed` draws. every: steps from plan to plan, 0: an episode."""
    state, _ = env.reset(seed=seed)
    rng = np.random.default_rng([seed, 1])
    size = (env.num_envs, env.states, env.actions)
    counts, visits, sums = np.zeros((*size, env.states)), np.zeros(size), np.zeros(size)
    rewards = np.empty((env.num_envs, env.steps), np.float32)
    for step in range(env.steps):
        if kind != "random" and step % (every or env.horizon) == 0:
            p, means = 1 + counts, (prior + sums) / (1 + visits)
            if kind == "psrl":
                p, means = dirichlet(rng, p), rng.normal(means, (1 + visits) ** -0.5)
            else:
                p = p / p.sum(-1, keepdims=True)
                means = means + (beta / (1 + visits) if kind == "beb" else 0)
            values = plan(p, means, env.horizon)
        if kind == "random":
            action = rng.integers(env.actions, size=env.num_envs)
        else:
            action = values[step % env.horizon, env.rows, state].argmax(-1)
        after, reward, over, _, _ = env.step(action)
        rewards[:, step] = reward
        sums[env.rows, state, action] += reward
        visits[env.rows, state, action] += 1
        if not over[0]:  # where the last step of an episode led is not seen
            counts[env.rows, state, action, after] += 1
        state = after
    return rewards


def mdp_rewards(env: MDPs, seed: int) -> dict[str, Array]:
    """Rewards [N, T] of each baseline on the tasks `seed` draws."""
    names = {"random": "random", "greedy": "greedy on the posterior mean", "beb": "BEB, beta=0.5", "psrl": "PSRL"}
    found = {names[kind]: play(env, kind, seed) for kind in KINDS}
    found["PSRL, prior mean 0"] = play(env, "psrl", seed, prior=0.0)
    anew = {f"{names[kind]}, planned at every step": play(env, kind, seed, every=1) for kind in ("greedy", "beb")}
    return found | anew
