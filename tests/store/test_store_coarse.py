"""Ruling out rows by their codes never loses one of the best."""

import numpy as np
import pytest
import torch

from nestmem.store import Filter
from nestmem.store.block import FACTS, TEXTS, Block, Rows, prepared
from nestmem.store.coarse import FEW, Codes
from nestmem.store.model import Space


def clustered(many, dim, seed):
    made = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=made)
    rows = centres[torch.randint(20, (many,), generator=made)] + 0.3 * torch.randn(many, dim, generator=made)
    return rows, centres[0] + 0.3 * torch.randn(dim, generator=made)


def exact(matrix, query, metric):
    matrix, query = matrix.double(), query.double()
    return -(matrix - query).norm(dim=-1) if metric == "l2" else matrix @ query


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("dim", [1, 7, 128])
@pytest.mark.parametrize("limit", [1, 10, 100])
def test_the_best_are_among_those_left(metric, dim, limit):
    for seed in range(4):
        rows, query = clustered(3000, dim, seed)
        if metric == "dot":
            rows = rows * torch.linspace(0.01, 30, 3000)[:, None]
        rows, query = prepared(rows, metric), prepared(query, metric)
        codes = Codes(dim, metric)
        codes.follow(rows[:1000])
        codes.follow(rows)  # in two goes is as good as in one
        left = codes.maybe(query, limit)
        scores = exact(rows, query, metric)
        assert set(torch.nonzero(scores >= scores.topk(limit).values[-1])[:, 0].tolist()) <= set(left.tolist())
        some = torch.arange(0, 3000, 2)
        near = some[codes.of(some).maybe(query, limit)]
        assert set(some[scores[some].topk(limit).indices].tolist()) <= set(near.tolist())


def test_most_rows_are_ruled_out():
    rows, query = clustered(20_000, 128, 0)
    codes = Codes(128, "cosine")
    codes.follow(prepared(rows, "cosine"))
    assert len(codes.maybe(prepared(query, "cosine"), 10)) < 2000


def test_what_overflows_is_not_ruled_out():
    rows = torch.full((100, 8), 1e30) * torch.arange(1, 101)[:, None]
    rows[::2, 0] = 0.0
    codes = Codes(8, "dot")
    codes.follow(rows)
    assert len(codes.maybe(torch.full((8,), 1e30), 5)) == 100
    assert set(range(95, 100)) <= set(codes.maybe(torch.full((8,), 1e-20), 5).tolist())


def test_rows_that_are_alike_are_all_left():
    for matrix in (torch.ones(100, 8), torch.zeros(100, 8)):
        codes = Codes(8, "dot")
        codes.follow(matrix)
        assert len(codes.maybe(torch.ones(8), 5)) == 100


@pytest.mark.parametrize("fast", [True, False])
def test_a_large_block_answers_as_a_full_scan_does(fast, monkeypatch):
    monkeypatch.setattr("nestmem.store.block.FAST", fast)
    many = 3 * FEW
    rows, query = clustered(many, 16, 1)
    rows = prepared(rows, "cosine")
    block = Block(Space("s", 16, "cosine", ""), (0, ""))

    def append(start, stop):
        facts = {name: np.zeros(stop - start, dtype=object if name in TEXTS else kind) for name, kind in FACTS.items()}
        facts["run"] = np.array([str(i % 2) for i in range(start, stop)], dtype=object)
        facts |= {name: np.array(["x"] * (stop - start), dtype=object) for name in TEXTS if name != "run"}
        ids = np.array([b"%032d" % i for i in range(start, stop)])
        block.replace(np.arange(0), Rows(np.arange(start, stop), ids, facts, rows[start:stop]))

    append(0, many - 5)
    scores = np.round(exact(rows, prepared(query, "cosine"), "cosine").numpy(), 6)
    there = np.arange(many) < many - 5
    for _ in range(3):  # again, then with rows that came, then with rows that went
        for where, kept in ((Filter(), there), (Filter(runs=["1"]), there & (np.arange(many) % 2 == 1))):
            expected = sorted(np.flatnonzero(kept), key=lambda i: (-scores[i], i))[:12]
            found = block.best(query, 12, block.chosen(where))
            assert [seq for seq, _, _ in found] == expected
            assert [score for _, _, score in found] == pytest.approx(scores[expected], abs=2e-6)
        if not there[-1]:
            append(many - 5, many)
            there[-5:] = True
        else:
            gone = np.asarray(expected[:3])
            none = {name: column[:0] for name, column in block.facts.items()}
            block.replace(gone, Rows(block.seqs[:0], block.ids[:0], none, rows[:0]))
            there[gone] = False
