"""Claims store-soak-*: a store that is put to, searched, used and aged a million times stays small, whole and right.

    python -m benchmarks.store_soak [CALLS] [FOLDER]      default 1000000 calls, in a temporary folder; hours

Of a hundred calls, drawn with a fixed seed, 50 put an item (a short text and 32 numbers), 30 search by words and vector, 14 touch
what was found and 5 supersede the newest item; the hundredth ages the store by a day and forgets down to 500 items. A hundred
times in all `compact` lets go of the past, `verify` looks at every row, and files and memory are measured. A search has to
find what was put last. The journal, one row a commit, is kept for good and so grows; it is counted by itself.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.results import row
from nestmem.store import New, Store

DIM, CAPACITY, DAY = 32, 500, 86400.0
TICK, LOOKS = 100, 100  # calls from one day to the next; measurements in all


class Mark(NamedTuple):
    """What was measured after so many calls. files, journal, resident: bytes."""

    calls: int
    commits: int
    items: int
    files: int  # of the store's file and what lies beside it, but for the journal
    journal: int
    resident: int  # memory of this process
    missed: int  # searches that did not find what was put last
    seconds: float


class Clock:
    """Unix seconds that pass when told."""

    now = 1.7e9

    def __call__(self) -> float:
        return self.now


def soak(folder: Path, calls: int, look: int) -> Iterator[Mark]:
    """Do so many calls on a new store in `folder`; what is measured every `look` of them."""
    draw, clock, began = random.Random(0), Clock(), time.perf_counter()
    vectors = torch.randn(4096, DIM, generator=torch.Generator().manual_seed(0))
    missed, number = 0, 0
    found: tuple[str, ...] = ()
    with Store(folder / "memory.db", clock=clock) as store:
        store.space("s", DIM)
        last = store.put("note 0", vectors={"s": vectors[0]}).id
        for call in range(1, calls + 1):
            kind = draw.randrange(99)
            if call % TICK == 0:
                clock.now += DAY
                assert last not in store.decay_tick(capacity=CAPACITY).forgotten, "the newest is worth most"
                found = ()
            elif kind < 50:
                number += 1
                new = New(f"note {number}", root=f"r{number % 4}", vectors={"s": vectors[number % 4096]})
                last = store.put(new).id
            elif kind < 80:
                found = store.search(f"note {number}", vector=vectors[number % 4096], space="s", k=5).ids
                missed += last not in found
            elif kind < 94:
                store.touch(found[:2] or last, useful=draw.random() < 0.5)
            else:
                text = f"note {number}, corrected in call {call}"
                last = store.supersede(last, text, vectors={"s": vectors[number % 4096]}).id
                found = ()
            if call % look == 0:
                store.compact()
                report = store.verify()
                assert report.clean, report.problems
                size, journal = on_disk(folder)
                at = (call, store.generation, len(store.items()), size - journal, journal, resident(), missed)
                yield Mark(*at, time.perf_counter() - began)


def on_disk(folder: Path) -> tuple[int, int]:
    """Bytes of all files in a folder, and of these the journal's."""
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'memory.db'}?mode=ro", uri=True)) as raw:
        pages = "SELECT sum(pgsize) FROM dbstat WHERE name IN ('journal', 'sqlite_autoindex_journal_1')"
        journal = raw.execute(pages).fetchone()[0]
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), int(journal)


def resident() -> int:
    """Bytes of memory that this process holds (0 where the system does not say)."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
    return 0


def rows_of(marks: list[Mark]) -> list[dict[str, Any]]:
    """First tenth against the rest: what grows shows there."""
    name, last = "nestmem.store, SQLite", marks[-1]
    early, late = marks[: max(1, len(marks) // 10)], marks[max(1, len(marks) // 10) :] or marks
    note = f"{last.commits:,} commits, every {TICK} calls a day, at most {CAPACITY} items; verified {len(marks)} times"

    def span(what: str, over: list[Mark]) -> tuple[float, float]:
        return min(getattr(m, what) for m in over), max(getattr(m, what) for m in over)

    def bytes_of(claim: str, what: str, note: str) -> dict[str, Any]:
        low, high = span(what, late)
        before = f"at most {span(what, early)[1]:,} in the first tenth"
        return row(claim, name, getattr(last, what), unit="bytes", n=len(late), low=low, high=high, note=note + before)

    return [
        row("store-soak", name, last.calls, unit="calls", n=1, wall_s=last.seconds, note=note),
        row("store-soak-missed", name, last.missed, unit="searches", n=1, note="that did not find what was put last"),
        bytes_of("store-soak-files", "files", "all files but for the journal; "),
        bytes_of("store-soak-memory", "resident", "the whole process; "),
        row("store-soak-journal", name, last.journal / last.commits, unit="bytes a commit", n=1, note="kept for good"),
    ]


if __name__ == "__main__":
    from benchmarks.store import save_rows

    torch.set_num_threads(1)
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as scratch:
        marks: list[Mark] = []
        for mark in soak(Path(scratch), calls, look=max(1, calls // LOOKS)):
            marks.append(mark)
            save_rows(rows_of(marks))  # a run that is ended early leaves what it has done
