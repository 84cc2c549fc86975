"""Minutes: what the README promises, on this machine. `uv run pytest -m slow`."""

import json
import random

import pytest

from benchmarks import resume
from nestmem.cli import main

pytestmark = pytest.mark.slow


def test_the_quick_start_beats_a_flat_lstm(tmp_path):
    assert main(["train", f"run={tmp_path}/q"]) == 0
    nested, flat = (json.loads((tmp_path / "q" / p / "result.json").read_text()) for p in ("", "baselines/lstm"))
    assert nested["low"] > 90
    assert nested["low"] > flat["high"] + 10


def test_ten_kills_and_the_same_bits(tmp_path):
    whole, duration = resume.uninterrupted(tmp_path)
    run, _ = resume.interrupted(tmp_path, "killed", duration, random.Random(0), kills=10)
    assert resume.trace(run) == resume.trace(whole)
