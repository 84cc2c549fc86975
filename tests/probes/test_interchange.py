"""Interchange and lesions on a hand-made nested memory whose two levels are known to hold one variable each.

Stream: `a` is drawn anew at every step and shown; `b` dwells about 40 steps and is shown through noise (right 60 %).
Hierarchy: level 0 says the token's `a`, level 1 a leaky count of what was seen of `b`.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestmem import LSTM, Episodic, Fields, NestedMemory, SlowMLP
from nestmem.memory.base import Aux, Memory, MemorySpec
from nestmem.probes import (
    decodability,
    edited,
    interchange_matrix,
    interchanged,
    jsonable,
    lesion,
    lesion_cost,
    recorded,
    spoken,
    swapped,
)

FIELDS = Fields(8, 0, 8, labels=False)  # content: a and the observation of b, one-hot; outcome: a score for each value
ROWS, STEPS = 12, 300


class Leaky(Memory):
    """y = R s, s = decay s + (1 - decay) tanh(E x): a known clock; E and R are set by hand or left at random."""

    def __init__(self, decay, readout, encoder=None):
        super().__init__()
        self.decay, self.d_model = decay, FIELDS.width
        self.register_buffer("readout", readout)  # [8, H]
        self.register_buffer("encoder", torch.eye(8) if encoder is None else encoder)  # [H, 8]
        self.spec = MemorySpec(role="working", lifetime="episode")

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size, len(self.encoder)),)

    def step(self, x, state):
        held = self.decay * state[0] + (1 - self.decay) * (x[:, :8] @ self.encoder.T).tanh()
        y = FIELDS.token(held @ self.readout.T)
        return y, (held,), Aux(confidence=torch.ones(len(x), 1))


def says(values):
    """A readout that passes on some of the eight one-hot entries."""
    return torch.diag(torch.tensor([float(i in values) for i in range(8)]))


def hierarchy():
    return NestedMemory([Leaky(0.0, says(range(4))), Leaky(0.9, says(range(4, 8)))], FIELDS)


def untrained(seed=0):
    g = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=g)
    return NestedMemory([Leaky(decay, random(8, 24), random(24, 8)) for decay in (0.0, 0.9)], FIELDS)


def stream(seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(4, (ROWS, STEPS), generator=g)
    b = torch.randint(4, (ROWS, 1), generator=g).repeat(1, STEPS)
    for t in range(1, STEPS):
        stay = torch.rand(ROWS, generator=g) < 1 - 1 / 40
        b[:, t] = torch.where(stay, b[:, t - 1], torch.randint(4, (ROWS,), generator=g))
    other = (b + torch.randint(1, 4, b.shape, generator=g)) % 4
    shown = torch.where(torch.rand(b.shape, generator=g) < 0.6, b, other)
    x = torch.cat([F.one_hot(a, 4), F.one_hot(shown, 4), torch.zeros(ROWS, STEPS, 8)], -1).float()
    return x, np.stack([a.numpy(), b.numpy()], -1)


def predicted(y):
    """[..., D] to the values of a and b, [..., 2]."""
    scores = FIELDS.split(y)[2]
    return np.stack([scores[..., :4].argmax(-1).numpy(), scores[..., 4:].argmax(-1).numpy()], -1)


def probe(memory, **options):
    (host, truth), (donor, donor_truth) = stream(0), stream(1)
    with torch.no_grad():
        answers = interchanged(memory, spoken(memory, host), spoken(memory, donor))
        correct = (predicted(memory(host)[0]) == truth).mean((0, 1))
    gains = (correct - 0.25) / 0.75  # no filter here: accuracy above chance stands in for it
    return interchange_matrix(predicted(answers), truth, donor_truth, gains, **options)


def test_the_matrix_of_a_hierarchy_that_is_known_is_diagonal():
    found = probe(hierarchy(), own=[0, 1])
    swap = np.array([[entry.mean for entry in row] for row in found.swap])
    assert swap[0, 0] == 1 and swap[1, 0] == 0, "a is said by level 0 without error"
    assert swap[1, 1] > 0.75 and swap[0, 1] < 0.15, "b by level 1, as well as a leaky count can know it"
    assert found.diagonal.mean > 0.85 and found.off_diagonal.mean < 0.1 and found.index.mean > 0.6
    assert all(entry.low <= entry.mean <= entry.high and entry.n == ROWS for row in found.swap for entry in row)
    assert found.index.low > 0.5
    json.dumps(jsonable(found), allow_nan=False)


def test_against_the_models_own_predictions_only_routing_is_measured():
    memory = hierarchy()
    host, donor = (spoken(memory, stream(seed)[0]) for seed in (0, 1))
    mine, theirs = predicted(host.y), predicted(donor.y)
    found = interchange_matrix(predicted(interchanged(memory, host, donor)), mine, theirs, [1.0, 1.0], own=[0, 1])
    assert [[entry.mean for entry in row] for row in found.swap] == [[1, 0], [0, 1]] and found.index.mean == 1


def test_levels_in_the_wrong_place_are_told_from_levels_in_another_order():
    backwards = NestedMemory(list(hierarchy().levels)[::-1], FIELDS)
    assert probe(backwards, own=[0, 1]).index.mean < -0.5
    best = probe(backwards)
    assert best.own == [1, 0] and best.index.mean == probe(hierarchy(), own=[0, 1]).index.mean


def test_decodability_does_not_discriminate_what_interchange_does():
    """An untrained reservoir with the same clocks has the same decodable variables; it relies on none of them."""
    x, truth = stream(0)
    variables = {"a": truth[..., 0], "b": truth[..., 1]}
    diagonal, score = {}, {}
    for name, memory in (("hand-made", hierarchy()), ("untrained", untrained())):
        state, held = memory.initial_state(ROWS), []
        with torch.no_grad():
            for t in range(STEPS):
                _, state, _ = memory.step(x[:, t], state)
                held.append([level[0] for level in state.levels])
        levels = {str(i): torch.stack(trace, 1).numpy() for i, trace in enumerate(zip(*held))}
        found = decodability(levels, variables)
        diagonal[name] = (found["0"]["a"] + found["1"]["b"]) / 2 - (found["0"]["b"] + found["1"]["a"]) / 2
        score[name] = probe(memory, own=[0, 1]).index
    assert diagonal["untrained"] > 0.4, "clocks alone make it look organised"
    assert diagonal["untrained"] == pytest.approx(diagonal["hand-made"], abs=0.1)
    assert score["untrained"].high < 0.2 < 0.5 < score["hand-made"].low


def test_what_was_not_learned_is_not_read_but_counts():
    memory = NestedMemory([Leaky(0.0, says(range(4))), Leaky(0.9, says([]))], FIELDS)
    found = probe(memory, own=[0, 1])
    assert found.diagonal.mean == 1 and found.gains[1] < 0.3, "b's noise stays out of the reading"
    assert found.index.mean == pytest.approx(0.5, abs=0.05), "and b's missing gain halves the index"
    nothing = interchange_matrix(
        np.zeros((2, 3, 4, 1), int), np.zeros((3, 4, 1), int), np.ones((3, 4, 1), int), [0.1], own=[0]
    )
    assert "no variable was learned" in nothing.diagonal and nothing.index.mean == 0


def test_the_matrix_by_hand():
    host, donor = np.zeros((2, 4, 2), int), np.ones((2, 4, 2), int)
    donor[1, 2:, 0] = 0  # stream 1 differs in variable 0 on two steps only
    answers = np.zeros((2, 2, 4, 2), int)
    answers[0, 0, :3, 0] = 1  # level 0, variable 0: 3 of 4 and 0 of 2 follow the donor
    answers[1, :, :, 1] = 1  # level 1, variable 1: all
    found = interchange_matrix(answers, host, donor, [0.5, 2.0], own=[0, 1])
    assert [[e.mean for e in row] for row in found.swap] == [[3 / 6, 0], [0, 1]]
    assert found.gains == [0.5, 1.0] and found.index.mean == pytest.approx((0.5 * 0.5 + 1) / 2)
    assert found.diagonal.mean == 0.75 and found.off_diagonal.mean == 0
    some = interchange_matrix(answers, host, donor, [0.5, 1.0], own=[0, 1], where=np.arange(4) < np.full((2, 1), 2))
    assert some.swap[0][0].mean == 2 / 4
    same = interchange_matrix(answers, host, np.where([True, False], host, donor), [0.5, 1.0], own=[0, 1])
    assert same.swap[0][0] == "undefined: host and donor never differ in it"
    assert same.index == same.diagonal == "undefined: host and donor never differ in variable 0"
    with pytest.raises(ValueError, match="2 levels cannot each hold one of 3"):
        interchange_matrix(np.zeros((2, 1, 1, 3)), np.zeros((1, 1, 3)), np.ones((1, 1, 3)), [1.0] * 3)


def test_listening_changes_nothing_and_leaves_nothing():
    memory, x = hierarchy(), stream()[0][:, :60]
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[3, 50] = True
    want, state = memory(x, reset=reset)
    heard = spoken(memory, x, reset=reset)
    torch.testing.assert_close(heard.y, want)
    torch.testing.assert_close(interchanged(memory, heard, heard)[1], want)
    torch.testing.assert_close(heard.state.levels, state.levels)
    assert "combine" not in vars(memory)
    with pytest.raises(ValueError, match="x: expected tokens"):
        spoken(memory, x[..., :-1])
    assert "combine" not in vars(memory)


@pytest.mark.parametrize("clocks", ["together", "apart"])  # apart: the nested memory goes step by step
def test_learned_levels_with_clocks_can_be_listened_to(clocks):
    torch.manual_seed(0)
    fields = Fields(4, 0, 3)
    memory = NestedMemory(
        [LSTM(7, fields), Episodic(7, fields, slots=8), SlowMLP(7, fields, hidden=16, period=4)], fields
    )
    state = memory.initial_state(2)
    state = state._replace(step=torch.tensor([0, 0 if clocks == "together" else 1]))
    x, other = torch.randn(2, 2, 14, 7)
    x[..., 4:], other[..., 4:] = F.one_hot(torch.randint(3, (2, 2, 14)), 3)
    with torch.no_grad():
        host, donor = spoken(memory, x, state), spoken(memory, other, state)
        torch.testing.assert_close(host.y, memory(x, state)[0])
        assert [read.shape for read in host.reads] == [x.shape] * 3
        y = interchanged(memory, host, donor)
        for level in range(3):
            reads = [donor.reads[i] if i == level else host.reads[i] for i in range(3)]
            confidence = [(donor if i == level else host).auxes[i] for i in range(3)]
            torch.testing.assert_close(y[level], memory.combine(reads, confidence)[0])
            assert not torch.allclose(y[level], host.y)
        for level in range(3):
            whole, _ = lesion(memory, x, level, at=torch.zeros(2, 14, dtype=torch.bool), state=state)
            torch.testing.assert_close(whole, host.y)
            assert not torch.allclose(lesion(memory, x, level, state=state)[0], host.y)


def test_lesions_cost_what_their_level_held():
    memory, (x, truth) = hierarchy(), stream()
    with torch.no_grad():
        intact = predicted(memory(x)[0]) == truth
        for level, how, late in ((0, "clear", False), (1, "clear", False), (1, "freeze", False), (1, "freeze", True)):
            at = (torch.arange(STEPS) >= STEPS // 2).expand(ROWS, -1) if late else None
            hurt = predicted(lesion(memory, x, level, how, at=at)[0]) == truth
            lost = [lesion_cost(intact[..., v], hurt[..., v]) for v in (0, 1)]
            assert lost[0].mean == 0, "a is read from the token: a level without decay has nothing to lose"
            if level == 0:
                assert lost[1].mean == 0
            else:
                assert lost[1].low > 0, "b needs what level 1 has gathered"
                assert (hurt == intact)[:, : STEPS // 2].all() == late, "and nothing is lost before the lesion"
    _, state = lesion(memory, x, 1, "freeze")
    assert not state.levels[1][0].any() and state.levels[0][0].any() and (state.step == STEPS).all()


class Foreign(nn.Module):
    """Somebody else's model: two recurrent layers, heads that read them."""

    def __init__(self):
        super().__init__()
        self.fast, self.slow = nn.GRU(8, 6, batch_first=True), nn.GRU(8, 6, batch_first=True)
        self.read_fast, self.read_slow = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return torch.cat([self.read_fast(self.fast(x)[0]), self.read_slow(self.slow(x)[0])], -1)


def test_a_named_module_of_any_model_can_say_what_it_said_elsewhere():
    torch.manual_seed(0)
    model, host, donor = Foreign(), torch.randn(3, 10, 8), torch.randn(3, 10, 8)
    with recorded(model.get_submodule("read_slow")) as said:
        there = model(donor)
    here = model(host)
    with swapped(model.read_slow, said):
        y = model(host)
    torch.testing.assert_close(y, torch.cat([here[..., :4], there[..., 4:]], -1))
    torch.testing.assert_close(model(host), here)  # the hook is gone
    with recorded(model.slow) as said:  # tuples (y, h) too
        model(donor)
    with swapped(model.slow, said):
        torch.testing.assert_close(model(host), y)
    with edited(model.read_slow, torch.zeros_like):
        assert not model(host)[..., 4:].any()
    with pytest.raises(ValueError, match="expected one for every call, but there are 1"), swapped(model.slow, said):
        model(host), model(host)
    with pytest.raises(ValueError, match="expected 0, one for every call"), swapped(model.slow, said):
        pass
    with pytest.raises(ValueError, match="expected shapes"), swapped(model.slow, said):
        model(host[:, :5])
    torch.testing.assert_close(model(host), here)
