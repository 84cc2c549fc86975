"""The rows of the text benchmark: seeds, places, growth of the gap, and rows that stay when there is no run."""

import json

from benchmarks import results, text


def found(score, places, seed):
    line = {"points": [[512.0, places[0], 0, 0], [1448.0, places[1], 0, 0]]}
    return {
        "score": score, "seed": seed, "seconds": 5.0, "parameters": 10, "state_bytes": 20, "step": 3, "n": 4,
        "counted": "documents", "low": score - 1, "high": score + 1,
        "lines": {"place": line}, "numbers": {"bits per byte, memory on": {"mean": score}, "bytes judged": 9.0},
    }  # fmt: skip


def test_places_and_the_growth_of_the_gap(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "ROOT", tmp_path / "runs")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    kept = text.row("needle-16x", "somebody", 1.0, n=1, unit="%")
    (tmp_path / "text.json").write_text(json.dumps({"rows": [kept]}))
    for seed in (0, 1):
        for method, places in (("nested", (2.5, 2.0)), ("lstm", (2.5, 2.3 + seed / 10))):
            folder = tmp_path / "runs" / f"books-{method}-s{seed}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(found(2.2, places, seed)))
    text.collect()
    assert (tmp_path / "docs" / "text.png").stat().st_size > 1000
    rows = {(r["claim"], r["method"]): r for r in json.loads((tmp_path / "text.json").read_text())["rows"]}
    assert rows["needle-16x", "somebody"] == kept
    at = rows["text-bpb-at-1448", "flat LSTM"]
    assert abs(at["value"] - 2.35) < 1e-9 and at["n"] == 2 and at["low"] < at["value"]
    assert abs(rows["text-bpb-by-position", text.GROWTH]["value"] - 0.35) < 1e-9
    assert rows["text-lesion: memory on", text.NESTED]["value"] == 2.2


def test_one_seed_has_no_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    rows = text.summary("books", "x", [found(2.0, (2.0, 1.0), 0)])
    assert all(r["low"] is None and r["n"] == 1 for r in rows)


def test_seeds_of_one_recipe_add_up_over_days(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for seed, score in ((0, 2.0), (1, 3.0), (1, 4.0)):
        rows = text.summary("books", "x", [found(score, (2.0, 1.0), seed) | {"recipe": "a"}])
        results.save("text", results.merged("text", rows))
    (row,) = (r for r in results.load("text") if r["claim"] == "text-bpb")
    assert row["each"] == {"0": 2.0, "1": 4.0} and row["value"] == 3 and row["low"] < 2 < 4 < row["high"]
    other = text.summary("books", "x", [found(9.0, (2.0, 1.0), 2) | {"recipe": "b"}])
    assert other[0]["each"] == {"2": 9.0}, "another recipe is another thing"
    assert next(r for r in results.merged("text", other) if r["claim"] == "text-bpb")["n"] == 2, "and has fewer seeds"
