"""Comparisons: sizes are matched, runs go on, and the verdict follows from the intervals alone."""

import json

import pytest

from algos import build
from algos.comparison import summarise
from algos.config import configure
from nestmem.cli import main
from tests.test_cli import TINY

OPTIONS = [o for o in TINY if not o.startswith("baselines")]


def result(score, adaptation=None, retention=None):
    axes = {"adaptation": adaptation, "retention": retention}
    return {
        "measure": "accuracy", "score": score, "parameters": 10, "state_bytes": 20, "seconds": 1.0,
        "axes": {name: {"value": v, "what": "accuracy, %"} for name, v in axes.items() if v is not None},
    }  # fmt: skip


def of(adaptation, retention):
    return [result(50, a, r) for a, r in zip(adaptation, retention, strict=True)]


GOOD, POOR, MIXED = [80, 81, 82, 83, 84], [70, 71, 72, 73, 74], [60, 95, 79, 83, 90]


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (of(GOOD, GOOD), of(POOR, POOR), "on both axes holds here"),
        (of(GOOD, POOR), of(POOR, GOOD), "contradicted"),
        (of(GOOD, GOOD), of(POOR, MIXED), "a null result"),
        ([result(50, a) for a in GOOD], [result(50, a) for a in POOR], "nothing here measures retention"),
        (of(GOOD[:2], GOOD[:2]), of(POOR[:2], POOR[:2]), "fewer than 3 seeds"),
        ([result(50)], [result(40)], "says nothing on the hypothesis"),
    ],
)
def test_the_verdict_falls_whichever_way_the_numbers_do(ours, theirs, says):
    assert says in summarise({"nested": ours, "flat": theirs}).verdict


def test_an_undefined_axis_is_not_compared():
    found = summarise({"nested": of(GOOD, GOOD), "flat": of(POOR, ["undefined: no task returned"] * 5)})
    assert "not to be compared with flat" in found.verdict
    assert any("no task returned" in cell for row in found.axes["retention"] for cell in row)


def test_rivals_have_the_same_bytes_or_parameters():
    reference = configure(["memory=nested"])
    for name, size in (("episodic", build.state_size), ("lstm", lambda c: build.parameters(build.learner(c)))):
        matched = build.baseline(reference, name)
        assert 0.97 * size(reference) < size(matched) <= size(reference)


def test_a_comparison_goes_on_where_it_stopped(tmp_path, capsys):
    command = ["compare", "memories=nested,lstm:reset_every=5", "seeds=1", f"run={tmp_path}/c", *OPTIONS]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "0 of 2 runs finished already" in out
    found = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row[0] for row in found["table"][1:]] == ["nested", "lstm:reset_every=5"]
    assert "adaptation" in found["axes"]
    stored = json.loads((tmp_path / "c" / "lstm-reset_every-5" / "s0" / "result.json").read_text())
    (tmp_path / "c" / "lstm-reset_every-5" / "s0" / "result.json").unlink()
    assert main(command) == 0
    assert "1 of 2 runs finished already" in capsys.readouterr().out
    again = json.loads((tmp_path / "c" / "lstm-reset_every-5" / "s0" / "result.json").read_text())
    assert again["score"] == stored["score"]
    assert main([*command, "env.shots=2"]) == 2
    assert "holds another comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["memories=nested"], "at least two"),
        (["memories=nested,nested"], "at least two different"),
        (["memories=nested,lstm:32"], "NAME:OPTION=VALUE"),
        (["memories=nested,lstm", "seeds=few"], "seeds: expected a whole number"),
        (["memories=nested,lstm", "seed=3"], "set by the comparison"),
        (["memories=nested,lsmt"], "lsmt"),
        (["memories=nested,lstm:hiden=3"], "hiden"),
    ],
)
def test_typos_are_one_sentence(arguments, says, tmp_path, capsys):
    assert main(["compare", f"run={tmp_path}/c", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_run_that_fails_is_named(tmp_path, capsys):
    assert (
        main(
            [
                "compare",
                "memories=nested,lstm",
                "seeds=1",
                f"run={tmp_path}/c",
                *OPTIONS,
                "trainer.lr=1e30",
                "trainer.steps=40",
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert "seed 0 stopped" in err and "not finite" in err and "Traceback" not in err
