"""Learning on the stream of three timescales: gains, the matrix of levels and variables, controls, and going on."""

import json

import pytest
import torch

from algos import build
from algos.config import configure
from algos.timescales import levels
from algos.trainer import Trainer
from nestmem.cli import main
from nestmem.errors import UserError
from tests.runs import left

SMALL = [
    "experiment=timescales", "algo.encoder=16", "algo.decoder=32", "algo.width=8", "memory.hidden=8",
    "trainer.tasks=4", "env.length=160", "env.dropped=32", "trainer.eval_tasks=4", "trainer.test_tasks=4",
    "trainer.eval_every=4", "trainer.checkpoint_every=3",
]  # fmt: skip


def trainer(run, *overrides, resume=False):
    config = configure([*SMALL, f"run={run}", *overrides])
    run.mkdir(exist_ok=True)
    return Trainer(config, build.problem(config), resume)


@pytest.mark.parametrize(("memory", "restart"), [("nested_leaky", 0), ("lstm", 4)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, memory, restart):
    options = [f"memory={memory}", "trainer.steps=9", f"env.restart={restart}"]
    trainer(tmp_path / "whole", *options).fit()
    cut = trainer(tmp_path / "cut", *options)
    update = cut.problem.update

    def dies(optimize):
        if cut.step == 4:  # an update after the checkpoint
            raise MemoryError
        return update(optimize)

    cut.problem.update = dies
    with pytest.raises(MemoryError):
        cut.fit()
    again = trainer(tmp_path / "cut", *options, resume=True)
    assert again.step == 3
    again.fit()
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_untrained_knows_nothing_and_a_little_training_finds_a(tmp_path):
    before = trainer(tmp_path / "before", "trainer.steps=0").fit()["numbers"]
    assert abs(before["interchange index"].mean) < 0.05 and before["gain a"].mean < 0.1
    options = ["memory.hidden=16", "trainer.steps=150", "trainer.tasks=8", "trainer.lr=1e-2", "trainer.eval_every=150"]
    result = trainer(tmp_path / "after", *options).fit()
    assert result["numbers"]["gain a"].mean > 0.7
    swap, rows = (result["matrices"]["interchange"][key] for key in ("values", "rows"))
    assert rows == ["1: LSTM", "2: Leaky", "3: Leaky"]
    assert swap[0][0] > 0.8 and max(swap[1][0], swap[2][0]) < 0.2, "a is what the fast level says"


def test_command_line_writes_numbers_matrices_and_figures(tmp_path):
    run = tmp_path / "run"
    assert main(["train", *SMALL, f"run={run}", "trainer.steps=4", "trainer.eval_every=4"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert set(result["matrices"]) == {"interchange", "decodability", "decodability-untrained"}
    assert set(result["numbers"]) == {f"gain {v}" for v in "abc"} | {
        f"interchange {k}" for k in ("diagonal", "off-diagonal", "index")
    }
    assert result["measure"] == "gain" and result["state_bytes"] == 4 * (2 * 8 + 2 * 32) + 8 * 2
    page = (run / "report" / "report.html").read_text()
    assert "how often a prediction follows" in page and "gain c" in page


def test_units_of_a_flat_memory_are_swapped_in_thirds_the_slowest_last():
    torch.manual_seed(0)

    class Given(torch.nn.Module):
        def initial_state(self, rows):
            return None

        def forward(self, x, state):
            return x, state

    steps = torch.arange(400.0)
    periods = torch.tensor([200.0, 8.0, 40.0, 7.0, 210.0, 45.0])
    x = torch.sin(2 * torch.pi * (steps[:, None] / periods + torch.rand(5, 1, 6)))
    said = levels(Given(), x)
    assert [set(group) for group in said.groups] == [{1, 3}, {2, 5}, {0, 4}]
    for group, y in zip(said.groups, said.swapped(), strict=True):
        rest = [unit for unit in range(6) if unit not in group]
        assert torch.equal(y[..., group], x.roll(1, 0)[..., group])
        assert torch.equal(y[..., rest], x[..., rest])


def test_memories_begin_anew_after_so_many_updates(tmp_path):
    problem = trainer(tmp_path / "run", "env.restart=2").problem
    assert [problem.source.next().fresh for _ in range(5)] == [True, False, True, False, True]


def test_frozen_leaves_encoder_and_memory_as_they_were_drawn(tmp_path):
    run = trainer(tmp_path / "run", "algo.frozen=true", "trainer.steps=3")
    before = {name: p.clone() for name, p in run.learner.named_parameters()}
    run.fit()
    changed = {name.split(".")[0] for name, p in run.learner.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"decoder"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["algo=blackbox"], "algo: env=timescales goes with algo=filtering, got blackbox"),
        (
            ["env=glyphs"],
            "algo: env=glyphs goes with algo=blackbox, maml, prototypes, oml, anml, classifier, got filtering",
        ),
        (["memory=none"], "memory: algo=filtering needs one, got none"),
        (["env.dropped=4096"], "env.dropped, trainer.eval_tasks, trainer.test_tasks: expected fewer steps dropped"),
        (["env.right_b=1"], r"timescales: expected rows >= 1, probabilities in \(0, 1\)"),
        (["memory.spread=0.5"], "tau, spread: expected tau >= spread >= 1, got 16.0 and 0.5"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(overrides, says):
    with pytest.raises(UserError, match=says):
        build.problem(configure(["experiment=timescales", *overrides]))
