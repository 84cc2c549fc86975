"""The prototypical network: means by hand, learning, refusals."""

import json

import pytest
import torch

from algos import build, config, jobs
from algos.prototypes import Prototypes, class_means
from envs.fewshot import Episodes
from nestmem.errors import UserError


def test_class_means_are_means():
    features = torch.tensor([[[0.0, 2.0], [4.0, 4.0], [2.0, 0.0], [6.0, 8.0]]])
    want = torch.tensor([[[1.0, 1.0], [5.0, 6.0]]])
    assert torch.equal(class_means(features, torch.tensor([[0, 1, 0, 1]])), want)


def test_a_query_belongs_to_the_nearest_mean():
    learner = Prototypes(torch.nn.Flatten())
    support = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]).view(1, 2, 1, 1, 2)
    queries = torch.tensor([[[0.2, 0.1], [0.9, 0.8], [0.6, 0.6]]]).view(1, 3, 1, 1, 2)
    batch = Episodes(support, torch.tensor([[0, 1]]), queries, torch.tensor([[0, 1, 0]]))
    outcome = learner.evaluate(batch)
    torch.testing.assert_close(outcome.accuracy, torch.tensor([[0.5, 2 / 3]]))
    loss, metrics = learner.loss(batch)
    distances = torch.cdist(queries.view(1, 3, 2), support.view(1, 2, 2)).square() / 2
    want = torch.nn.functional.cross_entropy(-distances[0], torch.tensor([0, 1, 0]))
    torch.testing.assert_close(loss, want)
    assert metrics["accuracy"].item() == pytest.approx(2 / 3)


def test_it_learns_glyphs(tmp_path):
    options = ["algo=prototypes", "memory=none", "baselines=[]", "trainer.steps=40", "trainer.eval_every=40"]
    sizes = ["env.shots=1", "env.alphabets=6", "trainer.eval_tasks=20", "trainer.test_tasks=100", "encoder.norm=batch"]
    run = jobs.train([*options, *sizes, f"run={tmp_path / 'run'}"])
    result = json.loads((run / "result.json").read_text())
    assert result["curve"][0][0] == pytest.approx(20.0)
    assert result["low"] > 60


def test_it_has_no_memory():
    with pytest.raises(UserError, match="algo=prototypes goes with memory=none, got lstm"):
        build.learner(config.configure(["algo=prototypes", "memory=lstm"]))
