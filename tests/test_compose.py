"""Memories made of memories."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import LSTM, Context, Episodic, Gated, NeuralMemory, Stack, Window

D = 8


def tokens(steps=20, rows=2, seed=0):
    return torch.randn(rows, steps, D, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def norm(x):
    return F.layer_norm(x, (D,))


def test_stack_adds_what_each_memory_says_to_the_stream():
    torch.manual_seed(0)
    stack = Stack([NeuralMemory(D), Window(D)]).double()
    x = tokens()
    h = x + stack.parts[0](norm(x))[0]
    h = h + stack.parts[1](norm(h))[0]
    torch.testing.assert_close(stack(x)[0], h)


def test_gated_multiplies_one_memory_by_the_other():
    torch.manual_seed(0)
    gated = Gated(Window(D), LSTM(D)).double()
    x = tokens()
    want = norm(gated.parts[0](x)[0]) * norm(gated.parts[1](x)[0]).sigmoid()
    torch.testing.assert_close(gated(x)[0], want)


def test_context_is_attention_over_what_the_memory_held_when_the_segment_began():
    """One segment of four tokens, written out token by token and head by head."""
    torch.manual_seed(0)
    context = Context(Episodic(D), segment=4, persistent=1).double()
    with torch.no_grad():
        context.by_distance.normal_()
    x, memory, attention = tokens(steps=8, rows=1), context.parts[0], context.attention
    _, state = context(x[:, :4])
    begun = state.now
    recalled = memory.read(x[:, 4:], begun)[0]
    q, k, v = (part[0, 0] for part in attention.project(x[:, 4:]))
    _, hk, hv = (part[0, 0] for part in attention.project(recalled))
    mixed = []
    for t in range(4):
        keys = torch.cat([attention.persistent[0, 0], hk[: t + 1], k[: t + 1]])
        values = torch.cat([attention.persistent[1, 0], hv[: t + 1], v[: t + 1]])
        back = torch.arange(t, -1, -1)
        bias = torch.cat([torch.zeros(1), context.by_distance[0, 0, back], context.by_distance[0, 1, back]])
        weights = torch.softmax(keys @ q[t] / D**0.5 + bias, 0)
        mixed.append(attention.out(weights @ values))
    mixed = torch.stack(mixed)[None]
    want = norm(mixed) * norm(memory(mixed, begun)[0]).sigmoid()
    torch.testing.assert_close(context(x[:, 4:], state)[0], want)


def test_a_window_sees_its_last_tokens_and_no_more():
    torch.manual_seed(0)
    window = Window(D, window=5).double()
    x = tokens()
    changed = x.clone()
    changed[:, 3] += 1
    differs = (window(x)[0] - window(changed)[0]).abs().sum((0, 2)) > 0
    assert differs.nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("name", ["titans_layer", "titans_gate", "titans_context"])
def test_titans_recalls_what_its_window_no_longer_holds(name):
    """The output depends on a token far outside the attention's reach, through the neural memory alone."""
    torch.manual_seed(0)
    memory = nestmem.build(name, D, chunk=4).double()
    x = tokens(steps=60)
    changed = x.clone()
    changed[:, 2] = x[:, 2].flip(-1)
    assert (memory(x)[0] - memory(changed)[0])[:, -1].abs().max() > 1e-6


def test_parts_share_their_width():
    with pytest.raises(ValueError, match=r"parts: expected one d_model for all, got \[4, 8\]"):
        Stack([LSTM(4), LSTM(8)])
    with pytest.raises(ValueError, match="segment: expected at least 1 token, got 0"):
        Context(LSTM(4), segment=0)
    with pytest.raises(ValueError, match="heads: expected a divisor of d_model = 8, got 3"):
        Window(8, heads=3)
