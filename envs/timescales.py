"""Three hidden variables that live for 1, 30 and 1000 steps, and the exact Bayes filter that says what can be known of them.

Hidden values are 0..3. a_{t+1} = a_t + 1 (mod 4) with probability `advance`, else one of the other three values. b and c stay,
or jump to one of the other three after `dwell` steps in the mean. Each is seen through noise: o^b_t = b_t with
probability `right`, else one of the others; o^c_t likewise. A step emits three tokens, and the targets are those of the next
step, each predicted from the past alone:

    x_t = (a_t,  o^b_t + a_t mod 4,  o^c_t + a_t mod 4),   y_t = x_{t+1}

Adding a makes every token uniform and independent of b and c, so that no average of tokens knows anything: a model must first
unscramble, then integrate over 30 and over 1000 steps. What a model could gain is known exactly, variable by variable.
Legend: B rows, T steps, 3 tokens or variables (a, b, c), 4 values.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestmem.errors import UserError

VALUES = 4
VARIABLES = ("a", "b", "c")


class Process(NamedTuple):
    """The law of the stream. dwell and right: of b and of c."""

    advance: float = 0.8
    dwell: tuple[float, float] = (30.0, 1000.0)
    right: tuple[float, float] = (0.55, 0.42)


class Chunk(NamedTuple):
    """T steps: tokens, the tokens of one step later, and the hidden values; each int64 [B, T, 3]."""

    tokens: Tensor
    targets: Tensor
    hidden: Tensor


class Timescales:
    """B endless rows. However they are cut into chunks, the rows are the same; `state_dict` goes on where a run stopped."""

    def __init__(self, rows: int, seed: int, process: Process | None = None):
        self.process = process or Process()
        shares = (self.process.advance, *self.process.right)
        if rows < 1 or not all(0 < p < 1 for p in shares) or not all(d > 1 for d in self.process.dwell):
            raise UserError(
                f"timescales: expected rows >= 1, probabilities in (0, 1) and dwell times above 1, got {rows} rows, {process}"
            )
        self.generator = torch.Generator().manual_seed(seed)
        start = (VALUES * self._uniform(1, rows)[0, :, :3]).long()
        self.hidden = start
        self.tokens = self._emit(start, self._uniform(1, rows)[0, :, 3:])

    def sample(self, steps: int) -> Chunk:
        """The next `steps` steps."""
        p, (rows, _) = self.process, self.hidden.shape
        uniform = self._uniform(steps, rows)
        moves = torch.stack(
            [
                1 + _other(uniform[..., 0], p.advance),
                *(_other(uniform[..., 1 + i], 1 - 1 / dwell) for i, dwell in enumerate(p.dwell)),
            ],
            -1,
        )
        hidden = torch.cat([self.hidden[None], (self.hidden + moves.cumsum(0)) % VALUES])
        tokens = torch.cat([self.tokens[None], self._emit(hidden[1:], uniform[..., 3:])])
        self.hidden, self.tokens = hidden[-1], tokens[-1]
        return Chunk(*(x.transpose(0, 1).contiguous() for x in (tokens[:-1], tokens[1:], hidden[:-1])))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "hidden": self.hidden, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.hidden, self.tokens = state["hidden"], state["tokens"]

    def _uniform(self, steps: int, rows: int) -> Tensor:
        # Time comes first, so that two short draws are one long one.
        return torch.rand(steps, rows, 5, generator=self.generator, dtype=torch.float64)

    def _emit(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Hidden [..., 3] and noise [..., 2] to tokens [..., 3]."""
        a = hidden[..., 0]
        seen = [hidden[..., 1 + i] + _other(uniform[..., i], right) for i, right in enumerate(self.process.right)]
        return torch.stack([a, *((s + a) % VALUES for s in seen)], -1)


class Filtered(NamedTuple):
    """What is known after each step. predicted: of each next token; posterior: of b and c now; prior: of b and c next."""

    predicted: Tensor  # [B, T, 3, 4]
    posterior: Tensor  # [B, T, 2, 4]
    prior: Tensor  # [B, 2, 4], to go on with


def bayes_filter(tokens: Tensor, process: Process | None = None, prior: Tensor | None = None) -> Filtered:
    """The exact filter over tokens [B, T, 3], in float64; `prior` [B, 2, 4] goes on from an earlier chunk.

    Since a is seen, each of the other two is a hidden Markov chain of four states with known observations.
    """
    p, rows = process or Process(), tokens.shape[0]
    a = tokens[..., :1]
    seen = torch.nn.functional.one_hot((tokens[..., 1:] - a) % VALUES, VALUES).double()  # [B, T, 2, 4]
    right = torch.tensor(p.right, dtype=torch.float64, device=tokens.device)[:, None]
    stay = 1 - 1 / torch.tensor(p.dwell, dtype=torch.float64, device=tokens.device)[:, None]
    likelihood = _spread(seen, right)
    if prior is None:
        prior = torch.full((rows, 2, VALUES), 1 / VALUES, dtype=torch.float64, device=tokens.device)
    posteriors, priors = [], []
    for t in range(tokens.shape[1]):
        posterior = prior * likelihood[:, t]
        posterior = posterior / posterior.sum(-1, keepdim=True)
        prior = _spread(posterior, stay)
        posteriors.append(posterior)
        priors.append(prior)
    observed = _spread(torch.stack(priors, 1), right)  # of o^b, o^c one step later
    following = torch.nn.functional.one_hot((tokens[..., 0] + 1) % VALUES, VALUES).double()
    next_a = _spread(following, p.advance)  # [B, T, 4]
    # The sum of two independent values mod 4: p(s) = sum_k p(a = k) p(o = s - k).
    shifted = torch.stack([observed.roll(k, -1) for k in range(VALUES)], -1)  # [B, T, 2, s, k]
    scrambled = torch.einsum("btisk,btk->btis", shifted, next_a)
    return Filtered(torch.cat([next_a.unsqueeze(2), scrambled], 2), torch.stack(posteriors, 1), prior)


def nll(predicted: Tensor, targets: Tensor) -> Tensor:
    """Nats per token and variable [B, T, 3], from probabilities [B, T, 3, 4] and targets [B, T, 3]."""
    return -predicted.gather(-1, targets.unsqueeze(-1)).squeeze(-1).log()


def gain(model: Tensor, bayes: Tensor) -> Tensor:
    """Share of what can be gained over knowing nothing: (ln 4 - nll) / (ln 4 - nll of the filter), both means [3]."""
    return (math.log(VALUES) - model) / (math.log(VALUES) - bayes)


def _other(uniform: Tensor, keep: float) -> Tensor:
    """0 with probability `keep`, else 1, 2 or 3 alike."""
    return torch.where(uniform < keep, 0, 1 + (3 * (uniform - keep) / (1 - keep)).long().clamp(0, 2))


def _spread(p: Tensor, keep: Tensor | float) -> Tensor:
    """A distribution [..., 4] whose value is kept with probability `keep`, else replaced by one of the other three."""
    return keep * p + (1 - keep) / (VALUES - 1) * (1 - p)
