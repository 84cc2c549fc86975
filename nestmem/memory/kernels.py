"""The recurrence family by flash-linear-attention's Triton kernels, on a CUDA card in bfloat16 or half.

They are used where that library is installed (`pip install "nestmem[kernels]"`) and numbers are of 16 bits, by autocast or by
the module's own type; the kernels of the delta rule refuse 32 bits, and in 32 bits the chunk form of `recurrence` is exact.
Two things would go wrong silently and do not: they have no second derivative, so asking for one is an error; and they read
with q / sqrt(K), which is undone.
Legend: B rows, T steps, H heads, K key and V outcome of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestmem.memory.base import traced

HALVES = (torch.bfloat16, torch.float16)
WIDEST = 256  # key that the kernel of the delta rule takes
Form = Callable[..., tuple[Tensor, Tensor]]


class Forms(NamedTuple):
    """Functions of q, k, v [B, T, H, K or V], log decays [B, T, H] (channel: [B, T, H, K]) and, for delta, rates [B, T, H]."""

    delta: Form
    hebb: Form
    channel: Form


def forms() -> Forms:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    return Forms(chunk_gated_delta_rule, chunk_simple_gla, chunk_gla)


def serve(x: Tensor, key: int) -> bool:
    """Whether kernels can take the tokens x, in heads whose keys have `key` numbers."""
    if not x.is_cuda or key > WIDEST or traced(x) or find_spec("fla") is None:
        return False
    return (torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype) in HALVES


def linear(
    q: Tensor, key: Tensor, outcome: Tensor, rate: Tensor, log_decay: Tensor, s: Tensor, *, delta: bool
) -> tuple[Tensor, Tensor]:
    """All writes and reads of a sequence: what `recurrence.linear_chunk` takes and gives, for T steps at once.

    Raises RuntimeError in a backward pass that is to be differentiated again.
    """
    half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q.dtype
    value = outcome if delta else rate * outcome
    query = q * q.shape[-1] ** 0.5
    wide = [part.transpose(1, 2).to(half) for part in (query, key, value, rate)]
    decay = log_decay.transpose(1, 2).float()
    channel = decay.shape[-1] > 1
    known = forms()
    form = known.delta if delta else known.channel if channel else known.hebb
    parts = [*wide[:3], decay if channel else decay[..., 0], *([wide[3][..., 0]] if delta else []), s.float()]
    with torch.autocast(q.device.type, enabled=False):
        y, after = _Once.apply(form, *parts)
    return y.transpose(1, 2).to(outcome.dtype), after.to(s.dtype)


class _Once(torch.autograd.Function):
    """A kernel and its backward pass, which records nothing: what would be a silent zero becomes an error."""

    @staticmethod
    def forward(ctx: Any, form: Form, *parts: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            ctx.parts = [part.detach().requires_grad_(part.requires_grad) for part in parts]
            *flow, s = ctx.parts
            ctx.results = form(*(part.contiguous() for part in flow), initial_state=s, output_final_state=True)
        y, after = ctx.results
        return y.detach(), after.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "flash-linear-attention's kernels have no second derivative: run this memory in float32, "
                "or without create_graph"
            )
        wanted = [part for part in ctx.parts if part.requires_grad]
        found = iter(torch.autograd.grad(ctx.results, wanted, grads, allow_unused=True))
        return (None, *(next(found) if part.requires_grad else None for part in ctx.parts))
