"""What tells the members of the recurrence family apart."""

import math

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import Fields, Item

K, V = 32, 32
FIELDS = Fields(K, 0, V, labels=False)


def member(name, rate=1.0, decay=None):
    """A member that writes at a fixed rate and forgets at a fixed decay."""
    memory = nestmem.build(name, FIELDS.width, FIELDS).double()
    with torch.no_grad():
        memory.to_rate.weight.zero_()
        memory.to_rate.bias.fill_(40.0 if rate == 1.0 else math.log(rate / (1 - rate)))
        if hasattr(memory, "to_decay"):
            memory.to_decay.weight.zero_()
            memory.to_decay.bias.fill_(40.0 if decay is None else math.log(decay / (1 - decay)))
    return memory


def pairs(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(F.normalize(torch.randn(n, K, generator=g, dtype=torch.double), dim=-1) for _ in range(2))


def remember(memory, keys, values):
    x = torch.zeros(1, len(keys) + 1, FIELDS.width, dtype=torch.double)
    x[0, :-1, :K], x[0, 1:, K:] = keys, values
    return memory(x)[1]


def recalled(memory, state, keys, values):
    """Whether the nearest of all values to the answer is the right one, for each key."""
    query = torch.cat([keys, torch.zeros_like(values)], -1)[None]
    answer = FIELDS.split(memory.read(query, state)[0][0])[2]
    return (answer @ values.T).argmax(-1) == torch.arange(len(keys))


def test_delta_overwrites_a_repeated_key_and_hebb_adds_up():
    (key, *_), values = (part.split(1) for part in pairs(2)), pairs(2)[1]
    key = pairs(1)[0]
    for name, overwrites in (("deltanet", True), ("gated_deltanet", True), ("linear_attention", False)):
        memory = member(name)
        state = remember(memory, key.expand(2, -1), values)
        answer = FIELDS.split(memory.read(torch.cat([key, key * 0], -1), state)[0])[2][0]
        want = values[1] if overwrites else values.sum(0)
        torch.testing.assert_close(answer, want, atol=1e-6, rtol=0)


def test_capacity_falls_as_theory_says():
    """Ridge holds what fits its dimension; one-pass delta keeps the newest and loses the oldest."""
    keys, values = pairs(28)
    share = {
        name: recalled(member(name), remember(member(name), keys, values), keys, values)
        for name in ("mesa", "deltanet")
    }
    assert share["mesa"].float().mean() > 0.95
    keys, values = pairs(96)
    delta = recalled(member("deltanet"), remember(member("deltanet"), keys, values), keys, values)
    assert delta[-12:].float().mean() > 0.8
    assert delta[:16].float().mean() < 0.4


@pytest.mark.parametrize("name", ["mamba2", "gla", "gated_deltanet"])
def test_half_life_is_that_of_the_decay(name):
    decay, steps = 0.9, 12
    memory = member(name, decay=decay)
    keys, values = torch.eye(K, dtype=torch.double)[: steps + 1], torch.eye(K, dtype=torch.double)[: steps + 1]
    state = remember(memory, keys, values)
    trace = torch.diagonal(state.s[0, 0])[: steps + 1]
    torch.testing.assert_close(trace, decay ** torch.arange(steps, -1, -1, dtype=torch.double))


def test_fixed_decays_span_the_time_constants():
    memory = nestmem.LinearMemory(16, decay="fixed", rule="hebb", heads=4, slowest=1000.0)
    constants = -1 / memory.log_fixed
    torch.testing.assert_close(constants[[0, -1]], torch.tensor([1000.0, 4.0]), rtol=1e-3, atol=0)


def test_members_agree_where_they_should():
    keys, values = pairs(20)
    states = {name: remember(member(name, rate=0.5, decay=0.8), keys, values).s for name in ("mamba2", "gla")}
    torch.testing.assert_close(states["mamba2"], states["gla"])
    kept = {name: remember(member(name, rate=0.5), keys, values).s for name in ("deltanet", "gated_deltanet")}
    torch.testing.assert_close(kept["deltanet"], kept["gated_deltanet"])


def test_mesa_is_the_weighted_ridge_solution():
    memory = member("mesa", rate=0.5, decay=0.9)
    keys, values = pairs(10)
    state = remember(memory, keys, values)
    weights = 0.5 * 0.9 ** torch.arange(9, -1, -1, dtype=torch.double)
    gram = (keys * weights[:, None]).T @ keys + torch.eye(K, dtype=torch.double)
    want = torch.linalg.solve(gram, (keys * weights[:, None]).T @ values)
    query = pairs(3, seed=5)[0]
    answer = FIELDS.split(memory.read(torch.cat([query, torch.zeros(3, V)], -1)[None], state)[0][0])[2]
    torch.testing.assert_close(answer, query @ want)


def test_nothing_arriving_writes_nothing():
    memory = member("deltanet")
    state = memory.initial_state(1)
    nothing = Item(torch.zeros(1, K).double(), torch.zeros(1, 0).double(), torch.ones(1, V).double())
    assert torch.equal(memory.write(nothing, state).s, state.s)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="heads: expected a divisor of the key's width 10, got 3"):
        nestmem.build("deltanet", 10, heads=3)


def test_deltaproduct_rotates_what_one_delta_step_can_only_reflect():
    """Two writes of rate 2 and no outcome are two reflections: the state turns by twice the angle between the keys."""
    memory = member("deltaproduct")
    key, other = torch.zeros(2, K, dtype=torch.double)
    angle = 0.3
    key = F.one_hot(torch.tensor(0), K).double()
    other = math.cos(angle) * key + math.sin(angle) * F.one_hot(torch.tensor(1), K).double()
    with torch.no_grad():
        memory.more_keys.weight.copy_(torch.outer(other, key))  # the second key of a token whose first is `key`
        memory.more_outcomes.weight.zero_()
    held = torch.eye(K, dtype=torch.double)[None, None]
    nothing = torch.full((1, V), 1e-30, dtype=torch.double)  # an outcome that arrives and says zero
    state = memory.write(Item(key[None], key[None, :0], nothing), memory.initial_state(1)._replace(s=held))
    turned = state.s[0, 0][:2, :2]
    want = torch.tensor([[math.cos(2 * angle), -math.sin(2 * angle)], [math.sin(2 * angle), math.cos(2 * angle)]])
    torch.testing.assert_close(turned, want.double())
    assert torch.linalg.det(state.s[0, 0]).item() == pytest.approx(1.0)


def test_micro_steps_need_the_delta_rule():
    with pytest.raises(ValueError, match="micro: expected 1, or more with the rule delta, got 2 with hebb"):
        nestmem.LinearMemory(8, decay="none", rule="hebb", micro=2)


@pytest.mark.parametrize(
    ("name", "regression"),
    [
        ("linear_attention", ("uniform", "linear", "hebb")),
        ("retnet", ("geometric", "linear", "hebb")),
        ("deltanet", ("uniform", "linear", "sgd")),
        ("gated_deltanet", ("learned", "linear", "sgd")),
        ("mesa", ("learned", "linear", "exact")),
        ("titans", ("learned", "mlp", "momentum sgd")),
        ("yaad", ("learned", "mlp", "sgd")),
        ("episodic", ("uniform", "slots", "exact")),
        ("slow", ("uniform", "mlp", "sgd")),
        ("lstm", None),
    ],
)
def test_test_time_regression_names_them(name, regression):
    assert nestmem.build(name, 8).spec.regression == regression
