"""The ground-truth stream: its law, and that the filter is the exact posterior."""

import itertools
import math

import pytest
import torch

from envs.timescales import Process, Timescales, bayes_filter, gain, nll
from nestmem.errors import UserError

LAW = Process(advance=0.8, dwell=(3.0, 8.0), right=(0.55, 0.42))


def kept(same, p):
    return p if same else (1 - p) / 3


def enumerate_paths(tokens, law, variable):
    """p(next token of the variable | past) by summing over every hidden path, one row [T, 3]."""
    steps, right, stay = len(tokens), law.right[variable], 1 - 1 / law.dwell[variable]
    total = torch.zeros(4, dtype=torch.float64)
    for path in itertools.product(range(4), repeat=steps + 1):
        weight = 0.25
        for t in range(steps):
            a, token = tokens[t][0], tokens[t][1 + variable]
            weight *= kept((token - a) % 4 == path[t], right) * kept(path[t + 1] == path[t], stay)
        for a, seen in itertools.product(range(4), repeat=2):
            chance = kept(a == (tokens[-1][0] + 1) % 4, law.advance) * kept(seen == path[-1], right)
            total[(a + seen) % 4] += weight * chance
    return total / total.sum()


def test_the_filter_is_the_sum_over_all_hidden_paths():
    tokens = Timescales(3, seed=0, process=LAW).sample(5).tokens
    filtered = bayes_filter(tokens, LAW)
    for row, steps, variable in itertools.product(range(3), (1, 3, 5), (0, 1)):
        exact = enumerate_paths(tokens[row, :steps].tolist(), LAW, variable)
        torch.testing.assert_close(filtered.predicted[row, steps - 1, 1 + variable], exact, atol=1e-12, rtol=0)


def test_a_cut_row_is_the_same_row():
    whole, cut = Timescales(2, seed=3), Timescales(2, seed=3)
    x = whole.sample(60)
    first = cut.sample(17)
    saved = {name: value.clone() for name, value in cut.state_dict().items()}
    other = Timescales(2, seed=9)
    other.load_state_dict(saved)
    second = other.sample(43)
    for a, b, c in zip(x, first, second):
        assert torch.equal(a, torch.cat([b, c], 1))
    assert torch.equal(x.targets[:, :-1], x.tokens[:, 1:])
    begin = bayes_filter(first.tokens)
    goes_on = bayes_filter(second.tokens, prior=begin.prior)
    torch.testing.assert_close(bayes_filter(x.tokens).predicted[:, 17:], goes_on.predicted)


def test_values_are_uniform_and_dwell_as_long_as_they_say():
    chunk = Timescales(64, seed=1).sample(4000)
    for values in (chunk.tokens, chunk.hidden[..., :2]):
        for i in range(values.shape[-1]):
            share = torch.bincount(values[..., i].flatten(), minlength=4) / values[..., i].numel()
            assert (share - 0.25).abs().max() < 0.02
    steps = chunk.hidden[:, 1:] - chunk.hidden[:, :-1]
    moved = (steps != 0).double().mean((0, 1))
    assert abs((steps[..., 0] % 4 == 1).double().mean() - 0.8) < 0.005
    assert abs(moved[1] * 30 - 1) < 0.05 and abs(moved[2] * 1000 - 1) < 0.2
    seen = (chunk.tokens[..., 1:] - chunk.tokens[..., :1]) % 4 == chunk.hidden[..., 1:]
    assert (seen.double().mean((0, 1)) - torch.tensor([0.55, 0.42])).abs().max() < 0.01


def test_single_tokens_and_their_linear_mixtures_know_nothing_of_b_and_c():
    # Short dwell times: as many independent values as there are steps, so that "nothing" can be told from chance.
    chunk = Timescales(64, seed=2, process=LAW).sample(2000)
    onehot = torch.nn.functional.one_hot(chunk.tokens, 4).double()
    inputs = onehot.flatten(0, 1).flatten(1)[:, [i for i in range(12) if i % 4]]
    inputs = inputs - inputs.mean(0)
    for variable in (1, 2):
        target = torch.nn.functional.one_hot(chunk.hidden[..., variable], 4).double().flatten(0, 1)
        target = target - target.mean(0)
        residual = target - inputs @ torch.linalg.lstsq(inputs, target).solution
        assert 1 - residual.square().sum() / target.square().sum() < 1e-3
    # Unscrambled, one step is already evidence.
    clear = torch.nn.functional.one_hot((chunk.tokens[..., 1] - chunk.tokens[..., 0]) % 4, 4).double()
    b = torch.nn.functional.one_hot(chunk.hidden[..., 1], 4).double()
    assert (clear * b).sum(-1).mean() > 0.5


def test_the_filter_gains_and_nothing_gains_more():
    chunk = Timescales(32, seed=4).sample(3000)
    filtered = bayes_filter(chunk.tokens)
    bayes = nll(filtered.predicted, chunk.targets)[:, 1000:].mean((0, 1))
    assert (bayes < math.log(4) - torch.tensor([0.5, 0.02, 0.02])).all()
    torch.testing.assert_close(gain(bayes, bayes), torch.ones(3, dtype=torch.float64))
    for wrong in (Process(dwell=(30.0, 100.0)), Process(dwell=(300.0, 1000.0)), Process(advance=0.6)):
        other = nll(bayes_filter(chunk.tokens, wrong).predicted, chunk.targets)[:, 1000:].mean((0, 1))
        assert (other >= bayes - 1e-4).all() and (other > bayes + 1e-4).any()
    guess = filtered.posterior.argmax(-1) == chunk.hidden[..., 1:]
    assert (guess.double()[:, 1000:].mean((0, 1)) > torch.tensor([0.7, 0.8])).all()


def test_impossible_laws_are_refused():
    with pytest.raises(UserError, match="dwell times above 1"):
        Timescales(1, seed=0, process=Process(dwell=(1.0, 10.0)))
