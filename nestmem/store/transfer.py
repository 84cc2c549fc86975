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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy import Connection, Table, delete, insert, select
from sqlalchemy.exc import DBAPIError

from nestmem.durable import sync
from nestmem.store import points
from nestmem.store.compaction import horizon, note
from nestmem.store.engine import Engine, chunks, count, last_commit
from nestmem.store.errors import StoreError
from nestmem.store.model import dumps
from nestmem.store.plain import all_rows, file_hash, one_past
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
    meta,
    metadata,
    snapshot,
    space,
    vector,
)
from nestmem.store.shards import Shards

TABLES = (journal, space, item, hidden, dynamics, link, hyperedge, member)
LOCAL = (hidden, dynamics)  # keyed by row number, which is written as the item's id
EDGES = {"hyperedge": "id", "member": "edge"}  # they lie where their members lie


def export(shards: Shards, folder: Path) -> dict[str, Any]:
    """Write everything into a new folder, which appears whole or not at all. Returns the manifest."""
    if folder.exists():
        raise StoreError(f"{folder}: already there; an export needs a new folder")
    if not folder.resolve().parent.is_dir():
        raise StoreError(f"{folder}: the folder {folder.resolve().parent} does not exist")
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with shards.engines[0].sentences():
            aside.mkdir()
            with shards.read() as sources:
                conns = [source.conn for source in sources]
                past = one_past(conns)
                generation = past[-1]["generation"] if past else 0
                oldest = max(horizon(conn) for conn in conns)
                files = {}
                for table in TABLES:
                    name = f"{table.name}.jsonl"
                    rows = past if table is journal else [dict(r._mapping) for r in all_rows(conns, table)]  # noqa: SLF001
                    (aside / name).write_text("".join(dumps(row) + "\n" for row in rows), encoding="utf-8")
                    files[name] = len(rows)
                points.reach("export:items")
                for number, of in enumerate(all_rows(conns[:1], space)):
                    name = f"vectors-{number}.safetensors"
                    files[name] = _write_vectors(conns, of, aside / name)
            about = {name: {"rows": rows, "sha256": file_hash(aside / name)} for name, rows in files.items()}
            manifest = dict(schema=SCHEMA_VERSION, generation=generation, horizon=oldest, files=about)
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for path in aside.iterdir():
                sync(path)
            os.rename(aside, folder)
            sync(folder.resolve().parent)
            points.reach("export:renamed")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _write_vectors(conns: Sequence[Connection], of: Any, path: Path) -> int:
    query = select(item.c.id, vector.c.born, vector.c.blob).join(item, item.c.seq == vector.c.seq)
    query = query.join(space, space.c.seq == vector.c.space).where(space.c.name == of.name).order_by(item.c.seq)
    rows = [row for conn in conns for row in conn.execute(query)]
    ids = torch.tensor([list(r.id.encode()) for r in rows], dtype=torch.uint8).view(-1, 32)
    born = torch.tensor([r.born for r in rows], dtype=torch.int64)
    save_file({"ids": ids, "born": born, "matrix": unpack([r.blob for r in rows], of.dim)}, path)
    return len(rows)


def import_(shards: Shards, folder: Path, *, replace: bool = False) -> int:
    """Fill an empty store from an export, or with `replace` one that is not empty. Returns its generation."""
    manifest = _checked(folder)
    try:
        rows = {table.name: list(_read_rows(table, folder / f"{table.name}.jsonl")) for table in TABLES}
        vectors = [_read_vectors(folder / f"vectors-{n}.safetensors", of["dim"]) for n, of in enumerate(rows["space"])]
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise StoreError(f"{folder}: not an export of a store ({error})") from None
    past = rows["journal"]
    ends = (past[-1]["generation"], past[-1]["hash"]) if past and len(shards) > 1 else (0, "none")
    with shards.write("import") as writing:
        for place, change in writing.changes.items():
            if not any(count(change.conn, table) for table in (journal, item, space)):
                continue
            if not replace and last_commit(change.conn) != ends:  # the same import, cut short between two shards
                raise StoreError(f"{shards.name}: not empty; an export is imported into a new store")
            for table in reversed(metadata.sorted_tables):
                if table not in (meta, snapshot):
                    change.conn.execute(delete(table))
            shards.engines[place].rebuild_words(change.conn, [])
        try:
            where = {r["id"]: shards.place(r["namespace"], r["root"]) for r in rows["item"]}
            homes = {"item": "id", "hidden": "id", "dynamics": "id", "link": "src"}
            edges = {r["edge"]: where[r["item"]] for r in rows["member"]}
            for place, change in writing.changes.items():
                mine = {name: [r for r in rows[name] if where[r[by]] == place] for name, by in homes.items()}
                mine |= {name: [r for r in rows[name] if edges[r[by]] == place] for name, by in EDGES.items()}
                mine |= {name: rows[name] for name in ("journal", "space")}  # every shard has the whole past
                blobs = [[v for v in zip(*of) if where[v[0]] == place] for of in vectors]
                note(change.conn, int(manifest.get("horizon", 0)))
                _fill(shards.engines[place], change.conn, mine, blobs)
                # The past comes along as it was: the journal ends where the export's ended, so nothing is added.
                if (last := last_commit(change.conn)[0]) != manifest["generation"]:
                    raise StoreError(f"{folder}: its journal ends at {last}, its manifest at {manifest['generation']}")
        except (KeyError, TypeError, DBAPIError) as error:
            raise StoreError(f"{folder}: not an export of a store ({getattr(error, 'orig', error)})") from None
    return int(manifest["generation"])


def _fill(
    engine: Engine,
    conn: Connection,
    rows: dict[str, list[dict[str, Any]]],
    vectors: Sequence[Sequence[tuple[str, int, bytes]]],
) -> None:
    """Write the rows of one shard."""
    _insert(conn, journal, rows["journal"])
    _insert(conn, space, rows["space"])
    _insert(conn, item, rows["item"])
    seqs = {r.id: r.seq for r in conn.execute(select(item.c.id, item.c.seq))}
    numbers = {r.name: r.seq for r in conn.execute(select(space.c.name, space.c.seq))}
    for table in LOCAL:
        given = [{**r, "seq": seqs[r["id"]]} for r in rows[table.name]]
        _insert(conn, table, [{k: v for k, v in r.items() if k != "id"} for r in given])
    for table in (link, hyperedge, member):
        _insert(conn, table, rows[table.name])
    for of, found in zip(rows["space"], vectors):
        number = numbers[of["name"]]
        packed = [dict(seq=seqs[i], space=number, born=b, blob=v, checksum=zlib.crc32(v)) for i, b, v in found]
        _insert(conn, vector, packed)
    engine.index_words(
        conn, [(r.seq, r.text) for r in conn.execute(select(item.c.seq, item.c.text).where(visible(None)))]
    )


def _insert(conn: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    for piece in chunks(rows):
        conn.execute(insert(table), list(piece))


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
