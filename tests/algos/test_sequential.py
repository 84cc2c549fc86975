"""Heads of the sequential benchmark against what they are defined to be."""

import pytest
import torch
from torch.nn import functional as F

import nestmem
from algos.sequential import (
    Cosine,
    Gaussian,
    Gradient,
    Means,
    Moments,
    Neighbours,
    Prior,
    embed,
    fit_prior,
    follow,
    shuffled,
)
from algos.sequential_nested import Remembered, fit_read, nested
from algos.sequential_network import Network
from algos.sequential_rate import RATES, best_rate, winner
from algos.sequential_stored import Stored
from envs.fewshot import ImageSet
from envs.sequential_omniglot import LEARNED, Trajectories
from nestmem.errors import UserError

R, C, E, SIZE = 2, 6, 20, 5


def table(spread=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(C, 1, SIZE, generator=g) + spread * torch.randn(C, E, SIZE, generator=g)


def trajectories(**options):
    images = ImageSet(torch.zeros(C, E, 1, 1, dtype=torch.uint8), [f"a/{i}" for i in range(C)])
    return Trajectories(images, seed=0, classes=C, trajectories=R, order="random", **options)


def test_moments_do_not_depend_on_where_the_stream_is_cut():
    shown, labels = trajectories().learned(table())
    whole, parts = Moments(R, C, SIZE), Moments(R, C, SIZE)
    whole.learn(shown, labels)
    for cut in (slice(0, 7), slice(7, 8), slice(8, 60), slice(60, None)):
        parts.learn(shown[:, cut], labels[:, cut])
    of_class = shown[0][labels[0] == 3]
    for moments in (whole, parts):
        torch.testing.assert_close(moments.mean[0, 3], of_class.mean(0))
        torch.testing.assert_close(moments.squares[0, 3], of_class.var(0, correction=0) * 15, rtol=1e-4, atol=1e-5)


def test_means_answer_the_nearest_mean_and_nothing_unseen():
    head, classes = Means(R, C, SIZE), trajectories()
    first, *_, last = list(follow(head, table(), classes, [2, 4, C]))
    assert first.classes == 2 and first.held_out.shape == (R,)
    assert last.held_out.min() > 90
    fresh = Means(R, C, SIZE)
    shown, labels = classes.learned(table())
    fresh.learn(shown[:, :30], labels[:, :30])
    answers = fresh.answer(shown[:, 60:]).argmax(-1)
    assert all(a in labels[r, :30] for r in range(R) for a in answers[r])


def test_gaussian_is_the_posterior_predictive():
    """Against the Student density of torch.distributions, feature by feature."""
    prior = Prior(0.5, 3.0, torch.linspace(0.5, 1.5, SIZE))
    head = Gaussian(1, 1, SIZE, prior)
    seen, query = torch.randn(1, 9, SIZE, generator=torch.Generator().manual_seed(1)), torch.randn(1, 4, SIZE)
    head.learn(seen, torch.zeros(1, 9, dtype=torch.long))
    kappa, alpha = 0.5 + 9, 3.0 + 4.5
    mean = seen[0].sum(0) / kappa
    beta = prior.beta + (seen[0] - seen[0].mean(0)).square().sum(0) / 2 + 0.5 * 9 / kappa * seen[0].mean(0).square() / 2
    student = torch.distributions.StudentT(2 * alpha, mean, (beta * (kappa + 1) / (alpha * kappa)).sqrt())
    torch.testing.assert_close(head.answer(query)[0, :, 0], student.log_prob(query[0]).sum(-1))


def test_a_shared_prior_helps_where_variances_differ_by_feature():
    scales = torch.tensor([0.1, 0.1, 0.1, 3.0, 3.0])
    g = torch.Generator().manual_seed(2)
    features = 0.3 * torch.randn(C, 1, SIZE, generator=g) + scales * torch.randn(C, E, SIZE, generator=g)
    background = 0.3 * torch.randn(50, 1, SIZE, generator=g) + scales * torch.randn(50, E, SIZE, generator=g)
    heads = {"means": Means(R, C, SIZE), "gaussian": Gaussian(R, C, SIZE, fit_prior(background))}
    last = {name: list(follow(head, features, trajectories(), [C]))[-1].held_out.mean() for name, head in heads.items()}
    assert last["gaussian"] > last["means"] + 20


def test_a_feature_that_is_always_off_does_no_harm():
    features, background = (torch.cat([table(seed=s), torch.zeros(C, E, 2)], -1) for s in (0, 1))
    head = Gaussian(R, C, SIZE + 2, fit_prior(background))
    assert list(follow(head, features, trajectories(), [C]))[-1].held_out.min() > 90


def test_gradient_is_online_descent_of_the_cross_entropy():
    shown, labels = trajectories().learned(table())
    rates = torch.tensor([0.1, 0.02])
    head = Gradient(R, C, SIZE, rates)
    head.learn(shown, labels)
    for r in range(R):
        layer = torch.nn.Linear(SIZE, C)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rates[r].item())
        for x, y in zip(shown[r], labels[r]):
            optimizer.zero_grad()
            F.cross_entropy(layer(x[None]), y[None]).backward()
            optimizer.step()
        torch.testing.assert_close(head.weight[r], layer.weight.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(head.bias[r], layer.bias.detach(), rtol=1e-4, atol=1e-6)


def test_cosine_does_not_mind_that_a_class_was_shown_more_often():
    """Six images of class 0 and one of class 1: descent at a small rate makes the first one's weights longer, not truer."""
    x = torch.tensor([[1.0, 0.0]] * 6 + [[0.6, 0.8]])[None]
    y = torch.tensor([[0] * 6 + [1]])
    query = torch.tensor([[[0.8, 0.7]]])  # nearer to class 1
    answers = {}
    for make in (Gradient, Cosine):
        head = make(1, 100, 2, 1e-3)
        head.learn(x, y)
        answers[make] = int(head.answer(query).argmax(-1))
    assert answers == {Gradient: 0, Cosine: 1}


def test_a_nested_memory_learns_the_stream_and_its_slow_level_holds_class_means():
    features = F.normalize(table(), dim=-1)
    memory = nested(SIZE, C)
    fit_read(Remembered(memory, R), F.normalize(table(seed=1), dim=-1), trajectories(), seed=0)
    head, streams = Remembered(memory, R), trajectories()
    records = list(follow(head, features, streams, [2, C]))
    means = list(follow(Means(R, C, SIZE), features, streams, [C]))
    assert records[-1].held_out.mean() > means[-1].held_out.mean() - 5 > 80
    queries, _ = streams.held_out(features)
    slow = head.fields.split(memory.levels[1].read(F.pad(queries, (0, C)), head.state.levels[1])[0])[2]
    centres = torch.stack([features[c, :LEARNED].mean(0) for c in range(C)])
    agree = slow.argmax(-1) == (queries @ F.normalize(centres, dim=-1).T).argmax(-1)
    assert agree.float().mean() > 0.9
    assert head.bytes_per_class * C == nestmem.state_bytes(memory.initial_state(1))


def test_a_store_beyond_the_slow_level_holds_the_images_and_outlives_the_head(tmp_path):
    features, streams = F.normalize(table(), dim=-1), trajectories()
    fitted = Stored(R, C, SIZE, tmp_path / "background")
    fit_read(fitted, F.normalize(table(seed=1), dim=-1), streams)
    head = Stored(R, C, SIZE, tmp_path / "streams")
    head.share(fitted)
    assert head.parts[1].memory.gate[0].weight is fitted.memory.gate[0].weight
    assert list(follow(head, features, streams, [2, C]))[-1].held_out.mean() > 80
    queries, labels = streams.held_out(features)
    kept = [len(level.keys) for level in head.levels]
    assert all(C <= n <= C * LEARNED for n in kept), "no more than there were, and each class at least once"
    fitted.close()
    head.close()
    again = Stored(R, C, SIZE, tmp_path / "streams")
    answers = [level.read(F.pad(q, (0, C)), level.initial_state(1))[0] for level, q in zip(again.levels, queries)]
    right = [part.fields.split(y)[2].argmax(-1) for part, y in zip(again.parts, answers)]
    assert (torch.stack(right) == labels).float().mean() > 0.8, "a later process has the classes from the store alone"
    again.close()


def test_views_are_shifts_averaged():
    images = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    images[0, 0, 1, 1] = 255
    pixels = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 9))
    torch.nn.init.eye_(pixels[1].weight)
    torch.nn.init.zeros_(pixels[1].bias)
    torch.testing.assert_close(embed(pixels, ImageSet(images, ["dot"]), shifts=1), torch.full((1, 1, 9), 1 / 9))
    torch.testing.assert_close(embed(pixels, ImageSet(images, ["dot"]))[0, 0], torch.eye(9)[4])


def test_the_rate_is_that_of_the_best_memory_of_learned_images():
    features, streams = table(spread=1.0), trajectories()
    shown, labels = streams.learned(features)
    rates = (torch.tensor(RATES) / features.square().sum(-1).mean()).tolist()
    for epochs in (0, 2):
        learned = []
        for rate in rates:
            head = Gradient(R, C, SIZE, rate)
            parts = [(shown[r : r + 1], labels[r : r + 1]) for r in range(R)]
            orders = [list(shuffled(*part, epochs, seed=r)) if epochs else [part] for r, part in enumerate(parts)]
            for stretch in zip(*orders):
                head.learn(*(torch.cat(side) for side in zip(*stretch)))
            learned.append((head.answer(shown).argmax(-1) == labels).float().mean(1))
        wins = torch.stack(learned).argmax(0).tolist()
        assert len({float(right.mean()) for right in learned}) > 3, "the rates differ"
        assert best_rate(features, streams, Gradient, epochs) in {rates[i] for i in wins}
    assert best_rate(10 * features, streams, Gradient) == pytest.approx(best_rate(features, streams, Gradient) / 100)


def test_an_oracle_sees_every_image_once_an_epoch():
    shown, labels = trajectories().learned(torch.arange(C * E).view(C, E, 1))
    first, second = shuffled(shown, labels, 2, seed=0)
    assert not torch.equal(first[0], second[0])
    for x, y in (first, second):
        assert torch.equal(x[..., 0].sort(-1).values, shown[..., 0].sort(-1).values)
        assert torch.equal(x[..., 0] // E, y), "each with its label"


def test_neighbours_vote_and_the_nearest_breaks_ties():
    head = Neighbours(1, 4, 1, k=3)
    head.learn(torch.tensor([[[0.0], [1.0], [1.2], [5.0]]]), torch.tensor([[2, 1, 1, 0]]))
    answers = head.answer(torch.tensor([[[0.4], [0.1], [4.0]]])).argmax(-1)
    assert answers.tolist() == [[1, 1, 1]]
    near = Neighbours(1, 4, 1, k=2)
    near.learn(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[3, 1]]))
    assert near.answer(torch.tensor([[[0.4], [0.6]]])).argmax(-1).tolist() == [[3, 1]]


def test_points_must_rise():
    with pytest.raises(UserError, match="points: expected rising numbers of classes"):
        list(follow(Means(R, C, SIZE), table(), trajectories(), [4, 2]))


def test_a_network_learns_in_all_its_layers_and_each_copy_at_its_own_rate():
    g = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (C, 1, 16), generator=g).expand(-1, E, -1).clone()
    torch.manual_seed(3)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU())
    first = encoder[1].weight.detach().clone()
    head = Network(encoder, R, C, 8, torch.tensor([0.0, 0.3]))
    shown, labels = trajectories().learned(images)
    head.learn(shown[:, :1], labels[:, :1])
    plain = torch.nn.Sequential(encoder, torch.nn.Linear(8, C))
    torch.nn.init.zeros_(plain[1].weight), torch.nn.init.zeros_(plain[1].bias)
    F.cross_entropy(plain(shown[1, :1].view(1, 1, 4, 4) / 255), labels[1, :1]).backward()
    torch.testing.assert_close(head.networks[1][1].bias, -0.3 * plain[1].bias.grad)
    head.learn(shown[:, 1:], labels[:, 1:])
    assert torch.equal(encoder[1].weight, first), "the encoder it was given stays"
    assert torch.equal(head.networks[0][0][1].weight, first) and not torch.equal(head.networks[1][0][1].weight, first)
    right = (head.answer(shown[:, -15:]).argmax(-1) == labels[:, -15:]).float().mean(1)
    assert right[1] == 1, "the class it learned last"


def test_the_rate_of_a_network_is_one_that_learns():
    g = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (C, 1, 16), generator=g).expand(-1, E, -1).clone()
    torch.manual_seed(4)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8))
    rates = torch.tensor([1.0, 0.01, 0.0])
    assert winner(images, trajectories(), lambda n, tried: Network(encoder, n, C, 8, tried), rates) == rates[1]
