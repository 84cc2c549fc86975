"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_loop():
    assert load("plain_loop").main() > 0.8


def test_inside_learn2learn():
    pytest.importorskip("learn2learn", reason="the extra l2l is not installed")
    first, last = load("inside_learn2learn").main()
    assert last < 0.5 * first


def test_every_example_is_short_and_tested():
    for path in FOLDER.glob("*.py"):
        assert f"test_{path.stem}" in globals(), f"{path.name} has no test"
        assert len(path.read_text().splitlines()) <= 75
