"""Moneta, Yaad and Memora: what their loss or retention changes."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import Fields, Item, NeuralMemory
from nestmem.memory import miras

K = 64
FIELDS = Fields(K, 0, K, labels=False)


def by_hand(made, rate=0.0, threshold=10.0):
    """Set the gates: logit of the rate, no forgetting, and the threshold of the Huber loss."""
    made = made.double()
    with torch.no_grad():
        made.to_gates.weight.zero_()
        made.to_gates.bias.view(4, -1)[:] = torch.tensor([rate, 40.0, 0.0, threshold], dtype=torch.double)[:, None]
    return made


def learn(made, keys, values):
    x = torch.zeros(1, len(keys) + 1, 2 * K, dtype=torch.double)
    x[0, :-1, :K], x[0, 1:, K:] = keys, values
    return made(x)[1]


def answers(made, state, keys):
    return FIELDS.split(made.read(F.pad(keys, (0, K))[None], state)[0][0])[2]


def pairs(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, K, generator=g, dtype=torch.double) for _ in range(2))


def test_yaad_keeps_clean_recall_when_a_tenth_of_the_values_are_outliers():
    keys, values = pairs(32)
    keys = F.normalize(keys, dim=-1)
    spoilt = values.clone()
    outliers = torch.arange(32) % 10 == 0
    spoilt[outliers] *= 30
    clean = {}
    for name, loss in (("l2", None), ("huber", miras.huber)):
        options = {} if loss is None else {"loss": loss}
        made = by_hand(NeuralMemory(FIELDS.width, FIELDS, depth=1, chunk=1, momentum=False, **options))
        got = answers(made, learn(made, keys, spoilt), keys)
        nearest = torch.cdist(got, values).argmin(-1)
        clean[name] = (nearest == torch.arange(32))[~outliers].double().mean().item()
    assert clean["huber"] > 0.95
    assert clean["l2"] < 0.5


def test_moneta_with_p_and_q_of_two_is_titans_without_momentum():
    keys, values = pairs(20)
    states = []
    for make in (
        lambda: nestmem.build("moneta", 2 * K, FIELDS, p=2.0, q=2.0),
        lambda: NeuralMemory(2 * K, FIELDS, momentum=False),
    ):
        torch.manual_seed(0)
        states.append(learn(by_hand(make()), keys, values))
    assert all(torch.equal(a, b) for a, b in zip(states[0].change, states[1].change))


def test_the_consistent_mirror_minimises_what_it_is_derived_from_and_the_printed_one_does_not():
    """W(A) minimises 1/2 ||W||_q^2 - <A, W>; and a larger accumulator must not shrink the weights."""
    accumulator = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)

    def objective(w):
        return 0.5 * (w.abs() ** 4).sum() ** 0.5 - (accumulator * w).sum()

    best = accumulator.clone().requires_grad_()
    descent = torch.optim.LBFGS([best], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        value = objective(best)
        value.backward()
        return value

    descent.step(closure)
    consistent, printed = miras.mirror(4.0), miras.printed_mirror(4.0)
    assert objective(consistent(accumulator)) - objective(best.detach()) < 1e-4
    assert objective(printed(accumulator)) - objective(best.detach()) > 0.5
    assert consistent(2 * accumulator).norm() == pytest.approx(2 * consistent(accumulator).norm().item(), rel=1e-4)
    assert printed(2 * accumulator).norm() < 0.6 * printed(accumulator).norm()


def test_memora_weights_stay_probabilities():
    made = by_hand(nestmem.build("memora", 2 * K, FIELDS, chunk=4), rate=5.0)
    keys, values = pairs(1)
    state = made.initial_state(1)
    with torch.no_grad():
        for _ in range(20):
            state = learn_more(made, state, keys.expand(500, -1), 30 * values.expand(500, -1))
    for weights in made._weights(state.change):
        assert weights.isfinite().all() and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def learn_more(made, state, keys, values):
    x = torch.cat([keys, values], -1)[None]
    return made(x, state)[1]


def test_memora_recalls():
    made = by_hand(nestmem.build("memora", 2 * K, FIELDS, depth=1, chunk=1), rate=40.0)
    keys, values = torch.eye(K, dtype=torch.double)[:8], torch.eye(K, dtype=torch.double)[8:16]
    state = made.initial_state(1)
    for _ in range(10):
        for key, value in zip(keys, values):
            state = made.write(Item(key[None], key[None, :0], value[None]), state)
    assert (answers(made, state, keys).argmax(-1) == torch.arange(8, 16)).all()


def test_exponents_are_checked():
    with pytest.raises(ValueError, match=r"p: expected at least 1\.0, got 0\.5"):
        nestmem.build("moneta", 8, p=0.5)
