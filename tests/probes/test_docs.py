"""The examples of docs/probes.md run as they stand, and every probe is named there."""

import re
from pathlib import Path

import pytest

from nestmem import probes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "probes.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=["arrays", "nested", "foreign"])
def test_example(example):
    names = {}
    exec(example, names)
    if "found" in names:
        assert isinstance(names["found"].index, probes.Interval)
        assert names["y"].isfinite().all()
    if "without" in names:
        assert not names["y"].equal(names["model"](names["host"]))
    if "r" in names:
        assert probes.continual_metrics(names["r"])["bwt"] == pytest.approx(-0.1)


def test_every_probe_has_its_row():
    internal = {"area", "autocorrelation", "fit_decay", "steps_since", "continual_metrics"}
    functions = {name for name in probes.__all__ if name[0].islower()} - internal
    missing = sorted(name for name in functions if f"`{name}`" not in PAGE and f"{name}(" not in PAGE)
    assert not missing
