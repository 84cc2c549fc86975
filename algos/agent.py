"""A policy and a value whose only way to learn within a trial is a memory: what was seen, done and paid goes in as tokens.

Token of step t (Duan et al. 2016; Wang et al. 2016):  content [observation], cue [barcode], outcome [embedding of the action and
reward of step t-1, whether an episode ended there, and the content they led to]. So an associative memory binds what came of a
step to what was seen at it, and a recurrent one reads the same numbers as any RL^2 network.
    policy, value = MLP([content, cue, y / sqrt(mean y^2 + 1), sign(y) log(1 + |y|)]),   y = what the memory answers
Sums over a trial grow with its length: their direction keeps proportions, their logarithm keeps how much has been seen, and neither
saturates a layer. For an LSTM both are close to y.
Legend: N trials, T steps, O numbers of an observation, A of an action (one-hot where discrete), C content, V outcome width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.nn import functional as F

from envs.trials import Array, Trials
from nestmem.errors import UserError
from nestmem.memory.base import Fields, Memory, State

FLOOR = 1e-3  # what varies by less is a simulator's trembling, and is not made large
MakeMemory = Callable[[Fields], Memory]


class Seen(NamedTuple):
    """What the agent is told, steps of N trials: all [N, (T,) ...], with zeros for `before` and `ended` at the first step."""

    observation: Tensor  # [..., O]
    before: Tensor  # [..., A] action of the step before
    paid: Tensor  # [..., 1] its reward
    ended: Tensor  # [..., 1] whether it ended an episode
    known: Tensor  # [..., K] for an informed critic: the hidden task in numbers, time in episode and trial. Else K = 0.
    # [..., O] what the step before changed in a real observation, zero where an episode begins; else O = 0
    moved: Tensor
    gained: Tensor  # [..., 1] what it paid more than the one before it in the same episode


class Agent(nn.Module):
    """env gives the spaces; make_memory(fields) the memory. width: V, and of hidden layers.

    informed: the critic, and it alone, is told in training what the task is (asymmetric actor-critic, Pinto et
    al. 2018). Most of what a trial returns is the luck of its task; a baseline that knows it leaves what the policy did.
    infer: beside acting, what the memory answers is to tell the hidden task (Humplik et al. 2019), which training knows.
    """

    def __init__(
        self, env: Trials, make_memory: MakeMemory, width: int = 64, informed: bool = False, infer: bool = False
    ):
        super().__init__()
        self.informed = informed
        space, action = env.single_observation_space, env.single_action_space
        self.kind = type(space)
        match space:
            case Discrete():
                self.size = content = int(space.n)
            case MultiBinary():
                self.size, content = int(np.prod(space.shape)), max(int(np.prod(space.shape)) - env.cue, 1)
            case Box(shape=(n,)):
                self.size, content = int(n) - env.cue, width
                self.normal, self.encode = Normalizer(self.size), nn.Linear(self.size, width)
                self.pay = Normalizer(1, center=False)  # what is paid for nothing stays zero
                self.change = Normalizer(self.size + 1, center=False)
            case _:
                raise UserError(f"env: expected discrete, binary or flat real observations, got {space}")
        match action:
            case Discrete():
                self.actions, self.discrete = int(action.n), True
            case Box(shape=(n,)):
                self.actions, self.discrete = int(n), False
                self.log_std = nn.Parameter(torch.full((self.actions,), -0.5))
                self.low: Tensor
                self.high: Tensor
                self.register_buffer("low", torch.as_tensor(action.low), persistent=False)
                self.register_buffer("high", torch.as_tensor(action.high), persistent=False)
            case _:
                raise UserError(f"env: expected discrete or flat real actions, got {action}")
        self.fields = Fields(content, env.cue, width, labels=False)
        # Without biases: a zero outcome says that nothing came before.
        self.reached = content if content > 1 else 0  # a constant observation says nothing of where a step led
        changes = self.size + 1 if self.kind is Box else 0
        self.outcome = nn.Sequential(
            nn.Linear(self.actions + 2 + self.reached + changes, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
        )
        self.memory = make_memory(self.fields)
        features = self.fields.width + width
        self.secret = env.hidden_size + 2 if informed else 0  # numbers that only the critic is told
        guessed = env.hidden_size if infer else 0
        self.policy, self.value = head(features + guessed, width, self.actions), head(features + self.secret, width, 1)
        self.guess = head(features, width, guessed) if infer else None
        with torch.no_grad():  # all actions are alike at first
            self.policy[-1].weight.mul_(0.01)

    def tokens(self, seen: Seen) -> Tensor:
        """[..., D]."""
        observation = seen.observation
        if self.kind is Discrete:
            observation = F.one_hot(observation[..., 0].long(), self.size).float()
        elif self.kind is MultiBinary:
            observation = 2 * observation.float() - 1
            if self.size == self.fields.cue:  # nothing but a cue: the content is always the same
                observation = F.pad(observation, (1, 0), value=1.0)
        else:
            observation, cue = observation.split([self.size, self.fields.cue], -1)
            observation = torch.cat([self.encode(self.normal(observation)).tanh(), cue], -1)
            seen = seen._replace(paid=self.pay(seen.paid))
        parts = [seen.before, seen.paid, seen.ended]
        parts.append(observation[..., : self.reached] * (seen.before != 0).any(-1, keepdim=True))
        if self.kind is Box:
            parts.append(self.change(torch.cat([seen.moved, seen.gained], -1)))
        outcome = self.outcome(torch.cat(parts, -1))
        return torch.cat([observation, outcome], -1)

    def judge(self, tokens: Tensor, answer: Tensor, known: Tensor) -> tuple[Distribution, Tensor, Tensor | None]:
        """Distribution over actions, value [...] and guess [..., K], if any, from tokens and what the memory answered, both
        [..., D]."""
        shown = self.fields.content + self.fields.cue
        features = torch.cat([tokens[..., :shown], self.told(answer)], -1)
        value = self.value(torch.cat([features, known], -1))[..., 0]
        guess = None if self.guess is None else self.guess(features)
        given = self.policy(features if guess is None else torch.cat([features, guess.detach()], -1))
        if self.discrete:
            return Categorical(logits=given, validate_args=False), value, guess
        policy = Independent(Normal(given, self.log_std.exp(), validate_args=False), 1, validate_args=False)
        return policy, value, guess

    def told(self, answer: Tensor) -> Tensor:
        """Direction and logarithm of an answer [..., D]: [..., 2 V]."""
        said = self.fields.split(answer)[2]
        direction = said / (said.square().mean(-1, keepdim=True) + 1).sqrt()
        return torch.cat([direction, said.sign() * said.abs().log1p()], -1)

    def forward(self, seen: Seen, reset: Tensor | None = None) -> tuple[Distribution, Tensor]:
        """Whole trials [N, T, ...] in one pass of the memory. reset [N, T]: where what lives only for an episode is cleared."""
        return self.whole(seen, reset)[:2]

    def whole(self, seen: Seen, reset: Tensor | None = None) -> tuple[Distribution, Tensor, Tensor | None]:
        """`forward`, and the guess [N, T, K] at the hidden task."""
        tokens = self.tokens(seen)
        return self.judge(tokens, self.memory(tokens, reset=reset)[0], seen.known)

    def step(self, seen: Seen, state: State) -> tuple[Distribution, Tensor, State]:
        """One step of every trial [N, ...]."""
        tokens = self.tokens(seen)
        answer, state, _ = self.memory.run(tokens[:, None], state)
        policy, value, _ = self.judge(tokens, answer[:, 0], seen.known)
        return policy, value, state

    def see(self, seen: Seen) -> None:
        """Take real observations and what was paid into account in how they are normalised from now on."""
        if self.kind is Box:
            self.normal.see(seen.observation[..., : self.size])
            self.pay.see(seen.paid)
            self.change.see(torch.cat([seen.moved, seen.gained], -1))

    def encoded(self, actions: Tensor) -> Tensor:
        """Actions [...] or [..., A] as the next token says them: [..., A]."""
        return F.one_hot(actions, self.actions).float() if self.discrete else self.bounded(actions)

    def bounded(self, actions: Tensor) -> Tensor:
        """Real actions as they are carried out: the policy may draw what lies beyond the bounds."""
        return actions if self.discrete else actions.clamp(self.low, self.high)

    def moves(self, observation: Tensor, last: Tensor, begins: bool) -> Tensor:
        """What changed in real observations [N, O] since the last ones: [N, O]; nothing where an episode begins."""
        moved = observation[:, : self.size if self.kind is Box else 0]
        return torch.zeros_like(moved) if begins else moved - last[:, : moved.shape[1]]

    def observed(self, observation: Array, device: torch.device) -> Tensor:
        """Observations of an env, [N] or [N, O], as a tensor [N, O]."""
        return torch.as_tensor(observation, dtype=torch.float32, device=device).reshape(len(observation), -1)


def head(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))


class Normalizer(nn.Module):
    """Running mean and variance of real observations, saved with the model. They change between updates only, so that what a
    policy did and what is learned from it rest on the same numbers. center=False: divide by the root of the mean square alone."""

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, size: int, clip: float = 10.0, center: bool = True):
        super().__init__()
        self.clip, self.center = clip, center
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))  # sum of squared deviations

    def forward(self, x: Tensor) -> Tensor:
        if not self.count:
            return x.clamp(-self.clip, self.clip)
        variance = self.square / self.count
        if self.center:
            return ((x - self.mean) / (variance.sqrt() + FLOOR)).float().clamp(-self.clip, self.clip)
        return (x / ((variance + self.mean.square()).sqrt() + FLOOR)).float().clamp(-self.clip, self.clip)

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Take observations [..., O] into account (Chan et al. 1979)."""
        x = x.flatten(0, -2).double()
        count, mean = len(x), x.mean(0)
        total, delta = self.count + count, mean - self.mean
        self.square += (x - mean).square().sum(0) + delta.square() * self.count * count / total
        self.mean += delta * count / total
        self.count.copy_(total)
