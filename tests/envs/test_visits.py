"""Streams of recurring bindings and of shared rules: floors, records, and that no token tells its own label."""

import pytest
import torch
from torch.nn import functional as F

from envs.bindings import Alphabets, Bindings
from envs.rules import Rules, principal
from envs.visits import schedule
from nestmem import Episodic
from nestmem.errors import UserError

C, E = 40, 6


@pytest.fixture
def features():
    """One-hot class in the first 40 components, one-hot drawing in the last six."""
    classes = torch.eye(C)[:, None].expand(C, E, C)
    return torch.cat([classes, 0.1 * torch.eye(E)[None].expand(C, E, E)], -1)


def test_gaps_are_visits_since_the_context_was_here():
    g = torch.Generator().manual_seed(0)
    plan = schedule(50, 72, g, first=6, returns=0.5, gaps=(5, 60))
    for contexts, gaps in zip(plan.context.tolist(), plan.gap.tolist()):
        last, order = {}, []
        for v, (context, gap) in enumerate(zip(contexts, gaps)):
            assert gap == (v - last[context] if context in last else 0)
            order += [context] if context not in last else []
            last[context] = v
        assert order == sorted(order), "numbered by first appearance"
    returned = plan.gap[plan.gap > 0]
    assert (plan.gap[:, :6] == 0).all() and returned.min() == 5 and returned.max() > 50
    assert abs((plan.gap[:, 6:] > 0).double().mean() - 0.5) < 0.03


def test_alphabets_come_round_with_their_characters_and_labels(features):
    alphabet = torch.arange(C) // 6  # six of six characters and one of four, which is too small
    source = Alphabets(features, alphabet, seed=0, count=4, rounds=3, ways=5, shots=2)
    s = source.sample(8)
    assert s.tokens.shape[1] == source.steps * 12 and source.steps == 10
    gap = s.gap.unflatten(1, (12, 10))
    assert (gap[:, :4] == 0).all() and (gap[:, 4:] == 4).all()
    rounds = lambda record: record.unflatten(1, (3, 4, 10))
    for row in range(8):
        seen = {}
        for a, c, label in zip(rounds(s.context)[row].flatten(), s.classes[row], s.labels[row]):
            seen.setdefault(int(a), set()).add((int(c), int(label)))
        assert [len(bindings) for bindings in seen.values()] == [5] * 4, "the same five bindings in every round"
        of = [{int(alphabet[c]) for c, _ in bindings} for bindings in seen.values()]
        assert all(len(names) == 1 for names in of) and len(set.union(*of)) == 4 and 6 not in set.union(*of)
    assert len({tuple(row) for row in s.classes[:, :10].sort(1).values.tolist()}) > 1, "drawn anew for each row"
    with pytest.raises(UserError, match=r"count from 1 to 6 \(alphabets there are\), got rounds 3, count 7"):
        Alphabets(features, alphabet, seed=0, count=7)
    with pytest.raises(UserError, match=r"alphabets.alphabet: expected \[40\], got \[39\]"):
        Alphabets(features, alphabet[1:], seed=0, count=4)


def test_when_all_contexts_are_known_another_one_comes_back():
    plan = schedule(20, 30, torch.Generator().manual_seed(0), first=1, returns=0.3, gaps=(2, 30), contexts=3)
    assert plan.context.max() == 2 and (plan.context[:, 1:] != plan.context[:, :-1]).all()


def test_records_say_what_the_tokens_show(features):
    source = Bindings(features, seed=0, ways=4, shots=3, visits=20, pool=9, first=3)
    s = source.sample(5)
    content, cue, outcome = source.fields.split(s.tokens)
    assert torch.equal(content[..., :C].argmax(-1), s.classes) and torch.equal(content[..., C:].argmax(-1), s.drawings)
    assert (outcome[:, 0] == 0).all() and torch.equal(outcome[:, 1:].argmax(-1), s.labels[:, :-1])
    torch.testing.assert_close(cue.norm(dim=-1), torch.ones(5, 240))
    for row in range(5):
        assert len(s.classes[row].unique()) <= 9
        met = set()
        for v in range(20):
            at = slice(12 * v, 12 * v + 12)
            classes, drawings = s.classes[row, at].tolist(), s.drawings[row, at].tolist()
            assert (s.visit[row, at] == v).all() and len(set(s.context[row, at].tolist())) == 1
            assert len(set(classes)) == 4 and len(set(zip(classes, drawings))) == 12, "no drawing twice in a visit"
            assert s.seen[row, at].tolist() == [classes[:i].count(c) for i, c in enumerate(classes)]
            assert s.met[row, at].tolist() == [c in met for c in classes]
            met |= set(classes)
    own = F.normalize(torch.stack([cue[0][s.context[0] == 0], cue[0][s.context[0] == 0].roll(1, 0)]), dim=-1)
    assert (own[0] * own[1]).sum(-1).mean() > 0.9


@pytest.mark.parametrize("labels", ["independent", "permutation"])
def test_a_dictionary_knows_every_return(features, labels):
    s = Bindings(features, seed=1, labels=labels, visits=72).sample(8)
    right = []
    for row in range(8):
        known = {}
        for t in range(s.labels.shape[1]):
            key = (s.context[row, t].item(), s.classes[row, t].item())
            if s.gap[row, t] > 0 and s.seen[row, t] == 0:
                right.append(known.get(key) == s.labels[row, t].item())
            known[key] = s.labels[row, t].item()
    assert len(right) > 500 and all(right)


@pytest.mark.parametrize(("labels", "floor"), [("independent", 0.2), ("permutation", 0.4567)])
def test_floors_are_those_of_an_eliminator_and_of_chance(features, labels, floor):
    source = Bindings(features, seed=2, labels=labels, visits=72)
    s = source.sample(150)
    asked = s.seen == 0
    visit = s.labels.unflatten(1, (72, source.steps))
    earlier = (F.one_hot(visit, 5).cumsum(2) - F.one_hot(visit, 5)).flatten(1, 2) > 0  # labels used in this visit
    score = torch.rand(earlier.shape, generator=torch.Generator().manual_seed(0)) - earlier * 1.0
    eliminator = (score.argmax(-1) == s.labels)[asked].double().mean()
    assert source.chance == 0.2 and abs(source.elimination - floor) < 1e-4
    # One who strikes out used labels where labels are independent does no better than chance either.
    assert abs(eliminator - floor) < 0.005
    assert abs((s.labels == 0).double().mean() - 0.2) < 0.01


def test_the_class_alone_does_not_tell_the_label(features):
    s = Bindings(features, seed=3, visits=72).sample(64)
    agree, pairs = 0, 0
    for row in range(64):
        first = {}
        for t in (s.seen[row] == 0).nonzero()[:, 0].tolist():
            c, context, label = s.classes[row, t].item(), s.context[row, t].item(), s.labels[row, t].item()
            for other, known in first.get(c, {}).items():
                agree, pairs = agree + (other != context and known == label), pairs + (other != context)
            first.setdefault(c, {})[context] = label
    assert abs(agree / pairs - 0.2) < 0.01


def test_tokens_do_not_depend_on_labels_still_to_come(features):
    """Two sources that differ in their labels alone show the same contents and cues."""
    a, b = (Bindings(features, seed=4, labels=labels) for labels in ("independent", "permutation"))
    x, y = a.sample(4), b.sample(4)
    assert not torch.equal(x.labels, y.labels)
    for i in (0, 1):
        assert torch.equal(a.fields.split(x.tokens)[i], b.fields.split(y.tokens)[i])


def test_same_seed_same_stream_and_state_goes_on(features):
    a, b = (Bindings(features, seed=5) for _ in range(2))
    assert torch.equal(a.sample(3).tokens, b.sample(3).tokens)
    b.generator.set_state(a.generator.get_state())
    assert torch.equal(a.sample(2).labels, b.sample(2).labels)


def test_any_memory_runs_on_the_tokens(features):
    """Slots keyed by class and cue, enough of them, untrained: a return is answered at once."""
    source = Bindings(features, seed=6, visits=30, cue_noise=0.0)
    s = source.sample(6)
    memory = Episodic(source.fields.width, source.fields, slots=256, temperature=30.0)
    answers = source.fields.split(memory(s.tokens)[0])[2].argmax(-1)
    right = (answers == s.labels).double()
    assert right[(s.seen == 0) & ~s.is_new].mean() > 0.97
    assert right[(s.seen == 0) & s.is_new].mean() < 0.35
    assert right[s.seen > 0].mean() > 0.97


@pytest.fixture
def spread():
    """400 classes at random places of an eight-dimensional subspace of ten dimensions."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(400, 8, generator=g) @ torch.randn(8, 10, generator=g)
    return means[:, None] + 0.05 * torch.randn(400, 4, 10, generator=g)


def single(features, **options):
    """One rule for the whole row."""
    by = options.pop("by", None)
    by = principal(features, 6) if by is None else by
    return Rules(features, by, first=1, returns=1.0, gaps=(1, 100), visits=40, shots=1, **options)


def fitted(s, z, start):
    """Accuracy on classes first met from visit `start` on: nearest neighbour, and least squares, of what came before."""
    rights = []
    for row in range(len(z)):
        old, new = s.visit[row] < start, (s.visit[row] >= start) & ~s.met[row]
        y = F.one_hot(s.labels[row], 2).to(z.dtype)
        nearest = y[old][torch.cdist(z[row][new], z[row][old]).argmin(-1)].argmax(-1)
        x = F.pad(z[row], (0, 1), value=1.0)
        linear = (x[new] @ torch.linalg.lstsq(x[old], y[old]).solution).argmax(-1)
        rights.append(torch.stack([nearest == s.labels[row][new], linear == s.labels[row][new]]).double().mean(1))
    return torch.stack(rights).mean(0)


def test_a_rule_is_shared_by_classes_never_seen(spread):
    by = principal(spread, 6)
    source = single(spread, seed=0)
    s = source.sample(24)
    z = source.fields.split(s.tokens)[0] @ by
    assert abs(s.labels.double().mean() - 0.5) < 0.02 and (s.context == 0).all()
    nearest, linear = fitted(s, z, 30)
    assert linear > 0.88 and linear > nearest + 0.05
    xor = single(spread, seed=0, rule="xor")
    s = xor.sample(24)
    nearest, linear = fitted(s, xor.fields.split(s.tokens)[0] @ by, 30)
    assert abs(linear - 0.5) < 0.05 and nearest > 0.6, "no linear reader gets anything, look-alikes do help"


def test_rules_drift_and_come_back(spread):
    def agreement(drift, visits):
        """How often two visits apart by so much would name a class alike."""
        source = single(spread, seed=1, drift=drift)
        g = torch.Generator().manual_seed(0)
        plan = schedule(16, 40, g, first=1, returns=1.0, gaps=(1, 100))
        names = source._projected(plan)
        return (names[:, visits:] == names[:, :-visits]).double().mean()

    assert agreement(0.0, 20) == 1
    assert 0.9 < agreement(0.05, 1) < 1 and agreement(0.05, 20) < 0.75
    source = Rules(spread, principal(spread, 6), seed=2, visits=40, first=2, labels=4)
    s = source.sample(16)
    assert s.gap.max() > 20 and s.context.max() > 10
    for row in range(16):
        named = {}
        for key, label in zip(zip(s.context[row].tolist(), s.classes[row].tolist()), s.labels[row].tolist()):
            assert named.setdefault(key, label) == label, "a rule that does not drift comes back as it was"


def test_a_rule_by_groups_names_alphabets(spread):
    groups = torch.arange(400) // 20
    still = single(spread, seed=3, rule="group", by=groups, labels=3).sample(12)
    moving = single(spread, seed=3, rule="group", by=groups, labels=3, drift=0.2).sample(12)
    for s, constant in ((still, True), (moving, False)):
        kept = []
        for row in range(12):
            named = {}
            for c, label in zip(s.classes[row].tolist(), s.labels[row].tolist()):
                kept.append(named.setdefault(c // 20, label) == label)
        assert all(kept) == constant


def test_what_is_refused(features):
    for options, says in (
        (dict(labels="both"), "expected one of independent, permutation"),
        (dict(pool=3), "expected from 5"),
        (dict(shots=7), "5 classes x 7 shots asked for"),
    ):
        with pytest.raises(UserError, match=says):
            Bindings(features, seed=0, **options)
    with pytest.raises(UserError, match="expected a map \\[46, r >= 2\\]"):
        Rules(features, torch.zeros(4, 3), seed=0)
    with pytest.raises(UserError, match="expected float"):
        Bindings(torch.zeros(C, 3, 2, dtype=torch.uint8), seed=0)
    with pytest.raises(UserError, match="expected visits and first >= 1"):
        Bindings(features, seed=0, returns=2.0).sample(1)
