"""Power and processes end at any moment: what was acknowledged is there afterwards, and what is there was attempted.

A child does acknowledged work, then one operation, and is killed by SIGKILL at a commit point of it. Afterwards the store must
be whole and exactly as before the operation or as after it; after the commit, as after it.
"""

import os
import random
import shutil
import signal
import time

import pytest
import torch

from nestmem.store import New, PyramidMerge, Store, points, restore

VECTORS = torch.nn.functional.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=-1)


def clock():
    return 1.7e9


def prepare(store):
    """Two subtrees, a derived item, a link, something forgotten."""
    store.space("w", 8)
    ids = store.put_many(
        [New(f"apple{i}", root="a", event_from=float(i), vectors={"w": VECTORS[i]}) for i in range(8)]
    ).ids
    store.put_many([New(f"berry{i}", root="b", event_from=float(i), vectors={"w": VECTORS[9 + i]}) for i in range(8)])
    made = store.put("made", level=1, root="a", parents=ids[:2]).id
    store.link(ids[0], ids[1], "similar")
    store.forget(ids[7])
    store.put("hello", key="hello")
    return {"ids": ids, "made": made}


OPERATIONS = {
    "space": lambda s, at, f: s.space("new", 3),
    "put": lambda s, at, f: s.put_many([New(f"c{i}", vectors={"w": VECTORS[30 + i]}) for i in range(5)]),
    "touch": lambda s, at, f: s.touch(at["ids"][:3], useful=True),
    "link": lambda s, at, f: s.link(at["made"], at["ids"][0], "contains"),
    "unlink": lambda s, at, f: s.unlink(at["ids"][0], at["ids"][1], "similar"),
    "relate": lambda s, at, f: s.relate("pair", {at["ids"][2]: "x", at["ids"][3]: "y"}),
    "supersede": lambda s, at, f: s.supersede(at["ids"][1], "apple1, corrected", vectors={"w": VECTORS[40]}),
    "forget": lambda s, at, f: s.forget(at["ids"][:3]),
    "remember": lambda s, at, f: s.remember(at["ids"][7]),
    "erase": lambda s, at, f: s.erase(at["ids"][0]),
    "consolidate": lambda s, at, f: s.consolidate(PyramidMerge("w", capacities=(4, 2))),
    "decay": lambda s, at, f: s.decay_tick(capacity=10),
    "snapshot": lambda s, at, f: s.snapshot(f / "snap"),
    "import": None,
    "compact": lambda s, at, f: s.compact(),
}
REPEATABLE = {
    "space",
    "put",
    "supersede",
    "link",
    "unlink",
    "relate",
    "forget",
    "remember",
    "erase",
    "consolidate",
    "job",
    "decay",
    "compact",
}


def killed(work, point):
    """Run `work` in a child that dies at `point`. Whether it died there (False: it never came by)."""

    def die(reached):
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        status = 1
        try:
            points.hook = die
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WIFSIGNALED(status)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    with Store(folder / "memory.db", clock=clock) as store:
        at = prepare(store)
        before = store.fingerprint()
    after = {}
    for name, act in OPERATIONS.items():
        if act is not None:
            work = folder / name
            work.mkdir()
            shutil.copy(folder / "memory.db", work / "memory.db")
            with Store(work / "memory.db", clock=clock) as store:
                act(store, at, work)
                after[name] = store.fingerprint()
    with Store(folder / "memory.db", clock=clock) as store:
        store.export(folder / "export")
    return folder, at, before, after


def test_every_operation_has_its_points(monkeypatch):
    assert set(OPERATIONS) == set(points.MUTATIONS)
    monkeypatch.setattr(points, "hook", lambda _: None)
    with pytest.raises(ValueError, match="not registered"):
        points.reach("put:nowhere")


@pytest.mark.parametrize("step", points.STEPS)
@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != "import"])
def test_killed_at_a_commit_point(template, tmp_path, name, step):
    folder, at, before, after = template
    shutil.copy(folder / "memory.db", tmp_path / "memory.db")

    def work():
        with Store(tmp_path / "memory.db", clock=clock) as store:
            OPERATIONS[name](store, at, tmp_path)

    assert killed(work, f"{name}:{step}"), "the operation passes this point"
    with Store(tmp_path / "memory.db", clock=clock) as store:
        assert store.verify().clean
        if (name, step) == ("erase", "committed"):
            assert b"apple0" not in (tmp_path / "memory.db").read_bytes(), "the erasure was finished on opening"
        found = store.fingerprint()
        if name != "consolidate":  # one commit for each subtree
            assert found == (after[name] if step == "committed" else before)
        if name in REPEATABLE:
            OPERATIONS[name](store, at, tmp_path)
            said = {i.id: (i.text, i.level) for i in store.items()}
        if name == "snapshot":
            assert (tmp_path / "snap").exists()
            restore(tmp_path / "snap", tmp_path / "copy.db")
            with Store(tmp_path / "copy.db", clock=clock) as copy:
                assert copy.fingerprint() == before
    if name in REPEATABLE:
        with Store(folder / name / "memory.db", clock=clock) as whole:
            assert said == {i.id: (i.text, i.level) for i in whole.items()}, (
                "repeated, it ends where it would have ended"
            )


@pytest.mark.parametrize("step", points.STEPS)
def test_killed_while_importing(template, tmp_path, step):
    folder, _, before, _ = template

    def work():
        with Store(tmp_path / "new.db", clock=clock) as store:
            store.import_(folder / "export")

    assert killed(work, f"import:{step}")
    with Store(tmp_path / "new.db", clock=clock) as store:
        if step != "committed":
            assert store.generation == 0
            store.import_(folder / "export")
        assert store.fingerprint() == before and store.verify().clean


@pytest.mark.parametrize("point", points.BETWEEN)
def test_killed_between_the_steps_of_a_long_operation(template, tmp_path, point):
    folder, at, before, after = template
    path = tmp_path / "memory.db"
    shutil.copy(folder / "memory.db", path)
    operation = point.split(":")[0]
    if operation == "restore":
        with Store(path, clock=clock) as store:
            store.snapshot(tmp_path / "snap")
            store.put("later")
            later = store.fingerprint()

    def work():
        if operation == "restore":
            restore(tmp_path / "snap", path)
            return
        with Store(path, clock=clock) as store:
            if operation == "erase":
                store.erase(at["ids"][0])
            elif operation == "snapshot":
                store.snapshot(tmp_path / "snap")
            elif operation == "export":
                store.export(tmp_path / "out")
            else:
                store.search(vector=VECTORS[0], space="w")

    assert killed(work, point)
    with Store(path, clock=clock) as store:
        assert store.verify().clean
        found = store.fingerprint()
        if operation == "restore":
            assert found == (before if point == "restore:swapped" else later)
        elif operation == "erase":
            assert found == after["erase"]
            assert b"apple0" not in path.read_bytes(), "the erasure was finished on opening"
        else:
            assert found == before
            assert store.search(vector=VECTORS[3], space="w", k=1).texts == ("apple3",)
    if operation == "restore" and point != "restore:swapped":
        restore(tmp_path / "snap", path)
        with Store(path, clock=clock) as store:
            assert store.fingerprint() == before


def writing(path, name):
    """A child that puts three items at a time for ever and says so; its process id and the pipe it speaks through."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        store = Store(path, timeout=60.0)
        for step in range(100_000):
            os.write(write, f"try {name} {step}\n".encode())
            store.put_many([New(f"{name} {step} {part}", run=f"{name} {step}") for part in "abc"])
            os.write(write, f"ack {name} {step}\n".encode())
    finally:
        os._exit(1)


def random_kills(path, trials):
    """Two writers, killed after a random while, again and again: acknowledged is in recovered is in attempted."""
    rng, said = random.Random(0), {"try": set(), "ack": set()}
    for trial in range(trials):
        children = [writing(path, f"{trial}-{who}") for who in ("x", "y")]
        time.sleep(rng.uniform(0.05, 0.6))
        for child, _ in children:
            os.kill(child, signal.SIGKILL)
        for child, read in children:
            os.waitpid(child, 0)
            with open(read, encoding="utf-8") as file:
                for line in file.read().splitlines(keepends=True):
                    if line.endswith("\n"):
                        kind, what = line.strip().split(" ", 1)
                        said[kind].add(what)
        with Store(path) as store:
            by = {}
            for item in store.items():
                by.setdefault(item.run, []).append(item.text)
            assert said["ack"] <= set(by) <= said["try"]
            assert all(len(parts) == 3 for parts in by.values()), "half a transaction"
            assert store.verify().clean
    return len(said["ack"])


def test_killed_at_any_moment(tmp_path):
    random_kills(tmp_path / "memory.db", trials=3)


@pytest.mark.slow
def test_killed_at_any_moment_two_hundred_times(tmp_path):
    assert random_kills(tmp_path / "memory.db", trials=200) > 0
