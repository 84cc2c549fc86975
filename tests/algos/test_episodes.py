"""The exact memory of what followed what: it knows a context after one visit, and costs the same for ever."""

import pytest
import torch

from algos.episodes import MOST, Episodes
from nestmem import state_bytes
from nestmem.errors import UserError

V, D = 16, 6


def memory(orders=(2, 3), chunk=1, bits=12):
    torch.manual_seed(0)
    return Episodes(V, D, list(orders), bits, chunk)


def said(made, tokens, state=None):
    """What is added to the logits after each of tokens [T]: [T, V], and the state."""
    tokens = torch.as_tensor(tokens)[None]
    with torch.no_grad():
        logits, state = made(torch.zeros(1, tokens.shape[1], D), tokens, state or made.initial_state(1))
    return logits[0], state


def expected(orders, tokens):
    """The same by dictionaries."""
    found = [{} for _ in orders]
    rows = []
    for t in range(len(tokens)):
        row = torch.zeros(V)
        for n, (order, table) in enumerate(zip(orders, found)):
            past = [V] * order + tokens
            if t and tokens[t] < V:
                before = tuple(past[t : t + order])
                token, count = table.get(before, (None, 0))
                table[before] = (tokens[t], min(count + 1, MOST) if token == tokens[t] else 1)
            token, count = table.get(tuple(past[t + 1 : t + 1 + order]), (None, 0))
            if token is not None:
                row[token] += made_trust[n][count]
        rows.append(row)
    return torch.stack(rows)


made_trust = memory().trust.detach()


def test_says_what_a_dictionary_of_contexts_would_say():
    made = memory(bits=20)
    tokens = torch.randint(0, 4, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    got, _ = said(made, tokens)
    # With chunk 1 a token is written after the read of its own step, so the last item is not known yet.
    agree = (got - expected((2, 3), tokens)).abs().amax(-1) < 1e-6
    assert agree.float().mean() > 0.9
    wrong = (~agree).nonzero()[:, 0].tolist()
    for t in wrong:  # only where the context is that of the step before, as in a run of one token
        assert tokens[t - 1] == tokens[t]


@pytest.mark.parametrize("chunk", [4, 16])
def test_however_a_text_is_cut_the_same_is_said(chunk):
    made = memory(chunk=chunk)
    tokens = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(2))
    whole, end = said(made, tokens)
    state, parts = None, []
    for piece in tokens.split([5, 11, 30, 18]):
        part, state = said(made, piece, state)
        parts.append(part)
    assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, end))


def test_of_two_tokens_for_one_context_in_a_chunk_the_later_stays():
    made = memory(orders=(1,), chunk=8)
    _, state = said(made, [1, 5, 1, 6, 2, 2, 2, 2])
    votes, _ = said(made, [1], state)
    assert votes[0].argmax() == 6


def test_a_new_document_and_a_row_beside_find_nothing():
    made = memory()
    _, state = said(made, [1, 2, 3, 1, 2, 3])
    state = made.reset(state, torch.tensor([True]))
    votes, _ = said(made, [V, 1, 2], state)
    assert not votes.any()
    tokens = torch.tensor([[1, 2, 3, 1, 2], [4, 5, 6, 7, 8]])
    with torch.no_grad():
        logits, _ = made(torch.zeros(2, 5, D), tokens, made.initial_state(2))
    assert logits[0, 4, 3] != 0 and not logits[1].any()


def test_trust_is_learned_and_the_state_stays_as_large_and_as_it_was():
    made = memory()
    tokens = torch.tensor([[1, 2, 3] * 20])
    begun = made.initial_state(1)
    logits, state = made(torch.randn(1, 60, D), tokens, begun)
    logits.logsumexp(-1).sum().backward()
    assert made.trust.grad.abs().sum() > 0 and made.moment.weight.grad.abs().sum() > 0
    assert not begun.count.any() and state.count.max() == MOST
    assert state_bytes(state) == state_bytes(begun)


def test_impossible_sizes_are_refused():
    for orders, bits in (([], 10), ([0], 10), ([2], 30)):
        with pytest.raises(UserError, match=r"algo\.orders, algo\.bits"):
            memory(orders=orders, bits=bits)
