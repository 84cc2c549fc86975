"""What the optimizers promise: exact proximal steps, two clocks of momentum, and a trajectory that survives a restart."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestmem.optim import DGD, M3, orthogonal

OPTIMIZERS = {"dgd": lambda model: DGD(model, lr=0.002), "m3": lambda model: M3(model.parameters(), lr=0.02, every=3)}


def linear(inputs=6, outputs=4, bias=False):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).double()


@pytest.mark.parametrize("length", [1.0, 0.1, 30.0])
def test_dgd_on_one_sample_is_the_proximal_minimiser(length):
    layer, lr = linear(), 0.7
    optimizer = DGD(layer, lr)
    x = length * F.normalize(torch.randn(6, dtype=torch.double), dim=0)
    u, old = torch.randn(4, dtype=torch.double), layer.weight.detach().clone()
    (layer(x) @ u).backward()
    optimizer.step()
    # d/dW of 1/2 ||W x + u||^2 + 1/(2 lr) ||W - old||^2 vanishes:
    system = torch.eye(6, dtype=torch.double) / lr + torch.outer(x, x)
    want = torch.linalg.solve(system, old / lr - torch.outer(u, x), left=False)
    torch.testing.assert_close(layer.weight, want, rtol=0, atol=1e-12)


def test_dgd_on_a_batch_is_its_equation_whether_whole_or_accumulated():
    x, u = torch.randn(10, 6, dtype=torch.double), torch.randn(10, 4, dtype=torch.double)
    whole, parts = linear(bias=True), linear(bias=True)
    old, old_bias = whole.weight.detach().clone(), whole.bias.detach().clone()
    one, many = DGD(whole, 0.3), DGD(parts, 0.3)
    (whole(x) * u).sum(-1).mean().backward()
    with torch.no_grad():
        whole(100 * x)  # an evaluation is not part of the step
    one.step()
    for half in (slice(0, 5), slice(5, 10)):
        ((parts(x[half]) * u[half]).sum(-1).mean() / 2).backward()
    many.step()
    rate = 0.3 / (1 + 0.3 * x.square().sum(-1).mean())
    want = old - rate * old @ x.T @ x / 10 - rate * u.T @ x / 10
    for layer in (whole, parts):
        torch.testing.assert_close(layer.weight, want, rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.bias, old_bias - 0.3 * u.mean(0))


def fit(optimizer_of, x, v, loss, steps=300):
    layer = linear(x.shape[-1], v.shape[-1])
    optimizer = optimizer_of(layer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(layer(x), v).backward()
        optimizer.step()
    return layer(x).detach()


def similarity(y, v):
    return -(y * v).sum(-1).mean()


def test_dgd_recalls_correlated_inputs_where_gradient_descent_mixes_them_up():
    g = torch.Generator().manual_seed(3)
    x = F.normalize(1.5 * torch.randn(1, 8, generator=g) + torch.randn(6, 8, generator=g), dim=-1).double()
    assert (x @ x.T).mean() > 0.6
    v = torch.randn(6, 4, generator=g).double()

    def error(y):
        return (y - v).square().sum() / v.square().sum()

    delta = [error(fit(lambda layer: DGD(layer, 30.0), x, v, similarity, steps)) for steps in (10, 100, 2000)]
    assert delta[0] > delta[1] > delta[2] and delta[2] < 0.01
    plain = [
        error(fit(lambda layer, lr=lr: torch.optim.SGD(layer.parameters(), lr), x, v, similarity, steps))
        for lr in (0.01, 0.1, 1.0, 3.0)
        for steps in (1, 10, 100)
    ]
    assert min(plain) > 0.5


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_dgd_shrinks_a_least_squares_fit_along_the_inputs(scale):
    x, v = torch.eye(6, dtype=torch.double), torch.randn(6, 4, dtype=torch.double)
    squared = lambda y, v: scale * (y - v).square().sum(-1).mean() / 2
    got = fit(lambda layer: DGD(layer, 0.5), x, v, squared, steps=1000)
    torch.testing.assert_close(got, v * scale / (1 + scale), rtol=0, atol=1e-6)


def test_dgd_leaves_with_its_hooks():
    layer = linear()
    optimizer = DGD(layer)
    optimizer.close()
    assert not layer._forward_hooks
    layer(torch.ones(2, 6, dtype=torch.double)).sum().backward()
    assert not optimizer._inputs


def test_newton_schulz_makes_singular_values_one():
    for shape in ((6, 9), (9, 6)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        spectrum = torch.linalg.svdvals(orthogonal(1e3 * matrix))
        assert spectrum.min() > 0.6 and spectrum.max() < 1.3
        aligned = (u.T @ orthogonal(matrix) @ vt.T).diagonal()
        torch.testing.assert_close(aligned.sort().values, spectrum.sort().values)
    assert (orthogonal(torch.zeros(3, 2)) == 0).all()


def test_m3_of_one_clock_is_momentum_and_newton_schulz():
    weight = linear().weight
    muon, buffer = weight.detach().clone(), torch.zeros_like(weight)
    optimizer = M3([weight], lr=0.1, betas=(0.8, 0.9, 0.9), every=1, slow=0.0)
    for step in range(5):
        g = torch.randn(4, 6, generator=torch.Generator().manual_seed(step), dtype=torch.double)
        weight.grad = g
        optimizer.step()
        buffer = 0.8 * buffer + g
        x = buffer / buffer.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        muon -= 0.1 * x
    torch.testing.assert_close(weight.detach(), muon, rtol=0, atol=1e-12)


def test_m3_slow_momentum_moves_on_its_clock():
    matrix, vector = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))
    optimizer = M3([matrix, vector], every=4, betas=(0.9, 0.99, 0.5))
    seen = []
    for step in range(1, 10):
        matrix.grad, vector.grad = torch.full((3, 3), float(step)), torch.full((3,), float(step))
        optimizer.step()
        seen.append(optimizer.state[matrix]["slow"][0, 0].item())
    assert seen == [0, 0, 0, *[0.5 * 2.5] * 4, *[0.25 * 2.5 + 0.5 * 6.5] * 2]


@pytest.mark.parametrize("ema", [True, False])
def test_m3_of_vectors_is_their_momenta_over_their_deviation(ema):
    p = nn.Parameter(torch.zeros(1, dtype=torch.double))
    optimizer = M3([p], lr=0.1, betas=(0.9, 0.99, 0.5), every=2, slow=0.5, ema=ema, eps=1e-12)
    for g in (1.0, 3.0):
        before, p.grad = p.detach().clone(), torch.tensor([g], dtype=torch.double)
        optimizer.step()
    if ema:  # averages of 1 and 3; of the two the slow momentum has the plain mean
        fast, slow, variance = (0.9 * 1 + 3) / 1.9, 2.0, (0.99 * 1 + 9) / 1.99
    else:
        fast, slow, variance = 0.9 * 4, 0.5 * 4, 0.99 * 10
    want = before - 0.1 * (fast + 0.5 * slow) / variance**0.5
    torch.testing.assert_close(p.detach(), want, rtol=0, atol=1e-9)


def regression(steps, model, optimizer, start=0):
    """A small nonlinear regression whose batches depend on the step alone; returns the losses."""
    losses = []
    for step in range(start, start + steps):
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(step))
        loss = 100 * (model(x)[:, 0] - (x[:, 0] * x[:, 1]).tanh() - x[:, 2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_a_small_regression(name):
    model = network()
    losses = regression(400, model, OPTIMIZERS[name](model))
    assert sum(losses[-20:]) / 20 < 0.1 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resuming_from_a_state_dict_gives_the_same_bits(name):
    model = network()
    optimizer = OPTIMIZERS[name](model)
    optimizer.param_groups[0]["lr"] *= 0.5  # must travel too
    regression(7, model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    straight = regression(9, model, optimizer, start=7)
    again = network()
    resumed = OPTIMIZERS[name](again)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert regression(9, again, resumed, start=7) == straight
    for one, other in zip(model.parameters(), again.parameters()):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: DGD([p]), "model: expected an nn.Module, got list"),
        (lambda p: DGD(nn.Linear(2, 2), lr=0.0), "lr: expected a positive number, got 0.0"),
        (lambda p: M3([p], lr=-1.0), "lr: expected a positive number, got -1.0"),
        (lambda p: M3([p], betas=(0.9, 0.9, 1.0)), "betas: expected three numbers from 0 to below 1, got"),
        (lambda p: M3([p], every=0), "every: expected at least 1 step, got 0"),
        (lambda p: M3([p], slow=-0.5), "slow: expected a weight of at least 0, got -0.5"),
    ],
)
def test_wrong_arguments_say_so(make, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Parameter(torch.zeros(2, 2)))
