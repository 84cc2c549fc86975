"""The cell comes back with its context, and only with it."""

import pytest
import torch
from torch.nn import functional as F

from nestmem import EpLSTM, Fields, detach

ARMS = 4
FIELDS = Fields(1, 12, ARMS)
ALL = torch.ones(1, dtype=torch.bool)


def barcode(n, seed=0):
    return torch.randn(n, FIELDS.cue, generator=torch.Generator().manual_seed(seed))


def visit(memory, state, cue, steps=3, seed=0):
    """An episode of one row under a cue; its end is the caller's."""
    content = torch.randn(1, steps, 1, generator=torch.Generator().manual_seed(seed))
    return memory(torch.cat([content, cue.expand(1, steps, -1), torch.zeros(1, steps, ARMS)], -1), state)[1]


def reinstating(**options):
    """Cells that hold whatever is recalled and nothing else."""
    torch.manual_seed(0)
    memory = EpLSTM(FIELDS.width, FIELDS, hidden=6, **options)
    return memory


def open_gate(memory):
    h = memory.hidden
    with torch.no_grad():
        memory.w_ih.zero_()
        memory.w_hh.zero_()
        memory.bias[: 2 * h] = -40.0  # nothing enters, nothing stays,
        memory.bias[4 * h :] = 40.0  # all is recalled
    return memory


def test_a_context_that_returns_brings_its_cell_back():
    memory = reinstating()
    a, b = barcode(2)
    ended = {}
    state = memory.initial_state(1)
    for name, cue in (("a", a), ("b", b)):
        state = visit(memory, state, cue, seed=len(ended))
        ended[name] = state.c
        state = memory.reset(state, ALL)
    assert (state.h == 0).all() and (state.c == 0).all() and int(state.stored) == 2
    open_gate(memory)
    for name, cue in (("a", a), ("b", b)):
        other = ended["b" if name == "a" else "a"]
        found = visit(memory, state, cue, steps=1).c
        torch.testing.assert_close(found, ended[name].tanh(), atol=5e-3, rtol=0)
        assert (found - other.tanh()).abs().max() > 0.05
    kept = memory.reset(state, ALL, until="task")
    torch.testing.assert_close(visit(memory, kept, a, steps=1).c, ended["a"].tanh(), atol=5e-3, rtol=0)
    empty = memory.reset(state, ALL, until="life")
    assert (visit(memory, empty, a, steps=1).c == 0).all()


def test_a_second_visit_replaces_the_cell_of_the_first_and_the_oldest_context_goes():
    memory = reinstating(slots=3)
    cues = barcode(5)
    state = memory.initial_state(1)
    for i in (0, 1, 0, 2):
        state = visit(memory, state, cues[i], seed=i + int(state.stored))
        last, state = state.c, memory.reset(state, ALL)
        if i == 0:
            newest = last
    assert int(state.stored) == 3
    _, aux = memory.read(torch.cat([torch.zeros(1, 1), cues[:1], torch.zeros(1, ARMS)], -1), state)
    torch.testing.assert_close(state.cells[0, aux.weights[0].argmax()], newest[0])
    assert aux.confidence.item() == pytest.approx(1.0, abs=1e-3)
    state = memory.reset(visit(memory, state, cues[3]), ALL)
    _, aux = memory.read(torch.cat([torch.zeros(1, 1), cues[:1], torch.zeros(1, ARMS)], -1), state)
    assert aux.confidence.item() < 0.01


def test_an_episode_without_steps_stores_nothing():
    memory = reinstating()
    state = memory.reset(memory.initial_state(1), ALL)
    assert int(state.stored) == 0
    state = memory.reset(memory.reset(visit(memory, state, barcode(1)), ALL), ALL, until="task")
    assert int(state.stored) == 1


def test_no_gradient_crosses_an_episode():
    memory = reinstating()
    first = torch.randn(1, 3, FIELDS.width, requires_grad=True)
    second = torch.randn(1, 3, FIELDS.width, requires_grad=True)
    with torch.no_grad():
        second[..., 1:13] = first[:, -1:, 1:13]
    state = memory.reset(memory(first)[1], ALL)
    y, _ = memory(second, state)
    before, after = torch.autograd.grad(y.sum(), (first, second))
    assert (before == 0).all() and (after != 0).any()
    assert (state.cells != 0).any() and not state.cells.requires_grad and not state.keys.requires_grad


def test_the_whole_sequence_equals_steps_with_a_full_dictionary():
    torch.manual_seed(1)
    memory = EpLSTM(7, slots=2, delta=0.1).double()
    state = memory.initial_state(2)
    for _ in range(3):
        state = memory(torch.randn(2, 4, 7).double(), state)[1]
        state = memory.reset(state, torch.tensor([True, True]))
    state = detach(state)
    x = torch.randn(2, 5, 7).double().requires_grad_()
    y, _ = memory(x, state)
    steps, walked = [], state
    for t in range(5):
        out, walked, _ = memory.step(x[:, t], walked)
        steps.append(out)
    torch.testing.assert_close(y, torch.stack(steps, 1))
    assert torch.autograd.gradcheck(lambda x: memory(x, state)[0], (x,), atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda x: memory(x, state)[0], (x,), atol=1e-5)


def bandits(rows, seed, shuffled=False):
    """Four visits of three steps to two contexts with one good arm each: A, B, then both again in either order.

    The good arm is named in the second step. Returns tokens [B, 12, D] and good arms [B, 12].
    """
    g = torch.Generator().manual_seed(seed)
    cues = torch.randn(rows, 2, FIELDS.cue, generator=g)
    arms = torch.randint(ARMS, (rows, 2), generator=g)
    again = torch.rand(rows, 2, generator=g).argsort(1)
    order = torch.cat([torch.tensor([0, 1]).expand(rows, 2), again], 1)
    cue = cues.gather(1, order[..., None].expand(-1, -1, FIELDS.cue))
    if shuffled:
        cue = torch.cat([cue[:, :2], torch.randn(rows, 2, FIELDS.cue, generator=g)], 1)
    arm = arms.gather(1, order)
    x = torch.zeros(rows, 4, 3, FIELDS.width)
    x[..., 1:13] = cue[:, :, None]
    x[:, :, 1, 13:] = F.one_hot(arm, ARMS).float()
    x[:, :, 0, 0] = 1.0
    return x.flatten(1, 2), arm.repeat_interleave(3, 1)


def second_visits(memory, x, arms, forget=False):
    """How often the good arm is known at the first step of the third and fourth visit."""
    state, right = memory.initial_state(len(x)), []
    every = torch.ones(len(x), dtype=torch.bool)
    for v in range(4):
        if v:
            state = memory.reset(state, every, until="life" if forget else "episode")
        y, state = memory(x[:, 3 * v : 3 * v + 3], state)
        right.append((y[:, 0, -ARMS:].argmax(-1) == arms[:, 3 * v]).float().mean())
    return torch.stack(right[2:]).mean().item()


def test_barcode_bandit_is_known_at_the_second_visit():
    """What is good is learned within an episode; that it comes back with the barcode is the dictionary's doing."""
    torch.manual_seed(0)
    memory = EpLSTM(FIELDS.width, FIELDS, hidden=24)
    optimiser = torch.optim.Adam(memory.parameters(), 1e-2)
    ends = torch.zeros(64, 12, dtype=torch.bool)
    ends[:, [3, 6, 9]] = True
    for i in range(200):
        x, arms = bandits(64, seed=i)
        y, _ = memory(x, reset=ends)
        loss = F.cross_entropy(y[..., -ARMS:].flatten(0, 1), arms.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        x, arms = bandits(512, seed=10_000)
        assert second_visits(memory, x, arms) > 0.9
        assert second_visits(memory, x, arms, forget=True) < 0.4
        assert second_visits(memory, *bandits(512, seed=10_000, shuffled=True)) < 0.65


@pytest.mark.parametrize(("option", "bound"), [("slots", "at least 1"), ("delta", "more than 0")])
def test_bad_options(option, bound):
    with pytest.raises(ValueError, match=f"{option}: expected {bound}, got 0"):
        EpLSTM(8, **{option: 0})
