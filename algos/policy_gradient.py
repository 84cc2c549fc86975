"""A policy without memory, and estimates of its expected return J that stay right when they are differentiated twice.

A score-function estimate differentiated once more is wrong: its own sampling depends on theta. So J is written with
box(x) = exp(log pi(x) - log pi_played(x)), which is 1 where nothing has changed, and whose derivatives are those of sampling:
    dice  sum_t box(a_<=t) r_t + (1 - box(a_t)) b_t      Foerster et al. 2018; with a baseline b: Mao et al. 2019
    lvc   sum_t box(a_t) A_t                             Rothfuss et al. 2019
Rewards are discounted, A is the return to come less the baseline; both are per step. The mean of any derivative of dice is that of
the expected return. lvc leaves out, in the second one, how an action changes the odds of later ones; it is exact where episodes
have one step, and varies less on long ones.
Legend: E episodes, H steps, O numbers of an observation, A of an action.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from algos import ppo
from algos.agent import Normalizer
from envs.trials import Trials
from nestmem.errors import UserError

Weights = dict[str, Tensor]


class Policy(nn.Module):
    """Two hidden layers. env gives the spaces. adapt: "all" weights change in the inner loop, or those of the "head"."""

    def __init__(self, env: Trials, width: int = 64, adapt: str = "all"):
        super().__init__()
        space, action = env.single_observation_space, env.single_action_space
        match space:
            case Discrete():
                self.size, self.symbols = int(space.n), True
            case MultiBinary() | Box(shape=(_,)):
                self.size, self.symbols = int(np.prod(space.shape)), False
            case _:
                raise UserError(f"env: expected discrete, binary or flat real observations, got {space}")
        if adapt not in ("all", "head"):
            raise UserError(f"algo.adapt: expected all or head, got {adapt!r}")
        self.normal = Normalizer(self.size) if isinstance(space, Box) else None
        self.discrete = isinstance(action, Discrete)
        self.actions = int(action.n) if isinstance(action, Discrete) else int(np.prod(action.shape or (1,)))
        self.body = nn.Sequential(nn.Linear(self.size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, self.actions)
        with torch.no_grad():  # all actions are alike at first
            self.head.weight.mul_(0.01)
        if isinstance(action, Box):
            self.log_std = nn.Parameter(torch.full((self.actions,), -0.5))
            self.low, self.high = torch.as_tensor(action.low), torch.as_tensor(action.high)
        self.fast = [name for name, _ in self.named_parameters() if adapt == "all" or name.startswith("head")]

    def look(self, observation: Tensor) -> Tensor:
        """Observations [..., O] as the layers take them."""
        if self.symbols:
            return F.one_hot(observation[..., 0].long(), self.size).float()
        return observation if self.normal is None else self.normal(observation)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits or means [..., A]."""
        found: Tensor = self.head(self.body(seen))
        return found

    def log_prob(self, weights: Weights, seen: Tensor, actions: Tensor) -> Tensor:
        """Of actions [...] or [..., A] with `weights` in place of the policy's own."""
        out = functional_call(self, weights, (seen,))
        if self.discrete:
            return out.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
        log_std = weights.get("log_std", self.log_std)
        return (-0.5 * ((actions - out) / log_std.exp()).square() - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)

    def draw(self, out: Tensor, log_std: Tensor | None, generator: torch.Generator, greedy: bool) -> Tensor:
        """Actions from logits or means [N, A]; log_std [N, A]."""
        if self.discrete:
            return out.argmax(-1) if greedy else torch.multinomial(out.softmax(-1), 1, generator=generator)[:, 0]
        assert log_std is not None
        return out if greedy else out + log_std.exp() * torch.randn(out.shape, generator=generator)


def dice(log_probs: Tensor, played: Tensor, rewards: Tensor, baseline: Tensor, gamma: float) -> Tensor:
    """J of episodes [E, H] (see the module). played: log probabilities when they were played."""
    change = log_probs - played.detach()
    discount = gamma ** torch.arange(rewards.shape[-1], device=rewards.device)
    return (discount * (change.cumsum(-1).exp() * rewards + (1 - change.exp()) * baseline)).mean()


def lvc(log_probs: Tensor, played: Tensor, rewards: Tensor, baseline: Tensor, gamma: float) -> Tensor:
    """J of episodes [E, H] (see the module)."""
    return ((log_probs - played.detach()).exp() * (ppo.discounted(rewards, gamma) - baseline)).mean()


ESTIMATORS: dict[str, Callable[..., Tensor]] = {"dice": dice, "lvc": lvc}
