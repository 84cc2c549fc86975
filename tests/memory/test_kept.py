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
    working, kept, _ = memory.reset(state, done)
    assert (working.h[done] == 0).all() and (working.h[~done] != 0).any()
    assert torch.equal(kept.s, state.kept.s) and kept.s.abs().sum() > 0
    y, _ = memory(second, memory.reset(state, torch.ones(3, dtype=torch.bool)))
    (reaches,) = torch.autograd.grad(y.sum(), first)
    assert (reaches.abs().sum((1, 2)) > 0).all()
    emptied = memory.reset(state, torch.ones(3, dtype=torch.bool), until="life")
    assert emptied.kept.s.abs().sum() == 0


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
    kept = memory.kept.read(torch.cat([memory.key(token), torch.zeros(1, 4)], -1), state.kept)[0]
    other = token.clone()
    other[:, :5] += 1
    assert torch.equal(memory.key(token), memory.key(other))
    other[:, 5:8] = torch.randn(3)
    unseen = memory.kept.read(torch.cat([memory.key(other), torch.zeros(1, 4)], -1), state.kept)[0]
    assert kept.norm() > 0 and not torch.allclose(kept, unseen)


def test_the_last_answer_of_a_visit_is_kept_under_its_own_cue():
    torch.manual_seed(4)
    memory = build("nested_kept", FIELDS.width, FIELDS, hidden=6, key_size=16)
    tokens, following = torch.randn(1, 7, FIELDS.width), torch.randn(1, 1, FIELDS.width)
    _, ended = memory(tokens)
    begun = memory.reset(ended, torch.ones(1, dtype=torch.bool))
    _, state = memory(following, begun)
    key = torch.nn.functional.normalize(memory.key(tokens[:, -1]), dim=-1)[0]
    change = (state.kept.s - ended.kept.s)[0, 0]  # [K, V], a multiple of key x (what was said - what was known)
    wanted = torch.outer(key, ended.said[0] - key @ ended.kept.s[0, 0])
    rate = (change * wanted).sum() / wanted.square().sum()
    assert 0 < rate < 1
    assert torch.allclose(change, rate * wanted, atol=1e-6)


def test_cues_that_are_much_alike_have_keys_that_are_less_so():
    torch.manual_seed(3)
    fields = Fields(content=1, cue=10, outcome=2, labels=False)
    memory = build("nested_kept", fields.width, fields, key_size=256)
    one = torch.randint(2, (200, 10)) * 2.0 - 1
    other = one.clone()
    other[:, :2] *= -1  # two bits of ten: the cosine of the cues is .6

    def key(cue):
        return memory.key(torch.nn.functional.pad(cue, (1, 2)))

    assert torch.nn.functional.cosine_similarity(key(one), key(other)).mean() < 0.45


def test_what_is_kept_is_nearly_silent_at_first():
    memory = build("nested_kept", FIELDS.width, FIELDS)
    opened = memory.gate(torch.randn(100, FIELDS.width + FIELDS.outcome)).sigmoid()
    assert opened.mean() < 0.25


def test_without_a_cue_the_token_is_the_key():
    torch.manual_seed(2)
    memory = build("nested_kept", 8)
    first, second = torch.randn(2, 8)
    assert not torch.allclose(memory.key(first), memory.key(second))


def test_what_came_of_the_last_step_of_a_visit_is_kept_under_its_cue():
    torch.manual_seed(5)
    memory = build("nested_kept", FIELDS.width, FIELDS, hidden=6, key_size=16)
    torch.nn.init.eye_(memory.came.weight)
    tokens, following = torch.randn(1, 7, FIELDS.width), torch.randn(1, 1, FIELDS.width)
    _, ended = memory(tokens)
    begun = memory.reset(ended, torch.ones(1, dtype=torch.bool))
    _, state = memory(following, begun)
    key = torch.nn.functional.normalize(memory.key(tokens[:, -1]), dim=-1)[0]
    change = (state.kept.s - ended.kept.s)[0, 0]
    wanted = torch.outer(key, ended.said[0] + memory.outcome(following)[0, 0] - key @ ended.kept.s[0, 0])
    rate = (change * wanted).sum() / wanted.square().sum()
    assert 0 < rate < 1
    assert torch.allclose(change, rate * wanted, atol=1e-6)
