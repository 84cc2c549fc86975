"""Tabular MDPs as in Duan et al. 2016 (RL^2): every trial has a world of its own, known to nobody beforehand.

    P(. | s, a) ~ Dirichlet(1, ..., 1);  mean reward m(s, a) ~ Normal(1, 1);  r ~ Normal(m(s, a), 1)
Episodes start in state 0 and last `horizon` steps. The state is observed.
Legend: N trials, S states, A actions, H horizon.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Discrete

from envs.trials import Array, Trials


class MDPs(Trials):
    """trials: N. episodes, horizon: of a trial. states, actions: S and A."""

    def __init__(self, trials: int, episodes: int = 10, horizon: int = 10, states: int = 10, actions: int = 5):
        super().__init__(trials, episodes, horizon, Discrete(states), Discrete(actions))
        self.states, self.actions, self.hidden_size = states, actions, actions
        self.hidden_moves, self.regret = True, np.zeros(trials)

    def sample(self) -> None:
        size = (self.num_envs, self.states, self.actions)
        self.p = dirichlet(self.np_random, np.ones((*size, self.states)))
        self.upto = self.p.cumsum(-1)
        self.means = self.np_random.normal(1.0, 1.0, size)
        self.best = plan(self.p, self.means, self.horizon)
        self.lost = self.best.max(-1, keepdims=True) - self.best

    def begin(self) -> None:
        self.state = np.zeros(self.num_envs, np.int64)

    def observe(self) -> Array:
        return self.state.copy()

    def act(self, actions: Array) -> Array:
        rng, place = self.np_random, (self.rows, self.state, actions)
        rewards = rng.normal(self.means[place], 1.0)
        self.regret = self.lost[(self.time % self.horizon, *place)]
        # The last bound is left out, so that rounding cannot lead beyond the last state.
        self.state = (rng.random(self.num_envs)[:, None] >= self.upto[place][:, :-1]).sum(1)
        return rewards

    def known(self) -> Array:
        return np.repeat(self.best[0, :, 0].max(-1)[:, None], self.episodes, 1)

    def hidden(self) -> Array:
        """What every action would cost here and now one who knows the world."""
        return self.lost[self.time % self.horizon, self.rows, self.state]


def plan(p: Array, means: Array, horizon: int) -> Array:
    """Values of the best policy by backward induction. p [N, S, A, S], means [N, S, A]; returns [H, N, S, A]."""
    values = np.empty((horizon, *means.shape))
    after = np.zeros((len(means), p.shape[-1], 1))
    for step in reversed(range(horizon)):
        values[step] = means + (p @ after[:, None])[..., 0]
        after = values[step].max(-1)[..., None]
    return values


def dirichlet(rng: np.random.Generator, alpha: Array) -> Array:
    """One draw for each row of alpha [..., S]."""
    gamma = rng.standard_gamma(alpha)
    return gamma / gamma.sum(-1, keepdims=True)
