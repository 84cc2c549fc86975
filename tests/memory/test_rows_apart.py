"""Rows that began at different times, a whole number of chunks apart, still share the fast form."""

import pytest
import torch

import nestmem
from nestmem.memory.base import Memory, where_rows


@pytest.mark.parametrize(
    ("name", "options"),
    [("titans", {"chunk": 4}), ("yaad", {"chunk": 4}), ("titans_context", {"segment": 8, "chunk": 8})],
)
def test_rows_a_chunk_apart_run_together_and_alike(name, options, monkeypatch):
    torch.manual_seed(0)
    memory = nestmem.build(name, 8, None, **options).double()
    x = torch.randn(2, 21, 8, dtype=torch.double)
    _, state = memory(x[:, :8])
    state = memory.reset(state, torch.tensor([False, True]))
    apart = where_rows(torch.tensor([False, True]), memory.initial_state(2), state)
    want, after, _ = Memory.run(memory, x[:, 8:], apart)

    def slow(*_):
        raise AssertionError("step by step")

    monkeypatch.setattr(Memory, "run", slow)
    got, end, _ = memory.run(x[:, 8:], apart)
    assert torch.allclose(got, want)
    held, wanted = (nestmem.state_to_dict(s) for s in (end, after))
    assert all(
        torch.allclose(held[k].double(), wanted[k].double()) for k in held if "keys" not in k and "values" not in k
    )
