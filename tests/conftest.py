"""Shared fixtures. Real data come from NESTMEM_DATA, by default the folder beside a checkout that holds them."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
if BESIDE.is_dir():
    os.environ.setdefault("NESTMEM_DATA", str(BESIDE))


@pytest.fixture(scope="session")
def omniglot():
    """The real Omniglot, or a skip that says how to get it."""
    from envs import archives
    from envs import omniglot as source

    if any(archives.locate(archive) is None for archive in source.ARCHIVES):
        pytest.skip("Omniglot is not here: set NESTMEM_DATA or run `nestmem data get omniglot`")
    return source.load()
