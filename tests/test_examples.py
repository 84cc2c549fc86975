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


def test_inside_stable_baselines3():
    pytest.importorskip("stable_baselines3", reason="it comes with the dev group")
    with_memory, last_observation = load("inside_stable_baselines3").main()
    assert with_memory > 0.7 and last_observation < 0.4  # chance is 0.25


def test_inside_transformers():
    pytest.importorskip("transformers", reason="it comes with the dev group")
    carried, cleared = load("inside_transformers").main()
    assert carried > 0.9 and cleared < 0.25  # chance is 0.125


def test_state_across_processes():
    outputs, states, difference_without = load("state_across_processes").main()
    assert outputs and states
    assert difference_without > 0.01


def test_every_example_is_short_and_tested():
    for path in FOLDER.glob("*.py"):
        assert f"test_{path.stem}" in globals(), f"{path.name} has no test"
        assert len(path.read_text().splitlines()) <= 75
