"""NestedMemory: clocks, gate, consolidation, and what a probe may replace."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import LSTM, Episodic, Fields, NestedMemory, SlowMLP, TensorProduct

FIELDS = Fields(6, 0, 3)
D = FIELDS.width


def make(period=4, **options):
    torch.manual_seed(0)
    return NestedMemory(
        [LSTM(D, FIELDS), Episodic(D, FIELDS, slots=16), SlowMLP(D, FIELDS, period=period)], FIELDS, **options
    )


def tokens(steps, rows=2):
    x = torch.randn(rows, steps, D)
    x[..., 6:] = F.one_hot(torch.randint(3, (rows, steps)), 3).float()
    return x


def test_the_slow_level_changes_on_its_clock_and_is_constant_between():
    memory, x = make(period=4), tokens(14)
    state, changed = memory.initial_state(2), []
    for t in range(14):
        before = state.levels[2].w2
        _, state, _ = memory.step(x[:, t], state)
        if not torch.equal(before, state.levels[2].w2):
            changed.append(t + 1)
    assert changed == [4, 8, 12]


@pytest.mark.parametrize("rule", ["replay", "distill", "reptile"])
def test_consolidation_carries_the_episode_into_the_slow_level(rule):
    memory = make(period=8, consolidation=rule)
    x = tokens(9, rows=1)
    _, state = memory(x)
    cleared = state._replace(levels=(state.levels[0], memory.levels[1].initial_state(1), state.levels[2]))
    y, aux = memory.read(x[:, :7], cleared)
    slow = FIELDS.split(aux.reads[2])[2]
    assert torch.equal(slow.argmax(-1), x[:, 1:8, 6:].argmax(-1)), "the slow level alone recalls what was consolidated"
    assert y.isfinite().all()


def test_the_mixture_is_a_distribution_and_a_replaced_read_moves_it():
    memory, x = make(), tokens(9)
    _, state = memory(x)
    y, aux = memory.read(x, state)
    assert aux.gates.shape == (2, 9, 3)
    torch.testing.assert_close(aux.gates.sum(-1), torch.ones(2, 9))
    torch.testing.assert_close(FIELDS.split(y)[2].exp().sum(-1), torch.ones(2, 9))
    own = [level.read(x, held) for level, held in zip(memory.levels, state.levels)]
    torch.testing.assert_close(memory.combine([r for r, _ in own], [a for _, a in own])[0], y)
    donor = [r.roll(1, 0) for r, _ in own]
    assert not torch.allclose(memory.combine([own[0][0], donor[1], own[2][0]], [a for _, a in own])[0], y)


@pytest.mark.parametrize("tokens_too", [False, True])
def test_what_the_slow_level_foresaw_takes_no_slot(tokens_too):
    torch.manual_seed(0)
    fields = Fields(6, 0, 3)
    levels = [Episodic(D, fields, slots=16), TensorProduct(D, fields, period=4, ridge=0.1)]
    memory, writes_all = (NestedMemory(levels, fields, known=known, tokens_too=tokens_too) for known in (0.5, 1.0))
    keys = torch.eye(6)[:4]
    x = torch.zeros(1, 13, D)
    x[0, :12, :6] = torch.cat(
        [keys, keys + torch.eye(6)[4] / 2, keys + torch.eye(6)[5] / 2]
    )  # other looks, new to slots
    x[0, 1:, 6:] = F.one_hot(torch.tensor([0, 1, 2, 0]).repeat(3), 3).float()
    written = lambda state: int(state.levels[0].slots.clock[0])
    _, first = memory(x[:, :5])
    assert written(first) == written(memory(x[:, 5:], first)[1]) == 4
    assert written(writes_all(x)[1]) == 12
    changed = x.clone()
    changed[0, 9:, 6:] = changed[0, 9:, 6:].roll(1, -1)  # other labels than the slow level foresees
    assert written(memory(changed[:, 5:], first)[1]) == 8
    y, end, _ = memory.trace(x)
    state, stepwise = memory.initial_state(1), []
    for t in range(13):
        answer, state, _ = memory.step(x[:, t], state)
        stepwise.append(answer)
    torch.testing.assert_close(torch.stack(stepwise, 1), y)
    torch.testing.assert_close(state.levels[1].w, end.levels[1].w)
    assert bool(memory(x[:, :3])[1].levels[1].w.any()) is tokens_too, (
        "before the first tick only tokens can have told it"
    )
    assert written(state) == written(end)


def test_reset_clears_every_level_faster_than_the_event():
    memory, x = make(), tokens(9)
    _, state = memory(x)
    done = torch.tensor([True, False])
    filled = lambda s: [
        bool(s.levels[0].h[0].any()),
        bool(s.levels[1].slots.valid[0].any()),
        bool((s.levels[2].w2[0] != memory.levels[2].w2).any()),
    ]
    assert filled(state) == [True, True, True]
    assert filled(memory.reset(state, done, until="episode")) == [False, True, True]
    assert filled(memory.reset(state, done, until="task")) == [False, False, True]
    assert filled(memory.reset(state, done, until="life")) == [False, False, False]
    with pytest.raises(ValueError, match="until: expected one of episode, task, life, got 'ever'"):
        memory.reset(state, done, until="ever")


def test_a_trained_gate_finds_the_level_that_knows():
    """Keys are shown once with their label and asked again: only the associative levels can know."""
    memory = make(period=4)
    optimizer = torch.optim.Adam(memory.parameters(), lr=0.01)
    g = torch.Generator().manual_seed(0)
    for _ in range(60):
        keys, labels = torch.randn(32, 3, 6, generator=g), torch.rand(32, 3, generator=g).argsort(-1)
        x = torch.zeros(32, 4, D)
        x[:, :3, :6], x[:, 1:, 6:] = keys, F.one_hot(labels, 3).float()
        _, state = memory(x)
        y, aux = memory.read(torch.cat([keys + 0.1, torch.zeros(32, 3, 3)], -1), state)
        loss = F.cross_entropy(FIELDS.split(y)[2].flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gate = aux.gates.mean((0, 1))
    assert loss.item() < 0.3 and gate[0] < 0.2


def test_any_levels_in_any_number():
    for levels in (
        [Episodic(5)],
        [LSTM(5), SlowMLP(5)],
        [LSTM(5), Episodic(5), SlowMLP(5, period=3), SlowMLP(5, period=9)],
    ):
        memory = NestedMemory(levels)
        y, state = memory(torch.randn(2, 20, 5))
        assert y.shape == (2, 20, 5) and len(state.levels) == len(levels)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: NestedMemory([]), "levels: expected at least one memory, got none"),
        (lambda: NestedMemory([LSTM(4), LSTM(5)]), r"levels: expected one d_model for all, got \[4, 5\]"),
        (
            lambda: NestedMemory([LSTM(4)], consolidation="dream"),
            "consolidation: expected one of replay, distill, reptile",
        ),
        (lambda: NestedMemory([LSTM(4)], known=0.0), r"known: expected a probability in \(0, 1\], got 0.0"),
        (lambda: NestedMemory([Episodic(4), SlowMLP(4)], known=0.5), "known: expected 1 unless outcomes are labels"),
    ],
)
def test_bad_levels_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("name", sorted(nestmem.memories()))
def test_any_memory_can_be_a_level(name):
    torch.manual_seed(0)
    fields = Fields(content=5, cue=0, outcome=3)
    memory = NestedMemory([LSTM(8, fields, hidden=4), nestmem.build(name, 8, fields)], fields)
    x = torch.randn(2, 10, 8)
    x[..., 5:] = torch.nn.functional.one_hot(torch.randint(3, (2, 10)), 3).float()
    y, state, aux = memory.trace(x)
    assert y.isfinite().all() and aux.gates.shape == (2, 10, 2)
    answer, _ = memory.read(x[:, :3], state)
    assert answer.shape == (2, 3, 8)
    y.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in memory.parameters())
