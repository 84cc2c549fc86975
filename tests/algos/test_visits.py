"""Streams of visits as a problem: bit-for-bit resumption, what is counted, lesions, and the command line."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from algos import build as build_from
from algos.config import configure
from algos.embedding import embedding
from algos.visits import Record, VisitLearner, VisitProblem, by_gap, curves, steps_numbers
from benchmarks import drift
from envs.bindings import Bindings
from nestmem import build
from nestmem.cli import main
from tests.runs import Updates, cut, fitted, left, saved_and_loaded

pytestmark = pytest.mark.usefixtures("cache")

OPTIONS = OmegaConf.create({"tasks": 3, "amp": False, "eval_tasks": 4, "test_tasks": 4})
SMALL = ["experiment=recurring", "env.images=glyphs", "env.encoder_steps=2", "encoder.channels=[4,8]", "env.visits=8",
         "env.test_visits=12", "env.first=2", "env.gaps=[1,9]", "memory.hidden=4", "trainer.tasks=2",
         "trainer.threads=1", "trainer.eval_tasks=2", "trainer.test_tasks=3", "trainer.eval_every=6"]  # fmt: skip


class Run(Updates):
    """Streams of random classes, each drawn always the same way."""

    def __init__(self, visits=8):
        torch.manual_seed(0)
        classes = F.normalize(torch.randn(12, 1, 6), dim=-1).expand(-1, 20, -1)
        streams = {
            split: Bindings(classes, seed=i, pool=8, ways=3, visits=visits, first=2, gaps=(1, 6))
            for i, split in enumerate(("train", "val", "test"))
        }
        fields = streams["train"].fields
        options = {"hidden": 4, "reset_every": 9, "slots": 8, "key_bits": 8, "slow": "product", "period": 9}
        learner = VisitLearner(build("nested", fields.width, fields, **options), fields)
        super().__init__(VisitProblem(learner, streams, OPTIONS, 1 / 3, torch.device("cpu")))


@pytest.mark.parametrize("after", [3, 8, 11])
def test_saved_and_loaded_goes_on_bit_for_bit(after):
    want, got, *_ = saved_and_loaded(Run, 14, after)
    assert got == want


def test_a_state_is_carried_over_the_visits_of_a_stream_and_no_further():
    run, clocks = Run(visits=4), []
    for _ in range(9):
        run.update()
        clocks.append(int(run.problem.carried.step[0]))
    assert clocks == [9, 18, 27, 36, 9, 18, 27, 36, 9]


def test_judging_repeats_itself_and_leaves_training_alone():
    run, other = Run(), Run()
    first, again = run.problem.evaluate("val", 4), run.problem.evaluate("val", 4)
    assert np.array_equal(first.correct, again.correct)
    assert run.update() == other.update()


def test_first_guesses_are_counted_by_gap_each_stream_once():
    seen = np.array([[[0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]])  # 2 streams, 2 visits, 3 steps
    gap = np.broadcast_to(np.array([[0, 6], [0, 40]])[:, :, None], seen.shape)
    correct = np.array([[[0, 1, 1], [1, 0, 0]], [[1, 1, 0], [1, 1, 0]]])
    record = Record(correct, gap, seen)
    found = by_gap(record)
    assert (found["5-8"].mean, found["31+"].mean) == (50.0, 100.0)
    assert "no record" in found["9-13"]
    assert [p[:2] for p in curves(record)["first-visit"]["points"]] == [[1, 50.0], [2, 100.0], [3, 50.0]]


def test_savings_are_the_ratio_of_steps_to_ninety_percent():
    gap = np.zeros((1, 4, 3), int)
    gap[:, 2:] = 7
    correct = np.array([[[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]])
    record = Record(correct, gap, np.zeros_like(gap))
    found = steps_numbers(record)
    assert (found["steps to 90 %, first visits"], found["steps to 90 %, returns"]) == (3, 1)
    assert found["savings (first / return)"] == 3
    assert "never reached" in steps_numbers(record._replace(correct=0 * correct))["savings (first / return)"]


def test_retention_comes_from_what_is_lesioned():
    run = Run(visits=24)
    for _ in range(48):
        run.update()
    found = run.problem.lesions(4)
    intact, both = found["lesion, ret0: intact"].mean, found["lesion, ret0: cue of another stream"].mean
    assert set(found) == {f"lesion, ret0: {w}" for w in (
        "intact", "LSTM empty", "Episodic empty", "TensorProduct empty", "cue of another stream")}  # fmt: skip
    assert intact > both + 10


@pytest.mark.parametrize("stream", drift.EXPERIMENTS)
def test_the_benchmark_compares_at_equal_bytes(stream):
    with torch.device("meta"):
        sizes = {m: build_from.state_size(configure(drift.overrides(stream, m))) for m in drift.METHODS}
    assert sizes.pop("slow") < sizes["nested"]
    assert all(abs(size / sizes["nested"] - 1) < 0.03 for size in sizes.values()), sizes


def test_forgetting_is_the_best_round_minus_the_last_first_guesses():
    """Two rows, three rounds of two alphabets, one character shown twice."""
    seen, gap = np.tile([0, 1], (2, 6, 1)), np.tile(np.repeat([0, 2, 2], 2)[:, None], (2, 1, 2))
    correct = np.zeros((2, 6, 2), dtype=bool)
    correct[:, 2:4, 1] = True  # the last images of the second round
    correct[0, 4:] = True  # all of the third round, in one row of two
    found = drift.alphabet_numbers(Record(correct, gap, seen))
    assert (found["learned"], found["final"], found["forgetting"]) == (100.0, 50.0, 50.0)


def test_trains_and_resumes_from_the_command_line(tmp_path, capsys):
    whole = tmp_path / "whole"
    assert main(["train", *SMALL, "trainer.steps=12", "trainer.checkpoint_every=6", f"run={whole}"]) == 0
    result = json.loads((whole / "result.json").read_text())
    assert {"new0", "new1", "ret0", "gap/5-8", "floor: chance"} <= set(result["numbers"])
    assert {"first-visit", "return"} <= set(result["lines"]) and (whole / "report" / "first-visit.png").exists()
    run = cut(whole, tmp_path / "part", step=6)
    fitted(run, [*SMALL, "trainer.steps=12", "trainer.checkpoint_every=6"])
    assert left(run) == left(whole)
    assert main(["eval", str(run), "ways=2"]) == 2
    assert "not a few-shot run" in capsys.readouterr().err


def test_features_come_from_the_encoder_of_a_run(tmp_path):
    small = ["encoder.channels=[4,8]", "trainer.steps=2", "trainer.eval_tasks=2", "trainer.test_tasks=2"]
    images = ["env=glyphs", "algo=prototypes", "memory=none", "baselines=[]", "env.alphabets=3", "trainer.tasks=1"]
    assert main(["train", *images, *small, f"run={tmp_path}/encoder"]) == 0
    assert main(["train", *SMALL, f"env.encoder={tmp_path}/encoder", "trainer.steps=2", f"run={tmp_path}/r"]) == 0
    own, given = (embedding(configure([*SMALL, *more]).env, configure(SMALL).encoder)["test"] for more in (
        [], [f"env.encoder={tmp_path}/encoder"]))  # fmt: skip
    assert given.shape == (100, 20, 24) and not torch.equal(own, given)


def test_rules_train_too(tmp_path):
    rules = ["experiment=shared_rules" if o == "experiment=recurring" else o for o in SMALL]
    assert main(["train", *rules, "trainer.steps=2", f"run={tmp_path}/r"]) == 0
    assert json.loads((tmp_path / "r" / "result.json").read_text())["numbers"]["floor: chance"] == 50.0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("env.images=letters", "env.images: expected omniglot or glyphs"),
        ("env.gaps=[1]", "env.gaps: expected two numbers"),
        ("env.features=400", "env.features: expected 1"),
        ("algo=maml", "env=bindings goes with algo=blackbox, got maml"),
        ("env.encoder=nowhere", "nowhere"),
        ("env.encoder_steps=0", "env.encoder_steps: expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(wrong, says, tmp_path, capsys):
    assert main(["train", *SMALL, wrong, f"run={tmp_path}/r"]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "r").exists()
