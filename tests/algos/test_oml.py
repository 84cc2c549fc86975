"""OML and ANML: the gradient through online descent against a plain loop, what they reduce to, and runs from the command line."""

import json

import pytest
import torch
from torch.nn import functional as F

from algos import build, config, jobs
from algos.oml import OML, Gated
from nestmem.cli import main
from nestmem.errors import UserError
from nestmem.nets import Conv
from tests.runs import cut, fitted, left

B, S, M, C = 2, 6, 5, 7


def lesson(seed=0):
    g = torch.Generator().manual_seed(seed)
    images = lambda n: torch.rand(B, n, 1, 8, 8, generator=g, dtype=torch.double)
    learned = torch.tensor([[4, 4, 4, 1, 1, 1], [0, 0, 0, 6, 6, 6]])
    return images(S), learned, images(M), torch.cat([learned[:, ::3], torch.randint(C, (B, M - 2), generator=g)], 1)


def learner(gated, rate=0.3):
    torch.manual_seed(1)
    encoder = Conv([4, 5], norm="layer", size=8)
    encoder = Gated(encoder, Conv([3], norm="layer", size=8)) if gated else encoder
    return OML(encoder, encoder.features, C, rate).double()


def plain_loop(learner, learn, learn_y, ask, ask_y):
    """One lesson and one image after the other, weights and all, by `autograd.grad` with a graph."""
    total = 0.0
    for x, y, queries, wanted in zip(learn, learn_y, ask, ask_y):
        fresh = torch.ones(C, dtype=torch.double)
        fresh[y] = 0
        weight, bias = learner.head.weight * fresh[:, None], learner.head.bias * fresh
        for image, label in zip(x, y):
            loss = F.cross_entropy(learner.encoder(image[None]) @ weight.T + bias, label[None])
            dw, db = torch.autograd.grad(loss, [weight, bias], create_graph=True)
            weight, bias = weight - learner.rate * dw, bias - learner.rate * db
        total = total + F.cross_entropy(learner.encoder(queries) @ weight.T + bias, wanted)
    return total / B


@pytest.mark.parametrize("gated", [False, True], ids=["OML", "ANML"])
def test_the_meta_gradient(gated):
    model = learner(gated)
    loss, want = model.loss(*lesson())[0], plain_loop(model, *lesson())
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    ours, reference = (
        torch.cat([g.flatten() for g in torch.autograd.grad(x, list(model.parameters()))]) for x in (loss, want)
    )
    assert (ours - reference).norm() < 1e-10 * reference.norm()
    first_order = learner(gated, rate=0.0)
    blind = torch.autograd.grad(first_order.loss(*lesson())[0], list(first_order.parameters()))
    assert (torch.cat([g.flatten() for g in blind]) - reference).norm() > 0.1 * reference.norm(), "the stream matters"


def test_an_empty_stream_is_ordinary_classification():
    model, (_, _, ask, ask_y) = learner(False), lesson()
    loss, metrics = model.loss(ask[:, :0], ask_y[:, :0], ask, ask_y)
    logits = model.head(model.encoder(ask.flatten(0, 1)))
    torch.testing.assert_close(loss, F.cross_entropy(logits, ask_y.flatten()))
    assert "accuracy/new" not in metrics and metrics["accuracy"] == metrics["accuracy/old"]


def test_a_gate_closes_and_opens():
    gated, image = Gated(Conv([4], norm="none"), Conv([3], norm="none")), torch.rand(2, 1, 28, 28)
    torch.nn.init.zeros_(gated.gate.weight)
    for bias, share in ((-100.0, 0.0), (0.0, 0.5), (100.0, 1.0)):
        torch.nn.init.constant_(gated.gate.bias, bias)
        torch.testing.assert_close(gated(image), share * gated.encoder(image))


SMALL = [
    "memory=none", "baselines=[]", "env.alphabets=6", "env.characters=10", "env.rotations=false", "encoder.channels=[8,16]",
    "trainer.steps=20", "trainer.eval_every=10", "trainer.tasks=2", "trainer.eval_tasks=2", "trainer.test_tasks=3",
    "trainer.checkpoint_every=5", "trainer.threads=1",
]  # fmt: skip
KINDS = {
    "oml": ["algo=oml", "env.ways=3", "env.shots=5", "env.queries=5"],
    "anml": ["algo=anml", "env.ways=1", "env.shots=15", "env.queries=0", "algo.remember=8", "algo.modulator=[4,4]"],
    "classifier": ["algo=classifier", "algo.remember=16"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_goes_on_with_the_same_bits(kind, tmp_path):
    run = jobs.train([*KINDS[kind], *SMALL, f"run={tmp_path / 'run'}"])
    result = json.loads((run / "result.json").read_text())
    points = result["lines"]["sequential"]["points"]
    assert [p[0] for p in points] == [10, 20] and points[-1][1] == result["score"] and result["counted"] == "streams"
    assert result["low"] > 20, "five times chance, among 20 new classes seen once"
    assert (run / "report" / "report.html").is_file()
    part = cut(run, tmp_path / "part", step=15)
    fitted(part, [*KINDS[kind], *SMALL])
    assert left(part) == left(run)


def test_its_encoder_on_the_sequential_benchmark_trained_and_not(tmp_path, omniglot, capsys):
    run = jobs.train([*KINDS["oml"], *SMALL, "trainer.steps=5", f"run={tmp_path / 'run'}"])
    options = ["trajectories=2", "classes=10", "heads=means,gradient,network", "oracle=2"]
    found = {}
    for encoder, file in (("trained", "sequential.json"), ("random", "sequential-random.json")):
        assert main(["sequential", str(run), *options, f"encoder={encoder}"]) == 0
        found[encoder] = json.loads((run / file).read_text())
        assert list(found[encoder]["heads"]) == ["means", "gradient", "network"] and list(found[encoder]["iid"]) == [
            "gradient"
        ]
        assert min(found[encoder]["iid"]["gradient"]["held_out"]) > 10, (
            "above chance, which is one in a thousand outputs"
        )
    assert "2 epochs in random order" in capsys.readouterr().out
    assert (found["trained"]["step"], found["random"]["step"]) == (5, 0)
    assert found["trained"]["heads"]["means"] != found["random"]["heads"]["means"]
    for option, says in [("heads=means,best", "got 'best'"), ("encoder=new", "expected one of trained, random")]:
        assert main(["sequential", str(run), option]) == 2
        assert says in capsys.readouterr().err
    assert main(["eval", str(run)]) == 2
    assert "not a few-shot run (algo=oml)" in capsys.readouterr().err


def test_what_is_refused(capsys, tmp_path):
    for options, says in [
        (["algo=oml", "memory=lstm"], "memory: algo=oml goes with memory=none, got lstm"),
        (["algo=anml", "memory=none", "algo.outputs=40"], "algo.outputs: 60 classes to train on need as many outputs"),
        (["algo=oml", "memory=none", "env.shots=16", "env.queries=5"], "shots + queries <= 20, got 3 and 16 + 5"),
    ]:
        assert main(["train", *SMALL[1:], "env.ways=3", *options, f"run={tmp_path}/run"]) == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_same_seed_makes_the_same_learner():
    first, second, other = (
        build.learner(config.configure([*KINDS["anml"], *SMALL, f"seed={s}"])).state_dict() for s in (0, 0, 1)
    )
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    with pytest.raises(UserError, match="norm: expected one of"):
        build.learner(config.configure([*KINDS["oml"], *SMALL, "encoder.norm=no"]))
