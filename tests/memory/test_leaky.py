import numpy as np
import pytest
import torch

from nestmem import LSTM, Context, Gated, Leaky, Stack, Summed, build
from nestmem.memory.leaky import CHUNK, track


def test_averages_are_leaky_counts_with_time_constants_between_tau_over_spread_and_tau():
    torch.manual_seed(0)
    memory = Leaky(5, hidden=3, tau=40.0, spread=4.0).double()
    x = torch.randn(2, CHUNK + 9, 5, dtype=torch.double)
    phi = torch.tanh(memory.features(x)).detach().numpy()
    want, taus = np.zeros((2, 3)), np.array([40.0, 20.0, 10.0])
    for t in range(x.shape[1]):
        want += (phi[:, t] - want) / taus
    _, state = memory(x)
    np.testing.assert_allclose(state.average.detach().numpy(), want, rtol=1e-6)  # rates are single precision


def test_a_time_constant_of_one_step_holds_the_last_token_alone():
    memory = Leaky(5, tau=1.0, spread=1.0)
    x = torch.randn(2, 9, 5)
    torch.testing.assert_close(memory(x)[0], memory.out(memory.features(x).tanh()))


def test_what_is_read_has_no_mean_and_unit_variance_once_tracked():
    torch.manual_seed(0)
    memory, heard = Leaky(6, hidden=4, tau=128.0, spread=1.0), []
    memory.out.register_forward_pre_hook(lambda _module, args: heard.append(args[0]))
    state = memory.initial_state(64)
    with torch.no_grad():
        memory.features.bias.fill_(0.7)  # features with a large mean
        for _ in range(60):
            _, state = memory(torch.randn(64, 64, 6), state)
            track(memory, state)
    late = torch.cat(heard[40:], 1).flatten(0, 1)
    assert late.mean(0).abs().max() < 0.2 and (late.std(0) - 1).abs().max() < 0.15
    assert heard[0][:, -1].mean(0).min() > 2, "before that, the mean is deviations off"


def test_a_stream_from_the_start_is_read_at_the_centre():
    memory = Leaky(6, hidden=4, tau=1e6)
    memory.centre = torch.randn(4)
    y, _ = memory(torch.randn(3, 2, 6))
    torch.testing.assert_close(y, memory.out.bias.expand(3, 2, 6), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "make",
    [lambda slow: Summed([LSTM(6), slow]), lambda slow: Stack([LSTM(6), slow]), lambda slow: Gated(LSTM(6), slow),
     lambda slow: Context(slow, segment=4), lambda slow: Stack([LSTM(6), Summed([LSTM(6), slow])])],
    ids=["summed", "stack", "gated", "context", "nested in a stack"],
)  # fmt: skip
def test_track_reaches_what_a_memory_is_made_of(make):
    slow = Leaky(6, tau=200.0)
    memory = make(slow)
    _, state = memory(torch.randn(4, 30, 6))
    track(memory, state)
    assert slow.centre.abs().min() > 0


def test_statistics_are_saved_with_the_weights():
    memory = build("nested_leaky", 6)
    _, state = memory(torch.randn(4, 30, 6))
    track(memory, state)
    other = build("nested_leaky", 6)
    other.load_state_dict(memory.state_dict())
    x = torch.randn(2, 9, 6)
    assert torch.equal(other(x)[0], memory(x)[0])


def test_summed_adds_what_its_levels_say():
    torch.manual_seed(0)
    levels = [LSTM(6, reset_every=4), Leaky(6)]
    x = torch.randn(3, 11, 6)
    torch.testing.assert_close(Summed(levels)(x)[0], sum(level(x)[0] for level in levels))


@pytest.mark.parametrize("options", [{"tau": 0.5}, {"spread": 0.5}, {"tau": 4.0, "spread": 8.0}])
def test_time_constants_that_make_no_sense(options):
    with pytest.raises(ValueError, match="tau, spread: expected tau >= spread >= 1"):
        Leaky(4, **options)
