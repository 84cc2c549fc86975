"""Tensor product: what shares only the key or only the cue with a query hardly answers; bytes instead of floats."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from nestmem import Episodic, Fields, Item, TensorProduct
from nestmem.consolidation import RULES

FIELDS = Fields(24, 16, 5)


def bindings(contexts, classes, seed=0):
    """Every class under every cue with a label of its own: [1, N, ...] each, and the labels [N]."""
    g = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(classes, 24, generator=g), dim=-1).repeat(contexts, 1)
    cues = F.normalize(torch.randn(contexts, 16, generator=g), dim=-1).repeat_interleave(classes, 0)
    labels = torch.randint(5, (contexts * classes,), generator=g)
    return Item(keys[None], cues[None], F.one_hot(labels, 5).float()[None]), labels


def recalled(memory, state, item, labels):
    query = torch.cat([item.key, item.cue, torch.zeros_like(item.outcome)], -1)
    answer = FIELDS.split(memory.read(query, state)[0])[2]
    return float((answer.argmax(-1)[0] == labels).float().mean())


@pytest.mark.parametrize("bits", [8, 32])
def test_conflicting_bindings_are_kept_apart_by_their_cues(bits):
    memory, (item, labels) = TensorProduct(45, FIELDS, bits=bits), bindings(10, 6)
    state = memory.initial_state(1)
    for n in range(60):
        state = memory.write(Item(*(part[:, n] for part in item)), state)
    assert recalled(memory, state, item, labels) > 0.85  # 60 items with conflicting labels, each written once
    strangers = bindings(10, 6, seed=1)[0].cue
    assert recalled(memory, state, item._replace(cue=strangers), labels) < 0.4
    assert nestmem.state_bytes(state) == 384 * 5 * bits // 8 + 40 * 4


def test_items_are_taken_over_where_it_is_due():
    memory, (item, labels) = TensorProduct(45, FIELDS, bits=8, ridge=0.5), bindings(6, 5)
    two = Item(*(part.expand(2, -1, -1) for part in item))
    given = nestmem.Consolidation(two, torch.ones(2, 30, dtype=torch.bool))
    state = memory.absorb(memory.initial_state(2), given, torch.tensor([True, False]), RULES["replay"])
    row = nestmem.select(state, torch.tensor([0]))
    assert recalled(memory, row, item, labels) == 1.0
    assert (state.w[1] == 0).all()


@pytest.mark.parametrize(("sees", "changes"), [("items", [6, 12]), ("tokens", list(range(2, 14)))])
def test_as_a_slow_level_it_sees_items_at_ticks_or_every_token(sees, changes):
    memory = nestmem.build("nested", 45, FIELDS, hidden=4, slots=8, slow="product", period=6, slow_sees=sees)
    level = 2 if sees == "items" else 1
    item, _ = bindings(3, 5)
    tokens = torch.cat([item.key, item.cue, item.outcome], -1)[:, :13]
    state, changed = memory.initial_state(1), []
    for t in range(13):
        before = state.levels[level].w
        _, state, _ = memory.step(tokens[:, t], state)
        if not torch.equal(before, state.levels[level].w):
            changed.append(t + 1)
    assert changed == changes


def test_read_by_cosine_hebbian_consolidation_keeps_class_means():
    fields, g = Fields(8, 0, 4), torch.Generator().manual_seed(0)
    memory = TensorProduct(12, fields, cosine=True)
    keys = F.normalize(torch.randn(20, 8, generator=g), dim=-1)
    labels = torch.tensor([0] * 14 + [1, 1, 1, 2, 2, 2])  # class 0 far more often, class 3 never
    item = Item(keys[None], torch.zeros(1, 20, 0), F.one_hot(labels, 4).float()[None])
    given = nestmem.Consolidation(item, torch.ones(1, 20, dtype=torch.bool))
    state = memory.absorb(memory.initial_state(1), given, torch.tensor([True]), RULES["hebb"])
    means = torch.stack([F.normalize(keys[labels == c].mean(0), dim=-1) for c in range(3)])
    queries = F.normalize(torch.randn(1, 50, 8, generator=g), dim=-1)
    said = fields.split(memory.read(F.pad(queries, (0, 4)), state)[0])[2] / memory.log_gain.exp()
    torch.testing.assert_close(said[0, :, :3], queries[0] @ means.T, atol=1e-5, rtol=0)
    assert (said[0, :, 3] == 0).all()


def test_a_wide_code_has_more_features():
    assert TensorProduct(45, FIELDS, key_code=40).initial_state(1).w.shape == (1, 640, 5)


@pytest.mark.parametrize(
    ("options", "says"), [({"bits": 4}, "bits: expected 8 or 32, got 4"), ({"period": 0}, "period")]
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        TensorProduct(45, FIELDS, **options)


def test_slots_in_bytes_say_what_slots_in_floats_say():
    torch.manual_seed(0)
    item, _ = bindings(4, 6)
    item = Item(*(part[:, torch.randperm(24)] for part in item))
    tokens = torch.cat([item.key, item.cue, F.pad(item.outcome[:, :-1], (0, 0, 1, 0))], -1)
    exact, rounded = Episodic(45, FIELDS, slots=16), Episodic(45, FIELDS, slots=16, key_bits=8)
    (y, state), (z, bytes_) = exact(tokens), rounded(tokens)
    torch.testing.assert_close(FIELDS.split(z)[2].exp(), FIELDS.split(y)[2].exp(), atol=0.05, rtol=0)
    assert bytes_.keys.dtype == bytes_.outcomes.dtype == torch.int8
    assert nestmem.state_bytes(state) - nestmem.state_bytes(bytes_) == 16 * 45 * 3
    step, held = [], rounded.initial_state(1)
    for t in range(tokens.shape[1]):
        answer, held, _ = rounded.step(tokens[:, t], held)
        step.append(answer)
    torch.testing.assert_close(torch.stack(step, 1), z)
    assert torch.equal(held.keys, bytes_.keys)
    assert not rounded.spec.differentiable_write and exact.spec.differentiable_write
