"""Engines to test a store on (SQLite; others are further entries), a clock that stands still, and a small store to begin with."""

import importlib.util
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("sqlalchemy") is None:  # the extra `store` is not installed
    collect_ignore_glob = ["test_*"]

ENGINES = {"sqlite": lambda folder: folder / "memory.db"}
DAY = 86400.0


class Clock:
    """Unix seconds that pass only when told."""

    def __init__(self, now=1.7e9):
        self.now = now

    def __call__(self):
        return self.now

    def days(self, n):
        self.now += n * DAY


class Place:
    """Where a store lies: opens it, as often as wanted."""

    def __init__(self, url, folder):
        self.url, self.folder, self.clock, self.opened = url, Path(folder), Clock(), []

    def open(self, **options):
        from nestmem.store import Store

        store = Store(self.url, clock=self.clock, **{"timeout": 5.0, **options})
        self.opened.append(store)
        return store

    def close(self):
        for store in self.opened:
            store.close()
        self.opened.clear()


@pytest.fixture(params=ENGINES)
def place(request, tmp_path):
    here = Place(ENGINES[request.param](tmp_path), tmp_path)
    yield here
    here.close()


@pytest.fixture
def store(place):
    opened = place.open()
    opened.space("w", 8)
    return opened


@pytest.fixture
def vectors():
    """[64, 8] unit vectors."""
    return torch.nn.functional.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
