"""Mixture-of-Memories separates what would interfere in one memory."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import LSTM, Fields, Routed

K, C = 32, 2
FIELDS = Fields(K, C, K, labels=False)


def ridge():
    """The exact fit of all it has taken in: what it gets wrong is interference, not a lossy write."""
    memory = nestmem.build("mesa", FIELDS.width, FIELDS).double()
    with torch.no_grad():
        memory.to_rate.weight.zero_()
        memory.to_decay.weight.zero_()
        memory.to_rate.bias.fill_(40.0)
        memory.to_decay.bias.fill_(40.0)
        memory.log_ridge.fill_(-3.0)
    return memory


def by_cue(copies=2, shared=False):
    """A router that looks at the cue alone."""
    memory = Routed([ridge() for _ in range(copies + shared)], FIELDS, top=1, shared=shared).double()
    with torch.no_grad():
        memory.router.weight.zero_()
        memory.router.weight[:C, K:] = 50 * torch.eye(C)
    return memory


def interleaved(pairs=20, seed=0):
    """Two streams with the same keys and other values, item by item in turn; the cue says which stream."""
    g = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(pairs, K, generator=g, dtype=torch.double), dim=-1).repeat_interleave(2, 0)
    values = F.normalize(torch.randn(2 * pairs, K, generator=g, dtype=torch.double), dim=-1)
    cues = torch.eye(C, dtype=torch.double).repeat(pairs, 1)
    x = torch.zeros(1, 2 * pairs + 1, FIELDS.width, dtype=torch.double)
    x[0, :-1, :K], x[0, :-1, K : K + C], x[0, 1:, K + C :] = keys, cues, values
    return x, keys, cues, values


def error(memory, x, keys, cues, values):
    query = torch.cat([keys, cues, torch.zeros_like(values)], -1)[None]
    answer = FIELDS.split(memory.read(query, memory(x)[1])[0][0])[2]
    return ((answer - values).norm() / values.norm()).item()


def test_two_streams_with_the_same_keys_do_not_interfere():
    data = interleaved()
    assert error(by_cue(), *data) < 0.3
    assert error(ridge(), *data) > 0.6


def test_a_memory_that_is_not_chosen_stays_as_it_is():
    memory = by_cue()
    x, *_ = interleaved()
    _, before = memory(x)
    only_first = x[:, ::2].clone()
    _, after = memory(only_first, before)
    assert not torch.equal(after.memories[0].s, before.memories[0].s)
    # The item that waited at the cut was the second stream's; after it nothing of that stream came.
    changed = (after.memories[1].s - before.memories[1].s).abs().max()
    _, once = memory(only_first[:, :1], before)
    assert torch.equal(after.memories[1].s, once.memories[1].s), changed


def test_the_shared_memory_takes_in_everything():
    memory = by_cue(shared=True)
    x, *_ = interleaved()
    torch.testing.assert_close(memory(x)[1].memories[-1].s, ridge()(x)[1].s)


def test_load_balance_is_least_when_memories_are_used_alike_and_undoes_a_collapse():
    torch.manual_seed(0)
    memory = nestmem.build("routed", 8, copies=4, top=2, shared=False)
    x = torch.randn(4, 32, 8) + 1.0
    with torch.no_grad():
        memory.router.weight[:2] += 1.0  # two memories take all
    optimizer = torch.optim.Adam(memory.router.parameters(), lr=0.05)
    values = []
    for _ in range(60):
        loss = memory.load_balance(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[0] == pytest.approx(2.0, abs=0.05)
    assert values[-1] == pytest.approx(1.0, abs=0.05)
    used = (memory.route(x) > 0).float().mean((0, 1))
    assert used.min() > 0.25


def test_what_can_be_routed_is_checked():
    with pytest.raises(ValueError, match="memories: expected key-value memories, got LSTM"):
        Routed([LSTM(4), LSTM(4)])
    with pytest.raises(ValueError, match=r"top: expected 1 to 2 \(the memories that are routed to\), got 3"):
        nestmem.build("routed", 8, copies=2, top=3)
