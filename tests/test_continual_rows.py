"""The rows of the 600-class benchmark: pairing of a stream with its oracle, and rows that stay when there is no run."""

import json

import pytest

from benchmarks import continual, results


def found(step=0):
    accuracy = {"600": [60.0, 80.0], "10": [90.0, 100.0]}
    head = {"bytes_per_class": 12.0, "held_out": accuracy, "learned": accuracy}
    return {
        "step": step, "rates": {"gradient": 0.01}, "oracle": 5, "heads": {"gradient": head, "means": head},
        "iid": {"gradient": {"rate": 0.1, "held_out": [75.0, 100.0]}},
    }  # fmt: skip


def test_a_drop_is_taken_stream_by_stream(tmp_path):
    rows = {(r["claim"], r["method"]): r for r in continual.measured("OML", tmp_path, found(), "7 updates")}
    assert len(rows) == 5
    assert rows["continual-600", "OML: slow, online gradient"]["value"] == 70
    assert rows["continual-600", "OML: episodic, class means"]["state_bytes"] == 7200
    drop = rows["continual-600-drop", "OML: slow, online gradient"]
    assert drop["value"] == pytest.approx(20) and drop["high"] - drop["low"] < 1e-6 and drop["n"] == 2
    assert "oracle 87.5 after 5 epochs" in drop["note"] and drop["wall_s"] is None


def test_rows_without_a_run_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    kept = continual.row("continual-600", "ANML: slow, online gradient", 1.0, n=10, unit="%")
    (tmp_path / "continual.json").write_text(json.dumps({"rows": [kept, kept | {"n": 0, "method": "published: X"}]}))
    continual.collect({})
    rows = json.loads((tmp_path / "continual.json").read_text())["rows"]
    assert [r for r in rows if r["n"]] == [kept]
    assert len(rows) == 1 + len(continual.PUBLISHED) + len(continual.PUBLISHED_DROP)
