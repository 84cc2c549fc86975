"""Omniglot (Lake et al. 2015): 1,623 characters of 50 alphabets, 20 drawings each, as one uint8 tensor.

Split after Vinyals et al. 2016 as fixed by Snell et al. 2017: 1,028 / 172 / 423 characters, whole alphabets but for
Gurmukhi; the four rotations of a character count as four classes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from envs.archives import Archive, cache_dir, check, fetch
from envs.fewshot import ImageSet
from nestmem.errors import UserError

SIZE = 28
DRAWINGS = 20
_SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
ARCHIVES = tuple(
    Archive("omniglot", f"images_{part}.zip", f"{_SOURCE}images_{part}.zip", sha256, "env=glyphs")
    for part, sha256 in (
        ("background", "71a1ca99688b462d3818e7fd1d96e592b0bc508754ea500c444035296bf74117"),
        ("evaluation", "748bfbe557520aab543e31b7cb103f75cc655361f4e6b7fe1ccede747c9710f7"),
    )
)
MEMBER = re.compile(r"images_(?:background|evaluation)/([^/]+/character\d\d)/\d{4}_(\d\d)\.png")
VAL_ALPHABETS = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
TEST_ALPHABETS = {
    "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti",
    "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG",
}  # fmt: skip
# Lake's own division, by archive: 30 background alphabets, and these 20.
EVALUATION_ALPHABETS = TEST_ALPHABETS | {
    "Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic", "Gurmukhi",
}  # fmt: skip


def split_of(name: str) -> str:
    """The split of `Alphabet/characterNN`."""
    alphabet, character = name.split("/")
    if alphabet in TEST_ALPHABETS or (alphabet == "Gurmukhi" and int(character[-2:]) >= 42):
        return "test"
    return "val" if alphabet in VAL_ALPHABETS else "train"


def load(size: int = SIZE) -> ImageSet:
    """All characters in alphabetical order, uint8 [1623, 20, size, size]; decoded once, then read from the cache."""
    cached = cache_dir() / "omniglot" / f"images-{size}-{_key(size)}.npz"
    if cached.is_file():
        try:
            with np.load(cached, allow_pickle=False) as stored:
                return ImageSet(torch.from_numpy(stored["images"]), stored["names"].tolist())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            cached.unlink()  # torn by a crash or a full disk: decode again
    images: dict[str, np.ndarray] = {}
    for archive in ARCHIVES:
        path = fetch(archive)
        check(archive, path)
        _decode(path, images, size)
    names = sorted(images)
    stacked = np.stack([images[name] for name in names])
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_name(f"{cached.stem}.{os.getpid()}.part.npz")
        np.savez(partial, images=stacked, names=np.array(names))
        partial.replace(cached)
    except OSError:
        pass  # a cache that cannot be written costs ten seconds next time, nothing else
    return ImageSet(torch.from_numpy(stacked), names)


def subset(data: ImageSet, split: str) -> ImageSet:
    """The characters of "train", "val", "test", or "trainval" (the 1,200 of the MAML paper)."""
    wanted = {"train", "val"} if split == "trainval" else {split}
    rows = [i for i, name in enumerate(data.names) if split_of(name) in wanted]
    return ImageSet(data.images[rows], [data.names[i] for i in rows])


def _key(size: int) -> str:
    """Changes with the archives and with how they are decoded."""
    recipe = f"{[a.sha256 for a in ARCHIVES]} {size} lanczos"
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _decode(path: Path, into: dict[str, np.ndarray], size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if not (match := MEMBER.fullmatch(info.filename)):
                raise UserError(f"{path}: unexpected member {info.filename!r}")
            name, drawing = match[1], int(match[2])
            picture = (
                Image.open(io.BytesIO(archive.read(info))).convert("L").resize((size, size), Image.Resampling.LANCZOS)
            )
            into.setdefault(name, np.zeros((DRAWINGS, size, size), np.uint8))[drawing - 1] = 255 - np.asarray(picture)
