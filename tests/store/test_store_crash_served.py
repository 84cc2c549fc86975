"""A client of servers or shards is killed at a commit point: what was acknowledged is there, and no half of a call.

On one server a call is there or not. On several shards the commits follow each other: a crash between them leaves the
first, every subtree is whole, and the call made again ends where it would have ended.
"""

import pytest

from nestmem.store import Store, points, restore
from tests.store.conftest import ENGINES
from tests.store.test_store_crash import OPERATIONS, REPEATABLE, clock, killed, prepare

QUICK = {("put", "written"), ("put", "committed"), ("erase", "committed"), ("consolidate", "committed")}
CASES = [
    pytest.param(name, step, marks=[] if (name, step) in QUICK else [pytest.mark.slow])
    for name in OPERATIONS
    if name not in ("import", "snapshot")
    for step in points.STEPS
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A snapshot to begin with, and what is in the store after each operation."""
    folder = tmp_path_factory.mktemp("begun")
    with Store(folder / "memory.db", clock=clock) as store:
        at = prepare(store)
        store.put("resting on another subtree", root="c", level=2, parents=[at["made"]])
        store.snapshot(folder / "snap")
        before = said(store)
    after = {}
    for name, _ in {(case.values[0], 0) for case in CASES}:
        restore(folder / "snap", folder / f"{name}.db")
        with Store(folder / f"{name}.db", clock=clock) as store:
            OPERATIONS[name](store, at, folder)
            after[name] = said(store)
    return folder / "snap", at, before, after


def said(store):
    return {(i.id, i.text, i.level) for i in store.items()}


@pytest.mark.parametrize("engine", ["postgres", "shards", "files"])
@pytest.mark.parametrize(("name", "step"), CASES)
def test_a_client_is_killed(begun, tmp_path, engine, name, step):
    snap, at, before, after = begun
    url = ENGINES[engine](tmp_path)
    restore(snap, url)

    def work():
        with Store(url, clock=clock) as store:
            OPERATIONS[name](store, at, tmp_path)

    assert killed(work, f"{name}:{step}")
    with Store(url, clock=clock) as store:
        assert store.verify().clean
        found = said(store)
        if engine == "postgres" and name != "consolidate":  # consolidation commits each subtree
            assert found == (after[name] if step == "committed" else before)
        elif name == "erase":  # what is to be erased is noted before anything else: see `Shards.intend`
            assert found == after[name], "opening finished the erasure on all shards, wherever it stopped"
        elif step != "committed":
            assert found == before
        else:
            assert found - before <= after[name] - before and before - found <= before - after[name]
        if name in REPEATABLE:
            OPERATIONS[name](store, at, tmp_path)
            assert said(store) == after[name]
        assert store.verify().clean
