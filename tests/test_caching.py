"""Memory Caching keeps early items readable."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import LSTM, Cached, Fields, NeuralMemory

K = 32
FIELDS = Fields(K, 0, K, labels=False)


def delta(seed=0):
    """DeltaNet that writes at full rate."""
    torch.manual_seed(seed)
    memory = nestmem.build("deltanet", FIELDS.width, FIELDS).double()
    with torch.no_grad():
        memory.to_rate.weight.zero_()
        memory.to_rate.bias.fill_(40.0)
    return memory


def stream(segments, pairs, seed=0):
    """Segments of key-value pairs; the keys of one segment lie near a direction of its own."""
    g = torch.Generator().manual_seed(seed)
    centres = 0.5 * F.normalize(torch.randn(segments, 1, K, generator=g, dtype=torch.double), dim=-1)
    keys = F.normalize(centres + F.normalize(torch.randn(segments, pairs, K, generator=g).double(), dim=-1), dim=-1)
    return keys.flatten(0, 1), F.normalize(torch.randn(segments * pairs, K, generator=g).double(), dim=-1)


def tokens(keys, values):
    x = torch.zeros(1, len(keys) + 1, FIELDS.width, dtype=torch.double)
    x[0, :-1, :K], x[0, 1:, K:] = keys, values
    return x


def recalled(memory, state, keys, values):
    answer = FIELDS.split(memory.read(F.pad(keys, (0, K))[None], state)[0][0])[2]
    return ((answer @ values.T).argmax(-1) == torch.arange(len(keys))).double()


def routed_by_content(cached, sharpness=20.0):
    """The router compares the content of the query with the mean content of each segment."""
    with torch.no_grad():
        cached.route.weight.zero_()
        cached.route.weight[:K, :K] = sharpness * torch.eye(K)
    return cached.double()


def test_recall_of_early_pairs_stays_where_the_memory_alone_loses_them():
    keys, values = stream(segments=8, pairs=16)
    alone, cached = delta(), routed_by_content(Cached(delta(), segment=16, slots=8))
    of_alone = recalled(alone, alone(tokens(keys, values))[1], keys, values).view(8, 16).mean(1)
    of_cached = recalled(cached, cached(tokens(keys, values))[1], keys, values).view(8, 16).mean(1)
    assert of_alone[:4].max() < 0.3
    assert of_cached.min() > 0.6


@pytest.mark.parametrize("fresh", [False, True])
def test_gated_equals_soup_for_a_linear_memory(fresh):
    states = {}
    x = tokens(*stream(4, 8))
    for mode in ("gated", "soup"):
        cached = routed_by_content(Cached(delta(), segment=8, slots=4, mode=mode, fresh=fresh), sharpness=2.0)
        states[mode] = cached(x)[0]
    torch.testing.assert_close(states["gated"], states["soup"], rtol=1e-10, atol=1e-12)


def test_gated_differs_from_soup_for_a_network():
    answers = {}
    x = tokens(*stream(4, 8)).repeat(1, 4, 1)
    for mode in ("gated", "soup"):
        torch.manual_seed(0)
        memory = NeuralMemory(FIELDS.width, FIELDS, chunk=1)
        with torch.no_grad():  # write at full rate, forget little
            memory.to_gates.bias.copy_(torch.tensor([6.0, 6.0, -6.0, 0.0]))
        cached = routed_by_content(Cached(memory, segment=32, slots=4, mode=mode), sharpness=0.1)
        answers[mode] = cached(x)[0][:, -2]
    assert (answers["gated"] - answers["soup"]).norm() > 0.05 * answers["gated"].norm()


def test_sparse_over_all_states_equals_gated():
    x = tokens(*stream(4, 8))
    answers = [
        routed_by_content(Cached(delta(), segment=8, slots=4, mode=mode, top=4))(x)[0] for mode in ("gated", "sparse")
    ]
    torch.testing.assert_close(*answers)
    narrow = routed_by_content(Cached(delta(), segment=8, slots=4, mode="sparse", top=1), sharpness=1.0)
    assert not torch.allclose(narrow(x)[0], answers[0])


def test_residual_adds_up_what_every_state_says():
    memory = delta()
    x = tokens(*stream(3, 8))[:, :24]
    cached = Cached(memory, segment=8, slots=4, mode="residual").double()
    y, _ = cached(x)
    ends = [memory(x[:, :n])[1] for n in (8, 16)]
    query = x[:, -1]
    want = memory(x)[0][:, -1] + sum(memory.read(query, end)[0] for end in ends)
    torch.testing.assert_close(y[:, -1], want)


def test_the_oldest_state_goes_first():
    cached = Cached(delta(), segment=8, slots=2).double()
    x = tokens(*stream(4, 8))[:, :32]
    _, state = cached(x)
    ends = [delta()(x[:, :n])[1].s for n in (24, 32)]
    torch.testing.assert_close(state.cache.s[:, 0], ends[0])
    torch.testing.assert_close(state.cache.s[:, 1], ends[1])
    torch.testing.assert_close(state.keys[0, 1], x[0, 24:32].mean(0))


def test_options_are_checked():
    with pytest.raises(ValueError, match="mode: expected one of residual, gated, soup, sparse, got 'mean'"):
        Cached(LSTM(4), mode="mean")
    with pytest.raises(ValueError, match="soup averages what key-value memories hold, and LSTM is none"):
        Cached(LSTM(4), mode="soup")
    with pytest.raises(ValueError, match="segment: expected at least 1, got 0"):
        Cached(LSTM(4), segment=0)
