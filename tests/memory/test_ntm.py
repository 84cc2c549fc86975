"""Heads set by hand: where the Turing machine walks, and which slot the augmented network gives up."""

import pytest
import torch

from nestmem import MANN, NTM

N, W = 5, 6
HIGH = 40.0  # a sigmoid of 1, a one-hot softmax, a sharp power
BACK, STAY, ON = ([HIGH, 0.0, 0.0], [0.0, HIGH, 0.0], [0.0, 0.0, HIGH])


def row(*values):
    return torch.tensor([values])


def unit(n):
    return torch.eye(W)[n][None]


def ntm_heads(add, write_shift=STAY, read_shift=STAY, erase=HIGH, read_key=None):
    """Every head goes by location, unless there is a key to read by."""
    heads = {"erase": torch.full((1, W), erase), "add": add}
    for head, shift, key in (("write", write_shift, None), ("read", read_shift, read_key)):
        heads |= {
            f"{head}_key": unit(0) if key is None else key,
            f"{head}_strength": row(HIGH),
            f"{head}_gate": row(-HIGH if key is None else HIGH),
            f"{head}_shift": row(*shift),
            f"{head}_sharpness": row(HIGH),
        }
    return heads


def contents(seed=0, n=2 * N):
    return torch.randn(n, 1, W, generator=torch.Generator().manual_seed(seed))


def test_shifting_walks_round_the_slots_and_what_is_written_is_read():
    memory = NTM(4, slots=N, width=W)
    state, written = memory.initial_state(1), contents()
    for t in range(2 * N):
        state, _ = memory.access(ntm_heads(written[t], write_shift=ON, read_shift=ON), state)
        place = (t + 1) % N
        torch.testing.assert_close(state.write_weights, torch.eye(N)[place][None])
        torch.testing.assert_close(state.reads[:, 0], written[t])
    torch.testing.assert_close(state.memory[0].roll(-1, 0), written[N:, 0])
    # Back again, with nothing erased and nothing added: the newest first.
    for t in range(N):
        heads = ntm_heads(torch.zeros(1, W), read_shift=BACK if t else STAY, erase=-HIGH)
        state, _ = memory.access(heads, state)
        torch.testing.assert_close(state.reads[:, 0], written[2 * N - 1 - t])


def test_content_finds_the_slot_wherever_the_head_was():
    memory = NTM(4, slots=N, width=W)
    state = memory.initial_state(1)
    for n in range(N):
        state, _ = memory.access(ntm_heads(3 * unit(n), write_shift=ON), state)
    nothing = torch.zeros(1, W)
    state, aux = memory.access(ntm_heads(nothing, erase=-HIGH, read_key=unit(2)), state)
    torch.testing.assert_close(state.reads[:, 0], 3 * unit(2))
    assert aux.confidence.item() == pytest.approx(1.0)
    # One to the right of a content: the two ways of addressing together, here the slot that was written next.
    state, _ = memory.access(ntm_heads(nothing, erase=-HIGH, read_key=unit(2), read_shift=ON), state)
    torch.testing.assert_close(state.reads[:, 0], 3 * unit(3))


def test_sharpening_undoes_the_blur_of_a_soft_shift():
    memory = NTM(4, slots=N, width=W)
    soft = [0.0, 2.0, 0.0]
    last = {}
    for sharpness in (-HIGH, 3.0):
        state = memory.initial_state(1)
        for _ in range(30):
            heads = ntm_heads(torch.zeros(1, W), read_shift=soft)
            state, _ = memory.access(heads | {"read_sharpness": row(sharpness)}, state)
        last[sharpness] = state.read_weights[0]
    assert last[-HIGH].max() < 0.25
    assert last[3.0][0] > 0.9


def mann_heads(key, alpha=-HIGH):
    return {"key": HIGH * key, "strength": row(HIGH), "alpha": row(alpha)}


def filled_mann():
    memory = MANN(4, slots=4, width=W)
    state = memory.initial_state(1)
    for n in range(4):
        state, _ = memory.access(mann_heads(unit(n)), state)
    return memory, state


def slots_of(state):
    return [int(slot.argmax()) if slot.max() > 0.5 else None for slot in state.memory[0]]


def test_writes_go_to_the_least_recently_used_slot():
    memory, state = filled_mann()
    assert slots_of(state) == [0, 1, 2, 3]
    for n in (4, 5):
        state, _ = memory.access(mann_heads(unit(n)), state)
    assert slots_of(state) == [4, 5, 2, 3]
    torch.testing.assert_close(state.memory[0, 0], unit(4)[0])  # zeroed first, not mixed with what was there


def test_what_was_read_lately_survives():
    memory, state = filled_mann()
    state, _ = memory.access(mann_heads(unit(1)), state)  # which also writes it to slot 0
    torch.testing.assert_close(state.reads[:, 0], unit(1))
    for n in (4, 5):
        state, _ = memory.access(mann_heads(unit(n)), state)
    assert slots_of(state)[1] == 1, "without the read, as above, two writes are enough to lose it"
    assert sorted(slots_of(state)) == [1, 3, 4, 5]


def test_alpha_writes_to_where_it_read_last():
    memory, state = filled_mann()
    state, _ = memory.access(mann_heads(unit(2)), state)
    state, _ = memory.access(mann_heads(unit(5), alpha=HIGH), state)
    torch.testing.assert_close(state.memory[0, 2], unit(2)[0] + unit(5)[0])
