"""Streams of tasks end to end: what is recorded, that a run goes on bit for bit, what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from algos import build
from algos.config import configure
from algos.continual import retained
from algos.strategies import STRATEGIES
from algos.task_stream import make_tasks
from algos.trainer import Trainer
from envs import archives, mnist
from nestmem.cli import main
from nestmem.errors import UserError
from tests.runs import cut, fitted, left

TINY = [
    "experiment=continual_glyphs", "env.tasks=3", "env.classes=3", "trainer.steps=24", "trainer.tasks=9", "algo.buffer=20",
    "encoder.channels=[8,8,8]", "trainer.eval_every=1000", "trainer.checkpoint_every=5", "trainer.keep=100", "trainer.lr=3e-3",
]  # fmt: skip
MEMORY = {"memory": ["memory=nested", "memory.slots=120", "memory.period=9"]}


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    run = tmp_path_factory.mktemp("continual") / "run"
    assert main(["train", *TINY, "algo.strategy=finetune", f"run={run}"]) == 0
    return run


def test_a_run_records_the_matrix_and_what_follows_from_it(finetuned):
    result = json.loads((finetuned / "result.json").read_text())
    r = torch.tensor(result["matrices"]["R"]["values"])
    assert r.shape == (3, 3) and sorted(result["learned"]) == [0, 1, 2]
    assert abs(result["score"] - 100 * r[-1].mean()) < 1e-4 and result["n"] == 3
    forgotten = [r[:, j].max() - r[-1, j] for j, row in enumerate(result["learned"]) if row < 2]
    assert abs(result["numbers"]["forgetting"] - float(sum(forgotten) / 2)) < 1e-6
    assert result["numbers"]["fwt"] is not None and result["algo"] == "finetune" and len(result["manifest"]) == 64
    ages = [point[0] for point in result["lines"]["retention"]["points"]]
    assert ages == [0, 1, 2]
    images = {path.name for path in (finetuned / "report").glob("*.png")}
    assert {"R-finetune.png", "retention.png"} <= images
    assert main(["eval", str(finetuned)]) == 2, "there are no other tasks to ask for"
    assert '"val/forgetting"' in (finetuned / "scalars.jsonl").read_text()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_interrupted_and_resumed_is_uninterrupted(strategy, tmp_path):
    """Goes on from the middle of the second visit, with other strategies' state of that moment gone from memory."""
    options = [*TINY, f"algo.strategy={strategy}", *MEMORY.get(strategy, [])]
    fitted(tmp_path / "whole", options)
    run = cut(tmp_path / "whole", tmp_path / "part", step=10)
    fitted(run, options)
    assert left(run) == left(tmp_path / "whole")


def test_replay_and_memory_forget_less_than_finetuning(tmp_path):
    more = ["trainer.steps=60", "encoder.channels=[8,16,16]", "algo.buffer=40"]
    lost = {
        strategy: fitted(tmp_path / strategy, [*TINY, f"algo.strategy={strategy}", *more, *MEMORY.get(strategy, [])])
        for strategy in ("finetune", "replay", "memory")
    }
    finetuned = lost["finetune"]["numbers"]["forgetting"]
    for strategy in ("replay", "memory"):
        assert lost[strategy]["numbers"]["forgetting"] < finetuned - 0.2 and lost[strategy]["state_bytes"] > 0
    assert finetuned > 0.4 and lost["finetune"]["state_bytes"] == 0


def test_joint_sees_the_same_images_in_another_order():
    plain, joint = (
        build.problem(configure([*TINY, f"algo.strategy={name}", "run=unused"])) for name in ("finetune", "joint")
    )
    cards = [torch.stack([p.stream.task, p.stream.classes, p.stream.drawings], -1)[0].tolist() for p in (plain, joint)]
    assert cards[0] != cards[1] and sorted(cards[0]) == sorted(cards[1]) and plain.sha256 == joint.sha256


@pytest.mark.parametrize("strategy", [name for name, kind in STRATEGIES.items() if kind.told])
def test_hidden_boundaries_are_refused_in_one_sentence(strategy, tmp_path, capsys):
    arguments = ["train", *TINY, f"run={tmp_path}/run", f"algo.strategy={strategy}", "env.boundaries=hidden"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: algo.strategy: {strategy} has to be told") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_strategies_without_boundaries_are_never_told(tmp_path):
    told = []

    class Listening(STRATEGIES["replay"]):
        def begin(self, task):
            told.append(task)

    config = configure([*TINY, "env.boundaries=hidden", "env.mixing=20", "run=unused", f"run={tmp_path}/run"])
    problem = build.problem(config)
    problem.strategy.__class__ = Listening
    Trainer(config, problem).fit()
    assert not told and len(problem.rows) == 3


def test_tasks_that_return():
    config = configure([*TINY, "env.order=cycle", "env.tasks=2", "env.shuffle=false", "env.visits=4", "run=unused"])
    problem = build.problem(config)
    assert problem.task_of == [0, 1, 0, 1] and problem.learned(4) == [0, 1] and problem.learned(1) == [0, -1]
    rows = torch.tensor([[0.9, 0.1], [0.3, 0.8], [1.0, 0.4], [0.5, 0.9]], dtype=torch.float64)
    details = problem.judge(rows).details
    assert details["numbers"]["forgetting"] == pytest.approx((0.5 + 0.0) / 2)
    points = retained(rows.numpy(), [0, 1])
    assert [p[1] for p in points] == pytest.approx([85, 35, 95, 50])


@pytest.mark.parametrize("kind", ["class_incremental", "domain_incremental", "permuted", "rotated", "coarse_to_fine"])
def test_every_kind_of_stream_from_the_command_line(kind):
    problem = build.problem(configure([*TINY, f"env.kind={kind}", "trainer.steps=12", "run=unused"]))
    outputs = {"class_incremental": 9, "coarse_to_fine": 12}.get(kind, 3)
    assert problem.stream.outputs == outputs and len(problem.stream.tasks) == (4 if kind == "coarse_to_fine" else 3)
    assert problem.ask().shape == (len(problem.stream.tasks),)


def test_choosing_options_never_touches_what_is_tested():
    test, val = (configure([*TINY, f"env.part={part}", "run=unused"]) for part in ("test", "val"))
    all_of, part_of = (make_tasks(config.env)[1].data.images for config in (test, val))
    assert all_of.shape[1] == 20 and torch.equal(part_of, all_of[:, :15])
    learning, learning_val = (build.problem(config).stream.learning[0] for config in (test, val))
    assert learning == 15 and learning_val == 11, "the last five are the test's, four others are held out instead"


def test_streams_of_real_characters_and_digits(omniglot):
    config = configure(["experiment=continual_alphabets", "run=unused"])
    stream = build.problem(config).stream
    assert stream.outputs == 200 and stream.tasks[0].name == "Angelic" and stream.steps == 800
    with pytest.raises(UserError, match="21 alphabets of 20 asked for, but omniglot_evaluation has 20"):
        make_tasks(configure(["experiment=continual_alphabets", "env.tasks=21", "run=unused"]).env)


def test_streams_with_digits(omniglot):
    if any(archives.locate(archive) is None for archive in mnist.ARCHIVES):
        pytest.skip("MNIST's test set is not here: set NESTMEM_DATA or run `nestmem data get mnist_t10k`")
    pairs = build.problem(configure(["experiment=split_mnist", "run=unused"])).stream
    assert [task.name for task in pairs.tasks] == ["0-1", "2-3", "4-5", "6-7", "8-9"] and pairs.outputs == 10
    problem = build.problem(configure(["experiment=permuted_mnist", "run=unused"]))
    assert problem.stream.outputs == 10 and len(problem.stream.tasks) == 5
    assert problem.learner(problem.shown(0, 3)[0]).shape == (3, 10)
    both = configure(["experiment=continual_alphabets", "env.kind=omniglot_mnist", "env.drawings=20", "run=unused"])
    assert [(task.name, len(task.labels)) for task in make_tasks(both.env)] == [("omniglot", 200), ("mnist", 10)]
    with pytest.raises(UserError, match="12 tasks of 2 digits asked for, but there are 10"):
        make_tasks(configure(["experiment=split_mnist", "env.tasks=12", "run=unused"]).env)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["algo.strategy=gem"], "algo.strategy: expected one of finetune, replay"),
        (["memory=nested"], "algo.strategy=memory goes with a memory"),
        (["algo.strategy=memory"], "algo.strategy=memory goes with a memory"),
        (["trainer.steps=25"], "trainer.steps: expected a multiple of the 3 visits"),
        (["env.kind=split"], "env.kind: expected one of"),
        (["env.data=cifar"], "env.data: expected one of"),
        (["baselines=[lstm]"], "a run has no baselines"),
        (["trainer.schedule=linear"], "trainer.schedule: expected cosine or constant"),
        (["algo.buffer=0"], "algo.buffer: expected at least 1"),
        (["algo.strategy=expandable", "encoder.norm=running"], "encoder.norm: old blocks stay as they are"),
        (["algo.strategy=expandable", "algo.mlp=[8]"], "takes a convolutional encoder"),
        (["algo.encoder=nowhere"], "nowhere: not a run of nestmem"),
        (["env=glyphs"], "algo: env=glyphs goes with algo=blackbox, maml"),
    ],
)
def test_what_is_refused(changes, says, tmp_path, capsys):
    tiny = TINY if "env=glyphs" not in changes else [o for o in TINY if not o.startswith("env.") and "exp" not in o]
    more = ["algo=continual", "memory=none", "baselines=[]"] if "env=glyphs" in changes else []
    assert main(["train", *tiny, *more, f"run={tmp_path}/run", *changes]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run" / "checkpoints").exists()


def test_the_encoder_of_another_run_and_a_frozen_one(finetuned, tmp_path):
    config = configure([*TINY, f"algo.encoder={finetuned}", "algo.freeze=true", f"run={tmp_path}/run"])
    problem = build.problem(config)
    saved = load_file(sorted((finetuned / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")
    start = problem.learner.encoder.state_dict()
    assert all(torch.equal(start[name], saved[f"learner.encoder.{name}"]) for name in start)
    head = problem.learner.head.weight.detach().clone()
    Trainer(config, problem).fit()
    after = problem.learner.encoder.state_dict()
    assert all(torch.equal(after[name], saved[f"learner.encoder.{name}"]) for name in after)
    assert not torch.equal(problem.learner.head.weight, head)
