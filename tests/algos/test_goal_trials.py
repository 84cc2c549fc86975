"""RL^2 on Meta-World: a run from the command line, resuming bit for bit, and an evaluator that counts every goal alike."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from algos import goal_trials
from envs.meta_world import MetaWorld
from nestmem.cli import main
from tests.runs import cut, fitted, left

SMALL = [
    "experiment=ml1_reach", "memory.hidden=8", "algo.width=8", "algo.epochs=2", "algo.minibatches=2", "env.goals=4",
    "env.episodes=2", "env.horizon=5", "env.adapt=1", "env.scored=1", "env.test_horizon=7", "trainer.steps=4", "trainer.tasks=4",
    "trainer.eval_tasks=2", "trainer.test_tasks=3", "trainer.eval_every=2", "trainer.checkpoint_every=2", "trainer.keep=100",
]  # fmt: skip
RECURRING = [
    *SMALL, "experiment=ml1_recurring", "env.tasks=2", "env.visits=2", "env.episodes=1", "env.bits=3", "env.drift=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("small") / "run"
    fitted(run, SMALL)
    return run


def test_a_run_from_the_command_line(tmp_path):
    run = tmp_path / "run"
    assert main(["train", *SMALL, "algo.infer=0.5", f"run={run}"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["measure"] == "success" and result["n"] == 3 and 0 <= result["score"] <= 100
    parts = ("", ", rewards not told", ", reset in every episode", ", likeliest actions", ", 7 steps")
    assert {f"success at the last step, %{part}" for part in parts} < result["numbers"].keys()
    assert {"success at any step, %, a blind sweep, 5 steps", "return, scored over first episode"} < result[
        "numbers"
    ].keys()
    assert len(result["lines"]["adaptation_in_trial_reset"]["points"]) == 2
    rows = (run / "scalars.jsonl").read_text()
    assert all(f'"{tag}"' in rows for tag in ("val/success", "train/restarts", "train/any_step", "train/task_error"))
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert "test/adaptation_in_trial" in events.Tags()["images"]
    if "test/trial" in events.Tags()["images"]:  # where rendering works
        film = Image.open(io.BytesIO(events.Images("test/trial")[0].encoded_image_string))
        assert film.format == "GIF" and film.size == (160, 160) and film.n_frames == 1
    held = load_file(run / "checkpoints/step-00000004/tensors.safetensors")
    assert held["learner.normal.count"] == held["learner.pay.count"] == 4 * 4 * 10


def test_an_unfinished_run_is_asked_and_tasks_are_told_apart(tmp_path):
    fitted(tmp_path / "whole", [*SMALL, "env.task=reach-v3+push-v3"])
    run, page = cut(tmp_path / "whole", tmp_path / "part", step=2), tmp_path / "page.json"
    assert main(["eval", str(run), "trials=4", "split=val", "horizon=7", "--json", str(page)]) == 0
    result = json.loads(page.read_text())
    assert (result["step"], result["split"]) == (2, "val")
    numbers = result["numbers"]
    whole, *alone = (numbers[f"success at any step, %{name}"] for name in ("", ", reach-v3", ", push-v3"))
    assert [part["n"] for part in (whole, *alone)] == [4, 2, 2]
    assert whole["mean"] == np.mean([part["mean"] for part in alone])
    assert 0 < numbers["return of an episode"]["mean"] <= 7 * 10


def test_returning_goals_are_asked_with_another_drift(tmp_path):
    run, page = tmp_path / "run", tmp_path / "page.json"
    fitted(run, RECURRING)
    found = []
    for drift in ("0", "0.3"):
        assert main(["eval", str(run), "trials=2", f"drift={drift}", "--json", str(page)]) == 0
        found.append(
            json.loads(page.read_text())["numbers"]["return of the second visit less that of the first"]["mean"]
        )
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["trials=0"], "trials: expected a whole number of at least 1, got 0"),
        (["trials=2", "split=train"], "split: expected val or test, got 'train'"),
        (["trials=2", "horizon=501"], "env.horizon: expected 1 to 500 steps, got 501"),
        (["trials=2", "drift=nan"], "env.drift: expected metres of at least 0, got nan"),
    ],
)
def test_bad_questions_to_a_run_are_told(given, said, small_run, capsys):
    assert main(["eval", str(small_run), *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options", [SMALL, RECURRING], ids=["reach", "recurring"])
def test_interrupted_and_resumed_is_uninterrupted(options, tmp_path):
    whole = fitted(tmp_path / "whole", options)
    run = cut(tmp_path / "whole", tmp_path / "part", step=2)
    fitted(run, options)
    assert left(run) == left(tmp_path / "whole")
    if options is RECURRING:
        assert whole["axes"].keys() == {"adaptation", "retention"}


class Oracle:
    """Goes straight to the goal in a share of the trials, and rests in the others."""

    def __init__(self, able):
        self.able = able

    def play(self, split, trials, **changes):
        env = MetaWorld(trials, goals=trials, split=split, episodes=3, horizon=60, **changes)
        env.reset(seed=0)
        rewards, success = [], []
        for _ in range(env.steps):
            goals = np.stack([sim._target_pos - sim.tcp_center for sim in env.sims])
            actions = np.column_stack(
                [np.where(np.arange(trials)[:, None] < self.able, goals / 0.02, 0), -np.ones(trials)]
            )
            rewards.append(env.step(actions.clip(-1, 1))[1])
            success.append(env.success.astype(float))
        return env, SimpleNamespace(
            rewards=torch.tensor(np.stack(rewards, 1)), success=torch.tensor(np.stack(success, 1))
        )


def test_success_is_the_share_of_goals_that_are_reached():
    """However fast they are: counting the first episodes that finish reports 100 % for three goals in ten (Meta-World 3.1.1)."""
    _, found = goal_trials.play(Oracle(able=3), "test", 10)
    numbers = goal_trials.table(found, scored=2)
    assert numbers["success at any step, %"].mean == numbers["success at the last step, %"].mean == 30
    assert numbers["success at any step, %"].n == 10


def test_success_at_any_step_and_at_the_last():
    success = np.array([[0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0]], float)
    found = goal_trials.played(np.ones((2, 6)), success, episodes=2)
    assert (
        (found.any == [[1, 1], [0, 1]]).all() and (found.last == [[0, 1], [0, 0]]).all() and (found.returns == 3).all()
    )


def test_returns_by_visit():
    env = SimpleNamespace(order=np.array([[0, 1, 1, 0]]), stay=2, visits=2)
    returns = np.array([[1.0, 1, 2, 2, 5, 5, 9, 9]])
    assert (goal_trials.visits(env, returns) == [[1.5, 7]]).all()


def test_steps_to_a_goal_end_where_it_is_met_or_with_the_episode():
    success = np.array([[0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0]], float)
    assert (goal_trials.steps_to_goal(success, episodes=2) == [[2, 3], [3, 1]]).all()
