"""Shared fixtures, and what makes a test the same whichever ran before it, and on however many cores.

Real data come from NESTMEM_DATA, by default the folder beside a checkout that holds them. NESTMEM_TEST_SEED=n draws everything
otherwise that has no seed of its own: a threshold that only one draw meets is a test that fails one day.
"""

import os
import random
from pathlib import Path

# Sums in one order. Read when torch is imported, here and in child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

THREADS = torch.get_num_threads()
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
if BESIDE.is_dir():
    os.environ.setdefault("NESTMEM_DATA", str(BESIDE))


def begin():
    """Whatever draws without a generator draws the same as if nothing had run before."""
    seed = int(os.environ.get("NESTMEM_TEST_SEED", "0"))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)  # a trainer sets it for the whole process


def pytest_fixture_setup(fixturedef):
    if fixturedef.scope != "function":  # shared by tests of which any may be the first
        begin()


@pytest.fixture(autouse=True)
def _begun(monkeypatch):
    begin()
    monkeypatch.setenv("COLUMNS", "1000")  # what is printed wraps nowhere, however long a temporary path is
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """A place for decoded sets and features that is not the user's; the tests of one process share it."""
    monkeypatch.setenv("NESTMEM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def omniglot():
    """The real Omniglot, or a skip that says how to get it."""
    from envs import archives
    from envs import omniglot as source

    if any(archives.locate(archive) is None for archive in source.ARCHIVES):
        pytest.skip("Omniglot is not here: set NESTMEM_DATA or run `nestmem data get omniglot`")
    return source.load()
