import pytest
import torch

from nestmem import LSTM


def test_the_fused_kernel_and_the_loop_agree_with_nn_lstm():
    torch.manual_seed(0)
    fused, loop = LSTM(6, hidden=9).double(), LSTM(6, hidden=9, kernel="loop").double()
    loop.load_state_dict(fused.state_dict())
    theirs = torch.nn.LSTM(6, 9, batch_first=True).double()
    weights = {"weight_ih_l0": fused.w_ih, "weight_hh_l0": fused.w_hh, "bias_ih_l0": fused.bias}
    theirs.load_state_dict(weights | {"bias_hh_l0": torch.zeros(36)})
    x = torch.randn(4, 11, 6, dtype=torch.double)
    want = fused.out(theirs(x)[0])
    gradients = []
    for memory in (fused, loop):
        y, _ = memory(x)
        torch.testing.assert_close(y, want, rtol=1e-9, atol=1e-12)
        gradients.append(torch.autograd.grad(y.square().sum(), list(memory.parameters())))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", ["fused", "loop"])
def test_reset_every_clears_on_its_clock(kernel):
    memory = LSTM(5, reset_every=4, kernel=kernel)
    x = torch.randn(2, 10, 5)
    y, _ = memory(x)
    fresh, _ = memory(x[:, 4:8])
    torch.testing.assert_close(y[:, 4:8], fresh)
    assert not torch.allclose(LSTM.forward(memory, x[:, 3:7])[0][:, :1], y[:, 3:4])


@pytest.mark.parametrize(("before", "steps"), [(0, 8), (0, 11), (2, 1), (2, 2), (3, 14), (4, 3)])
def test_windows_between_resets_in_one_batch_equal_a_loop(before, steps):
    torch.manual_seed(0)
    memory = LSTM(5, hidden=7, reset_every=4).double()
    x = torch.randn(3, before + steps, 5, dtype=torch.double)
    state = memory.initial_state(3)
    for t in range(before):
        _, state, _ = memory.step(x[:, t], state)
    y, after = memory(x[:, before:], state)
    want = []
    for t in range(before, before + steps):
        out, state, _ = memory.step(x[:, t], state)
        want.append(out)
    want = torch.stack(want, 1)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(after, state):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    parameters = list(memory.parameters())
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), parameters, retain_graph=True) for o in (y, want))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_chrono_biases_forget_over_up_to_so_many_steps():
    torch.manual_seed(0)
    memory = LSTM(4, hidden=500, chrono=1000)
    write, forget = memory.bias[:1000].detach().chunk(2)
    assert torch.equal(write, -forget)
    timescale = 1 / (1 - forget.sigmoid())  # uniform between 2 and 1000 steps
    assert timescale.min() < 20 and timescale.max() > 950 and 450 < timescale.mean() < 550
    with pytest.raises(ValueError, match="chrono: expected 0 or at least 3 steps, got 2"):
        LSTM(4, chrono=2)


def test_unknown_kernel():
    with pytest.raises(ValueError, match="kernel: expected fused or loop, got 'cudnn'"):
        LSTM(4, kernel="cudnn")
