"""The meta-gradient, in float64, against a plain loop that shares no code with the learner. Losses would not show the trap."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

import nestmem
from algos.maml import MAML, Classifier
from envs.fewshot import Episodes
from nestmem.memory.base import Fields
from nestmem.nets import NORMS, Conv

WAYS, TASKS = 3, 4
INNER_NORMS = [norm for norm in NORMS if norm != "running"]


def batch():
    g = torch.Generator().manual_seed(3)
    images = lambda n: torch.rand(TASKS, n, 1, 8, 8, generator=g, dtype=torch.double)
    labels = lambda n: torch.stack([torch.randperm(n, generator=g) % WAYS for _ in range(TASKS)])
    return Episodes(images(6), labels(6), images(9), labels(9))


def learner(norm, memory=None, **options):
    torch.manual_seed(0)
    encoder = Conv([4, 5], norm=norm, size=8)
    for parameter in encoder.parameters():  # away from the symmetric start, where a wrong gradient can hide
        parameter.data += 0.1 * torch.randn_like(parameter)
    fields = Fields(encoder.features, 0, WAYS)
    held = memory and nestmem.build(memory, fields.width, fields)
    return MAML(Classifier(encoder, encoder.features, WAYS, held), rate=0.3, **options).double()


def plain_loop(learner, data):
    """Second-order MAML in a dozen lines: one task after the other, `autograd.grad` with a graph."""
    parameters = dict(learner.model.named_parameters())
    total = 0.0
    for sx, sy, qx, qy in zip(*data):
        fast = {name: parameters[name] for name in learner.fast}
        for _ in range(learner.steps):
            loss = F.cross_entropy(functional_call(learner.model, fast, (sx,)), sy)
            found = torch.autograd.grad(loss, list(fast.values()), create_graph=learner.second_order, allow_unused=True)
            fast = {
                name: w if g is None else w - rate * g for (name, w), rate, g in zip(fast.items(), learner.rates, found)
            }
        total = total + F.cross_entropy(functional_call(learner.model, fast, (qx, (sx, sy))), qy)
    return total / TASKS


def relative_error(learner, data):
    parameters = [p for p in learner.parameters() if p.requires_grad]
    ours = torch.autograd.grad(learner.loss(data)[0], parameters, allow_unused=True)
    reference = torch.autograd.grad(plain_loop(learner, data), parameters, allow_unused=True)
    pairs = [(a, b) for a, b in zip(ours, reference) if b is not None]
    assert len(pairs) > 5
    ours, reference = (torch.cat([part.flatten() for part in side]) for side in zip(*pairs))
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("norm", INNER_NORMS)
def test_every_norm(norm, steps):
    assert relative_error(learner(norm, steps=steps), batch()) < 1e-10


@pytest.mark.parametrize("memory", sorted(nestmem.memories()))
def test_every_memory_beside_the_head(memory):
    assert relative_error(learner("batch", memory, steps=2), batch()) < 1e-10


@pytest.mark.parametrize(
    "options",
    [{"second_order": False}, {"adapt": "head"}, {"learn_rates": True}],
    ids=["first order", "ANIL", "Meta-SGD"],
)
def test_every_kin(options):
    assert relative_error(learner("layer", steps=2, **options), batch()) < 1e-10


def test_first_order_differs_from_second():
    """So that the parity above cannot be met by dropping the second-order term."""
    first, second = (learner("batch", steps=2, second_order=order) for order in (False, True))
    weights = [next(iter(m.model.parameters())) for m in (first, second)]
    a, b = (torch.autograd.grad(m.loss(batch())[0], w)[0] for m, w in zip((first, second), weights))
    assert float((a - b).norm() / b.norm()) > 1e-3


def test_an_affine_norm_under_vmap_is_the_trap_we_avoid():
    """If this fails, torch has mended functorch#534 and `nets.Norm` may become simpler."""

    class Affine(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.weight, self.bias = norm.weight, norm.bias

        def forward(self, x):
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True)

    trapped = learner("batch", steps=1)
    for i, norm in enumerate(trapped.model.encoder.norms):
        trapped.model.encoder.norms[i] = Affine(norm)
    data = batch()
    assert abs((trapped.loss(data)[0] - plain_loop(trapped, data)).item()) < 1e-12, "the losses agree"
    assert relative_error(trapped, data) > 1e-3, "the gradients do not"


def test_agrees_with_learn2learn():
    l2l = pytest.importorskip("learn2learn", reason="the extra l2l is not installed")
    ours, data = learner("batch", steps=2), batch()
    theirs = l2l.algorithms.MAML(ours.model, lr=float(ours.rates[0]), first_order=False)
    total = 0.0
    for sx, sy, qx, qy in zip(*data):
        clone = theirs.clone()
        for _ in range(2):
            clone.adapt(F.cross_entropy(clone(sx), sy))
        total = total + F.cross_entropy(clone(qx), qy)
    parameters = list(ours.model.parameters())
    a = torch.autograd.grad(ours.loss(data)[0], parameters)
    b = torch.autograd.grad(total / TASKS, parameters)
    difference = sum(float((x - y).square().sum()) for x, y in zip(a, b)) ** 0.5
    assert difference / sum(float(y.square().sum()) for y in b) ** 0.5 < 1e-10


def test_chunks_add_up():
    whole, data = learner("batch", steps=2), batch()
    parameters = list(whole.model.parameters())
    at_once = torch.autograd.grad(whole.loss(data)[0], parameters)
    halves = [Episodes(*(t[:2] for t in data)), Episodes(*(t[2:] for t in data))]
    summed = [torch.autograd.grad(0.5 * whole.loss(half)[0], parameters) for half in halves]
    for whole_gradient, *parts in zip(at_once, *summed):
        torch.testing.assert_close(sum(parts), whole_gradient, rtol=1e-10, atol=1e-12)
