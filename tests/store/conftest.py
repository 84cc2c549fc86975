"""Engines to test a store on, a clock that stands still, and a small store to begin with."""

import importlib.util
import secrets
from pathlib import Path

import pytest
import torch

from tests.store.server import server, stop

if importlib.util.find_spec("sqlalchemy") is None:  # the extra `store` is not installed
    collect_ignore_glob = ["test_*"]


def pytest_sessionfinish():
    """Also in the processes of -n, which leave without running what is registered for their exit."""
    stop()


def database(folder):
    """The URL of an empty place on the PostgreSQL server of this test run."""
    running = server()
    name = f"t{secrets.token_hex(6)}"
    running.sql(f"CREATE SCHEMA {name}")
    return running.url(options=f"-csearch_path={name},public")


ENGINES = {
    "sqlite": lambda folder: folder / "memory.db",
    "postgres": database,
    "shards": lambda folder: [database(folder) for _ in range(3)],
    "files": lambda folder: [folder / f"{n}.db" for n in range(3)],
}
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
        self.urls = url if isinstance(url, list) else [url]

    def open(self, **options):
        from nestmem.store import Store

        store = Store(self.url, clock=self.clock, **{"timeout": 60.0, **options})
        self.opened.append(store)
        return store

    def files(self):
        """Every file of the store that is in use, but for a server's write-ahead log."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        for url in self.urls:
            if str(url).startswith("postgresql"):
                found += server().files(url)
        return found

    def close(self):
        for store in self.opened:
            store.close()
        self.opened.clear()


@pytest.fixture(params=["sqlite", "postgres", "shards"])
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
