"""Working memory of one run, with a time limit: a namespace of scratch, frames of recursion, and promotion of what is worth it.

    work = store.session("run-17")
    outer = work.frame("Where is the key?")                     a call begins
    inner = work.frame("What does page 1 say?", within=outer.id)
    said = work.result(inner.id, "It is under the mat.", parents=[span.id])     and ends: the next version of its frame
    work.promote(said.id)                                       a copy in the store's namespace, derived from this one

A frame is known by the calls that led to it, so a call made again in the same frame is the same frame, answered or not: a
run that died begins again and finds what it had paid for. Frames stand in a tree, the outermost highest. A session is
forgotten by `decay_tick` when nothing was written to it for `Retention.work` days, and then removed by `compact`, but for
what something promoted rests on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from torch import Tensor

from nestmem.store.engine import chunks
from nestmem.store.errors import StoreError
from nestmem.store.model import AUTO, L1, TOP_LEVEL, WORK, Item, New, Written, check_text
from nestmem.store.rows import get_items, unpack
from nestmem.store.schema import item, space, vector
from nestmem.store.writer import Writer, as_ids, as_new

FRAME = "frame:"  # begins the key of a frame


class Session(Writer):
    """`store.session(run)`: read and written like the store, in the namespace "work:RUN". home: where promoted items go."""

    def __init__(self, store: Writer, run: str):
        super().__init__(store._shards, WORK + check_text("run", run, empty=False), store.retention, None)  # noqa: SLF001
        self.run, self.home = run, store.namespace

    def _settled(self, new: New) -> New:
        return super()._settled(replace(new, run=new.run or self.run))

    def frame(self, call: str, *, within: str | None = None, **fields: Any) -> Written:
        """A call begins: what is asked, inside the frame `within` of its caller. Answered before, it is the answer's id."""
        mark = hashlib.sha256(check_text("call", call, empty=False).encode()).hexdigest()[:12]
        above = None if within is None else self.get(within)
        if above is not None and not above.key.startswith(FRAME):
            raise ValueError(f"within: expected a frame of this session, got item {within}")
        path = mark if above is None else f"{above.call_path}/{mark}"
        level = TOP_LEVEL - path.count("/")
        if level < L1:
            raise ValueError(f"within: expected at most {TOP_LEVEL} calls inside each other")
        known = self.find(FRAME + path)
        if known is None:  # it may be there from a session that ended
            known = next((each for each in self.history(FRAME + path) if each.died is None), None)
            if known is not None:
                self.remember(known.id)
        where = dict(root=above.root) if above is not None else {}
        begun = dict(key=FRAME + path, level=level, kind="plan", prior=True, call_path=path, **where)
        done = Written((known.id,), self.generation) if known else self.put(as_new(call, {**fields, **begun}))
        return done if above is None else Written(done.ids, self.link(above.id, done.id, "contains").generation)

    def result(self, frame: str, text: str, *, parents: Sequence[str] = (), **fields: Any) -> Written:
        """A call ends with what it came to, made of `parents`: a new version in the frame's place; the call is its past."""
        with self._read() as conns:
            there: dict[str, Item] = {}
            for conn in conns:
                there |= get_items(conn, [check_text("frame", frame)], any_state=True)
        if frame not in there or not there[frame].key.startswith(FRAME):
            raise StoreError(f"frame: no frame {frame!r} in this session")
        ended = dict(kind="result", parents=parents, prior=not parents, run=self.run, call_path=there[frame].call_path)
        return self.supersede(frame, as_new(text, {**fields, **ended}))

    def promote(self, ids: Sequence[str] | str, *, root: str | None = None, level: int | None = None) -> Written:
        """Copy items with their vectors to the namespace of the store, each derived from what it was here; all or none, and
        again is nothing. root, level: where they go, by default where they are; frames to L1, under no key of their own.
        """
        news = []
        given = as_ids(ids)
        vectors = self._vectors(given)
        for each in (self.get(ident) for ident in given):
            frame = each.key.startswith(FRAME)
            at = level if level is not None else L1 if frame else each.level
            same: dict[str, Any] = {name: getattr(each, name) for name in _KEPT}
            key = None if frame or each.key.startswith(AUTO) else each.key
            same |= dict(namespace=self.home, root=root or each.root, level=at, key=key)
            news.append(New(**same, parents=[each.id], vectors=vectors.get(each.id, {})))
        return self.put_many(news)

    def _vectors(self, ids: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """All vectors of items, by id and space."""
        found: dict[str, dict[str, Tensor]] = {}
        query = select(item.c.id, space.c.name, space.c.dim, vector.c.blob)
        query = query.join(vector, vector.c.seq == item.c.seq).join(space, space.c.seq == vector.c.space)
        with self._read() as conns:
            for conn in conns:
                for piece in chunks(ids):
                    for row in conn.execute(query.where(item.c.id.in_(piece))):
                        found.setdefault(row.id, {})[row.name] = unpack([row.blob], row.dim)[0]
        return found


_KEPT = (
    "text", "kind", "digest", "source", "start", "stop", "source_hash", "event_from", "event_to", "importance",
    "confidence", "trust", "pinned", "taint", "writer", "run", "call_path",
)  # fmt: skip
