"""Claims store-puts-vs-PEER, store-search-100k-vs-PEER, store-recall-100k: the store beside what one would pick instead.

    python -m benchmarks.store [SIZES]        default 10000,100000; with 1000000 about an hour and 10 GB of memory
    python -m benchmarks.store puts           single puts alone
    python -m benchmarks.store index          the approximate index beside a million
    python -m benchmarks.store crash [whole]  claim store-crash: SIGKILL at every commit point of every operation on SQLite,
                                              and at four of a client of servers and shards; whole: at all of those, too
    python -m benchmarks.store failover       claim store-failover-lost: two real PostgreSQL servers, the primary killed under load

Chroma is filled up to 100,000 only: a batch takes it six times what it takes sqlite-vec, and its graph misses half of the
nearest there already.

Peers: sqlite-vec through apsw, LanceDB and Chroma, which no group of dependencies names, as they bring a hundred packages:
`uv run --with sqlite-vec --with apsw --with lancedb --with chromadb python -m benchmarks.store`. One that is not installed is left
out and said so. All get the same clustered unit vectors [N, 128] with a short text and one of ten groups. Each runs in a process
of its own, measures itself, and takes turns with the others in every round of one run. They commit as durably as they can
be told to: sqlite-vec in WAL with synchronous=FULL like ours, LanceDB and Chroma as they come (neither says that it syncs a
single put). Puts are in wall time; searches in CPU time of all threads, which other work on the machine does not stretch.
Searches ask for 10; a filtered one for one group of ten. sqlite-vec has the group as partition key, its fastest filter;
LanceDB scans exactly, Chroma has its HNSW graph. Ours also writes words, checksums and a journal at every put. Recall is
against a scan in float64. Medians over rounds, with the smallest and largest as bounds.
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.results import load, row, save
from benchmarks.store_systems import GROUPS, PEERS, K, Ours, data

INSTALL = "uv run --with sqlite-vec --with apsw --with lancedb --with chromadb"
ROUNDS, QUERIES, BATCH = 5, 20, 1000
TURNS, SINGLE = 40, 10  # short turns, since how long a disk takes to sync changes from second to second
CAPS = {"chroma": 100_000}  # no more items than this


def work(kind: Any, folder: Path, given: tuple[Path, int, int], pipe: Connection) -> None:
    """One system in a process of its own, so that the threads of one do not slow another. It measures itself."""
    torch.set_num_threads(1)
    vectors, queries, spare = np.load(given[0], mmap_mode="r"), data(given[1], seed=1), data(given[2], seed=2)
    system = kind(folder)
    while (asked := pipe.recv()) is not None:
        what, given = asked
        start = time.perf_counter()
        if what == "single":
            began = time.process_time()
            for i in given:
                system.put(i, spare[i : i + 1])
            pipe.send((time.perf_counter() - start, time.process_time() - began))
        elif what == "batch":
            rows = np.array(vectors[given[0] : given[1]])
            start = time.perf_counter()
            system.put(given[0], rows)
            pipe.send(time.perf_counter() - start)
        elif what == "search":
            spent, found = [], []
            for q, group in given:
                began = time.process_time()
                found.append(system.search(queries[q], group))
                spent.append(1000 * (time.process_time() - began))
            pipe.send((spent, found))
        elif what == "index":  # ours alone: with the approximate index, made by the first search
            system.close()
            system.open(given)
            start = time.process_time()
            system.search(queries[0], None)
            pipe.send(time.process_time() - start)
        else:  # start again
            system.close()
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            start = time.perf_counter()
            system.open()
            system.search(queries[0], None)
            pipe.send((size, 1000 * (time.perf_counter() - start)))
    system.close()


class Worker:
    def __init__(self, kind: Any, folder: Path, given: tuple[Path, int, int]):
        folder.mkdir()
        self.name = kind.name
        self.pipe, theirs = mp.get_context("spawn").Pipe()
        self.process = mp.get_context("spawn").Process(target=work, args=(kind, folder, given, theirs))
        self.process.start()

    def __call__(self, what: str, given: object = None) -> Any:
        self.pipe.send((what, given))
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def installed() -> dict[str, Any]:
    known = {"ours": Ours} | {n: kind for n, (kind, module) in PEERS.items() if importlib.util.find_spec(module)}
    for name in set(PEERS) - set(known):
        print(f"{name} is not installed and left out: {INSTALL} python -m benchmarks.store")
    return known


def puts() -> list[dict[str, Any]]:
    """Durable single puts: by the clock, which the disk decides, and in CPU time."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vectors.npy"
        np.save(file, data(1))
        counts = (file, 1, (TURNS + 1) * SINGLE)
        systems = {name: Worker(kind, Path(scratch) / name, counts) for name, kind in installed().items()}
        rates: dict[str, list[float]] = {name: [] for name in systems}
        spent: dict[str, list[float]] = {name: [] for name in systems}
        for turn in range(TURNS + 1):
            for name, system in systems.items():
                wall, cpu = system("single", range(turn * SINGLE, (turn + 1) * SINGLE))
                if turn:  # the first warms up
                    rates[name].append(SINGLE / wall)
                    spent[name].append(1e6 * cpu / SINGLE)
        for system in systems.values():
            system.close()
    note = f"one item a commit, {TURNS} turns of {SINGLE}"
    return [
        *_rows("store-puts", rates, "puts/s", note=note),
        *_rows("store-puts-cpu", spent, "µs of CPU", note=note),
        *_ratios("store-puts-vs", rates, better=max),
    ]


def measure(sizes: list[int]) -> list[dict[str, Any]]:
    rows, known = puts(), installed()
    queries = data(ROUNDS * QUERIES, seed=1)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vectors.npy"
        np.save(file, data(max(sizes)))
        vectors, counts = np.load(file, mmap_mode="r"), (file, ROUNDS * QUERIES, 1)
        systems = {name: Worker(kind, Path(scratch) / name, counts) for name, kind in known.items()}
        filled = 0
        for size in sizes:
            for name in [name for name in systems if CAPS.get(name, size) < size]:
                systems.pop(name).close()
            rates = {name: [] for name in systems}
            for first in range(filled, size, BATCH):
                last = min(first + BATCH, size)
                for name, system in systems.items():
                    rates[name].append((last - first) / system("batch", (first, last)))
            filled = size
            rows += _rows(f"store-batched-puts-{_short(size)}", rates, "puts/s", note=f"batches of {BATCH}")
            rows += _searches(systems, vectors[:size], queries, size)
            for system in systems.values():
                took, start = system("again")
                note = f"{vectors[:size].nbytes:,} bytes of vectors"
                rows.append(row(f"store-bytes-{_short(size)}", system.name, took, unit="bytes", n=1, note=note))
                rows.append(row(f"store-start-{_short(size)}", system.name, start, unit="ms to a first answer", n=1))
            save_rows(rows)
        for system in systems.values():
            system.close()
    return rows


def approximate(size: int) -> list[dict[str, Any]]:
    """Ours with the index that is asked for beside the exact scan: what it takes to make, a search, and recall."""
    queries, times, hits = data(ROUNDS * QUERIES, seed=1), [], []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vectors.npy"
        np.save(file, data(size))
        ours = Worker(Ours, Path(scratch) / "ours", (file, len(queries), 1))
        for first in range(0, size, BATCH):
            ours("batch", (first, min(first + BATCH, size)))
        made = ours("index", "usearch")
        exact = scores(queries, np.load(file, mmap_mode="r"))
        for trial in range(ROUNDS):
            mine = range(trial * QUERIES, (trial + 1) * QUERIES)
            spent, found = ours("search", [(q, None) for q in mine])
            times.append(median(spent))
            hits += [sum(exact[q, i] >= _last(exact[q]) for i in ids) / K for q, ids in zip(mine, found)]
        ours.close()
    name, spread = "nestmem.store, usearch", dict(low=min(times), high=max(times))
    note = f"made in {made:.0f} s of CPU"
    return [
        row(f"store-index-{_short(size)}", name, median(times), unit="ms of CPU", n=ROUNDS, note=note, **spread),
        row(f"store-recall-index-{_short(size)}", name, 100 * float(np.mean(hits)), unit="%", n=len(hits)),
    ]


def _searches(
    systems: dict[str, Worker], vectors: np.ndarray[Any, Any], queries: np.ndarray[Any, Any], size: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    exact = scores(queries, vectors)
    for filtered in (False, True):
        times: dict[str, list[float]] = {name: [] for name in systems}
        hits: dict[str, list[float]] = {name: [] for name in systems}
        best = [_last(each[q % GROUPS :: GROUPS] if filtered else each) for q, each in enumerate(exact)]
        for system in systems.values():
            system("search", [(0, 0 if filtered else None)])  # warm
        for trial in range(ROUNDS):
            mine = range(trial * QUERIES, (trial + 1) * QUERIES)
            for name, system in systems.items():
                spent, found = system("search", [(q, q % GROUPS if filtered else None) for q in mine])
                times[name].append(median(spent))
                for q, ids in zip(mine, found):
                    wanted = [i for i in ids if not filtered or i % GROUPS == q % GROUPS]
                    hits[name].append(sum(exact[q, i] >= best[q] for i in wanted) / K)
        kind = "filtered" if filtered else "search"
        rows += _rows(f"store-{kind}-{_short(size)}", times, "ms of CPU", note="one group of ten" if filtered else "")
        recall = {name: [100 * float(np.mean(h))] for name, h in hits.items()}
        rows += _rows(f"store-recall-{_short(size)}{'-filtered' if filtered else ''}", recall, "%")
        ratios = f"store-{'search' if filtered else 'unfiltered'}-{_short(size)}-vs"
        rows += _ratios(ratios, times, better=min)
    return rows


def scores(queries: np.ndarray[Any, Any], vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """All of them, in float64 [Q, N]."""
    asked, pieces = queries.astype(np.float64), range(0, len(vectors), 100_000)
    return np.concatenate([asked @ vectors[start : start + 100_000].astype(np.float64).T for start in pieces], 1)


def _last(each: np.ndarray[Any, Any]) -> float:
    """What a hit must score to be among the K best; equal ones count."""
    return float(np.partition(each, len(each) - K)[len(each) - K]) - 1e-6


def save_rows(new: list[dict[str, Any]]) -> None:
    """Into the file of results, in place of what was there."""
    fresh = {r["claim"] for r in new}
    save("store", [*(r for r in load("store") if r["claim"] not in fresh), *new])


def _rows(claim: str, values: dict[str, list[float]], unit: str, note: str = "") -> list[dict[str, Any]]:
    kinds = {"ours": Ours} | {name: kind for name, (kind, _) in PEERS.items()}
    return [
        row(claim, kinds[name].name, median(v), unit=unit, n=len(v), low=min(v), high=max(v), note=note)
        for name, v in values.items()
    ]


def _ratios(claim: str, values: dict[str, list[float]], better: Callable[..., float]) -> list[dict[str, Any]]:
    """Ours against each peer, round by round; above 1 is better for us."""
    rows = []
    for name, theirs in values.items():
        if name != "ours":
            each = [a / b if better is max else b / a for a, b in zip(values["ours"], theirs)]
            spread = dict(low=min(each), high=max(each))
            rows.append(row(f"{claim}-{name}", Ours.name, median(each), unit="x", n=len(each), **spread))
    return rows


def _short(size: int) -> str:
    return f"{size // 1000}k" if size < 1_000_000 else f"{size // 1_000_000}M"


def crash(whole: bool) -> list[dict[str, Any]]:
    """Runs the crash tests, all of them, and counts what they say."""
    import pytest

    class Count:
        passed = failed = 0

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call":
                self.passed += report.passed
                self.failed += report.failed

    count = Count()
    folder = Path(__file__).resolve().parents[1] / "tests" / "store"
    files = [str(folder / name) for name in ("test_store_crash.py", "test_store_crash_served.py")]
    start = time.perf_counter()
    chosen = ["-k", "killed and not any_moment", "-m", "slow or not slow" if whole else "not slow"]
    pytest.main([*files, *chosen, "-p", "no:cacheprovider"], plugins=[count])
    total = count.passed + count.failed
    where = "all" if whole else "four points"
    note = (
        f"SIGKILL at commit points of operations: all on SQLite, {where} on PostgreSQL, three shards of it, three files"
    )
    value = 100 * count.passed / max(1, total)
    return [
        row("store-crash", "nestmem.store", value, unit="%", n=total, wall_s=time.perf_counter() - start, note=note)
    ]


def failover() -> list[dict[str, Any]]:
    """Runs the failover test: a primary and its synchronous standby, the primary killed under load."""
    from tests.store.test_store_failover import failover as run

    start = time.perf_counter()
    acknowledged, lost = run()
    note = f"{acknowledged} acknowledged by two real servers, three writers, the primary killed"
    spent = time.perf_counter() - start
    return [
        row("store-failover-lost", "nestmem.store", len(lost), unit="writes", n=acknowledged, wall_s=spent, note=note)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["failover"]:
        new = failover()
    elif sys.argv[1:] == ["index"]:
        new = approximate(1_000_000)
    elif sys.argv[1:] == ["puts"]:
        new = puts()
    elif sys.argv[1:2] == ["crash"]:
        new = crash(sys.argv[2:] == ["whole"])
    else:
        new = measure([int(n) for n in (sys.argv[1] if len(sys.argv) > 1 else "10000,100000").split(",")])
    save_rows(new)
