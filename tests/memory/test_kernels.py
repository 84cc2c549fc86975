"""What is asked of flash-linear-attention's kernels, answered on a CPU by the same library's plain forms of them."""

import pytest
import torch

import nestmem
from nestmem.memory import kernels

pytest.importorskip("fla", reason="the extra `kernels` is for Linux")
NAMES = ["linear_attention", "retnet", "mamba2", "gla", "deltanet", "gated_deltanet"]


@pytest.fixture
def served(monkeypatch):
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.simple_gla.naive import naive_chunk_simple_gla

    plain = kernels.Forms(naive_chunk_gated_delta_rule, naive_chunk_simple_gla, naive_recurrent_gla)
    monkeypatch.setattr(kernels, "forms", lambda: plain)
    monkeypatch.setattr(kernels, "serve", lambda x, key: True)


def run(memory, x):
    """Output, state and gradients of the second of two stretches, so that the state at its beginning matters."""
    _, state = memory(x[:, :9])
    y, state = memory(x[:, 9:], state)
    loss = y.square().sum() + state.s.square().sum()
    return y, state.s, *torch.autograd.grad(loss, list(memory.parameters()), allow_unused=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_answers_states_and_gradients(name, monkeypatch, request):
    torch.manual_seed(0)
    memory, x = nestmem.build(name, 8, heads=2), torch.randn(3, 73, 8)
    want = run(memory, x)
    request.getfixturevalue("served")
    got = run(memory, x)
    assert sum(part is not None for part in got) > 4
    for a, b in zip(want, got, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_an_error(served):
    memory, x = nestmem.build("gated_deltanet", 8), torch.randn(2, 20, 8)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(memory(x)[0].sum(), list(memory.parameters()), create_graph=True, allow_unused=True)


def test_a_cpu_and_whole_precision_keep_the_chunk_form():
    assert not kernels.serve(torch.randn(1, 4, 8), 8)
    assert not kernels.serve(torch.randn(1, 4, 8).bfloat16(), 8)
