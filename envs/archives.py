"""Finding, checking and reading data archives.

Looked for, in order: `$NESTMEM_DATA/<set>/<file>`, the user's cache, the official place. Archives are read in memory and
never extracted, and are known by a sha256 over what they hold (of a zip: members' names and bytes): repacking changes an
archive's own hash.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import platformdirs

from nestmem.errors import UserError

MAX_MEMBER = 64 << 20  # bytes; no member of our archives is near this


class Archive(NamedTuple):
    """A zip or gz of a data set: set and file name, official address ("" if there is none), sha256 of the content, and what to
    use without it."""

    dataset: str
    file: str
    url: str
    sha256: str
    builtin: str


def cache_dir() -> Path:
    """Where downloads and decoded sets are kept: `$NESTMEM_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("NESTMEM_CACHE") or platformdirs.user_cache_dir("nestmem"))


def locate(archive: Archive) -> Path | None:
    """The archive on this machine, or None."""
    roots = [Path(os.environ["NESTMEM_DATA"])] if os.environ.get("NESTMEM_DATA") else []
    for root in [*roots, cache_dir()]:
        if (path := root / archive.dataset / archive.file).is_file():
            return path
    return None


def digest(path: Path) -> str:
    """sha256 of a gz's content, or over the sorted members of a zip: name, a zero byte, content."""
    total = hashlib.sha256()
    try:
        if is_gzip(path):
            return hashlib.sha256(gunzip(path)).hexdigest()
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda i: i.filename):
                if info.is_dir():
                    continue
                if info.file_size > MAX_MEMBER:
                    raise UserError(
                        f"{path}: member {info.filename} has {info.file_size} bytes, expected at most {MAX_MEMBER}"
                    )
                total.update(info.filename.encode() + b"\0" + archive.read(info))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable archive ({error}); delete it and run `nestmem data get {path.parent.name}`"
        ) from None
    return total.hexdigest()


def is_gzip(path: Path) -> bool:
    """By its first two bytes: a download in progress has another suffix."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def gunzip(path: Path) -> bytes:
    """The content of a gz, at most `MAX_MEMBER` bytes."""
    with gzip.open(path) as file:
        content = file.read(MAX_MEMBER + 1)
    if len(content) > MAX_MEMBER:
        raise UserError(f"{path}: unpacks to more than {MAX_MEMBER} bytes")
    return content


def check(archive: Archive, path: Path) -> None:
    """Refuse an archive whose content is not the published one."""
    if (found := digest(path)) != archive.sha256:
        raise UserError(
            f"{path}: sha256 of the content is {found[:12]}…, expected {archive.sha256[:12]}…; "
            f"delete it and run `nestmem data get {archive.dataset}`"
        )


def fetch(archive: Archive) -> Path:
    """The archive, downloaded to the cache and checked if it is not here yet."""
    if (path := locate(archive)) is not None:
        return path
    path = cache_dir() / archive.dataset / archive.file
    if not archive.url:
        raise UserError(
            f"{archive.dataset}: {archive.file} is not under NESTMEM_DATA or {cache_dir()}, and it has no official place to "
            f"be downloaded from; without it use {archive.builtin}"
        )
    partial = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(archive.url, timeout=60) as source, open(partial, "wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
    except (urllib.error.URLError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{archive.dataset}: {archive.file} is not under NESTMEM_DATA or {cache_dir()}, and {archive.url} could not be "
            f"downloaded ({error}); without it use {archive.builtin}"
        ) from None
    try:
        check(archive, partial)
    except UserError:
        partial.unlink()
        raise
    partial.replace(path)
    return path
