"""An LSTM that forgets beside fast weights that do not."""

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


def test_a_cue_brings_back_what_was_kept_under_it_and_the_key_is_the_cue_alone():
    torch.manual_seed(1)
    memory = build("nested_kept", FIELDS.width, FIELDS, hidden=6, key_size=16)
    a, b = torch.randn(2, FIELDS.cue)
    content = torch.randn(1, 9, FIELDS.width - FIELDS.cue)

    def visit(cue, state):
        tokens = torch.cat([content[..., :5], cue.expand(1, 9, -1), content[..., 5:]], -1)
        _, state = memory(tokens, state)
        return memory.reset(state, torch.ones(1, dtype=torch.bool))

    state = visit(b, visit(a, memory.initial_state(1)))
    token = torch.cat([torch.randn(5), a, torch.zeros(4)])[None]
    kept = memory.parts[1].read(torch.cat([memory.where(token), torch.zeros(1, 4)], -1), state[1])[0]
    other = token.clone()
    other[:, :5] += 1
    assert torch.equal(memory.where(token), memory.where(other))
    other[:, 5:8] = torch.randn(3)
    unseen = memory.parts[1].read(torch.cat([memory.where(other), torch.zeros(1, 4)], -1), state[1])[0]
    assert kept.norm() > 0 and not torch.allclose(kept, unseen)


def test_cues_that_are_much_alike_have_keys_that_are_less_so():
    torch.manual_seed(3)
    fields = Fields(content=1, cue=10, outcome=2, labels=False)
    memory = build("nested_kept", fields.width, fields, key_size=256)
    one = torch.randint(2, (200, 10)) * 2.0 - 1
    other = one.clone()
    other[:, :2] *= -1  # two bits of ten: the cosine of the cues is .6

    def key(cue):
        return memory.where(torch.nn.functional.pad(cue, (1, 2)))

    assert torch.nn.functional.cosine_similarity(key(one), key(other)).mean() < 0.45


def test_what_is_kept_is_nearly_silent_at_first():
    memory = build("nested_kept", FIELDS.width, FIELDS)
    opened = memory.gate(torch.randn(100, FIELDS.width + FIELDS.outcome)).sigmoid()
    assert opened.mean() < 0.25


def test_without_a_cue_the_token_is_the_key():
    torch.manual_seed(2)
    memory = build("nested_kept", 8)
    first, second = torch.randn(2, 8)
    assert not torch.allclose(memory.where(first), memory.where(second))
