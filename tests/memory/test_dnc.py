"""Allocation, freeing, and links that keep the order of writes."""

import torch
from torch.nn import functional as F

from nestmem import DNC
from nestmem.memory.dnc import allocation, link

N, W = 4, 6
HIGH = 40.0
BACKWARD, CONTENT, FORWARD = torch.eye(3)


def heads(add=None, write=True, key=None, mode=CONTENT, free=False):
    """One read head. A write goes to a freshly allocated slot and replaces what was there."""
    asked = {
        "write_key": torch.zeros(1, W),
        "write_strength": torch.zeros(1, 1),
        "erase": torch.full((1, W), HIGH),
        "add": torch.zeros(1, W) if add is None else add[None],
        "allocation_gate": torch.full((1, 1), HIGH),
        "write_gate": torch.full((1, 1), HIGH if write else -HIGH),
        "read_keys": torch.zeros(1, W) if key is None else key[None],
        "read_strengths": torch.full((1, 1), HIGH),
        "free_gates": torch.full((1, 1), HIGH if free else -HIGH),
        "modes": HIGH * mode[None],
    }
    return {name: value.double() for name, value in asked.items()}


def written(n):
    memory = DNC(4, slots=N, width=W, reads=1).double()
    state = memory.initial_state(1)
    for i in range(n):
        state, _ = memory.access(heads(add=torch.eye(W, dtype=torch.double)[i]), state)
    return memory, state


def test_allocation_takes_the_freest_slot_first():
    usage = torch.tensor([[0.9, 0.2, 1.0, 0.6]])
    want = torch.tensor([[0.1 * 0.2 * 0.6, 0.8, 0.0, 0.4 * 0.2]])
    torch.testing.assert_close(allocation(usage), want, atol=1e-5, rtol=0)
    free = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    torch.testing.assert_close(allocation(free), torch.tensor([[0.0, 0.0, 1.0, 0.0]]), atol=1e-5, rtol=0)
    full = torch.ones(1, 4)
    torch.testing.assert_close(allocation(full), torch.zeros(1, 4))


def test_allocation_is_twice_differentiable_with_free_slots():
    usage = torch.tensor([[0.0, 0.3, 0.001, 0.8]], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda u: allocation(u.abs()), (usage[:, 1:].detach().requires_grad_(),))
    (slope,) = torch.autograd.grad(allocation(usage).square().sum(), usage, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), usage)
    assert slope.isfinite().all() and bend.isfinite().all()


def test_every_write_takes_its_own_slot_until_there_is_none():
    memory, state = written(N)
    torch.testing.assert_close(state.memory[0].sum(0)[:N], torch.ones(N).double(), atol=1e-4, rtol=0)
    assert sorted(state.memory[0].argmax(-1).tolist()) == [0, 1, 2, 3]
    late = 5 * torch.ones(W).double()
    full, _ = memory.access(heads(add=late), state)
    torch.testing.assert_close(full.memory, state.memory, atol=1e-4, rtol=0)


def test_freeing_opens_a_slot_again():
    memory, state = written(N)
    second = torch.eye(W).double()[1]
    slot = int(state.memory[0].argmax(-1).tolist().index(1))
    state, _ = memory.access(heads(write=False, key=second), state)  # find it
    assert state.usage.min() > 0.99
    torch.testing.assert_close(state.reads[0, 0], second, atol=1e-4, rtol=0)
    new = 5 * torch.eye(W).double()[5]
    state, _ = memory.access(heads(add=new, key=new, free=True), state)  # free what was read, and write
    torch.testing.assert_close(state.memory[0, slot], new, atol=1e-3, rtol=0)
    assert sorted(state.memory[0].argmax(-1).tolist()) == [0, 2, 3, 5]


def test_links_replay_what_was_written_in_order_and_backwards():
    order = [3, 0, 2, 1]
    links, precedence = torch.zeros(1, N, N), torch.zeros(1, N)
    for slot in order:
        links, precedence = link(links, precedence, torch.eye(N)[slot][None])
    at = torch.eye(N)[order[0]]
    for slot in order[1:]:
        at = links[0] @ at
        assert torch.equal(at, torch.eye(N)[slot])
    for slot in order[-2::-1]:
        at = links[0].T @ at
        assert torch.equal(at, torch.eye(N)[slot])


def test_rereading_goes_forward_from_what_content_found():
    memory, state = written(N)
    items = torch.eye(W).double()
    state, _ = memory.access(heads(write=False, key=items[0]), state)
    for i, mode in ((1, FORWARD), (2, FORWARD), (3, FORWARD), (2, BACKWARD)):
        state, _ = memory.access(heads(write=False, mode=mode), state)
        torch.testing.assert_close(state.reads[0, 0], items[i], atol=1e-3, rtol=0)


def test_links_are_substochastic_without_a_diagonal():
    torch.manual_seed(0)
    links, precedence = torch.zeros(8, N, N), torch.zeros(8, N)
    for _ in range(200):
        weights = torch.rand(8, 1) * F.softmax(3 * torch.randn(8, N), -1)
        links, precedence = link(links, precedence, weights)
        assert links.min() >= -1e-6
        assert links.sum(1).max() <= 1 + 1e-5 and links.sum(2).max() <= 1 + 1e-5
        assert precedence.sum(1).max() <= 1 + 1e-5
        assert (torch.diagonal(links, dim1=1, dim2=2) == 0).all()
    assert links.sum((1, 2)).min() > 0.5
