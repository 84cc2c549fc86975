"""The neural memory does what its equations say, and what a linear memory cannot."""

import itertools

import pytest
import torch
from torch.func import grad
from torch.nn import functional as F

import nestmem
from nestmem import Fields, Item, NeuralMemory

K = 16
FIELDS = Fields(K, 0, K, labels=False)


def memory(seed=0, rate=40.0, keep=40.0, eta=-40.0, **options):
    """A memory whose gates are set by hand (logits)."""
    torch.manual_seed(seed)
    made = NeuralMemory(FIELDS.width, FIELDS, **options).double()
    with torch.no_grad():
        made.to_gates.weight.zero_()
        made.to_gates.bias.view(4, -1)[:] = torch.tensor([rate, keep, eta, 0.0], dtype=torch.double)[:, None]
    return made


def directions(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, K, generator=g, dtype=torch.double), dim=-1)


def learn(made, keys, values):
    x = torch.zeros(1, len(keys) + 1, FIELDS.width, dtype=torch.double)
    x[0, :-1, :K], x[0, 1:, K:] = keys, values
    return made(x)[1]


def answers(made, state, keys):
    query = F.pad(keys, (0, K))[None]
    return FIELDS.split(made.read(query, state)[0][0])[2]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("chunk", [1, 5])
def test_agrees_with_autograd_on_frozen_weights(depth, chunk):
    """The equations of the file's docstring, with gradients from torch.func."""
    made = memory(rate=0.4, keep=2.0, eta=0.7, depth=depth, chunk=chunk)
    if depth == 1:  # zero would hide mistakes
        torch.nn.init.normal_(made.start[0])
    theta, keep, eta = (torch.tensor(g, dtype=torch.double).sigmoid() for g in (0.4, 2.0, 0.7))
    keys, values = directions(12), directions(12, seed=1)
    start = tuple(w.detach()[0] for w in made.start)

    def network(weights, key):
        for i, w in enumerate(weights):
            key = (F.silu(key) if i else key) @ w
        return key

    base = change = momentum = tuple(torch.zeros_like(w) for w in start)
    # At step 0 nothing has arrived: no surprise, and there is nothing yet that could fade.
    for t, (key, value) in enumerate(zip(keys, values), start=1):
        frozen = tuple(s + b for s, b in zip(start, base))
        found = grad(lambda w: 0.5 * (network(w, key) - value).square().sum())(frozen)  # noqa: B023
        error = network(frozen, key) - value
        sharpness = sum(g.square().sum() for g in found) / error.square().sum()
        rate = theta * (1 - eta) / (chunk * (sharpness + 1e-6))
        momentum = tuple(eta * s - rate * g for s, g in zip(momentum, found))
        change = tuple(keep * a + s for a, s in zip(change, momentum))
        if (t + 1) % chunk == 0:
            base = change
    state = learn(made, keys, values)
    for got, want in zip(state.change, change):
        torch.testing.assert_close(got[0, 0], want, rtol=1e-8, atol=1e-9)
    want = network(tuple(s + a for s, a in zip(start, change)), keys[3])
    torch.testing.assert_close(answers(made, state, keys[3:4])[0], want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("depth", [1, 2])
def test_error_on_a_repeated_pair_only_falls(depth):
    made = memory(rate=0.0, depth=depth, chunk=1)
    key, value = directions(1), directions(1, seed=1)
    state, errors = made.initial_state(1), []
    for _ in range(30):
        state = made.write(Item(key, key[:, :0], value), state)
        errors.append((answers(made, state, key) - value).norm().item())
    assert all(after <= before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("eta", [-40.0, 2.2])
def test_a_key_repeated_within_a_chunk_does_not_diverge(chunk, eta):
    made = memory(depth=2, chunk=chunk, eta=eta)
    key, value = directions(1), 10 * directions(1, seed=1)
    state = learn(made, key.expand(20 * chunk, -1), value.expand(20 * chunk, -1))
    assert (answers(made, state, key) - value).norm() < 0.1 * value.norm()


def test_two_layers_learn_an_even_map_and_one_cannot():
    """v = ((k T1)^2 - 1) T2 has no linear part: on unseen keys a linear memory is no better than silence."""
    g = torch.Generator().manual_seed(3)
    t1, t2 = (torch.randn(K, K, generator=g, dtype=torch.double) for _ in range(2))
    keys = directions(4100, seed=4)
    values = ((4 * keys @ t1 / 4).square() - 1) @ t2 / K
    error = {}
    for depth in (1, 2):
        made = memory(rate=-1.0, depth=depth, hidden=128, chunk=1)
        with torch.no_grad():
            state = learn(made, keys[:4000], values[:4000])
            got = answers(made, state, keys[4000:])
        error[depth] = ((got - values[4000:]).norm() / values[4000:].norm()).item()
    assert error[1] > 0.85
    assert error[2] < 0.6 * error[1]


def test_momentum_carries_an_event_on():
    """After one surprising pair, memory with momentum goes on moving towards it while nothing else arrives."""
    key, value = directions(1), directions(1, seed=1)
    moved = {}
    for name, eta in (("with", 2.0), ("without", -40.0)):
        made = memory(depth=1, chunk=1, eta=eta)
        state = made.write(Item(key, key[:, :0], value), made.initial_state(1))
        first = answers(made, state, key)
        for _ in range(5):
            state = made.write(Item(key * 0, key[:, :0], value * 0), state)
        moved[name] = (answers(made, state, key) - first).norm().item()
    assert moved["without"] < 1e-6 < 0.1 < moved["with"]


def test_forgetting_leads_back_to_the_meta_learned_start():
    made = memory(depth=2, keep=0.0)
    state = learn(made, directions(8), directions(8, seed=1))
    for _ in range(80):
        state = made.write(Item(*(torch.zeros(1, n, dtype=torch.double) for n in (K, 0, K))), state)
    fresh = answers(made, made.initial_state(1), directions(3))
    torch.testing.assert_close(answers(made, state, directions(3)), fresh)


def test_depth_and_chunk_are_checked():
    with pytest.raises(ValueError, match="depth: expected 1 or 2, got 3"):
        nestmem.build("titans", 8, depth=3)
    with pytest.raises(ValueError, match="chunk: expected at least 1 step, got 0"):
        nestmem.build("titans", 8, chunk=0)
