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


def test_unknown_kernel():
    with pytest.raises(ValueError, match="kernel: expected fused or loop, got 'cudnn'"):
        LSTM(4, kernel="cudnn")
