"""The signature of each strategy, on networks small enough to know the answer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algos.strategies import STRATEGIES
from algos.strategies.expandable import Grown
from algos.strategies.fixed import Remembering
from nestmem import Fields, build
from nestmem.nets import Conv


class Flat(nn.Module):
    """Pixels to logits by one linear layer, from zero weights."""

    def __init__(self, pixels, outputs):
        super().__init__()
        self.encoder, self.head = nn.Flatten(), nn.Linear(pixels, outputs, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        return self.head(self.encoder(images))


def images(rows):
    """Rows of pixels [n, k] as images [n, 1, 1, k]."""
    return torch.as_tensor(rows, dtype=torch.float)[:, None, None, :]


def walk(strategy, x, y, steps, rate=0.1):
    """Plain gradient descent, as the training loop does it."""
    optimizer = torch.optim.SGD(strategy.learner.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        for loss, _, share in strategy.parts(x, y):
            (share * loss).backward()
        optimizer.step()
        strategy.stepped(x, y)


# Task A has ink in the first pixel alone; in task B both pixels say the opposite of what the first one said.
A = images([[1.0, 0.0]] * 8), torch.zeros(8, dtype=torch.long)
B = images([[1.0, 1.0]] * 8), torch.ones(8, dtype=torch.long)


@pytest.mark.parametrize(("name", "strength"), [("ewc", 20.0), ("si", 20.0)])
def test_springs_hold_what_the_first_task_needed_and_nothing_else(name, strength):
    moved = {}
    for method in ("finetune", name):
        strategy = STRATEGIES[method](Flat(2, 2), strength=strength)
        strategy.begin(0)
        walk(strategy, *A, steps=20)
        strategy.end(0, *A)
        before = strategy.learner.head.weight.detach().clone()
        walk(strategy, *B, steps=20)
        moved[method] = (strategy.learner.head.weight.detach() - before).abs().mean(0)  # per pixel
    assert moved["finetune"][0] == pytest.approx(moved["finetune"][1])
    assert moved[name][0] < 0.3 * moved["finetune"][0], "the pixel of task A is held"
    assert moved[name][1] > 0.9 * moved["finetune"][1], "the other one is free"


def test_the_fisher_information_of_a_linear_network():
    """F = p (1 - p) x^2 for every label, whichever is drawn when p = 1/2; it adds up over tasks."""
    strategy = STRATEGIES["ewc"](Flat(2, 2))
    x = images([[1.0, 0.5]] * 10)
    strategy.end(0, x, torch.zeros(10, dtype=torch.long))
    expected = torch.tensor([[0.25, 0.0625], [0.25, 0.0625]])
    torch.testing.assert_close(strategy.kept["fisher.head.weight"], expected)
    strategy.end(1, x, torch.zeros(10, dtype=torch.long))
    torch.testing.assert_close(strategy.kept["fisher.head.weight"], 2 * expected)


def test_the_credit_of_si_is_the_fall_of_the_loss():
    strategy, (x, y) = STRATEGIES["si"](Flat(2, 2)), A
    before = F.cross_entropy(strategy.learner(x), y)
    walk(strategy, x, y, steps=50, rate=0.01)
    fall = float((before - F.cross_entropy(strategy.learner(x), y)).detach())
    assert fall > 0.1 and float(strategy.kept["credit.head.weight"].sum()) == pytest.approx(fall, rel=0.01)


def test_no_step_of_agem_makes_the_kept_images_worse():
    worse = {}
    for method in ("finetune", "agem"):
        strategy = STRATEGIES[method](Flat(2, 2), buffer=8)
        walk(strategy, *A, steps=5)
        before = F.cross_entropy(strategy.learner(A[0]), A[1])
        optimizer = torch.optim.SGD(strategy.learner.parameters(), lr=1e-3)
        optimizer.zero_grad()
        for loss, _, _ in strategy.parts(*B):
            loss.backward()
        optimizer.step()
        worse[method] = float((F.cross_entropy(strategy.learner(A[0]), A[1]) - before).detach())
        assert strategy.learner.head.weight.grad[:, 1].abs().sum() > 0, "task B is still learned"
    assert worse["finetune"] > 1e-4 and worse["agem"] < 1e-2 * worse["finetune"]


def test_agem_leaves_a_gradient_alone_that_agrees():
    strategy = STRATEGIES["agem"](Flat(2, 2), buffer=8)
    walk(strategy, *A, steps=1)
    for loss, _, _ in strategy.parts(*A):
        strategy.learner.zero_grad()
        loss.backward()
        plain = strategy.learner.head.weight.grad.clone()
    assert torch.equal(strategy.learner.head.weight.grad, plain)


def test_the_reservoir_keeps_every_image_with_the_same_chance():
    counts, seeds = torch.zeros(60), 150
    x = images(torch.arange(60)[:, None] / 255)
    for seed in range(seeds):
        strategy = STRATEGIES["replay"](Flat(1, 2), buffer=15, seed=seed)
        for part in x.split(7):
            strategy.add(part, torch.zeros(len(part), dtype=torch.long))
        kept = strategy.kept["images"].flatten().long()
        assert len(kept.unique()) == 15, "none is kept twice"
        counts[kept] += 1
    share = counts.view(6, 10).mean(1) / seeds  # of tenths of the stream, each 1/4 in expectation, with deviation 0.01
    assert (share - 0.25).abs().max() < 0.05


def test_replay_learns_from_both_and_starts_without_any():
    strategy = STRATEGIES["replay"](Flat(2, 2), buffer=8)
    assert [len(t) for t in strategy.sample(4)] == [0, 0]
    walk(strategy, *A, steps=1)
    x, y = strategy.sample(4)
    assert x.shape == (4, 1, 1, 2) and torch.equal(x, A[0][:4]) and not y.any()
    (part,) = strategy.parts(*B)
    expected = F.cross_entropy(strategy.learner(torch.cat([A[0], B[0]])), torch.cat([A[1], B[1]]))
    torch.testing.assert_close(part.loss, expected)


def test_lwf_stays_closer_to_what_it_said():
    g = torch.Generator().manual_seed(0)
    old, new = torch.rand(2, 30, 1, 4, 4, generator=g)
    labels = torch.randint(3, (30,), generator=g)
    moved = {}
    for method in ("finetune", "lwf"):
        torch.manual_seed(0)
        learner = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 6))
        strategy = STRATEGIES[method](learner, strength=5.0)
        walk(strategy, old, labels, steps=60)
        strategy.end(0, old, labels)
        said = learner(old)[:, :3].detach().log_softmax(-1)
        walk(strategy, new, 3 + labels, steps=60)
        now = learner(old)[:, :3].log_softmax(-1)
        moved[method] = float(F.kl_div(now, said, log_target=True, reduction="batchmean").detach())
    assert 0 < moved["lwf"] < 0.5 * moved["finetune"]


@pytest.fixture
def grown():
    torch.manual_seed(0)
    encoder = Conv([4, 8], norm="group", size=8)
    strategy = STRATEGIES["expandable"](Grown(encoder, encoder.features, 6, tasks=3), buffer=5)
    g = torch.Generator().manual_seed(0)
    return strategy, torch.rand(3, 12, 1, 8, 8, generator=g), torch.randint(2, (12,), generator=g)


def test_a_new_block_starts_as_the_last_one_and_old_ones_stay(grown):
    strategy, x, y = grown
    net, bytes_before = strategy.learner, []
    for task in range(3):
        before = copy.deepcopy(net.state_dict())
        strategy.begin(task)
        if task:
            first, second = net.blocks[task - 1].state_dict(), net.blocks[task].state_dict()
            assert all(torch.equal(first[k], second[k]) for k in first)
        walk(strategy, x[task], 2 * task + y, steps=3)
        bytes_before.append(strategy.state_bytes)
        after = net.state_dict()
        changed = {
            name.split(".conv")[0].split(".norm")[0] for name in after if not torch.equal(after[name], before[name])
        }
        assert changed - {"met", "current", "head.weight", "head.bias"} == {f"blocks.{task}"} | (
            {"early.0"} if not task else set()
        )
    per_block = 4 * (4 * 8 * 9 + 2 * 8 + 6 * 32)  # convolution, norm, columns of the linear layer
    assert bytes_before[1] - bytes_before[0] == bytes_before[2] - bytes_before[1] == per_block


def test_a_task_that_returns_gets_its_own_block_back(grown):
    strategy, x, y = grown
    for task in (0, 1, 0):
        strategy.begin(task)
        walk(strategy, x[task], 2 * task + y, steps=2)
    assert int(strategy.learner.current) == 0 and strategy.learner.met.tolist() == [True, True, False]


def test_class_means_do_not_care_for_order():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 1, 1, 4, generator=g), torch.arange(20) % 4
    answers = []
    for order in (torch.arange(20), torch.randperm(20, generator=g)):
        strategy = STRATEGIES["means"](Flat(4, 5))
        walk(strategy, x[order], y[order], steps=1)
        answers.append(strategy.logits(x))
    torch.testing.assert_close(answers[0], answers[1])
    nearest = torch.cdist(x.flatten(1), torch.stack([x[y == c].flatten(1).mean(0) for c in range(4)])).argmin(1)
    assert torch.equal(answers[0].argmax(-1), nearest) and (answers[0][:, 4] == -torch.inf).all()


@pytest.mark.parametrize("name", ["episodic", "nested"])
def test_a_memory_holds_the_first_images_through_all_others(name):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    fields = Fields(9, 0, 8)
    memory = build(name, fields.width, fields, slots=50)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(9, 9))
    strategy = STRATEGIES["memory"](Remembering(encoder, memory, fields))
    x, y = torch.randn(8, 1, 3, 3, generator=g), torch.arange(8)
    for start in range(0, 8, 2):  # two classes at a time
        for _ in range(3):
            walk(strategy, x[start : start + 2], y[start : start + 2], steps=1)
    walk(strategy, x[:1], y[:1], steps=1)  # brings the last label in
    assert (strategy.logits(x).argmax(-1) == y).float().mean() > 0.8
    assert strategy.logits(x)[:, 7].max() > -1e3
