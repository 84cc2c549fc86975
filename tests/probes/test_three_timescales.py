"""The probes together on the stream of three timescales: a filter of leaky counts, made by hand, read through its tokens."""

import math

import numpy as np
import torch

from envs.timescales import Timescales, bayes_filter, nll
from nestmem.probes import gain_fraction, interchange_matrix, intrinsic_timescale

ROWS, STEPS, DROPPED = 12, 3000, 500
TIMESCALES = (0.0, 16.0, 256.0)


def levels(tokens):
    """What each level holds [3, B, T, 4]: the last a; leaky counts of what was seen of b and of c."""
    a = tokens[..., :1]
    seen = np.eye(4)[np.concatenate([a, (tokens[..., 1:] - a) % 4], -1)]  # [B, T, 3, 4]
    held = np.zeros((3, ROWS, STEPS, 4))
    count = np.full((ROWS, 3, 4), 0.25)
    keep = np.array([math.exp(-1 / tau) if tau else 0.0 for tau in TIMESCALES])[:, None]
    for t in range(STEPS):
        count = keep * count + (1 - keep) * seen[:, t]
        held[:, :, t] = count.swapaxes(0, 1)
    return held


def predicted(held):
    """Next tokens [B, T, 3, 4] from the levels: a goes on by one and scrambles the others."""
    following = 0.8 * np.roll(held[0], 1, -1) + 0.2 / 3 * (1 - np.roll(held[0], 1, -1))
    # A count becomes an opinion on the value: sharper the longer it averages. One observation is right 55 or 42 times in 100.
    tokens = [following]
    for level, right, sharp in ((1, 0.55, 12.0), (2, 0.42, 60.0)):
        value = np.exp(sharp * held[level])
        value /= value.sum(-1, keepdims=True)
        seen = right * value + (1 - right) / 3 * (1 - value)
        tokens.append(sum(np.roll(seen, k, -1) * following[..., k : k + 1] for k in range(4)))
    return np.stack(tokens, -2)


def values(tokens, a):
    """Predicted tokens [B, T, 3, 4] as predicted values of a, b, c, given the a of the host."""
    best = tokens.argmax(-1)
    expected = (a[..., None] + 1) % 4
    return np.concatenate([(best[..., :1] - 1) % 4, (best[..., 1:] - expected) % 4], -1)


def test_gains_and_matrix_of_a_filter_made_of_leaky_counts():
    host, donor = (Timescales(ROWS, seed).sample(STEPS) for seed in (0, 1))
    held, other = levels(host.tokens.numpy()), levels(donor.tokens.numpy())
    late = slice(DROPPED, None)

    ours = nll(torch.from_numpy(predicted(held)), host.targets)[:, late].mean(1).numpy()  # [B, 3]
    exact = nll(bayes_filter(host.tokens).predicted, host.targets)[:, late].mean(1).numpy()
    gains = [gain_fraction(math.log(4), ours[:, v], exact[:, v]) for v in range(3)]
    assert gains[0].mean > 0.99 and 0.6 < gains[1].mean < 1 and 0.6 < gains[2].mean < 1
    assert all(gain.high <= 1.0 + 1e-3 for gain in gains), "nothing knows more than the filter"

    a, hidden, others = host.hidden[..., 0].numpy(), host.hidden.numpy()[:, late], donor.hidden.numpy()[:, late]
    swapped = []
    for level in range(3):
        mixed = held.copy()
        mixed[level] = other[level]
        swapped.append(values(predicted(mixed), a)[:, late])
    # A token of b or c carries a with it: they count where host and donor agree in a.
    where = np.ones(hidden.shape, dtype=bool)
    where[..., 1:] = hidden[..., :1] == others[..., :1]
    found = interchange_matrix(
        np.stack(swapped), hidden, others, [gain.mean for gain in gains], own=[0, 1, 2], where=where
    )
    assert found.diagonal.mean > 0.75 and found.off_diagonal.mean < 0.15
    assert found.index.mean > 0.5 and found.index.low > 0.4
    assert interchange_matrix(np.stack(swapped), hidden, others, [0.9, 0.9, 0.9], where=where).own == [0, 1, 2]


def test_intrinsic_timescales_of_leaky_counts_are_ordered():
    held = levels(Timescales(ROWS, 0).sample(STEPS).tokens.numpy())
    last, middle, slow = (intrinsic_timescale(trace) for trace in held)
    assert "it oscillates" in last, "a goes round in four steps"
    assert 16 < middle < 60, "its own 16 steps and the 30 of b"
    assert "longer than a tenth of the 3000 steps" in slow, "256 steps and the 1000 of c"
