"""Recall as a problem: resumption, tests in pieces, BABILong and grammars from the command line."""

import json

import pytest
import torch

from algos import build
from algos.config import configure
from nestmem.cli import main
from nestmem.errors import UserError
from tests.runs import Updates, saved_and_loaded

SMALL = ["experiment=mqar", "env.vocabulary=64", "env.steps=24", "env.pairs=2", "memory.hidden=8", "memory.key_size=8",
         "memory.units=4", "algo.width=16", "algo.hidden=16", "trainer.steps=4", "trainer.tasks=4", "trainer.chunk=8",
         "trainer.eval_every=2", "trainer.eval_tasks=8", "trainer.test_tasks=12", "trainer.checkpoint_every=2"]  # fmt: skip
GRAMMAR = [
    "env.kind=grammar",
    "env.vocabulary=6",
    "env.pairs=3",
    "env.noise=false",
    "env.gap=[1,3]",
    "env.steps=8",
    "algo.tied=false",
]


@pytest.mark.parametrize("kind", ["mqar", "grammar"])
def test_saved_and_loaded_goes_on_bit_for_bit(kind):
    config = configure([*SMALL, *(GRAMMAR if kind == "grammar" else [])])
    want, got, *_ = saved_and_loaded(lambda: Updates(build.problem(config)), 6, 3)
    assert got == want


def test_a_long_stream_is_judged_alike_in_pieces_and_whole():
    problem = build.problem(configure(SMALL))
    whole = problem.right("test", 96, 8)
    problem.piece = 16
    assert problem.right("test", 96, 8) == whole
    seeds = problem.seeds["val"], problem.seeds["test"]
    assert not torch.equal(*(problem.draw("", 8, 96, seed)[0] for seed in seeds)), "splits are drawn apart"


def test_learning_to_recall_carries_over_to_longer_streams(tmp_path):
    options = [*SMALL, "env.noise=false", "memory.decay=none", "trainer.steps=150", "trainer.tasks=32", "trainer.lr=1e-2",
               "trainer.eval_every=150", "trainer.checkpoint_every=150", "trainer.test_tasks=32", "algo.width=32",
               "memory.key_size=16"]  # fmt: skip
    assert main(["train", *options, f"run={tmp_path}/run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    lengths = [p[0] for p in result["lines"]["length"]["points"]]
    assert lengths == [24, 96, 384] and result["score"] > 60, "chance is 3 %"


@pytest.mark.parametrize("extra", [GRAMMAR, ["env.kind=needle"], ["env.kind=copy"]])
def test_every_kind_trains(extra, tmp_path):
    assert main(["train", *SMALL, *extra, "trainer.steps=2", f"run={tmp_path}/run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["score"] <= 100 and result["counted"] == "streams"


def test_babilong_trains_without_any_set(tmp_path):
    text = "It was a very long and quiet day in the house of the old man, said the boy. " * 50
    (tmp_path / "book.txt").write_text(text)
    options = ["experiment=babilong", "env.stories=made", f"env.data=[{tmp_path}/book.txt]", "env.steps=[48,64]",
               "env.lengths=[64,128]", "env.pieces=32", "memory.hidden=8", "memory.key_size=8", "algo.width=16",
               "trainer.steps=2", "trainer.tasks=2", "trainer.eval_tasks=4", "trainer.test_tasks=4"]  # fmt: skip
    assert main(["train", *options, f"run={tmp_path}/run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [p[0] for p in result["lines"]["length"]["points"]] == [64, 128]
    assert main(["eval", f"{tmp_path}/run", "lengths=64,512", "streams=4", "--json", f"{tmp_path}/far.json"]) == 0
    far = json.loads((tmp_path / "far.json").read_text())["points"]
    assert far[0] == result["lines"]["length"]["points"][0] and far[1][0] == 512, "the test's streams, and longer ones"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("env.kind=guess", "expected one of mqar, needle, copy, grammar"),
        ("env.pairs=30", "30 do not fit into 24 tokens"),
        ("env.lengths=[]", "expected positive lengths"),
        ("algo.adapt=true", "asks for answers, not for text"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(override, says, capsys, tmp_path):
    assert main(["train", *SMALL, override, f"run={tmp_path}/run"]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_eval_refuses_what_is_no_length(capsys, tmp_path):
    for given in ("lengths=64,", "lengths=far"):
        assert main(["eval", f"{tmp_path}/run", given]) == 2
        assert "lengths, streams: expected whole numbers" in capsys.readouterr().err


def test_a_learner_is_as_large_as_its_grammar_needs():
    made = build.learner(configure([*SMALL, *GRAMMAR]))
    assert made.memory.vocabulary == 1 + 3 + 3 * 3
    with pytest.raises(UserError, match="expected two numbers"):
        build.learner(configure([*SMALL, *GRAMMAR, "env.gap=[1]"]))
