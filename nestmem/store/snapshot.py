"""Snapshots: a copy of one generation with a manifest that says what must be in it; restore checks both, then swaps
by rename.

A snapshot of any store is two files: PATH, a SQLite store by itself (also of a server, or of shards: the rows are
copied), and PATH.json with its generation, its sha256 and a hash per table. Restoring a SQLite store puts the file in
its place in one step and keeps the old one as `memory.db.before-restore`; on servers the rows are replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Connection

from nestmem.durable import sync
from nestmem.store import points, transfer
from nestmem.store.engine import last_commit
from nestmem.store.errors import StoreError
from nestmem.store.locks import FileLock
from nestmem.store.plain import file_hash, fingerprint
from nestmem.store.schema import SCHEMA_VERSION
from nestmem.store.shards import Shards
from nestmem.store.sqlite import SQLite


def manifest_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def take(shards: Shards, path: Path) -> tuple[dict[str, Any], str]:
    """Write a snapshot. Returns the manifest and its hash."""
    if path.exists() or manifest_path(path).exists():
        raise StoreError(f"{path}: already there; a snapshot is never overwritten")
    if not path.resolve().parent.is_dir():
        raise StoreError(f"{path}: the folder {path.resolve().parent} does not exist")
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    sentences = shards.engines[0].sentences
    try:
        copy(shards, aside)
        points.reach("snapshot:copied")
        with sentences(), opened(aside) as conn:
            generation, stamp = last_commit(conn)
            tables = fingerprint([conn])
        manifest = dict(
            schema=SCHEMA_VERSION, generation=generation, stamp=stamp, sha256=file_hash(aside),
            bytes=aside.stat().st_size, tables=tables,
        )  # fmt: skip
        text = json.dumps(manifest, indent=1)
        with sentences():
            write_durably(manifest_path(path), text.encode())
            points.reach("snapshot:manifest")
            os.replace(aside, path)
            sync(path.resolve().parent)
    finally:
        aside.unlink(missing_ok=True)
    return manifest, hashlib.sha256(text.encode()).hexdigest()


def copy(shards: Shards, path: Path) -> None:
    """A consistent copy of everything into the new SQLite file `path`, durable."""
    (engine, *more) = shards.engines
    if isinstance(engine, SQLite) and not more:
        engine.copy_to(path)
        return
    with tempfile.TemporaryDirectory(dir=path.resolve().parent) as scratch, engine.sentences():
        plain, file = Path(scratch) / "export", Path(scratch) / "copy.db"
        transfer.export(shards, plain)
        file_engine = SQLite(file, engine.clock, engine.actor, 30.0, False)
        target = Shards([file_engine])
        try:
            transfer.import_(target, plain)
            file_engine.copy_to(path)
        finally:
            target.close()


@contextmanager
def opened(path: Path) -> Iterator[Connection]:
    """A connection to a snapshot."""
    uri = f"file:{quote(str(path.resolve()))}?mode=ro"
    pool = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True))
    try:
        with pool.connect() as conn:
            yield conn
    finally:
        pool.dispose()


def write_durably(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync(path.resolve().parent)
    finally:
        aside.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a snapshot whose file is as it was written, or a StoreError."""
    if not path.is_file() or not manifest_path(path).is_file():
        raise StoreError(f"{path}: no complete snapshot (expected {path.name} and {path.name}.json)")
    try:
        manifest = json.loads(manifest_path(path).read_text())
        if manifest["schema"] != SCHEMA_VERSION:
            raise StoreError(f"{path}: schema {manifest['schema']}, but this nestmem reads schema {SCHEMA_VERSION}")
        expected = manifest["sha256"]
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{manifest_path(path)}: damaged, not the manifest of a snapshot") from None
    if file_hash(path) != expected:
        raise StoreError(f"{path}: damaged: its sha256 is not the one in its manifest")
    return dict(manifest)


def restore_file(snapshot: Path, target: Path) -> dict[str, Any]:
    """Put a snapshot in place of the SQLite store at `target` (which may be missing or damaged). Nobody may have it
    open.
    """
    manifest = read_manifest(snapshot)
    if not target.resolve().parent.is_dir():
        raise StoreError(f"{target}: the folder {target.resolve().parent} does not exist")
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    users = FileLock(target.with_name(target.name + ".users"))
    try:
        if not users.acquire():
            raise StoreError(f"{target.name}: in use; close every Store of it first")
        shutil.copyfile(snapshot, aside)
        if file_hash(aside) != manifest["sha256"]:
            raise StoreError(f"{target}: the copy differs from the snapshot (is the disk full or failing?)")
        sync(aside)
        points.reach("restore:copied")
        _set_aside(target)
        points.reach("restore:kept")
        os.replace(aside, target)
        sync(target.resolve().parent)
        points.reach("restore:swapped")
        shutil.rmtree(target.with_name(target.name + ".cache"), ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror or error}; nothing was changed") from error
    finally:
        aside.unlink(missing_ok=True)
        users.close()
    return manifest


def _set_aside(target: Path) -> None:
    """Keep the old store beside the new one, with no log left that could be taken for the new one's."""
    kept = target.with_name(target.name + ".before-restore")
    logs = [target.with_name(target.name + suffix) for suffix in ("-wal", "-shm")]
    if not target.exists():
        for log in logs:
            log.unlink(missing_ok=True)
        return
    try:
        with sqlite3.connect(target) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.close()
    except sqlite3.Error:
        pass  # it is damaged: keep its log as it is
    for log in logs:
        if log.exists():
            os.replace(log, kept.with_name(kept.name + log.name.removeprefix(target.name)))
    kept.unlink(missing_ok=True)
    os.link(target, kept)


def restore_rows(shards: Shards, path: Path) -> int:
    """Put the rows of a snapshot in place of all rows of a store on servers or shards. Returns its generation."""
    manifest = read_manifest(path)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "export"
        source = Shards([SQLite(path, shards.clock, "restore", 30.0, True)])
        try:
            transfer.export(source, plain)
        finally:
            source.close()
        transfer.import_(shards, plain, replace=True)
    return int(manifest["generation"])
