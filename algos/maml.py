"""MAML (Finn et al. 2017): meta-learn weights from which a few gradient steps fit a task.

    theta_0 = theta;  theta_{k+1} = theta_k - alpha * grad L(theta_k; support);  minimise L(theta_K; query) over theta (and alpha)

First order drops the derivative of the inner gradient; ANIL (Raghu et al. 2020) adapts the head alone; Meta-SGD (Li et al.
2017) learns one alpha per number. All tasks of a batch adapt at once under `torch.func.vmap`.
With a memory the support set is also written into it, encoded by the adapted weights, and queries are answered by a
mixture of the head and the memory: the inner-loop weights are one more level with a clock of their own.
Legend: B tasks, n examples, F features, N ways.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from algos.learner import Learner, Outcome
from envs.fewshot import Episodes
from nestmem.memory.base import Fields, Memory

Weights = dict[str, Tensor]


class Classifier(nn.Module):
    """Encoder and linear head, and beside the head a memory if there is one."""

    def __init__(self, encoder: nn.Module, features: int, ways: int, memory: Memory | None = None):
        super().__init__()
        self.encoder, self.head, self.memory, self.ways = encoder, nn.Linear(features, ways), memory, ways
        if memory is not None:
            self.fields = Fields(features, 0, ways)
            self.trust = nn.Parameter(torch.zeros(()))  # log-odds of the memory against the head

    def forward(self, x: Tensor, support: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Logits [n, N] of images [n, 1, H, W]; with a memory, `support` = (images, labels) is written to it first."""
        features = self.encoder(x)
        logits = self.head(features)
        if self.memory is None or support is None:
            return logits
        remembered = self._recall(features, self.encoder(support[0]), support[1])
        parts = [
            F.logsigmoid(-self.trust) + logits.log_softmax(-1),
            F.logsigmoid(self.trust) + remembered.log_softmax(-1),
        ]
        return torch.logsumexp(torch.stack(parts), 0)

    def _recall(self, queries: Tensor, support: Tensor, labels: Tensor) -> Tensor:
        assert self.memory is not None
        outcomes = F.one_hot(labels, self.ways).to(support.dtype)
        # (x_t, y_{t-1}), and a closing token for the last label.
        content = torch.cat([support, torch.zeros_like(support[:1])])
        arriving = torch.cat([torch.zeros_like(outcomes[:1]), outcomes])
        state = self.memory(torch.cat([content, arriving], -1)[None])[1]
        asked = torch.cat([queries, queries.new_zeros(len(queries), self.ways)], -1)
        return self.fields.split(self.memory.read(asked[None], state)[0][0])[2]


class MAML(Learner):
    """MAML and its kin around any module.

    model: called as `model(x)` in the inner loop and `model(x, support)` for the queries.
    steps, eval_steps: inner steps in training and in evaluation. rate: alpha, or where it starts (`learn_rates`).
    second_order: differentiate through the inner gradients. adapt: prefix of the parameters that adapt ("" all,
    "head" for ANIL). criterion: the loss of both loops; anything else than classes is a regression without accuracy.
    """

    point = "inner step"

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 1,
        eval_steps: int = 3,
        rate: float = 0.4,
        second_order: bool = True,
        adapt: str = "",
        learn_rates: bool = False,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ):
        super().__init__()
        self.model, self.steps, self.eval_steps, self.second_order = model, steps, eval_steps, second_order
        self.criterion = criterion
        self.fast = [name for name, _ in model.named_parameters() if name.startswith(adapt)]
        if not self.fast:
            raise ValueError(f"adapt: no parameter of the model begins with {adapt!r}")
        parameters = dict(model.named_parameters())
        self.rates = nn.ParameterList(
            nn.Parameter(
                torch.full_like(parameters[name] if learn_rates else parameters[name].new_zeros(()), rate), learn_rates
            )
            for name in self.fast
        )

    def loss(self, batch: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        def task(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> tuple[Tensor, Tensor]:
            fast = self.weights()
            for _ in range(self.steps):
                fast = self.inner_step(fast, sx, sy)
            logits = functional_call(self.model, fast, (qx, (sx, sy)))
            return self.criterion(logits, qy), (logits.argmax(-1) == qy).float().mean()

        losses, accuracy = vmap(task, randomness="different")(*batch)
        return losses.mean(), {"loss": losses.detach().mean(), "accuracy": accuracy.mean()}

    @torch.no_grad()
    def evaluate(self, batch: Episodes) -> Outcome:
        """Accuracy on the queries after 0, 1, ... `eval_steps` inner steps."""

        def task(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
            fast, correct = self.weights(), []
            for step in range(self.eval_steps + 1):
                if step:
                    fast = self.inner_step(fast, sx, sy)
                logits = functional_call(self.model, fast, (qx, (sx, sy)))
                correct.append((logits.argmax(-1) == qy).float().mean())
            return torch.stack(correct)

        return Outcome(vmap(task)(*batch))

    def weights(self) -> Weights:
        """The adaptable parameters before adaptation."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name] for name in self.fast}

    def inner_step(self, fast: Weights, x: Tensor, y: Tensor) -> Weights:
        """One gradient step on the support set; the rest of the model is shared by all tasks."""

        def support_loss(fast: Weights) -> Tensor:
            return self.criterion(functional_call(self.model, fast, (x,)), y)

        if self.second_order:
            gradient = grad(support_loss)(fast)
        else:
            with torch.no_grad():
                gradient = grad(support_loss)(fast)
        return {name: w - rate * gradient[name] for (name, w), rate in zip(fast.items(), self.rates, strict=True)}
