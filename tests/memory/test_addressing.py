"""What the controllers with a matrix share: they learn to use it, and reading with a query is a step that is not kept."""

import itertools

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem.memory.addressing import cosine, erase_and_add
from nestmem.memory.base import where_rows

NAMES = ["ntm", "mann", "dnc"]
ALL = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))  # every sequence of four symbols


def copied(memory, symbols, wipe=False):
    """Cross-entropy (nats) of repeating symbols [B, n], when the controller forgets everything before it has to answer.

    What is left to answer from is the matrix and where the heads are; with `wipe`, not even that.
    """
    rows, n = symbols.shape
    x = torch.zeros(rows, 2 * n + 1, 3)
    x[:, :n, 0], x[:, :n, 1], x[:, n, 2] = symbols, 1.0, 1.0
    state, blank = memory(x[:, :n])[1], memory.initial_state(rows)
    if wipe:
        state = where_rows(torch.ones(rows, dtype=torch.bool), blank, state)
    state = state._replace(h=blank.h, c=blank.c, reads=blank.reads)
    return F.binary_cross_entropy_with_logits(memory(x[:, n:], state)[0][:, -n:, 0], symbols)


@pytest.mark.parametrize("name", NAMES)
def test_learns_to_copy_through_the_matrix_alone(name):
    torch.manual_seed(0)
    memory = nestmem.build(name, 3, hidden=16)
    with torch.no_grad():
        assert copied(memory, ALL) > 0.6
    optimiser = torch.optim.Adam(memory.parameters(), 2e-2)
    for i in range(300):
        loss = copied(memory, torch.randint(2, (32, 1 + i % 4), generator=torch.Generator().manual_seed(i)).float())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(memory.parameters(), 1.0)
        optimiser.step()
    with torch.no_grad():
        assert copied(memory, ALL) < 0.35
        assert copied(memory, ALL, wipe=True) > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_a_read_is_a_step_that_is_not_kept(name):
    torch.manual_seed(0)
    memory = nestmem.build(name, 5).double()
    _, state = memory(torch.randn(2, 6, 5).double())
    queries = torch.randn(2, 3, 5).double()
    y, aux = memory.read(queries, state)
    for i in range(3):
        answer, _, seen = memory.step(queries[:, i], state)
        torch.testing.assert_close(y[:, i], answer)
        torch.testing.assert_close(aux.weights[:, i], seen.weights)


def test_erase_and_add_at_one_slot():
    memory = torch.arange(6.0).view(1, 3, 2)
    weights, erase, add = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[7.0, 10.0]])
    want = torch.tensor([[[0.0, 1.0], [7.0, 13.0], [4.0, 5.0]]])
    assert torch.equal(erase_and_add(memory, weights, erase, add), want)


def test_cosine_is_that_of_the_directions_and_zero_for_an_empty_slot():
    memory = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-2.0, 0.0]]])
    found = cosine(torch.tensor([[[5.0, 0.0]]]), memory)[0, 0]
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5**0.5, 0.0, -1.0]))


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("ntm", "slots", 1, "slots: expected at least 2, got 1"),
        ("dnc", "reads", 0, "reads: expected at least 1, got 0"),
        ("mann", "decay", 1.0, "decay: expected at least 0 and less than 1, got 1.0"),
    ],
)
def test_bad_options(name, option, value, message):
    with pytest.raises(ValueError, match=message):
        nestmem.build(name, 4, **{option: value})
