"""Streams of tasks: what comes when, what is held out, and that a seed means one listing everywhere."""

import gzip
import shutil

import pytest
import torch

from envs import archives, glyphs, mnist, tasks
from envs.drift import Drift
from envs.fewshot import ImageSet
from envs.manifest import manifest
from nestmem.cli import main
from nestmem.errors import UserError


def coded(classes, drawings, first, alphabet="A"):
    """Every image is filled with its class, counted from `first`, in the upper half and its drawing in the lower one."""
    images = torch.zeros(classes, drawings, 4, 4, dtype=torch.uint8)
    images[:, :, :2] = torch.arange(first, first + classes).view(-1, 1, 1, 1).to(torch.uint8)
    images[:, :, 2:] = torch.arange(drawings).view(1, -1, 1, 1).to(torch.uint8)
    return ImageSet(images, [f"{alphabet}/c{i:02d}" for i in range(classes)])


@pytest.fixture
def three():
    """Three tasks of 4, 5 and 3 classes with 8, 8 and 12 drawings."""
    sizes = ((4, 8, 0, "A"), (5, 8, 4, "B"), (3, 12, 9, "C"))
    return tasks.class_incremental([tasks.whole(size[3], coded(*size)) for size in sizes])


def test_every_step_shows_the_image_it_records(three):
    s = Drift(three, seed=0, rows=3, order="cycle", visits=7, steps=30, shuffle=True)
    images = s.images(0, 210)
    label = (images[:, :, 0, 0, 0] * 255).round().long()
    assert torch.equal(label, s.labels), "the first pixel is the class counted over all tasks, and so is the label"
    assert torch.equal((images[:, :, 0, 3, 0] * 255).round().long(), s.drawings)
    assert torch.equal(s.images(37, 61), images[:, 37:61])
    assert s.outputs == 12 and torch.equal(s.visit[0], torch.arange(210) // 30)
    for row in range(3):
        order = s.task[row, ::30].tolist()
        assert sorted(order[:3]) == [0, 1, 2] and order[3:6] == order[:3] and order[6] == order[0]


def test_a_visit_deals_a_deck_and_never_shows_what_is_held_out(three):
    s = Drift(three, seed=1, rows=2, steps=24, order="cycle", visits=6)
    learning = (6, 6, 9)
    for row in range(2):
        for v in range(6):
            at = slice(24 * v, 24 * v + 24)
            task = s.task[row, at.start].item()
            cards = list(zip(s.classes[row, at].tolist(), s.drawings[row, at].tolist()))
            assert len(set(cards)) == 24, "no repeats while there are others"
            assert max(d for _, d in cards) < learning[task]
    for task in range(3):
        images, labels = s.test(task)
        drawings = (images[:, 0, 3, 0] * 255).round().long()
        classes, all_drawings = three[task].data.images.shape[:2]
        assert len(labels) == classes * (all_drawings - learning[task]) and drawings.min() == learning[task]
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)


def test_gradual_boundaries_rise_linearly(three):
    s = Drift(three, seed=2, rows=4000, steps=20, mixing=8)
    share = (s.visit >= 1).double().mean(0)[10:30]
    assert (share[:6] == 0).all() and (share[14:] == 1).all()
    expected = (torch.arange(8) + 0.5) / 8
    assert (share[6:14] - expected).abs().max() < 0.04
    assert torch.equal(s.task, s.visit) and (s.visit[:, :6] == 0).all() and (s.visit[:, -6:] == 2).all()


def test_returning_tasks_and_times_that_are_geometric(three):
    s = Drift(three, seed=3, rows=40, order="returning", visits=60, steps=1, returns=0.7)
    assert (s.task[:, 1:] != s.task[:, :-1]).all(), "a visit is a switch"
    assert all(len(row.unique()) == 3 for row in s.task)
    slow = Drift(three, seed=3, rows=400, order="returning", visits=60, steps=1, returns=0.7, stay=0.9)
    switches = (slow.task[:, 1:] != slow.task[:, :-1]).double().mean()
    assert abs(switches - 0.1) < 0.01


def test_hidden_boundaries_are_hidden(three):
    assert (Drift(three, seed=0, boundaries="hidden").shown == -1).all()
    told = Drift(three, seed=0)
    assert torch.equal(told.shown, told.task)


def test_labels_of_each_kind_of_order():
    data = ImageSet(
        torch.cat([coded(4, 8, 0).images, coded(3, 8, 4).images]),
        coded(4, 8, 0).names + coded(3, 8, 0, "B").names,
    )
    parts = tasks.by_alphabet(data)
    assert [t.name for t in parts] == ["A", "B"]
    assert [t.labels.tolist() for t in tasks.class_incremental(parts)] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [t.labels.tolist() for t in tasks.domain_incremental(parts)] == [[0, 1, 2], [0, 1, 2]]
    coarse, first, second = tasks.coarse_to_fine(data)
    assert coarse.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert first.labels.tolist() == [2, 3, 4, 5] and second.labels.tolist() == [6, 7, 8]
    assert [t.labels.tolist() for t in tasks.class_incremental(tasks.split(coded(6, 8, 0), 2))] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_views_turn_and_shuffle_pixels():
    data = coded(3, 8, 1)
    natural, shuffled = tasks.permuted(data, 2, seed=0)
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(natural.view(images), images)
    seen = shuffled.view(images)
    assert not torch.equal(seen, images) and torch.equal(seen.flatten().sort().values, images.flatten().sort().values)
    order = shuffled.view(torch.arange(16.0).view(1, 1, 4, 4)).flatten().long()
    assert torch.equal(seen.flatten(1), images.flatten(1)[:, order]), "all images in one order"
    quarter = tasks.rotated(data, [90])[0].view(images)
    torch.testing.assert_close(quarter, torch.rot90(images, 1, (2, 3)), atol=1e-5, rtol=0)


def test_glyph_styles_by_alphabet():
    styles = tasks.domain_incremental(tasks.by_alphabet(glyphs.make(3, 5, seed=0)))
    s = Drift(styles, seed=0, steps=10)
    assert s.images(0, 30).shape == (1, 30, 1, 28, 28) and s.outputs == 5


def test_manifests_are_the_same_on_every_machine(three):
    def sha(**options):
        return manifest(Drift(three, rows=2, steps=20, **options)).sha256

    assert sha(seed=5) == sha(seed=5) != sha(seed=6)
    assert sha(seed=5) != sha(seed=5, mixing=4)
    renamed = [three[0]._replace(name="other"), *three[1:]]
    assert manifest(Drift(renamed, rows=2, steps=20, seed=5)).sha256 != sha(seed=5)
    permuted = tasks.permuted(coded(3, 8, 1), 3, seed=1)
    pinned = manifest(Drift(permuted, seed=7, rows=2, order="returning", visits=9, steps=5, mixing=2, shuffle=True))
    assert pinned.sha256 == "0da1c7d15d1170ce68c9733fa37a24ba4743d76598c7bef633499dab0e8d89fd"
    assert pinned.sha256 in pinned.text() and '"A/c02"' in pinned.text()


def test_the_manifest_of_omniglot_by_alphabet(omniglot):
    stream = Drift(tasks.class_incremental(tasks.by_alphabet(omniglot)), seed=0, steps=100)
    assert len(stream.tasks) == 50 and stream.outputs == 1623 and stream.learning == [15] * 50
    assert manifest(stream).sha256 == "5f555249f098dc37f4fec643acde296131e4cf043951dcdf57b157fd651f0f6b"


@pytest.fixture
def digits():
    if any(archives.locate(archive) is None for archive in mnist.ARCHIVES):
        pytest.skip("MNIST's test set is not here: set NESTMEM_DATA or run `nestmem data get mnist_t10k`")
    return mnist.load()


def test_mnist(digits, omniglot):
    assert digits.images.shape == (10, 892, 28, 28)
    # Zeros are open in the middle and ones are not; both are bright on dark.
    middle = digits.images[:, :, 12:16, 13:15].float().mean((1, 2, 3))
    assert middle[0] < 40 and middle[1] > 150
    both = tasks.class_incremental([tasks.whole("omniglot", omniglot), tasks.whole("mnist", digits)])
    s = Drift(both, seed=0, steps=50)
    assert s.labels[0, 50:].min() >= 1623 and s.outputs == 1633 and s.test(1)[0].shape == (2230, 1, 28, 28)


@pytest.mark.parametrize("damage", ["truncated", "changed", "replaced"])
def test_a_damaged_gz_is_refused(digits, tmp_path, monkeypatch, damage, capsys):
    folder = tmp_path / "data" / "mnist_t10k"
    folder.mkdir(parents=True)
    paths = [shutil.copy(archives.locate(archive), folder) for archive in mnist.ARCHIVES]
    monkeypatch.setenv("NESTMEM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NESTMEM_CACHE", str(tmp_path / "cache"))
    target = folder / mnist.ARCHIVES[0].file
    blob = bytearray(target.read_bytes())
    if damage == "truncated":
        target.write_bytes(blob[:-100])
    elif damage == "changed":
        blob[len(blob) // 2] ^= 1
        target.write_bytes(blob)
    else:
        target.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match="nestmem data get mnist_t10k"):
        mnist.load()
    assert main(["data", "check", "mnist_t10k"]) == 2 and capsys.readouterr().err.startswith("error: ")
    assert len(paths) == 2


def test_what_is_refused(three):
    for options, says in (
        (dict(order="twice"), "expected one of once, cycle, returning"),
        (dict(visits=4), "expected at most 3 for order 'once'"),
        (dict(mixing=101), "mixing in 0..steps"),
        (dict(held_out=0.01), "leaves none of a kind"),
    ):
        with pytest.raises(UserError, match=says):
            Drift(three, seed=0, **options)
    with pytest.raises(UserError, match="images of one size"):
        Drift([*three, tasks.whole("big", glyphs.make(1, 2, seed=0))], seed=0)
    with pytest.raises(UserError, match="expected a divisor of 12 classes"):
        tasks.split(coded(12, 8, 0), 5)
