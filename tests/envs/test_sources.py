"""Omniglot, glyphs and folders: the real set with its split, what is refused, what is repeatable."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from envs import archives, folder, glyphs
from envs import omniglot as source
from nestmem.cli import main
from nestmem.errors import UserError


def test_the_whole_of_omniglot(omniglot):
    assert omniglot.images.shape == (1623, 20, 28, 28) and omniglot.images.dtype == torch.uint8
    assert omniglot.names == sorted(omniglot.names)
    sizes = {split: len(source.subset(omniglot, split).names) for split in ("train", "val", "test", "trainval")}
    assert sizes == {"train": 1028, "val": 172, "test": 423, "trainval": 1200}
    ink = omniglot.images.float().mean((1, 2, 3)) / 255
    assert ((ink > 0.005) & (ink < 0.5)).all(), "ink is bright on dark"


def test_the_split_is_that_of_the_published_lists(omniglot):
    folder = Path(os.environ.get("NESTMEM_DATA", "")) / "omniglot" / "splits_vinyals"
    if not folder.is_dir():
        pytest.skip("the lists are not under NESTMEM_DATA")
    for split in ("train", "val", "test"):
        lines = (folder / f"{split}.txt").read_text().split()
        assert {line.rsplit("/", 1)[0] for line in lines} == set(source.subset(omniglot, split).names)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty place for data and cache."""
    monkeypatch.setenv("NESTMEM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NESTMEM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    return tmp_path


def copied(own, omniglot_files):
    for path in omniglot_files:
        shutil.copy(path, own / "data" / "omniglot" / path.name)
    return [own / "data" / "omniglot" / path.name for path in omniglot_files]


@pytest.fixture
def files(omniglot):
    return [archives.locate(archive) for archive in source.ARCHIVES]


def test_a_torn_cache_is_made_again(omniglot, files, own):
    copied(own, files)
    source.load()
    (cached,) = (own / "cache" / "omniglot").glob("*.npz")
    cached.write_bytes(cached.read_bytes()[:1000])
    assert torch.equal(source.load().images, omniglot.images)


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_a_damaged_archive_is_refused(files, own, damage, capsys):
    path = copied(own, files)[0]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "changed":
        blob = bytearray(path.read_bytes())
        blob[1_000_000] ^= 1
        path.write_bytes(blob)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../escape.png", b"out of the folder")
    with pytest.raises(UserError, match="nestmem data get omniglot"):
        source.load()
    assert not (own / "escape.png").exists() and not (own / "cache" / "omniglot").exists()
    assert main(["data", "check", "omniglot"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_without_data_and_network_the_built_in_set_is_named(own, monkeypatch, capsys):
    import urllib.error

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    assert main(["train", "experiment=omniglot"]) == 2
    assert "without it use env=glyphs" in capsys.readouterr().err
    assert main(["data", "list"]) == 0
    assert "missing: nestmem data get omniglot" in capsys.readouterr().out


def test_a_download_is_checked_before_it_is_kept(files, own):
    archive = source.ARCHIVES[1]._replace(url=files[1].as_uri())
    shutil.rmtree(own / "data")
    assert archives.fetch(archive) == own / "cache" / "omniglot" / archive.file
    archives.locate(archive).unlink()
    with pytest.raises(UserError, match="expected"):
        archives.fetch(archive._replace(url=files[0].as_uri()))
    assert not list((own / "cache" / "omniglot").iterdir())


def test_glyphs_are_repeatable_characters():
    a, b = glyphs.make(3, 4, seed=1), glyphs.make(3, 4, seed=1)
    assert torch.equal(a.images, b.images) and a.images.shape == (12, 20, 28, 28)
    assert not torch.equal(a.images, glyphs.make(3, 4, seed=2).images)
    flat = a.images.float().flatten(2) / 255
    within = (flat[:, 0] - flat[:, 1]).norm(dim=-1).mean()
    between = (flat[:, 0] - flat.roll(1, 0)[:, 0]).norm(dim=-1).mean()
    assert between > 1.2 * within, "drawings of a character resemble each other more than two characters do"


def pictures(root, classes=4, images=5, size=(28, 28)):
    for c in range(classes):
        (root / f"c{c}").mkdir(parents=True)
        for i in range(images):
            Image.fromarray(np.full(size[::-1], 255 - 10 * c - i, np.uint8)).save(root / f"c{c}" / f"{i}.png")
    return root


def test_a_folder_of_your_own(tmp_path):
    sets = folder.load(str(pictures(tmp_path / "mine", classes=10)))
    assert {k: len(v.names) for k, v in sets.items()} == {"train": 7, "val": 1, "test": 2}
    assert sets["train"].images[1, 2, 0, 0] == 12


def test_folders_that_are_off(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        folder.load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="30 x 20, expected 28 x 28"):
        folder.load(str(pictures(tmp_path / "size", size=(30, 20))))
    with pytest.raises(UserError, match="expected at least 3"):
        folder.load(str(pictures(tmp_path / "few", classes=2)))
    uneven = pictures(tmp_path / "uneven")
    (uneven / "c2" / "0.png").unlink()
    with pytest.raises(UserError, match="has 4 images, expected 5"):
        folder.load(str(uneven))
    (uneven / "c0" / "0.png").write_text("not a picture")
    with pytest.raises(UserError, match="is not an image"):
        folder.load(str(uneven))
