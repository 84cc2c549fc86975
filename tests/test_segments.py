"""What a segment memory promises: it finds the right segment again, forgets in order, and leaks neither gradients nor tokens."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nestmem
from nestmem import SegmentWrapper

D, L = 8, 4


class Causal(nn.Module):
    """One causal transformer block with random weights."""

    def __init__(self, width=D):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.block(x, src_mask=mask)


def wrapper(**options):
    torch.manual_seed(0)
    made = SegmentWrapper(Causal(), D, **({"segment": L, "slots": 5, "sensory": 2} | options)).double()
    nn.init.normal_(made.token)
    return made


def tokens(segments, seed=0, rows=2):
    return torch.randn(rows, segments * L, D, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def reach(model, segments):
    """Which segments' tokens are in the graph of the last segment's output, each segment read in a call of its own."""
    parts, state = [part.clone().requires_grad_() for part in tokens(segments).split(L, 1)], None
    for part in parts:
        y, state = model(part, state)
    found = torch.autograd.grad(y.square().sum(), parts, allow_unused=True)
    return [g is not None and bool((g != 0).any()) for g in found], [g is None for g in found]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_gradients_reach_the_last_depth_memories_and_no_more(depth):
    model = wrapper(depth=depth, sensory=0, summary="current")  # then memories alone connect segments
    for segments in range(1, 9):
        back = (segments - 1) % (depth + 1)  # the place within a window of depth + 1 segments
        assert back <= depth
        reached, absent = reach(model, segments)
        assert reached == [n >= segments - 1 - back for n in range(segments)]
        dead = segments - 1 - back - 1  # the segment before a window lends it its last tokens, here none
        assert all(absent[: max(dead, 0)]), "no dead graph is kept"


def test_rows_of_different_ages_are_cut_each_at_its_own_window():
    model, x = wrapper(depth=1, sensory=0, summary="current"), tokens(4).requires_grad_()
    _, state = model(x[:, : 2 * L])
    older = torch.tensor([0, 0])
    state = nestmem.select(state, older)._replace(read=torch.tensor([2, 3]))  # the second row is within a window
    y, _ = model(x[:, 2 * L : 3 * L], state)
    for row, reached in ((0, False), (1, True)):
        (found,) = torch.autograd.grad(y[row].sum(), x, retain_graph=True)
        assert bool((found[:, : 2 * L] != 0).any()) == reached


def streams(rows, topics, width, generator, summary):
    """Segments of distinct topics, then one whose topic came before; returns also where it came first."""
    topic = F.normalize(torch.randn(rows, topics, width, generator=generator), dim=-1) * width**0.5
    asked = torch.randint(topics, (rows,), generator=generator)
    order = [*topic.unbind(1), topic[torch.arange(rows), asked]]
    if summary == "previous":  # the query is made of the segment before, so one more follows
        order.append(torch.zeros(rows, width))
    x = torch.stack(order, 1).repeat_interleave(L, 1)
    return x + 0.5 * torch.randn(x.shape, generator=generator), asked


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0]


@pytest.mark.parametrize("summary", ["previous", "current"])
def test_recall_finds_the_segment_of_a_topic_after_distractors(summary):
    """Only the maps to query and key are trained; the backbone stays random."""
    torch.manual_seed(0)
    width, topics, slots, g = 32, 6, 8, torch.Generator().manual_seed(1)
    model = SegmentWrapper(Recurrent(width), width, segment=L, slots=slots, sensory=0, summary=summary)

    def recalled(rows):
        x, asked = streams(rows, topics, width, g, summary)
        weights = model.trace(x)[2][:, -1]
        first = slots - (x.shape[1] // L - 1)  # where the first segment's memory is by now
        return weights[:, first : first + topics], asked

    optimizer = torch.optim.Adam([*model.to_query.parameters(), *model.to_key.parameters()], lr=0.01)
    for _ in range(100):
        weights, asked = recalled(64)
        optimizer.zero_grad()
        F.nll_loss((weights + 1e-9).log(), asked).backward()
        optimizer.step()
    with torch.no_grad():
        weights, asked = recalled(512)
    assert (weights.argmax(-1) == asked).float().mean() > 0.75  # by chance 1/6


def test_oldest_memory_leaves_first():
    model = wrapper(slots=3)
    x, kept, state = tokens(5), [], None
    for n, segment in enumerate(x.split(L, 1)):
        _, state, weights = model.trace(segment, state)
        kept.append(state.cache[:, -1])
        filled = min(n, 3)
        assert (weights[:, 0, : 3 - filled] == 0).all() and (weights[:, 0, 3 - filled :] > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.full((2, 1), float(n > 0), dtype=torch.double))
    assert torch.equal(state.cache, torch.stack(kept[-3:], 1))


def test_recall_is_a_mixture_of_raw_memories():
    model, x = wrapper(), tokens(4)
    _, state = model(x[:, : 3 * L])
    y, _, weights = model.trace(x[:, 3 * L :], state)
    query, keys = model.to_query(state.summary), model.to_key(state.cache[:, -3:])
    want = torch.softmax((query[:, None] * keys).sum(-1) / D**0.5, -1)
    torch.testing.assert_close(weights[:, 0, -3:], want)
    prompt = (want[..., None] * state.cache[:, -3:]).sum(1, keepdim=True)
    hidden = model.backbone(torch.cat([prompt, x[:, 3 * L - 2 : 3 * L], x[:, 3 * L :], prompt], 1))
    torch.testing.assert_close(y, hidden[:, 3:-1])
    z = model.token.expand(2, 1, D)
    summary = model.backbone(torch.cat([z, x[:, 3 * L - 2 : 3 * L], z], 1))[:, -1]
    torch.testing.assert_close(state.summary, summary)


def test_without_recall_there_is_no_memory():
    model, x = wrapper(recall=False), tokens(4)
    y, _, weights = model.trace(x)
    z, before = model.token.expand(2, 1, D), model.token.expand(2, 2, D)
    alone = []
    for segment in x.split(L, 1):
        alone.append(model.backbone(torch.cat([z, before, segment, z], 1))[:, 3:-1])
        before = segment[:, -2:]
    torch.testing.assert_close(y, torch.cat(alone, 1))
    assert (weights == 0).all()
    model.recall = True
    assert not torch.allclose(model(x)[0], y)


@pytest.mark.parametrize("summary", ["previous", "current"])
def test_causality(summary):
    """Token by token where the query is of the past; segment by segment where it is of the segment itself."""
    model, x = wrapper(summary=summary), tokens(5)
    y, leaks = model(x)[0], []
    for t in range(5 * L):
        changed = x.clone()
        changed[:, t] += tokens(1, seed=9)[:, 0]
        moved = (model(changed)[0] - y).abs().amax((0, 2)) > 0
        assert moved[t]
        assert not moved[: t - t % L].any(), "an earlier segment"
        leaks.append(bool(moved[:t].any()))
    # The first half (2 of 4 tokens) tells the positions before it, once two memories can be told apart.
    expected = [summary == "current" and t // L >= 2 and t % L == 1 for t in range(5 * L)]
    assert leaks == expected


@pytest.mark.parametrize("summary", ["previous", "current"])
def test_cutting_at_a_segment_boundary_changes_nothing(summary):
    model, x = wrapper(summary=summary), tokens(7)[:, : 6 * L + 1]  # the last segment has one token
    y, end = model(x)
    first, state = model(x[:, : 2 * L])
    second, split_end = model(x[:, 2 * L :], state)
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=0, atol=0)
    for one, other in zip(end, split_end):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert end.read.tolist() == [7, 7]
    flat = nestmem.state_to_dict(state)
    back = nestmem.state_from_dict(flat, model.initial_state(1))
    torch.testing.assert_close(model(x[:, 2 * L :], back)[0], second, rtol=0, atol=0)


def test_rows_are_independent():
    model, x = wrapper(), tokens(4)
    _, state = model(x[:, : 2 * L])
    fresh = nestmem.memory.base.where_rows(torch.tensor([False, True]), model.initial_state(2), state)
    y, _ = model(x[:, 2 * L :], fresh)  # rows of different ages
    torch.testing.assert_close(y[0], model(x[:1])[0][0, 2 * L :])
    torch.testing.assert_close(y[1], model(x[1:, 2 * L :])[0][0])


def test_any_callable_is_a_backbone():
    gru = nn.GRU(D, D, batch_first=True).double()
    model = SegmentWrapper(lambda x: gru(x)[0], D, segment=L, sensory=0).double()
    y, state = model(tokens(3))
    assert y.shape == (2, 3 * L, D) and state.sensory.shape == (2, 0, D)
    assert {name for name, _ in model.named_parameters()} == {"token", "to_query.weight", "to_key.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 0}, "segment: expected at least 1, got 0"),
        ({"slots": 0}, "slots: expected at least 1, got 0"),
        ({"sensory": -1}, "sensory: expected at least 0, got -1"),
        ({"depth": -1}, "depth: expected at least 0, got -1"),
        ({"summary": "next"}, "summary: expected previous or current, got 'next'"),
    ],
)
def test_wrong_options_say_so(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentWrapper(nn.Identity(), D, **options)


def test_wrong_width_names_what_came():
    with pytest.raises(ValueError, match=r"expected tokens \[B, T, 8\], got \[2, 3, 5\]"):
        wrapper()(torch.zeros(2, 3, 5))
