"""Hierarchical chunk attention: exact against a version by hand, flat in the delay, a ring of chunks."""

import pytest
import torch
from torch.nn import functional as F

from nestmem import HCAM, Fields, Item, state_to_dict

K, WAYS = 64, 5
FIELDS = Fields(K, 0, WAYS)
CUED = Fields(3, 2, 2)


def bindings(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(n, K, generator=g), dim=-1)
    return keys, torch.randint(WAYS, (n,), generator=g)


def store(memory, keys, labels, state=None):
    """(x_t, y_{t-1}) for one row, with a closing token."""
    x = torch.zeros(1, len(keys) + 1, FIELDS.width)
    x[0, :-1, :K] = keys
    x[0, 1:, K:] = F.one_hot(labels, WAYS).float()
    return memory(x, state)[1]


def ask(memory, keys, state):
    query = torch.cat([keys, torch.zeros(len(keys), WAYS)], -1)[None]
    y, aux = memory.read(query, state)
    return y[0, :, -WAYS:], aux


def right(memory, keys, labels, state):
    return (ask(memory, keys, state)[0].argmax(-1) == labels).float().mean()


def random_tokens(rows=3, steps=23, fields=CUED):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, steps, fields.width, generator=g, dtype=torch.double)
    silent = torch.rand(rows, steps, generator=g) < 0.3  # so that the rows fall out of phase
    labels = F.one_hot(torch.randint(2, (rows, steps), generator=g), 2).double()
    x[..., -2:] = labels * ~silent[..., None]
    return x


def test_recall_does_not_fall_with_the_delay():
    """Three chunks of pairs, then more and more chunks of distractors, as long as the ring holds them all."""
    memory = HCAM(FIELDS.width, FIELDS, chunk=4, slots=20, temperature=20.0)
    keys, labels = bindings(12)
    state = store(memory, keys, labels)
    at_once = right(memory, keys, labels, state)
    recall = []
    for round_ in range(4):
        others, wrong = bindings(16, seed=10 + round_)
        state = store(memory, others, wrong, state)
        recall.append(right(memory, keys, labels, state))
    assert at_once == 1.0
    assert min(recall) >= 0.9
    state = store(memory, *bindings(16, seed=20), state)  # beyond the ring: the first pairs are pushed out
    assert right(memory, keys, labels, state) < 0.6


def test_looking_into_every_chunk_is_two_level_attention():
    memory = HCAM(CUED.width, CUED, chunk=3, slots=4, top=4).double()
    _, state = memory(random_tokens(rows=1, steps=40))
    assert int(state.pushed) > 4, "the ring is full"
    query = random_tokens(rows=1, steps=5)
    y, aux = memory.read(query, state)
    beta = memory.log_beta.exp()
    for i, token in enumerate(query[0]):
        q = torch.cat([F.normalize(token[:3], dim=-1), F.normalize(token[3:5], dim=-1)])
        share = torch.softmax(torch.stack([beta[0] * q @ chunk.mean(0) for chunk in state.ring.addresses[0]]), 0)
        answer = torch.zeros(2, dtype=torch.double)
        for s in range(4):
            within = torch.softmax(beta[1] * state.ring.addresses[0, s] @ q, 0)
            answer = answer + share[s] * within @ state.ring.outcomes[0, s]
        torch.testing.assert_close(y[0, i, -2:].exp(), answer)
        torch.testing.assert_close(aux.weights[0, i], share)


def test_only_the_best_chunks_are_looked_into():
    memory = HCAM(FIELDS.width, FIELDS, chunk=4, slots=8, top=1, temperature=20.0)
    keys, labels = bindings(32)
    state = store(memory, keys, labels)
    _, aux = ask(memory, keys, state)
    assert torch.equal((aux.weights[0] > 0).sum(-1), torch.ones(32, dtype=torch.long))
    assert (aux.weights[0].argmax(-1) == torch.arange(32) // 4).float().mean() > 0.9
    assert aux.confidence.max() == pytest.approx(1.0, abs=1e-5)


def test_the_unfinished_chunk_is_not_read():
    memory = HCAM(FIELDS.width, FIELDS, chunk=4, slots=2, temperature=20.0)
    keys, labels = bindings(4)
    state = store(memory, keys[:3], labels[:3])
    y, aux = ask(memory, keys, state)
    assert (y == y[0, 0]).all() and (aux.confidence == 0).all() and (aux.weights == 0).all()
    state = memory.write(Item(keys[3:], torch.zeros(1, 0), F.one_hot(labels[3:], WAYS).float()), state)
    assert right(memory, keys, labels, state) == 1.0


def test_the_oldest_chunk_goes():
    memory = HCAM(FIELDS.width, FIELDS, chunk=4, slots=3, temperature=20.0)
    keys, labels = bindings(16)
    state = store(memory, keys, labels)
    assert (ask(memory, keys[4:], state)[1].confidence > 0.99).all()
    assert (ask(memory, keys[:4], state)[1].confidence < 0.9).all()
    _, given = memory.consolidate(state)
    offered = {tuple(k) for k in given.items.key[given.valid].tolist()}
    assert offered == {tuple(k) for k in F.normalize(keys[4:], dim=-1).tolist()}


@pytest.mark.parametrize("slots", [1, 3, 9])
def test_sequences_equal_steps_where_rows_are_out_of_phase_and_the_ring_is_full(slots):
    memory = HCAM(CUED.width, CUED, chunk=2, slots=slots, top=1).double()
    x = random_tokens()
    _, start = memory(random_tokens()[:, :6])
    y, end = memory(x, start)
    state, steps = start, []
    for t in range(x.shape[1]):
        out, state, _ = memory.step(x[:, t], state)
        steps.append(out)
    torch.testing.assert_close(y, torch.stack(steps, 1))
    for name, value in state_to_dict(state).items():
        torch.testing.assert_close(state_to_dict(end)[name], value)
    assert len(set(end.filled.tolist())) > 1 or len(set(end.pushed.tolist())) > 1


def test_gradients_reach_what_was_written_and_are_right():
    memory = HCAM(CUED.width, CUED, chunk=2, slots=2, temperature=2.0).double()
    x = random_tokens(rows=1, steps=9)
    part = x[..., :5].clone().requires_grad_()

    def run(part):
        return memory(torch.cat([part, x[..., 5:]], -1))[0]

    (first,) = torch.autograd.grad(run(part)[0, -1, -2:] @ torch.tensor([1.0, -1.0]).double(), part)
    assert first[0, :-1].abs().sum() > 0
    assert torch.autograd.gradcheck(run, (part,), atol=1e-6)
    assert torch.autograd.gradgradcheck(run, (part,), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(chunk=0), "chunk: expected at least 1, got 0"), (dict(slots=2, top=3), "top: expected 1 to 2")],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        HCAM(8, **options)
