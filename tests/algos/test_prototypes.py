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


def two_classes():
    support = torch.tensor([[[1.0, 0.1], [0.1, 1.0]]]).view(1, 2, 1, 1, 2)
    queries = torch.tensor([[[3.0, 1.0], [0.5, 4.0], [1.0, 2.0], [-0.2, 0.3]]]).view(1, 4, 1, 1, 2)
    return Episodes(support, torch.tensor([[0, 1]]), queries, torch.tensor([[0, 1, 0, 1]]))


def test_a_query_belongs_to_the_nearest_mean():
    outcome = Prototypes(torch.nn.Flatten()).evaluate(two_classes())
    torch.testing.assert_close(outcome.accuracy, torch.tensor([[0.5, 3 / 4]]))  # (1, 2) points the other way


def test_in_training_every_image_is_asked_with_itself_left_out():
    learner, batch = Prototypes(torch.nn.Flatten()), two_classes()
    x = torch.nn.functional.normalize(torch.cat([batch.support_x, batch.query_x], 1).view(6, 2), dim=-1)
    y = torch.cat([batch.support_y, batch.query_y], 1)[0]
    logits = torch.zeros(6, 2)
    for i in range(6):
        for c in range(2):
            others = (y == c) & (torch.arange(6) != i)
            logits[i, c] = -8 * (x[i] - x[others].mean(0)).square().sum()
    loss, metrics = learner.loss(batch)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, y))
    assert metrics["accuracy"].item() == pytest.approx((logits.argmax(-1) == y).float().mean().item())


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
