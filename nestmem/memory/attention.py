"""Window: softmax attention over the last tokens, the memory a Transformer has without its past.

    y_t = sum_j softmax_j(q_t . k_j / sqrt(d) + bias_{t-j}) v_j   over j in (t - W, t] and P persistent tokens
Persistent tokens are learned keys and values that are always in sight (Behrouz et al. 2025, Titans); the bias is one learned
number per head and distance. Test-time regression: a local average of the newest items.
Legend: B rows, T steps, L steps of a piece, W window, P persistent tokens, H heads, d width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.memory.base import Aux, Fields, Memory, MemorySpec, Regression, check_fields
from nestmem.memory.registry import register


class WindowState(NamedTuple):
    keys: Tensor  # [B, H, W - 1, d], oldest first
    values: Tensor  # [B, H, W - 1, d]
    step: Tensor  # [B] steps since reset


class Attention(nn.Module):
    """Causal multi-head attention with persistent tokens; `bias` [..., L, J] is added to the scores, -inf hides."""

    def __init__(self, d_model: int, heads: int, persistent: int):
        super().__init__()
        if heads < 1 or d_model % heads:
            raise ValueError(f"heads: expected a divisor of d_model = {d_model}, got {heads}")
        self.heads = heads
        self.to_qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.persistent = nn.Parameter(0.02 * torch.randn(2, heads, persistent, d_model // heads))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, L, D] to queries, keys and values [B, H, L, d]."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-4, -2).unbind(-4)
        return q, k, v

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """q [B, H, L, d] over keys and values [B, H, J, d]: [B, L, D]."""
        rows = q.shape[0]
        always_k, always_v = (p.expand(rows, *p.shape) for p in self.persistent)
        q = q * q.shape[-1] ** -0.5
        scores = torch.cat([q @ always_k.mT, q @ keys.mT + bias], -1)
        y = torch.softmax(scores, -1) @ torch.cat([always_v, values], 2)
        mixed: Tensor = self.out(y.movedim(1, 2).flatten(2))
        return mixed


@register("window")
class Window(Memory):
    """Attention over the last `window` tokens and `persistent` learned ones."""

    spec = MemorySpec(role="working", lifetime="episode", regression=Regression("uniform", "slots", "exact"))

    def __init__(
        self, d_model: int, fields: Fields | None = None, window: int = 16, heads: int = 1, persistent: int = 1
    ):
        super().__init__()
        check_fields(fields, d_model)
        if window < 1:
            raise ValueError(f"window: expected at least 1 token, got {window}")
        if persistent < 0:
            raise ValueError(f"persistent: expected 0 or more tokens, got {persistent}")
        self.d_model, self.window, self.fields = d_model, window, fields
        self.attention = Attention(d_model, heads, persistent)
        self.by_distance = nn.Parameter(torch.zeros(heads, window))
        self.out = nn.Identity() if fields is None else nn.Linear(d_model, fields.outcome)

    def initial_state(self, batch_size: int) -> WindowState:
        heads = self.attention.heads
        held = self.by_distance.new_zeros(batch_size, heads, self.window - 1, self.d_model // heads)
        return WindowState(held, held, torch.zeros(batch_size, dtype=torch.long, device=held.device))

    def step(self, x: Tensor, state: WindowState) -> tuple[Tensor, WindowState, Aux]:
        y, state, aux = self._piece(x[:, None], state)
        return y[:, 0], state, Aux(confidence=aux.confidence[:, 0])

    def read(self, query: Tensor, state: WindowState) -> tuple[Tensor, Aux]:
        """What a step with each query would answer, one by one."""
        queries = query if query.dim() == 3 else query[:, None]
        count = queries.shape[1]
        repeated = WindowState(*(part.repeat_interleave(count, 0) for part in state))
        y, _, _ = self._piece(queries.flatten(0, 1)[:, None], repeated)
        answer = y[:, 0].unflatten(0, (-1, count)) if query.dim() == 3 else y[:, 0]
        return answer, Aux(confidence=torch.zeros_like(answer[..., :1]))

    def write(self, item: Tensor, state: WindowState, *, signal: Tensor | None = None) -> WindowState:
        return self.step(item, state)[1]

    def run(self, x: Tensor, state: WindowState) -> tuple[Tensor, WindowState, Aux]:
        """Pieces of a window's length: each sees itself and the window before."""
        pieces = []
        for start in range(0, x.shape[1], self.window):
            y, state, aux = self._piece(x[:, start : start + self.window], state)
            pieces.append((y, aux.confidence))
        return torch.cat([y for y, _ in pieces], 1), state, Aux(torch.cat([c for _, c in pieces], 1))

    def _piece(self, x: Tensor, state: WindowState) -> tuple[Tensor, WindowState, Aux]:
        steps, held = x.shape[1], self.window - 1
        q, k, v = self.attention.project(x)
        keys, values = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        # Query i stands at position held + i of the J = held + L keys.
        distance = torch.arange(held, held + steps, device=x.device)[:, None] - torch.arange(
            held + steps, device=x.device
        )
        seen = (distance >= 0) & (distance < self.window)
        bias = self.by_distance[:, distance.clamp(0, self.window - 1)].masked_fill(~seen, -torch.inf)  # [H, L, J]
        empty = torch.arange(held + steps, device=x.device) < held - state.step[:, None]  # [B, J] before the beginning
        y = self.attention.attend(q, keys, values, bias[None].masked_fill(empty[:, None, None], -torch.inf))
        y = self.out(y) if self.fields is None else self.fields.token(self.out(y))
        end = WindowState(keys[:, :, steps:], values[:, :, steps:], state.step + steps)
        return y, end, Aux(confidence=torch.zeros_like(y[..., :1]))
