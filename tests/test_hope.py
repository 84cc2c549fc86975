"""The self-modifying memory remembers, and what it remembers changes how it writes."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import SelfModifying

D = 32


def plain(chunk=1, rate=40.0):
    """Starts as the identity: a token is its own key and value; rates are set by hand."""
    memory = SelfModifying(D, chunk=chunk).double()
    with torch.no_grad():
        memory.start.copy_(torch.eye(D).expand(5, D, D))
        for gate, logit in ((memory.to_rate, rate), (memory.to_keep, 40.0)):
            gate.weight.zero_()
            gate.bias.fill_(logit)
        memory.out.weight.copy_(torch.eye(D))
        memory.out.bias.zero_()
    return memory


def directions(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, D, generator=g, dtype=torch.double), dim=-1)


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_token_after_a_key_is_recalled_by_the_key(chunk):
    memory = plain(chunk)
    tokens = directions(8)
    state = memory(tokens[None])[1]
    answers = memory.read(tokens[None, :-1], state)[0][0]
    assert (answers @ tokens.T).argmax(-1).tolist() == list(range(1, 8))


def test_what_it_learns_changes_its_own_keys_values_and_rates():
    """The same token is written differently before and after learning; with a rate of zero nothing changes."""
    for rate, changes in ((40.0, True), (-40.0, False)):
        memory = plain(rate=rate)
        state = memory(directions(8)[None])[1]
        probe = directions(2, seed=1)[None, :, None]
        fresh = memory._written(probe[:, 1], probe[:, 0], memory.initial_state(1).base)
        later = memory._written(probe[:, 1], probe[:, 0], state.base)
        assert torch.allclose(fresh.key, later.key) != changes
        assert torch.allclose(fresh.outcome, later.outcome) != changes


def test_a_chunk_writes_by_the_matrices_at_its_start():
    memory = plain(chunk=4)
    x = directions(7)[None]
    state = memory(x)[1]
    assert torch.equal(state.base, memory(x[:, :4])[1].change)
    assert not torch.equal(state.base, state.change)


def test_hope_is_a_self_modifying_memory_and_a_continuum():
    hope = nestmem.build("hope", 8, levels=2)
    assert [type(part).__name__ for part in hope.parts] == ["SelfModifying", "Continuum"]
    with pytest.raises(ValueError, match="chunk: expected at least 1 step, got 0"):
        SelfModifying(8, chunk=0)
