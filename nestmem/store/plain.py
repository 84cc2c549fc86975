"""Everything a store knows as plain rows, without what is local to one database: for fingerprints and exports."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, select

from nestmem.store.engine import chain
from nestmem.store.model import dumps
from nestmem.store.schema import dynamics, hidden, hyperedge, item, journal, link, member, space, vector

KNOWN = (journal, space, item, hidden, vector, dynamics, link, hyperedge, member)  # the rest are registers of one place


def fingerprint(conns: Sequence[Connection]) -> dict[str, dict[str, Any]]:
    """Rows and a sha256 per table of everything a store knows, equal on every engine and any number of shards."""
    found: dict[str, dict[str, Any]] = {}
    for table in KNOWN:
        rows = [list(r.values()) for r in one_past(conns)] if table is journal else all_rows(conns, table)
        lines = sorted(dumps([v.hex() if isinstance(v, bytes) else v for v in row]) for row in rows)
        found[table.name] = {"rows": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
    return found


def all_rows(conns: Sequence[Connection], table: Table) -> list[Row[Any]]:
    """The rows of a table on all shards, without row numbers, which are local: items and spaces go by name.

    Items, links and the journal are in the order they were written; what every shard has (spaces) comes once.
    """
    columns = [c for c in table.c if c.name != "seq" and not (table is vector and c.name == "space")]
    query: Select[Any] = select(*columns)
    if table in (hidden, dynamics, vector):
        query = query.add_columns(item.c.id).join(item, item.c.seq == table.c.seq)
    if table is vector:
        query = query.add_columns(space.c.name).join(space, space.c.seq == vector.c.space)
    query = query.order_by(*table.primary_key.columns)
    if table is space:
        return list(conns[0].execute(query))
    rows = [row for conn in conns for row in conn.execute(query)]
    if table is journal:
        return list(dict.fromkeys(sorted(rows, key=lambda row: row.generation)))
    return sorted(rows, key=lambda row: row.born) if "born" in table.c else rows


def one_past(conns: Sequence[Connection]) -> list[dict[str, Any]]:
    """The journal; of several shards as one: a generation that two of them have is one row, in a chain of its own."""
    rows = sorted(all_rows(conns, journal), key=lambda row: (row.generation, row.payload, row.hash))
    if len(conns) == 1:
        return [dict(row._mapping) for row in rows]  # noqa: SLF001
    by: dict[int, dict[str, Any]] = {}
    for row in rows:
        entry = dict(row._mapping)  # noqa: SLF001
        if (there := by.get(row.generation)) is not None:
            entry["op"] = "+".join(dict.fromkeys([*there["op"].split("+"), entry["op"]]))
            entry["ids"] += there["ids"]
            entry["recorded_at"] = max(entry["recorded_at"], there["recorded_at"])
            entry["payload"] = hashlib.sha256((there["payload"] + entry["payload"]).encode()).hexdigest()
        by[row.generation] = entry
    before = ""
    for entry in by.values():
        columns = ("generation", "op", "actor", "ids", "recorded_at", "payload")
        before = entry["hash"] = chain(before, *(entry[name] for name in columns))
    return list(by.values())


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
