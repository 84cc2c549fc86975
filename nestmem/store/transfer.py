"""Export and import: a folder of JSON lines and raw tensors that any engine can write and read. Data alone, never code.

    FOLDER/manifest.json      schema, generation, sha256 and rows of every other file
    FOLDER/TABLE.jsonl        one row per line, items by id (row numbers are local to an engine)
    FOLDER/vectors-N.safetensors   `ids` (32 bytes each, uint8 [N, 32]), `born` [N] and `matrix` [N, D] of the space
    in line N of space.jsonl

The whole history goes along, so the imported store has the same generations. File names are fixed: nothing in a
folder can say where to write or read. Everything is checked before the first row is written, and all rows are one
transaction.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import DBAPIError

from nestmem.durable import sync
from nestmem.store import points
from nestmem.store.engine import Engine, chunks, count, last_commit
from nestmem.store.errors import StoreError
from nestmem.store.model import dumps
from nestmem.store.rows import pack, unpack, visible
from nestmem.store.schema import (
    SCHEMA_VERSION,
    dynamics,
    hidden,
    hyperedge,
    item,
    journal,
    link,
    member,
    metadata,
    space,
    vector,
)
from nestmem.store.snapshot import file_hash, neutral

TABLES = (journal, space, item, hidden, dynamics, link, hyperedge, member)
LOCAL = (hidden, dynamics)  # keyed by row number, which is written as the item's id


def export(engine: Engine, folder: Path) -> dict[str, Any]:
    """Write everything into a new folder, which appears whole or not at all. Returns the manifest."""
    if folder.exists():
        raise StoreError(f"{folder}: already there; an export needs a new folder")
    if not folder.resolve().parent.is_dir():
        raise StoreError(f"{folder}: the folder {folder.resolve().parent} does not exist")
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with engine.sentences():
            aside.mkdir()
            with engine.read() as conn:
                generation = last_commit(conn)[0]
                files = {
                    f"{table.name}.jsonl": _write_rows(conn, table, aside / f"{table.name}.jsonl") for table in TABLES
                }
                points.reach("export:items")
                for number, row in enumerate(conn.execute(select(space).order_by(space.c.seq)).all()):
                    name = f"vectors-{number}.safetensors"
                    files[name] = _write_vectors(conn, row, aside / name)
            about = {name: {"rows": rows, "sha256": file_hash(aside / name)} for name, rows in files.items()}
            manifest = dict(schema=SCHEMA_VERSION, generation=generation, files=about)
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for path in aside.iterdir():
                sync(path)
            os.rename(aside, folder)
            sync(folder.resolve().parent)
            points.reach("export:renamed")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _write_rows(conn: Connection, table: Any, path: Path) -> int:
    rows = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in conn.execute(neutral(table)):
            file.write(dumps(dict(row._mapping)) + "\n")  # noqa: SLF001
            rows += 1
    return rows


def _write_vectors(conn: Connection, of: Any, path: Path) -> int:
    query = select(item.c.id, vector.c.born, vector.c.blob).join(item, item.c.seq == vector.c.seq)
    rows = conn.execute(query.where(vector.c.space == of.seq).order_by(item.c.seq)).all()
    ids = torch.tensor([list(r.id.encode()) for r in rows], dtype=torch.uint8).view(-1, 32)
    born = torch.tensor([r.born for r in rows], dtype=torch.int64)
    save_file({"ids": ids, "born": born, "matrix": unpack([r.blob for r in rows], of.dim)}, path)
    return len(rows)


def import_(engine: Engine, folder: Path) -> int:
    """Fill an empty store from an export. Returns its generation."""
    manifest = _checked(folder)
    try:
        rows = {table.name: list(_read_rows(table, folder / f"{table.name}.jsonl")) for table in TABLES}
        vectors = [_read_vectors(folder / f"vectors-{n}.safetensors", of["dim"]) for n, of in enumerate(rows["space"])]
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise StoreError(f"{folder}: not an export of a store ({error})") from None
    with engine.write("import") as change:
        conn = change.conn
        if count(conn, journal) or count(conn, item) or count(conn, space):
            raise StoreError(f"{engine.name}: not empty; an export is imported into a new store")
        try:
            for name in ("journal", "space", "item"):
                for piece in chunks(rows[name]):
                    conn.execute(insert(metadata.tables[name]), list(piece))
            seqs = {r.id: r.seq for r in conn.execute(select(item.c.id, item.c.seq))}
            numbers = {r.name: r.seq for r in conn.execute(select(space.c.name, space.c.seq))}
            for name in ("hidden", "dynamics"):
                for piece in chunks(rows[name]):
                    given = [{**r, "seq": seqs[r["id"]]} for r in piece]
                    conn.execute(
                        insert(metadata.tables[name]), [{k: v for k, v in r.items() if k != "id"} for r in given]
                    )
            for name in ("link", "hyperedge", "member"):
                for piece in chunks(rows[name]):
                    conn.execute(insert(metadata.tables[name]), list(piece))
            for of, (ids, born, blobs) in zip(rows["space"], vectors):
                packed = [
                    dict(seq=seqs[i], space=numbers[of["name"]], born=b, blob=v, checksum=zlib.crc32(v))
                    for i, b, v in zip(ids, born, blobs)
                ]
                for piece in chunks(packed):
                    conn.execute(insert(vector), list(piece))
        except (KeyError, DBAPIError) as error:
            raise StoreError(f"{folder}: not an export of a store ({getattr(error, 'orig', error)})") from None
        # The past comes along as it was: the journal ends where the export's ended, so nothing is added.
        if last_commit(conn)[0] != manifest["generation"]:
            raise StoreError(
                f"{folder}: its journal ends at {last_commit(conn)[0]}, its manifest at {manifest['generation']}"
            )
        engine.index_words(
            conn, [(r.seq, r.text) for r in conn.execute(select(item.c.seq, item.c.text).where(visible(None)))]
        )
    return int(manifest["generation"])


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest, after the names and hashes of all files in it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["schema"] != SCHEMA_VERSION:
            raise StoreError(f"{folder}: schema {manifest['schema']}, but this nestmem reads schema {SCHEMA_VERSION}")
        files = manifest["files"]
        spaces_ = files["space.jsonl"]["rows"]
        known = {f"{t.name}.jsonl" for t in TABLES} | {f"vectors-{n}.safetensors" for n in range(spaces_)}
        if set(files) != known:
            raise StoreError(f"{folder}: files {sorted(set(files) ^ known)} do not belong in an export, or are missing")
        for name, about in files.items():
            if file_hash(folder / name) != about["sha256"]:
                raise StoreError(f"{folder / name}: damaged: its sha256 is not the one in the manifest")
    except OSError as error:
        raise StoreError(
            f"{folder}: no export of a store ({error.strerror}: {Path(str(error.filename)).name})"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{folder}: its manifest.json is not one of an export") from None
    return dict(manifest)


def _read_rows(table: Any, path: Path) -> Iterator[dict[str, Any]]:
    columns = {c.name for c in table.c} - {"seq"} | ({"id"} if table in LOCAL else set())
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if not isinstance(row, dict) or set(row) != columns:
                raise ValueError(f"{path.name}: a row has other columns than {table.name}")
            if any(isinstance(v, dict | list) for v in row.values()):
                raise ValueError(f"{path.name}: a row holds what is neither text nor number")
            yield row


def _read_vectors(path: Path, dim: int) -> tuple[list[str], list[int], list[bytes]]:
    with safe_open(path, "pt") as file:
        ids, born, matrix = (file.get_tensor(n) for n in ("ids", "born", "matrix"))
    if ids.shape != (len(matrix), 32) or born.shape != (len(matrix),) or matrix.shape != (len(ids), dim):
        raise ValueError(f"{path.name}: shapes {list(ids.shape)}, {list(born.shape)}, {list(matrix.shape)} do not fit")
    if matrix.dtype != torch.float32 or not bool(matrix.isfinite().all()):
        raise ValueError(f"{path.name}: expected finite float32 numbers")
    return [bytes(row.tolist()).decode() for row in ids], born.tolist(), [pack(row) for row in matrix]
