"""Rows as items and back, and the one rule of what is visible: at which generation, and at which time in the world."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import sqlalchemy as sa
import torch
from sqlalchemy import Connection, and_, bindparam, exists, func, or_, select
from torch import Tensor

from nestmem.store.errors import StoreError
from nestmem.store.model import KINDS as KNOWN_KINDS
from nestmem.store.model import STATES as KNOWN_STATES
from nestmem.store.model import Dynamics, Item, Space, check_level, check_number, check_one_of, check_text, dumps
from nestmem.store.prepared import Prepared
from nestmem.store.schema import dynamics, hidden, item, space

FIELDS = tuple(f.name for f in fields(Item))
COLUMNS = tuple(item.c[name] for name in FIELDS)
IN_TIME = (func.coalesce(item.c.event_from, item.c.recorded_at), func.coalesce(item.c.start, 0), item.c.seq)
DIGEST, FLAGS = FIELDS.index("digest"), tuple(FIELDS.index(name) for name in ("pinned", "prior", "taint"))
LASTING = tuple(n for n in FIELDS if n not in ("event_closed", "superseded_at", "died", "ended"))  # what never changes


@dataclass(frozen=True)
class Filter:
    """Which items a search is about. Everything left out does not matter; sequences mean "one of".

    valid_at: what held in the world at that time, by what is known now: also an older version, if a newer one
        replaced it because the world changed (`supersede(..., event_from=...)`) and not because it was wrong.
    event_between: items whose event interval meets this one (items without event times count by when they were
    recorded).
    """

    levels: Sequence[int] | None = None
    kinds: Sequence[str] | None = None
    roots: Sequence[str] | None = None
    states: Sequence[str] | None = None
    writers: Sequence[str] | None = None
    runs: Sequence[str] | None = None
    ids: Sequence[str] | None = None
    event_between: tuple[float, float] | None = None
    valid_at: float | None = None
    min_trust: float = 0.0
    tainted: bool | None = None
    pinned: bool | None = None

    def check(self) -> Filter:
        for level in self.levels or ():
            check_level("levels", level)
        for kind in self.kinds or ():
            check_one_of("kinds", kind, KNOWN_KINDS)
        for state in self.states or ():
            check_one_of("states", state, KNOWN_STATES)
        for name in ("kinds", "roots", "states", "writers", "runs", "ids"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a sequence of strings, got a string")
            for value in getattr(self, name) or ():
                check_text(name, value)
        if self.event_between is not None:
            low, high = (check_number("event_between", t) for t in self.event_between)
            if high < low:
                raise ValueError(f"event_between: expected (from, to), got {self.event_between}")
        if self.valid_at is not None:
            check_number("valid_at", self.valid_at)
        check_number("min_trust", self.min_trust, 0, 1)
        return self

    @property
    def lasting(self) -> bool:
        """Whether it asks only for what never changes in an item, which the vector cache knows by itself."""
        return self.states is None and self.valid_at is None

    @property
    def key(self) -> tuple[object, ...]:
        """The same for filters that ask the same."""
        return tuple(v if v is None or isinstance(v, int | float) else tuple(v) for v in vars(self).values())

    def at_levels(self, levels: Sequence[int]) -> Filter:
        """The same at these levels alone."""
        return replace(self, levels=tuple(levels))

    def clause(self) -> sa.ColumnElement[bool]:
        """Everything but visibility in time."""
        parts: list[sa.ColumnElement[bool]] = []
        for values, column in (
            (self.levels, item.c.level),
            (self.kinds, item.c.kind),
            (self.roots, item.c.root),
            (self.writers, item.c.writer),
            (self.runs, item.c.run),
            (self.ids, item.c.id),
        ):
            if values is not None:
                parts.append(column.in_(list(values)))
        if self.states is not None:
            here = exists().where(dynamics.c.seq == item.c.seq, dynamics.c.state.in_(list(self.states)))
            anywhere = exists().where(dynamics.c.seq == item.c.seq)
            parts.append(or_(here, ~anywhere) if "active" in self.states else here)  # no row yet: never touched, active
        if self.event_between is not None:
            low, high = self.event_between
            begin = func.coalesce(item.c.event_from, item.c.recorded_at)
            parts += [begin <= high, func.coalesce(item.c.event_to, begin) >= low]
        if self.min_trust > 0:
            parts.append(item.c.trust >= self.min_trust)
        if self.tainted is not None:
            parts.append(item.c.taint == int(self.tainted))
        if self.pinned is not None:
            parts.append(item.c.pinned == int(self.pinned))
        return and_(sa.true(), *parts)


def alive(table: sa.Table, at: int | None) -> sa.ColumnElement[bool]:
    """Rows of `table` that exist at generation `at` (None: now)."""
    if at is None:
        return table.c.died.is_(None)
    return and_(table.c.born <= at, or_(table.c.died.is_(None), table.c.died > at))


def visible(at: int | None, valid_at: float | None = None) -> sa.ColumnElement[bool]:
    """Items that a reader at generation `at` sees; with `valid_at`, those that held in the world at that time."""
    forgotten = exists().where(hidden.c.seq == item.c.seq, alive(hidden, at))
    there = and_(or_(item.c.ended.is_(None), item.c.ended != "erased"), ~forgotten)  # erasure reaches into the past
    if valid_at is None:
        return and_(alive(item, at), there)
    known: sa.ColumnElement[bool] = item.c.born <= at if at is not None else sa.true()
    end = func.coalesce(item.c.event_to, sa.case((alive(item, at), None), else_=item.c.event_closed))
    begin = func.coalesce(item.c.event_from, item.c.recorded_at)
    held = and_(begin <= valid_at, or_(end.is_(None), end > valid_at))
    return and_(known, or_(alive(item, at), item.c.event_closed.is_not(None)), held, there)


def to_item(row: Sequence[Any]) -> Item:
    """A row that begins with `COLUMNS` as an item."""
    values = list(row[: len(FIELDS)])
    values[DIGEST] = None if values[DIGEST] is None else json.loads(values[DIGEST])
    for place in FLAGS:
        values[place] = bool(values[place])
    return Item(*values)


def in_time(each: Item) -> tuple[float, int]:
    """The order of events (`IN_TIME`); equal ones stay as they were recorded."""
    return (each.recorded_at if each.event_from is None else each.event_from, each.start or 0)


def checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of what must never change in a row, so that a flipped bit anywhere in it shows."""
    return zlib.crc32(dumps([values[name] for name in LASTING]).encode())


def get_items(
    conn: Connection, ids: Sequence[str], at: int | None = None, *, any_state: bool = False
) -> dict[str, Item]:
    """Items by id, visible at `at` (or whatever has become of them). Ids that are not there are left out."""
    found: dict[str, Item] = {}
    for start in range(0, len(ids), 500):
        piece = list(ids[start : start + 500])
        if any_state:
            rows = _by_id(len(piece))(conn, **dict(zip(_names(len(piece)), piece)))
        else:
            rows = conn.execute(select(*COLUMNS).where(item.c.id.in_(piece), visible(at))).all()
        found |= {row[0]: to_item(row) for row in rows}
    return found


@lru_cache(64)
def _by_id(many: int) -> Prepared:
    return Prepared(select(*COLUMNS).where(item.c.id.in_([bindparam(name) for name in _names(many)])))


def _names(many: int) -> list[str]:
    return [f"id{n}" for n in range(many)]


def need_items(
    conns: Connection | Sequence[Connection], ids: Sequence[str], name: str, at: int | None = None
) -> dict[str, Item]:
    """Items by id, which must all be there: on `conns`, or on any of several (the shards of a store)."""
    if isinstance(ids, str):
        raise ValueError(f"{name}: expected a sequence of ids, got a string")
    for each in ids:
        check_text(name, each)
    found: dict[str, Item] = {}
    for conn in [conns] if isinstance(conns, Connection) else conns:
        if len(found) < len(ids):
            found |= get_items(conn, ids, at)
    if missing := [i for i in ids if i not in found]:
        raise StoreError(f"{name}: no item {missing[0]!r} that is current and not forgotten")
    return found


def get_dynamics(conn: Connection, seqs: Sequence[int]) -> dict[int, Dynamics]:
    found: dict[int, Dynamics] = {}
    for start in range(0, len(seqs), 500):
        where = dynamics.c.seq.in_(list(seqs[start : start + 500]))
        for row in conn.execute(select(dynamics).where(where)):
            found[row.seq] = Dynamics(
                row.strength, row.retrievals, row.useful, row.last_access, row.last_useful, row.state
            )
    return found


_spaces = Prepared(select(space.c.seq, space.c.name, space.c.dim, space.c.metric, space.c.encoder))


def spaces(conn: Connection) -> dict[str, tuple[int, Space]]:
    """All spaces by name, with their row numbers."""
    return {name: (seq, Space(name, *about)) for seq, name, *about in _spaces(conn)}


def need_space(known: Mapping[str, tuple[int, Space]], name: str) -> tuple[int, Space]:
    if name not in known:
        raise ValueError(
            f"space: expected one of {', '.join(sorted(known)) or 'none yet'}, got {name!r}; declare it with space()"
        )
    return known[name]


def check_vector(value: Tensor, of: Space) -> Tensor:
    """A float32 CPU vector of the space, `[dim]`, or a ValueError."""
    given = torch.as_tensor(value).detach()
    if given.shape != (of.dim,):
        raise ValueError(f"vector: expected [{of.dim}] in space {of.name!r}, got {list(given.shape)}")
    if given.is_complex():
        raise ValueError(f"vector: expected real numbers in space {of.name!r}, got {given.dtype}")
    given = given.to("cpu", torch.float32).contiguous()
    if not np.isfinite(given.numpy()).all():
        raise ValueError(f"vector: expected finite numbers in space {of.name!r}, got nan or inf")
    if of.metric == "cosine" and not given.numpy().any():
        raise ValueError(f"vector: expected a direction in space {of.name!r} (cosine), got zeros")
    return given


def pack(vector: Tensor) -> bytes:
    return vector.numpy().astype("<f4", copy=False).tobytes()


def unpack(blobs: Sequence[bytes], dim: int) -> Tensor:
    """Blobs as a matrix `[N, dim]`. A blob of another length is damage."""
    if any(len(blob) != 4 * dim for blob in blobs):
        raise StoreError("vector: damaged (a stored vector has the wrong length); run `nestmem store verify`")
    joined = np.frombuffer(b"".join(blobs), dtype="<f4").astype(np.float32, copy=True)
    return torch.from_numpy(joined).view(-1, dim)
