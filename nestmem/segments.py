"""SegmentWrapper: a long memory around any backbone, one embedding per segment.

HMT, the hierarchical memory transformer (He et al. 2025). The backbone maps embeddings to hidden states of the same width;
with a learned token z, segment x_n is read in three passes over [prefix | tokens | suffix]:
    summarise  s_n = last hidden of [z | half of x_n | z]
    recall     p_n = sum_i w_i m_i,  w = softmax_i((W_q s) . (W_k m_i) / sqrt K);  p_n = z while nothing is stored
    decode     y_n, m_n = hidden of the segment, and last hidden, of [p_n | tokens before the segment | x_n | p_n]
m_n joins the memory, a queue. Three timescales: the last few tokens, the backbone's own context, and the queue.

What the query s is decides what is causal. "previous": s_(n-1), from the second half of the last segment; with a causal
backbone y is then strictly causal. "current", as published: s_n, from the first half of the segment itself; the weights w
then tell every position of a segment, also its first, about that half. That suits a segment which is given whole (a
document, a prompt), not one whose tokens are to be predicted. Either way segments before n do not depend on segment n.
Legend: B rows, T tokens, D width, L tokens of a segment, N segments, S slots, R sensory tokens, K key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestmem.memory.base import check_tokens


class SegmentState(NamedTuple):
    cache: Tensor  # [B, S, D] memory embeddings, oldest first; the last min(read, S) hold something
    read: Tensor  # [B] segments so far
    sensory: Tensor  # [B, R, D] the last tokens
    summary: Tensor  # [B, D] of the last segment


class SegmentWrapper(nn.Module):
    """Wraps a backbone, embeddings [B, L, D] to hidden states [B, L, D], so that it remembers earlier segments.

    backbone: a module, or any callable (whose parameters are then not this module's). d_model: D.
    segment: L; the backbone sees L + R + 2 tokens at once. slots: S, the oldest embedding leaves first.
    sensory: R, tokens before the segment that are shown again. key_size: K, by default D.
    depth: gradients reach back over at most this many memory embeddings. Gradients run in windows of depth + 1 segments, at
        whose start the queue is detached as a whole: with old embeddings alone detached, they would go on through newer ones.
    summary: "previous" or "current", what the query is made of; see above.
    recall: without it p_n is always z, which leaves the backbone and its sensory tokens: the ablation.
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Tensor],
        d_model: int,
        segment: int = 128,
        slots: int = 64,
        sensory: int = 16,
        depth: int = 6,
        key_size: int = 0,
        summary: str = "previous",
        recall: bool = True,
    ):
        super().__init__()
        for name, value, least in (
            ("segment", segment, 1),
            ("slots", slots, 1),
            ("sensory", sensory, 0),
            ("depth", depth, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if summary not in ("previous", "current"):
            raise ValueError(f"summary: expected previous or current, got {summary!r}")
        self.backbone, self.d_model = backbone, d_model
        self.segment, self.slots, self.sensory, self.depth = segment, slots, sensory, depth
        self.summary, self.recall = summary, recall
        self.to_query = nn.Linear(d_model, key_size or d_model, bias=False)
        self.to_key = nn.Linear(d_model, key_size or d_model, bias=False)
        self.token = nn.Parameter(0.02 * torch.randn(d_model))  # z, for all that is not there

    def initial_state(self, batch_size: int) -> SegmentState:
        """Rows that have read nothing; the tokens before their first segment are z."""
        return SegmentState(
            cache=self.token.new_zeros(batch_size, self.slots, self.d_model),
            read=torch.zeros(batch_size, dtype=torch.long, device=self.token.device),
            sensory=self.token.expand(batch_size, self.sensory, -1),
            summary=self.token.expand(batch_size, -1),
        )

    def forward(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        """Embeddings x [B, T, D] to hidden states y [B, T, D], and the state for what follows.

        x is cut into segments of L tokens; a shorter last one is a segment too, so a stream that comes in several calls
        gives the same as in one call where each but the last call brings whole segments.
        """
        y, state, _ = self.trace(x, state)
        return y, state

    def trace(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState, Tensor]:
        """`forward` that also returns the weights of recall [B, N, S], slots in the order of the cache (newest last)."""
        check_tokens(x, self.d_model)
        state = self.initial_state(x.shape[0]) if state is None else state
        ys, weights = [], []
        for tokens in x.split(self.segment, 1):
            y, state, used = self._read(tokens, state)
            ys.append(y)
            weights.append(used)
        return torch.cat(ys, 1), state, torch.stack(weights, 1)

    def _read(self, tokens: Tensor, state: SegmentState) -> tuple[Tensor, SegmentState, Tensor]:
        """One segment [B, L, D]: its hidden states, the state after it and the weights of its recall [B, S]."""
        start, cache = state.read % (self.depth + 1) == 0, state.cache.detach()
        if not bool(start.all()):  # where all rows begin a window, the old graph is let go of
            cache = torch.where(start[:, None, None], cache, state.cache)
        z, summary = self.token.expand(len(tokens), -1), state.summary
        prompt, weights = z, torch.zeros_like(cache[..., 0])
        if self.recall:
            half = (tokens.shape[1] + 1) // 2
            part = tokens[:, :half] if self.summary == "current" else tokens[:, -half:]
            summary = self._pass(z, part)[:, -1]
            prompt, weights = self._recall(summary if self.summary == "current" else state.summary, cache, state.read)
        hidden = self._pass(prompt, state.sensory, tokens)
        recent = tokens if tokens.shape[1] >= self.sensory else torch.cat([state.sensory, tokens], 1)
        after = SegmentState(
            cache=torch.cat([cache[:, 1:], hidden[:, -1:]], 1),
            read=state.read + 1,
            sensory=recent[:, recent.shape[1] - self.sensory :],
            summary=summary,
        )
        return hidden[:, 1 + self.sensory : -1], after, weights

    def _pass(self, ends: Tensor, *between: Tensor) -> Tensor:
        """The backbone on some tokens with `ends` [B, D] before and after them."""
        return self.backbone(torch.cat([ends[:, None], *between, ends[:, None]], 1))

    def _recall(self, query: Tensor, cache: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """What the memory holds about a query [B, D]: an embedding [B, D], z where it is empty, and weights [B, S]."""
        filled = torch.arange(self.slots, device=cache.device) >= self.slots - read[:, None]
        keys = self.to_key(cache)
        match = torch.einsum("bk,bsk->bs", self.to_query(query), keys) / math.sqrt(keys.shape[-1])
        weights = torch.softmax(match.masked_fill(~filled, torch.finfo(match.dtype).min), -1) * filled
        recalled = torch.einsum("bs,bsd->bd", weights, cache)
        return torch.where(read[:, None] > 0, recalled, self.token), weights
