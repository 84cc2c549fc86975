"""What the episodic and the slow memory are for: binding, overwriting, forgetting, keeping, clocks."""

import pytest
import torch
from torch.nn import functional as F

from nestmem import Episodic, Fields, Item, SlowMLP, consolidation
from nestmem.consolidation import average_, distill, replay, reptile

K, WAYS = 16, 5
FIELDS = Fields(K, 0, WAYS)
CUED = Fields(K, 8, WAYS)


def bindings(n, seed=0, cue=0):
    g = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(n, K, generator=g), dim=-1)
    cues = F.normalize(torch.randn(n, cue, generator=g), dim=-1) if cue else torch.zeros(n, 0)
    return keys, cues, torch.randint(WAYS, (n,), generator=g)


def sequence(keys, cues, labels):
    """(x_t, y_{t-1}) for one row, with a closing token."""
    n = len(keys)
    x = torch.zeros(1, n + 1, K + cues.shape[1] + WAYS)
    x[0, :n, : K + cues.shape[1]] = torch.cat([keys, cues], -1)
    x[0, 1:, K + cues.shape[1] :] = F.one_hot(labels, WAYS).float()
    return x


def ask(memory, keys, cues, state):
    query = torch.cat([keys, cues, torch.zeros(len(keys), WAYS)], -1)[None]
    return memory.read(query, state)[0][0, :, -WAYS:].argmax(-1)


@pytest.mark.parametrize("write_when", ["novel", "surprise", "always"])
def test_one_shot_recall_after_distractors(write_when):
    threshold = 0.5 if write_when == "surprise" else 0.9
    memory = Episodic(FIELDS.width, FIELDS, slots=64, write_when=write_when, temperature=30.0, threshold=threshold)
    keys, cues, labels = bindings(60)
    _, state = memory(sequence(keys, cues, labels))
    if write_when == "surprise":  # what was foreseen was not written, so ask only for what was
        assert 10 < int(state.slots.valid.sum()) <= 60
        assert (ask(memory, keys, cues, state) == labels).float().mean() > 0.9
    else:
        assert torch.equal(ask(memory, keys, cues, state), labels)


def test_repeats_take_one_slot_if_writing_is_on_novelty_and_many_if_it_is_always():
    keys, cues, labels = bindings(4)
    again = [part.repeat(10, *[1] * (part.dim() - 1)) for part in (keys, cues, labels)]
    for write_when, held in (("novel", 4), ("always", 16)):
        memory = Episodic(FIELDS.width, FIELDS, slots=16, write_when=write_when)
        _, state = memory(sequence(*again))
        assert int(state.slots.valid.sum()) == held


def test_a_relabelled_key_is_a_new_item_and_the_ring_forgets_the_oldest():
    keys, cues, labels = bindings(20)
    memory = Episodic(FIELDS.width, FIELDS, slots=8, temperature=50.0)
    _, state = memory(sequence(keys, cues, labels))
    assert torch.equal(ask(memory, keys[-8:], cues[-8:], state), labels[-8:])
    assert float(memory.read(sequence(keys[:1], cues[:1], labels[:1])[:, 0], state)[1].confidence) < 0.95
    relabelled = (labels[-1:] + 1) % WAYS
    _, state = memory(sequence(keys[-1:], cues[-1:], relabelled), state)
    assert state.outcomes[0].argmax(-1).tolist().count(int(relabelled)) >= 1


def test_with_recency_the_newer_of_two_meanings_wins():
    keys, cues, labels = bindings(6)
    memory = Episodic(FIELDS.width, FIELDS, slots=32, temperature=30.0)
    later = (labels + 1) % WAYS
    _, state = memory(sequence(torch.cat([keys, keys]), torch.cat([cues, cues]), torch.cat([labels, later])))
    memory.recency.data.fill_(30.0)
    assert torch.equal(ask(memory, keys, cues, state), later)


def test_least_used_keeps_what_comes_back():
    keys, cues, labels = bindings(12)
    order = [0, 1, 2, 3, 0, 0, 0, 4, 5, 6, 7, 8]
    args = keys[order], cues[order], labels[order]
    kept = {}
    for evict in ("oldest", "least_used"):
        memory = Episodic(FIELDS.width, FIELDS, slots=4, evict=evict)
        _, state = memory(sequence(*args))
        kept[evict] = bool((state.keys[0] @ keys[0] > 0.99).any())
    assert kept == {"oldest": False, "least_used": True}


def test_conjunctive_keys_keep_apart_what_shares_content_or_cue():
    """The same five contents have other labels under another cue."""
    keys, _, _ = bindings(5)
    cues = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    content, cue = keys.repeat(4, 1), cues.repeat_interleave(5, 0)
    labels = torch.stack([torch.randperm(WAYS, generator=torch.Generator().manual_seed(i)) for i in range(4)]).flatten()
    memory = Episodic(CUED.width, CUED, temperature=20.0)
    _, state = memory(sequence(content, cue, labels))
    assert torch.equal(ask(memory, content, cue, state), labels)
    slow = SlowMLP(CUED.width, CUED, hidden=512)
    given = memory.consolidate(state)[1]
    absorbed = slow.absorb(slow.initial_state(1), given, torch.tensor([True]), replay)
    assert torch.equal(ask(slow, content, cue, absorbed), labels)


def test_slow_weights_change_exactly_on_their_clock():
    memory = SlowMLP(FIELDS.width, FIELDS, period=5)
    x = sequence(*bindings(22))
    state, changed = memory.initial_state(1), []
    for t in range(x.shape[1]):
        before = state.w2
        _, state, _ = memory.step(x[:, t], state)
        if not torch.equal(before, state.w2):
            changed.append(t + 1)
    assert changed == [5, 10, 15, 20]


def test_period_one_is_sgd_on_an_mlp():
    torch.manual_seed(0)
    memory = SlowMLP(FIELDS.width, FIELDS, hidden=12, period=1).double()
    keys, cues, labels = bindings(9)
    keys = keys.double()
    outcomes = F.one_hot(labels, WAYS).double()
    state = memory.initial_state(1)
    w1, w2 = (w.detach().clone().requires_grad_() for w in (memory.w1, memory.w2))
    rate = memory.max_rate * memory.rate.sigmoid().item()
    for key, outcome in zip(keys, outcomes):
        state = memory.write(Item(key[None], cues[:1].double(), outcome[None]), state)
        loss = 0.5 * ((2 / 12) ** 0.5 * (key @ w1).relu() @ w2 - outcome).square().sum()
        for w, g in zip((w1, w2), torch.autograd.grad(loss, (w1, w2))):
            w.data -= rate * g
    torch.testing.assert_close(state.w1[0], w1)
    torch.testing.assert_close(state.w2[0], w2)


def test_a_repeated_key_is_overwritten_in_the_slow_memory():
    memory = SlowMLP(FIELDS.width, FIELDS, hidden=256, period=1, max_rate=1.0)
    memory.rate.data.fill_(10.0)
    keys, cues, _ = bindings(1)
    state = None
    for label in (1, 3):
        labels = torch.full((6,), label)
        _, state = memory(sequence(keys.repeat(6, 1), cues.repeat(6, 1), labels), state)
        assert ask(memory, keys, cues, state).item() == label


def problem(correlated):
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(1, 10, 40, generator=g) / 40**0.5
    if correlated:
        phi = phi + 3 * torch.ones(40) / 40**0.5
    return torch.zeros(1, 40, WAYS), phi, F.one_hot(torch.randint(WAYS, (1, 10), generator=g), WAYS).float()


@pytest.mark.parametrize("correlated", [False, True])
def test_replay_answers_every_item_and_no_rule_diverges(correlated):
    weights, phi, targets = problem(correlated)
    valid = torch.ones(1, 10, dtype=torch.bool)
    errors = {}
    for name, rule in {"none": lambda w, *_: w, **consolidation.RULES}.items():
        after = rule(weights, phi, targets, valid)
        errors[name] = float((phi @ after - targets).square().mean())
    assert errors["replay"] < 0.02 * errors["none"]
    assert errors["distill"] < errors["none"] and errors["reptile"] < errors["none"]


def test_distillation_converges_to_the_exact_solve():
    weights, phi, targets = problem(correlated=False)
    valid = torch.ones(1, 10, dtype=torch.bool)
    torch.testing.assert_close(
        distill(weights, phi, targets, valid, steps=3000),
        replay(weights, phi, targets, valid, ridge=0.0),
        atol=1e-3,
        rtol=0,
    )
    half = reptile(weights, phi, targets, valid, steps=3000, rate=0.5)
    torch.testing.assert_close(2 * half, replay(weights, phi, targets, valid, ridge=0.0), atol=2e-3, rtol=0)


def test_invalid_items_are_not_replayed():
    weights, phi, targets = problem(correlated=False)
    valid = torch.arange(10)[None] < 6
    for rule in consolidation.RULES.values():
        full = rule(weights, phi, targets, valid)
        short = rule(weights, phi[:, :6], targets[:, :6], valid[:, :6])
        torch.testing.assert_close(full, short, atol=1e-5, rtol=1e-4)


def test_averaging_moves_slow_parameters_by_a_share_of_the_mean_change():
    memory = SlowMLP(FIELDS.width, FIELDS, period=2)
    _, state = memory(sequence(*bindings(8)).expand(3, -1, -1))
    deltas = memory.consolidate(state)[1].deltas
    before = memory.w2.detach().clone()
    average_([(memory.w1, deltas["w1"]), (memory.w2, deltas["w2"])], rate=0.1)
    torch.testing.assert_close(memory.w2.detach(), before + 0.1 * deltas["w2"].mean(0))
    assert deltas["w2"].abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Episodic(8, slots=0), "slots: expected at least 1, got 0"),
        (lambda: Episodic(8, write_when="sometimes"), "write_when: expected one of novel, surprise, always"),
        (lambda: SlowMLP(8, period=0), "period: expected at least 1 step, got 0"),
        (lambda: SlowMLP(8, FIELDS), "describe 21 numbers a token, but d_model is 8"),
    ],
)
def test_bad_options_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
