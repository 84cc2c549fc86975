"""The approximate index: asked for, thrown away at will, never the truth."""

import importlib.util

import pytest
import torch

from nestmem.store import Filter, New, Store
from nestmem.store.coarse import FEW

WITH = pytest.mark.skipif(importlib.util.find_spec("usearch") is None, reason="the extra `index` is not installed")
MANY = FEW + 400


def items(start, stop, seed=0):
    made = torch.Generator().manual_seed(seed)
    centres = torch.randn(30, 16, generator=made)
    rows = centres[torch.randint(30, (MANY + 100,), generator=made)] + torch.randn(MANY + 100, 16, generator=made)
    return rows, [New(f"n{i}", run=str(i % 2), vectors={"v": rows[i]}) for i in range(start, stop)]


@WITH
def test_the_index_names_and_the_exact_scan_ranks(tmp_path):
    rows, news = items(0, MANY)
    with Store(tmp_path / "memory.db") as store:
        store.space("v", 16)
        store.put_many(news)
        exact = [store.search(vector=row, space="v", k=10) for row in rows[:40]]
        only = [store.search(vector=row, space="v", k=10, where=Filter(runs=["1"])).ids for row in rows[:40]]
    with Store(tmp_path / "memory.db", index="usearch") as store:
        found = [store.search(vector=row, space="v", k=10) for row in rows[:40]]
        assert all(len(f.hits) == 10 for f in found)
        assert sum(len(set(a.ids) & set(b.ids)) for a, b in zip(found, exact)) >= 0.9 * 400
        scores = [dict(zip(e.ids, range(10))) for e in exact]
        ranks = [[at[i] for i in f.ids if i in at] for f, at in zip(found, scores)]
        assert all(r == sorted(r) for r in ranks), "what both find is in one order"
        assert [store.search(vector=r, space="v", where=Filter(runs=["1"])).ids for r in rows[:40]] == only
    assert (tmp_path / "memory.db.cache").is_dir()


@WITH
@pytest.mark.parametrize("harm", ["none", "cut", "flipped", "stale"])
def test_its_file_is_used_if_it_fits_and_made_again_if_not(tmp_path, harm):
    rows, news = items(0, MANY)
    _, more = items(MANY, MANY + 50)
    with Store(tmp_path / "memory.db", index="usearch") as store:
        store.space("v", 16)
        store.put_many(news)
        store.search(vector=rows[0], space="v")
    (path,) = (tmp_path / "memory.db.cache").glob("*.usearch")
    good = path.read_bytes(), path.with_name(path.name + ".json").read_bytes()

    def own(store, places):
        """How many of the items at `places` are found by their own vectors."""
        return sum(f"n{i}" in store.search(vector=rows[i], space="v", k=1).texts for i in places)

    with Store(tmp_path / "memory.db", index="usearch") as store:  # it follows what changes
        store.put_many(more)
        assert own(store, range(MANY, MANY + 50)) >= 45
        gone = [item.id for item in store.items() if int(item.text[1:]) < 50]
        store.forget(gone)
        assert own(store, range(50)) == 0
        store.remember(gone)
        assert own(store, range(50)) >= 45
    if harm == "stale":
        path.write_bytes(good[0])
        path.with_name(path.name + ".json").write_bytes(good[1])
    elif harm != "none":
        now = bytearray(path.read_bytes())
        now[len(now) // 2] ^= 1
        path.write_bytes(bytes(now) if harm == "flipped" else bytes(now)[:-1000])
    with Store(tmp_path / "memory.db", index="usearch") as store:
        assert own(store, range(50)) >= 45 and own(store, range(MANY, MANY + 50)) >= 45
        store.repair()
        assert not list((tmp_path / "memory.db.cache").glob("*.usearch*"))
        assert own(store, range(50)) >= 45


def test_another_index_is_refused(tmp_path):
    with pytest.raises(ValueError, match="index: expected one of"):
        Store(tmp_path / "memory.db", index="faiss")
