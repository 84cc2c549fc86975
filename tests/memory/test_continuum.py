"""What makes a continuum memory one: clocks that hold, exact gradients, and slow levels that keep what tasks share."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import Continuum, Fields
from nestmem.memory.base import where_rows

FIELDS = Fields(6, 2, 3, labels=False)
ALL = torch.ones(2, dtype=torch.bool)


def tokens(steps, seed=0, rows=2):
    return torch.randn(rows, steps, FIELDS.width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def memory(**options):
    torch.manual_seed(0)
    return Continuum(FIELDS.width, FIELDS, **options).double()


def changed(before, after):
    """Which levels' weights differ."""
    return [not torch.equal(before.w1[:, level], after.w1[:, level]) for level in range(before.w1.shape[1])]


def test_levels_change_on_multiples_of_their_periods_and_nowhere_else():
    chain = memory(fastest=2, ratio=3)
    assert chain.periods == (2, 6, 18)
    x, state = tokens(40), chain.initial_state(2)
    for t in range(40):
        _, after, _ = chain.step(x[:, t], state)
        assert changed(state, after) == [(t + 1) % period == 0 for period in chain.periods]
        state = after
    # Calls of uneven lengths and a flush move no tick; a flush itself applies what has gathered, to every level.
    state, clock = chain.initial_state(2), 0
    for length in (1, 4, 3, 10, 5, 7):
        _, after = chain(x[:, clock : clock + length], state)
        assert changed(state, after) == [(clock + length) // p > clock // p for p in chain.periods]
        state, clock = after, clock + length
        flushed = chain.flush(state)
        assert changed(state, flushed) == (state.seen[0] > 0).tolist()
        assert not any(changed(flushed, chain.flush(flushed)))
        state = flushed


def test_nothing_arriving_changes_nothing_but_the_clock():
    chain = memory()
    _, state = chain(tokens(21))
    silent = F.pad(tokens(64)[..., :8], (0, 3))
    state = chain.flush(state)._replace(pending=torch.zeros(2, 8, dtype=torch.double))
    after = chain(silent, state)[1]
    assert not any(changed(state, after))
    assert torch.equal(after.step, state.step + 64)


def loss_of_chain(chain, weights, address, outcome):
    """The chain again, in the words of the docstring, for autograd."""
    h = F.pad(address, (0, FIELDS.outcome))
    for w1, w2 in zip(*weights):
        h = h + (h @ w1).relu() @ w2
    return (h[..., -FIELDS.outcome :] - outcome).square().sum(-1) / 2


def autograd_step(chain, weights, addresses, outcomes):
    """Mean normalised gradient of some items at `weights` = (w1 [L, W, H], w2 [L, H, W]), by torch.autograd."""
    total = [torch.zeros_like(w) for w in weights]
    for address, outcome in zip(addresses, outcomes):
        free = [w.detach().requires_grad_() for w in weights]
        loss = loss_of_chain(chain, free, address, outcome)
        found = torch.autograd.grad(loss, free)
        squared = sum(g.square().sum() for g in found)
        total = [t + g / (1 + squared / (2 * loss) + squared.sqrt()) for t, g in zip(total, found)]
    return [t / len(addresses) for t in total]


@pytest.mark.parametrize("levels", [1, 3])
def test_all_periods_one_is_online_gradient_descent(levels):
    chain, x = memory(levels=levels, fastest=1, ratio=1, max_rate=0.8), tokens(30, rows=1)
    address, outcome = chain.binding.address(x[0]), FIELDS.split(x[0])[2]
    weights = (chain.w1.detach(), chain.w2.detach())
    for t in range(1, 30):
        step = autograd_step(chain, weights, address[t - 1 : t], outcome[t : t + 1])
        weights = tuple(w - 0.4 * g for w, g in zip(weights, step))  # sigmoid(0) of 0.8
    state = chain(x)[1]
    torch.testing.assert_close((state.w1[0], state.w2[0]), weights, rtol=0, atol=1e-9)


def test_a_window_is_one_step_along_its_mean():
    chain, x = memory(levels=2, fastest=5, ratio=2), tokens(6, rows=1)
    address, outcome = chain.binding.address(x[0]), FIELDS.split(x[0])[2]
    state = chain(x[:, :5])[1]  # the first token's outcome belongs to nothing
    g1, _ = autograd_step(chain, (chain.w1, chain.w2), address[:4], outcome[1:5])
    torch.testing.assert_close(state.w1[0, 0], chain.w1[0] - 0.5 * g1[0], rtol=0, atol=1e-9)
    assert torch.equal(state.w1[0, 1], chain.w1[1])


def test_a_step_never_overshoots():
    """However steep the chain has become, a repeated item is approached, at the highest rate."""
    chain = memory(fastest=1, ratio=1)
    with torch.no_grad():
        chain.rate.fill_(40.0)
        chain.w1.mul_(10)
        chain.w2.mul_(100)
    x, state, errors = tokens(1).expand(2, 40, -1), chain.initial_state(2), []
    for t in range(40):
        y, state, _ = chain.step(x[:, t], state)
        errors.append((y - x[:, t])[..., 8:].norm(dim=-1))
    errors = torch.stack(errors)
    assert (errors[1:] < errors[:-1]).all()
    assert (errors[-1] < 0.01 * errors[0]).all()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_no_outcome_moves_the_weights_farther_than_its_rate(size):
    chain, x = memory(fastest=1, ratio=1), tokens(10)
    _, state = chain(x)
    x = x[:, 0] * torch.cat([torch.ones(8), torch.full((3,), size)])
    _, after, _ = chain.step(x, state)
    moved = sum((new - old).square().sum((1, 2, 3)) for new, old in zip(after[:2], state[:2])).sqrt()
    assert (moved <= 0.5).all() and (moved > 0.05).all()


def test_a_task_end_clears_level_one_alone():
    chain = memory(fastest=2, ratio=2)
    _, state = chain(tokens(21))
    after, fresh = chain.reset(state, ALL, until="task"), chain.initial_state(2)
    assert not changed(fresh, after)[0] and (after.g1[:, 0] == 0).all() and (after.pending == 0).all()
    assert changed(state, after) == [True, False, False]
    assert torch.equal(after.g1[:, 1:], state.g1[:, 1:]) and torch.equal(after.step, state.step)
    assert not any(changed(state, chain.reset(state, ALL)))
    one = chain.reset(state, ALL & torch.tensor([True, False]), until="task")
    expected = where_rows(torch.tensor([True, False]), after, state)
    for name, value in nestmem.state_to_dict(one).items():
        assert torch.equal(value, nestmem.state_to_dict(expected)[name])


def first_errors(levels, clear, tasks=40, steps=128, width=16, rows=4):
    """Relative error on the first 8 steps of the last ten of many linear tasks, each shared map + own map."""
    fields = Fields(width, 0, width, labels=False)
    torch.manual_seed(0)
    chain = Continuum(fields.width, fields, levels=levels)
    with torch.no_grad():
        chain.rate.fill_(3.0)
    g = torch.Generator().manual_seed(1)
    shared, state, errors = torch.randn(rows, width, width, generator=g), chain.initial_state(rows), []
    for _ in range(tasks):
        keys = F.normalize(torch.randn(rows, steps, width, generator=g), dim=-1)
        outcomes = keys @ (shared + 0.5 * torch.randn(rows, width, width, generator=g))
        with torch.no_grad():
            y, state = chain(torch.cat([keys, outcomes.roll(1, 1)], -1), state)
        error = (fields.split(y)[2] - outcomes).square().sum(-1) / outcomes.square().sum(-1)
        errors.append(error[:, :8].mean())
        if clear:
            state = chain.reset(state, torch.ones(rows, dtype=torch.bool), until="task")
    return torch.stack(errors)[-10:].mean()


def test_slow_level_absorbs_what_tasks_share():
    alone, with_slow = first_errors(1, clear=True), first_errors(2, clear=True)
    assert alone > 0.9  # forgets all at each task's end
    assert with_slow < 0.5  # the next task starts from the shared map
    # Why a task's end clears level 1: without that it removes the error itself, and the slow level has little to learn.
    alone, with_slow = first_errors(1, clear=False), first_errors(2, clear=False)
    assert abs(with_slow - alone) < 0.1


def test_consolidation_is_the_change_since_the_start():
    chain = memory()
    _, state = chain(tokens(70))
    deltas = chain.consolidate(state)[1].deltas
    torch.testing.assert_close(deltas["w2"] + chain.w2, state.w2)
    assert (deltas["w2"].flatten(2).norm(dim=-1) > 0).all()


@pytest.mark.parametrize("option", ["levels", "fastest", "ratio", "hidden"])
def test_wrong_options_say_so(option):
    with pytest.raises(ValueError, match=f"{option}: expected at least 1, got 0"):
        Continuum(8, **{option: 0})
