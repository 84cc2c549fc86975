"""Commit points: the named instants at which a crash must lose nothing that was acknowledged.

Every transaction passes OP:begin, OP:written (all rows written, not committed) and OP:committed (durable, not yet
acknowledged); operations of several steps have further points between them. A test sets `hook` and kills the process
there.
"""

from __future__ import annotations

from collections.abc import Callable

STEPS = ("begin", "written", "committed")
MUTATIONS = (
    "space", "put", "touch", "link", "unlink", "relate", "supersede", "forget", "remember", "erase", "consolidate",
    "decay", "snapshot", "import", "compact",
)  # fmt: skip
BETWEEN = (
    "erase:compacted", "snapshot:copied", "snapshot:manifest", "restore:copied", "restore:kept", "restore:swapped",
    "export:items", "export:renamed", "cache:written", "cache:renamed",
)  # fmt: skip
POINTS = tuple(f"{op}:{step}" for op in MUTATIONS for step in STEPS) + BETWEEN

hook: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """Say that the process is at `point`, one of `POINTS`."""
    if hook is not None:
        if point not in POINTS:
            raise ValueError(f"point: {point!r} is not registered in nestmem.store.points")
        hook(point)
