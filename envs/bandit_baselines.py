"""What is known to do well on bandits, from guessing to the exact optimum.

All but the optimum are index policies: every arm gets a number from its wins and losses, and the largest is pulled, ties at random.
    greedy      (w + 1) / (w + l + 2), the mean of the Beta posterior
    UCB1        that mean + c sqrt(ln t / (w + l + 1)), Auer et al. 2002 with the prior's pseudo-counts and c tuned for n
    Thompson    a draw of the posterior (Thompson 1933)
    Gittins     the fee that makes pulling and stopping equally good, rewards discounted by gamma (Gittins 1979); gamma tuned for n
Where one arm pays .9 and the others .1 (barcode bandits), the posterior of "arm a is the good one" grows with w_a - l_a.
Legend: N trials, k arms, n pulls, w wins, l losses, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from envs.bandits import Bandits, Barcodes
from envs.trials import Array

Index = Callable[[Array, Array, int, np.random.Generator], Array]  # wins and losses [N, k], pulls so far; -> [N, k]


def guess(wins: Array, losses: Array, pulls: int, rng: np.random.Generator) -> Array:
    return rng.random(wins.shape)


def greedy(wins: Array, losses: Array, pulls: int, rng: np.random.Generator) -> Array:
    return (wins + 1) / (wins + losses + 2)


def thompson(wins: Array, losses: Array, pulls: int, rng: np.random.Generator) -> Array:
    return rng.beta(wins + 1, losses + 1)


def likely(wins: Array, losses: Array, pulls: int, rng: np.random.Generator) -> Array:
    return wins - losses


def ucb1(c: float) -> Index:
    def index(wins: Array, losses: Array, pulls: int, rng: np.random.Generator) -> Array:
        bonus = np.sqrt(np.log(pulls + 1) / (wins + losses + 1))
        return greedy(wins, losses, pulls, rng) + c * bonus

    return index


def gittins(gamma: float, pulls: int) -> Index:
    table = gittins_table(gamma, pulls)

    def index(wins: Array, losses: Array, pulls: int, rng: np.random.Generator) -> Array:
        return table[wins, losses]

    return index


@cache
def gittins_table(gamma: float, pulls: int, fees: int = 200) -> Array:
    """Gittins indices of arms with a uniform prior by wins and losses, [n + 1, n + 1]; nan where w + l > n.

    For each of `fees` per-step fees the value of an arm that may be left for good is computed backwards from arms of
    n + 3 / (1 - gamma) pulls, which are never left or left at once; the index is where pulling and leaving are equal.
    """
    fee = np.linspace(0, 1, fees)
    left = fee / (1 - gamma)
    deepest = pulls + int(np.ceil(3 / (1 - gamma)))
    mean = (np.arange(deepest + 1) + 1) / (deepest + 2)
    value = np.maximum(mean[:, None], fee) / (1 - gamma)  # [wins, fees]
    table = np.full((pulls + 1, pulls + 1), np.nan)
    for tried in reversed(range(deepest)):
        p = ((np.arange(tried + 1) + 1) / (tried + 2))[:, None]
        pull = p * (1 + gamma * value[1:]) + (1 - p) * gamma * value[:-1]
        value = np.maximum(pull, left)
        if tried <= pulls:
            gain = pull - left  # falls with the fee, from above zero to below
            last = (gain > 0).sum(1) - 1
            rows = np.arange(tried + 1)
            high, low = gain[rows, last], gain[rows, last + 1]
            table[rows, tried - rows] = fee[last] + (fee[1] - fee[0]) * high / (high - low)
    return table


def optimum(pulls: int, arms: int) -> float:
    """Expected return of the best policy there is, p ~ U[0, 1]: dynamic programming over what the arms may have shown.

    Arms are exchangeable, so states are sorted; still exponential in k: seconds at n = 10, k = 5.
    """

    @cache
    def value(state: tuple[tuple[int, int], ...], left: int) -> float:
        if left == 0:
            return 0.0
        best = 0.0
        for i, (won, lost) in enumerate(state):
            if i and state[i - 1] == (won, lost):
                continue
            others = state[:i] + state[i + 1 :]
            p = (won + 1) / (won + lost + 2)
            after = ((won + 1, lost), (won, lost + 1))
            good, bad = (value(tuple(sorted((*others, arm))), left - 1) for arm in after)
            best = max(best, p * (1 + good) + (1 - p) * bad)
        return best

    return value(((0, 0),) * arms, pulls)


def play(env: Bandits | Barcodes, index: Index, seed: int, remember: bool = True) -> Array:
    """Rewards [N, T] of an index policy on the tasks `seed` draws. Counts are kept for each task, or (not `remember`) only for
    the current episode."""
    env.reset(seed=seed)
    rng = np.random.default_rng([seed, 1])
    tasks = env.tasks if isinstance(env, Barcodes) else 1
    wins, losses = np.zeros((2, env.num_envs, tasks, env.arms), np.int64)
    rewards = np.empty((env.num_envs, env.steps), np.float32)
    pulls = np.zeros((env.num_envs, tasks), np.int64)
    for step in range(env.steps):
        task = env.order[:, env.episode] if isinstance(env, Barcodes) else np.zeros(env.num_envs, np.int64)
        at = (env.rows, task)
        score = index(wins[at], losses[at], int(pulls[at].max()), rng)
        best = score == score.max(1, keepdims=True)
        action = (best * rng.random(score.shape)).argmax(1)
        _, reward, over, _, _ = env.step(action)
        rewards[:, step] = reward
        wins[(*at, action)] += reward > 0
        losses[(*at, action)] += reward == 0
        pulls[at] += 1
        if not remember and over[0]:
            wins[:], losses[:], pulls[:] = 0, 0, 0
    return rewards


def bandit_rewards(env: Bandits, seed: int) -> dict[str, Array]:
    """Rewards [N, T] of each baseline on the tasks `seed` draws."""
    n = env.episodes
    gamma, c = tuned(n)
    policies = {
        "random": guess,
        "greedy on the posterior mean": greedy,
        f"UCB1 on the posterior mean, c={c:g}": ucb1(c),
        "Thompson sampling": thompson,
        f"Gittins index, gamma={gamma:g}": gittins(gamma, n),
    }
    return {name: play(env, index, seed) for name, index in policies.items()}


def tuned(pulls: int) -> tuple[float, float]:
    """gamma of Gittins and c of UCB1, chosen at k = 5 on other tasks than any printed number is about."""
    if pulls <= 30:
        return 0.7, 0.1
    return (0.98, 0.2) if pulls <= 200 else (0.995, 0.2)


def barcode_rewards(env: Barcodes, seed: int) -> dict[str, Array]:
    return {
        "random": play(env, guess, seed),
        "most likely arm, each visit anew": play(env, likely, seed, remember=False),
        "most likely arm, tasks remembered": play(env, likely, seed),
    }
