"""Statements that every put and every search runs: compiled once, then handed to SQLite's driver as they are.

SQLAlchemy builds, looks up and adapts a statement and its rows anew at each call, which takes ten times what SQLite
takes to run one (docs/decisions.md). On other engines, where the way to the server is longer, it runs them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.engine.default import DefaultDialect


class Prepared:
    """A statement whose values are bound by name: `statement(conn, name=value)` gives its rows as tuples.

    columns: of an INSERT, those that are given.
    """

    def __init__(self, statement: sa.Executable, columns: Sequence[str] | None = None):
        self.statement, self.columns = statement, columns
        self._sql = ""

    def __call__(self, conn: Connection, **values: Any) -> Sequence[Sequence[Any]]:
        if conn.dialect.name != "sqlite":
            done = conn.execute(self.statement, values)
            return done.all() if done.returns_rows else []
        return driver(conn).execute(*self._bound(conn, values)).fetchall()

    def each(self, conn: Connection, rows: Sequence[dict[str, Any]]) -> Sequence[Sequence[Any]]:
        """Run once for each of `rows`, given by column; what all of them return."""
        if conn.dialect.name != "sqlite":
            done = conn.execute(self.statement, list(rows)) if rows else None
            return done.all() if done is not None and done.returns_rows else []
        return [row for values in rows for row in driver(conn).execute(*self._bound(conn, values))]

    def _bound(self, conn: Connection, values: dict[str, Any]) -> tuple[str, list[Any]]:
        if not self._sql:
            assert isinstance(conn.dialect, DefaultDialect) and isinstance(self.statement, sa.ClauseElement)
            compiled: Any = self.statement.compile(dialect=conn.dialect, column_keys=self.columns)
            self._names, self._fixed, self._sql = compiled.positiontup, compiled.params, compiled.string
        return self._sql, [values[name] if name in values else self._fixed[name] for name in self._names]


def driver(conn: Connection) -> sqlite3.Connection:
    """SQLite's own connection below one of SQLAlchemy."""
    raw = conn.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw
