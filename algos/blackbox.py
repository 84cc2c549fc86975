"""The memory is the learner: labels arrive one step late, and no weight changes inside a task.

Santoro et al. 2016 (MANN): the input at step t is (x_t, y_{t-1}), so the label of an image is known only after it was asked
for, and the memory has to bind the two. After the support set a closing token brings the last label; then every query
is answered from the same state.
Legend: B tasks, N ways, K shots, Q queries per class, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.learner import Learner, Outcome
from envs.fewshot import Episodes
from nestmem.memory.base import Aux, Fields, Memory, State


class BlackBox(Learner):
    """Encoder and memory. The memory answers in the outcome field of a token, as logits over the ways.

    level_loss: weight of each level's own cross-entropy beside that of the mixture, so that every level learns to
        answer whichever of them the gate prefers.
    shifts: in evaluation, an image's features are averaged over its shifts by up to so many pixels (0: none).
    """

    point = "shots"

    def __init__(self, encoder: nn.Module, memory: Memory, fields: Fields, level_loss: float = 0.2, shifts: int = 0):
        super().__init__()
        self.encoder, self.memory, self.fields = encoder, memory, fields
        self.level_loss, self.shifts = level_loss, shifts

    def loss(self, batch: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        support, queries = self._features(batch)
        state = self.memory.initial_state(len(support))
        state = self._observe(support, batch.support_y, None, state)[1]
        y, aux = self._ask(queries, batch.support_y[:, -1], state)
        target = batch.query_y.flatten()
        logits = self._logits(y)
        loss = F.cross_entropy(logits.flatten(0, 1), target)
        metrics = {"loss": loss.detach(), "accuracy": (logits.argmax(-1).flatten() == target).float().mean()}
        for read in aux.reads:
            loss = loss + self.level_loss * F.cross_entropy(self._logits(read).flatten(0, 1), target)
        if aux.gates is not None:
            for level, gate in enumerate(aux.gates.detach().flatten(0, 1).mean(0)):
                metrics[f"gate/{level}"] = gate
        return loss, metrics

    @torch.no_grad()
    def evaluate(self, batch: Episodes) -> Outcome:
        """Accuracy after 0, 1, ... K shots of every class, and the gate at each."""
        support, queries = self._features(batch)
        ways = int(batch.query_y.max()) + 1
        state, last = self.memory.initial_state(len(support)), None
        accuracy, gates = [], []
        for shot in range(support.shape[1] // ways + 1):
            if shot:
                block = slice((shot - 1) * ways, shot * ways)
                labels = batch.support_y[:, block]
                _, state = self._observe(support[:, block], labels, last, state)
                last = labels[:, -1]
            y, aux = self._ask(queries, last, state)
            guess = self._logits(y)[..., :ways].argmax(-1)  # of a model for more ways only the first are asked
            accuracy.append((guess == batch.query_y).float().mean(1))
            if aux.gates is not None:
                gates.append(aux.gates.mean((0, 1)))
        return Outcome(torch.stack(accuracy, 1), torch.stack(gates) if gates else None)

    def _features(self, batch: Episodes) -> tuple[Tensor, Tensor]:
        """Support [B, N K, F] and queries [B, N Q, F], encoded in one go."""
        images = torch.cat([batch.support_x, batch.query_x], 1)
        reach = range(-self.shifts, self.shifts + 1) if not self.training else range(1)
        views = [self.encoder(images.flatten(0, 1).roll((y, x), (2, 3))) for y in reach for x in reach]
        features = (sum(views) / len(views)).unflatten(0, images.shape[:2])
        support, queries = features.split([batch.support_x.shape[1], batch.query_x.shape[1]], 1)
        return support, queries

    def _observe(self, support: Tensor, labels: Tensor, before: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Show a stretch of the support set; `before` [B] is the label still owed to what came before it."""
        outcomes = F.one_hot(labels, self.fields.outcome).to(support.dtype)
        first = torch.zeros_like(outcomes[:, :1])
        if before is not None:
            first = F.one_hot(before, self.fields.outcome).to(support.dtype)[:, None]
        return self.memory(self._tokens(support, torch.cat([first, outcomes[:, :-1]], 1)), state)

    def _ask(self, queries: Tensor, last: Tensor | None, state: State) -> tuple[Tensor, Aux]:
        """Bring the last label in a closing token, then read every query from that state."""
        if last is not None:
            outcome = F.one_hot(last, self.fields.outcome).to(queries.dtype)[:, None]
            closing = self._tokens(torch.zeros_like(queries[:, :1]), outcome)
            _, state = self.memory(closing, state)
        nothing = queries.new_zeros(*queries.shape[:2], self.fields.outcome)
        return self.memory.read(self._tokens(queries, nothing), state)

    def _tokens(self, content: Tensor, outcome: Tensor) -> Tensor:
        return torch.cat([content, outcome], -1)

    def _logits(self, y: Tensor) -> Tensor:
        return self.fields.split(y)[2].float()
