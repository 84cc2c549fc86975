"""Documents: long runs of bytes that are never read as a whole, and the sources they come from.

A source is a folder in PG-19 layout (train/, validation/, test/ with one .txt each document), any folder of .txt, one file of
any size, or a set by name. Bytes are bytes: text that is no valid UTF-8 is as good as any other. Files are memory-mapped, so a
corpus may be larger than the memory. A source without splits is cut 90 / 5 / 5: a folder by document, a file by place.
Sets by name: books (public domain, PG-19 layout), speeches (US presidents' by year), wikitext (WikiText-2, where validation
articles are learned from and test articles tested on), and generated, built in.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.archives import Archive, cache_dir, check, fetch
from envs.tales import tale
from nestmem.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # ours, and the folders of PG-19
SHARES = (0.9, 0.95)  # where training ends, and where validation does
_NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/"
_NONE = "env.data=[generated] or a folder of your own"
ARCHIVES = {
    "books": (
        Archive(
            "books_pg", "classic_books.zip", "",
            "09bbc6c15a67987a9ab9d2f7f886b0c158039cf60157225bd3c58527c5fb173f", _NONE,
        ),
    ),
    "speeches": tuple(
        Archive("speeches_pd", f"{name}.zip", f"{_NLTK}{name}.zip", sha256, _NONE)
        for name, sha256 in (
            ("inaugural", "1116010b48a8dc782dba084f8822ab2721054d4eeef666abd6e382f4e003160a"),
            ("state_union", "f39184927ad62df36841710e7551e3d594fd894d15c460ea0c9c7c643ad88c31"),
        )
    ),
    "wikitext": (
        Archive(
            "wikitext2", "wikitext2_valid_test.zip", "",
            "b3b611b1b036c8c0f25366af1744d563afe0df70500eb4b69b6713ab02f39173", _NONE,
        ),
    ),
}  # fmt: skip
HEADING = re.compile(rb"(?m)^ = [^=\n]+ = \n")  # of a WikiText article; sections have more signs
TALES = {"train": 48, "val": 6, "test": 8}  # generated documents by split


@dataclass(frozen=True)
class Document:
    """Tokens `start` to `stop` of a file of numbers of `kind`, or of an array in memory. `len` is in tokens."""

    name: str
    start: int
    stop: int
    path: str = ""
    kind: str = "u1"
    data: Array | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> Array:
        """Tokens `start` to `stop`, counted from the document's beginning; fewer at its end."""
        held = self.data if self.data is not None else _mapped(self.path, self.kind)
        return np.asarray(held[self.start + start : min(self.start + stop, self.stop)])


class Source(NamedTuple):
    """Documents by split. ordered: they are of their time and come in its order, else shuffled."""

    name: str
    documents: dict[str, list[Document]]
    ordered: bool = False


def source(name: str) -> Source:
    """A set by name, or the folder or file of that path."""
    match name:
        case "generated":
            return generated(0)
        case "books":
            return folder(str(_unpacked("books")))._replace(name=name)
        case "speeches":
            return _speeches()
        case "wikitext":
            return _wikitext()
    if match := re.fullmatch(r"generated:(\d+)", name):
        return generated(int(match[1]))
    path = Path(name)
    if path.is_dir():
        return folder(name)
    if path.is_file():
        return file(name)
    known = ", ".join(["generated", *ARCHIVES])
    raise UserError(f"env.data: no folder or file {name!r}; expected one, or a set: {known}")


def generated(dialect: int, length: int = 65536) -> Source:
    """Tales of one dialect; see `envs.tales`."""
    made, seed = {}, 0
    for split, count in TALES.items():
        tales = [(f"tale {dialect}.{i}", tale(i, length, dialect)) for i in range(seed, seed + count)]
        made[split] = [Document(name, 0, len(text), data=text) for name, text in tales]
        seed += count
    return Source("generated" if dialect == 0 else f"generated:{dialect}", made)


def folder(path: str) -> Source:
    """Every .txt below a folder; its parts are the splits where they are called as in PG-19."""
    root = Path(path)
    parts = {split: root / name for split, name in SPLITS.items()}
    if all(part.is_dir() for part in parts.values()):
        made = {split: _texts(part) for split, part in parts.items()}
        if empty := [str(parts[split]) for split, documents in made.items() if not documents]:
            raise UserError(f"env.data: {empty[0]} holds no .txt with text in it")
        return Source(path, made)
    documents = _texts(root)
    if not documents:
        raise UserError(f"env.data: {path!r} holds no .txt with text in it")
    if len(documents) < len(SPLITS):
        return Source(path, _cut(documents))
    edges = _edges(len(documents), least=1)
    return Source(path, {split: documents[a:b] for split, (a, b) in zip(SPLITS, edges)})


def file(path: str) -> Source:
    """One file as one document, cut by place."""
    return Source(path, _cut([one(path)]))


def one(path: str) -> Document:
    """A whole file as a document; refused if it is not there, cannot be read or is empty."""
    try:
        with open(path, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read as text ({error.strerror})") from None
    if size == 0:
        raise UserError(f"{path}: the file is empty, expected text")
    return Document(Path(path).name, 0, size, path)


def _texts(root: Path) -> list[Document]:
    """The .txt files below a folder in order of their names; empty ones hold nothing to learn and are passed over."""
    paths = sorted(p for p in root.rglob("*.txt") if p.is_file())
    return [one(str(p)) for p in paths if p.stat().st_size]


def _cut(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Each document cut in three by place."""
    made: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        if len(document) < 100:
            raise UserError(
                f"{document.path or document.name}: {len(document)} bytes cannot be cut into training, validation and "
                "test; expected at least 100"
            )
        for split, (a, b) in zip(SPLITS, _edges(len(document), least=1)):
            made[split].append(part(document, a, b))
    return made


def part(document: Document, start: int, stop: int) -> Document:
    return Document(
        document.name, document.start + start, document.start + stop, document.path, document.kind, document.data
    )


def _edges(size: int, least: int) -> list[tuple[int, int]]:
    """Three stretches of 90, 5 and 5 %, none shorter than `least`."""
    first = min(round(SHARES[0] * size), size - 2 * least)
    second = min(max(round(SHARES[1] * size), first + least), size - least)
    return [(0, first), (first, second), (second, size)]


def _speeches() -> Source:
    """By year. Every tenth address is for validation, and so many others for the test."""
    root = _unpacked("speeches")
    addresses = sorted(root.glob("*/[12]*.txt"), key=lambda p: (p.name[:4], p.name, p.parent.name))
    made: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for i, path in enumerate(addresses):
        made[{4: "val", 9: "test"}.get(i % 10, "train")].append(one(str(path)))
    return Source("speeches", made, ordered=True)


def _wikitext() -> Source:
    """A document for each article."""
    root = _unpacked("wikitext") / "wikitext-2"
    articles = {}
    for name in ("valid", "test"):
        whole = one(str(root / f"{name}.txt"))
        starts = [found.start() for found in HEADING.finditer(whole.read(0, len(whole)).tobytes())]
        articles[name] = [part(whole, a, b) for a, b in zip(starts, [*starts[1:], len(whole)])]
    learned = len(articles["valid"]) - len(articles["valid"]) // 10
    return Source(
        "wikitext",
        {"train": articles["valid"][:learned], "val": articles["valid"][learned:], "test": articles["test"]},
    )


def _unpacked(name: str) -> Path:
    """The .txt files of a set in the cache, where they can be mapped; unpacked once."""
    found = [(archive, fetch(archive)) for archive in ARCHIVES[name]]
    target = cache_dir() / "text" / f"{name}-{'-'.join(a.sha256[:8] for a, _ in found)}"
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        for archive, path in found:
            check(archive, path)
            with zipfile.ZipFile(path) as opened:
                for info in opened.infolist():
                    if info.filename.endswith(".txt"):  # the content is the published one, so are its names
                        opened.extract(info, partial)
        partial.rename(target)
    except OSError as error:
        if target.is_dir():  # somebody else was faster
            return target
        raise UserError(f"{name}: cannot be unpacked into {target.parent} ({error.strerror})") from None
    return target


@lru_cache(maxsize=256)
def _mapped(path: str, kind: str) -> Array:
    try:
        return np.memmap(path, dtype=kind, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text any more ({error})") from None
