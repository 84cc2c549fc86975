"""An LSTM that forgets above fast weights that do not."""

import torch

from nestmem import build
from nestmem.memory.base import Fields

FIELDS = Fields(content=5, cue=3, outcome=4, labels=False)


def test_fast_weights_outlive_an_episode_and_gradients_go_through_them():
    torch.manual_seed(0)
    memory = build("nested_kept", FIELDS.width, FIELDS, hidden=6, key_size=4)
    first, second = torch.randn(2, 3, 7, FIELDS.width, requires_grad=True)
    _, state = memory(first)
    done = torch.tensor([True, False, True])
    working, kept = memory.reset(state, done)
    assert (working.h[done] == 0).all() and (working.h[~done] != 0).any()
    assert torch.equal(kept.s, state[1].s) and kept.s.abs().sum() > 0
    y, _ = memory(second, memory.reset(state, torch.ones(3, dtype=torch.bool)))
    (reaches,) = torch.autograd.grad(y.sum(), first)
    assert (reaches.abs().sum((1, 2)) > 0).all()
    emptied = memory.reset(state, torch.ones(3, dtype=torch.bool), until="life")
    assert emptied[1].s.abs().sum() == 0


def test_what_is_kept_is_quiet_at_first():
    memory = build("nested_kept", FIELDS.width, FIELDS)
    assert 0 < memory.parts[1].gain < 0.5
