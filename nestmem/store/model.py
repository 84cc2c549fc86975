"""What a store holds and answers: items on levels, what ties them, and what is said about them.

    L0  verbatim span, never rewritten        L1  paragraph or episode
    L2  section or scene                      L3  document, persona or schema          further levels up to 15
    PROC  procedural experience ("what worked when"), beside the pyramid

Time is kept twice: in the world (`event_from`, `event_to`, Unix seconds) and in the store (`recorded_at`; `born` and
`died` are generations, the number of the commit that brought or closed a row).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

PROC = -1
L0, L1, L2, L3 = 0, 1, 2, 3
TOP_LEVEL = 15
KINDS = ("span", "summary", "fact", "result", "plan", "experience", "prototype")
LINK_TYPES = (
    "contains", "next", "similar", "supports", "contradicts", "supersedes", "derived_from",
    "extension", "accumulation", "specification", "transformation", "connection",
)  # fmt: skip
STATES = ("active", "warm", "cold", "archived")
METRICS = ("cosine", "dot", "l2")
TEXT_LIMIT = 1_000_000  # characters
NAME_LIMIT = 1_000
AUTO = "auto:"  # begins a key that was made from what was given
WORK = "work:"  # begins the namespace of a session


@dataclass(frozen=True)
class New:
    """An item to put. Putting it twice, after a crash for instance, is the same as once.

    key: what the item is about, unique in its namespace: one current version each. Left out, it is made from what was
        given (text, level, kind, root, source, offsets, event times), so the same words at another time or place are
        another item.
    vectors: one per space, `[dim]`. parents: ids it was made from; needed above L0 unless `prior` says that it came
    from outside.
    """

    text: str
    key: str | None = None
    level: int = L0
    kind: str | None = None  # span at L0, experience at PROC, summary above
    namespace: str | None = None  # the store's
    root: str = "main"  # the subtree: it stays together when a store is spread over machines
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    parents: Sequence[str] = ()
    prior: bool = False
    digest: Mapping[str, Any] | None = None  # counts, entities, time range: what aggregation needs
    source: str = ""  # where the text stands
    start: int | None = None  # offsets in the source
    stop: int | None = None
    source_hash: str = ""
    event_from: float | None = None
    event_to: float | None = None
    importance: float = 0.5
    confidence: float = 1.0
    trust: float = 1.0
    pinned: bool = False
    taint: bool = False  # from a corrupted or unverified input; inherited by what is derived from it
    writer: str = ""
    run: str = ""
    call_path: str = ""


@dataclass(frozen=True)
class Item:
    """An item as the store holds it. `died` None: the current version."""

    id: str
    namespace: str
    root: str
    level: int
    kind: str
    key: str
    version: int
    text: str
    digest: Mapping[str, Any] | None
    content_hash: str
    source: str
    start: int | None
    stop: int | None
    source_hash: str
    event_from: float | None
    event_to: float | None
    event_closed: float | None
    recorded_at: float
    superseded_at: float | None
    born: int
    died: int | None
    ended: str | None
    importance: float
    confidence: float
    trust: float
    pinned: bool
    prior: bool
    taint: bool
    writer: str
    run: str
    call_path: str


class Dynamics(NamedTuple):
    """What use has done to an item: counters that only grow, and its place on the way out."""

    strength: float = 1.0  # times the strength S of its level
    retrievals: int = 0
    useful: int = 0
    last_access: float | None = None
    last_useful: float | None = None
    state: str = "active"


class Link(NamedTuple):
    src: str
    dst: str
    type: str
    weight: float
    evidence: str
    born: int
    died: int | None


class Hyperedge(NamedTuple):
    """A relation of any number of items: `members` maps an id to its role; `description` is the id of an item that
    says it.
    """

    id: str
    kind: str
    members: Mapping[str, str]
    description: str | None
    born: int
    died: int | None


class Evidence(NamedTuple):
    """A verbatim span that an item rests on. `verified`: its text has the hash it was stored with."""

    id: str
    text: str
    source: str
    start: int | None
    stop: int | None
    verified: bool


class Written(NamedTuple):
    """What a write acknowledges: the ids concerned and the generation at which they are durable."""

    ids: tuple[str, ...]
    generation: int

    @property
    def id(self) -> str:
        return self.ids[0]


class Rank(NamedTuple):
    """An item's place in one channel: rank from 1, the channel's raw score, and the part it gave to the fused score."""

    rank: int
    score: float
    part: float


class Hit(NamedTuple):
    """An item found. With `explain`: its rank in every channel, the factor of decay, and ids from its root down to
    it.
    """

    item: Item
    score: float
    channels: Mapping[str, Rank]
    decay: float
    path: tuple[str, ...]


class Found(NamedTuple):
    """Hits, best first; the generation that was searched; what ended the list: "k", "exhausted", "items", "bytes" or
    "ms".
    """

    hits: tuple[Hit, ...]
    generation: int
    stopped: str

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(hit.item.id for hit in self.hits)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(hit.item.text for hit in self.hits)


class Budget(NamedTuple):
    """Limits of one search: items returned, bytes of their text, milliseconds. None: no limit."""

    items: int | None = None
    bytes: int | None = None
    ms: float | None = None


class Space(NamedTuple):
    """A vector space: vectors compare only within it. `encoder` names (better: hashes) what made them."""

    name: str
    dim: int
    metric: str
    encoder: str


def content_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(value: object) -> str:
    """JSON with one spelling per value, for hashes and columns."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def check_text(name: str, value: object, limit: int = NAME_LIMIT, *, empty: bool = True) -> str:
    """A string every engine can hold, or a ValueError that says why not."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a string, got {type(value).__name__}")
    if len(value) > limit:
        raise ValueError(f"{name}: expected at most {limit:,} characters, got {len(value):,}")
    if not value and not empty:
        raise ValueError(f"{name}: expected some text, got an empty string")
    if "\0" in value:
        raise ValueError(f"{name}: expected text without NUL characters, got one at {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: expected valid Unicode, got a lone surrogate at {error.start}") from None
    return value


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value!r}")
    return float(value)


def check_level(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not PROC <= value <= TOP_LEVEL:
        raise ValueError(f"{name}: expected a level from {PROC} (procedural) to {TOP_LEVEL}, got {value!r}")
    return value


def check_one_of(name: str, value: object, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return str(value)


def check_new(new: New) -> New:
    """The item with its defaults filled in, or a ValueError."""
    if not isinstance(new, New):
        raise ValueError(f"item: expected nestmem.store.New, got {type(new).__name__}")
    level = check_level("level", new.level)
    default = "span" if level == L0 else "experience" if level == PROC else "summary"
    kind = check_one_of("kind", default if new.kind is None else new.kind, KINDS)
    check_text("text", new.text, TEXT_LIMIT, empty=False)
    for name in ("source", "source_hash", "writer", "run", "call_path"):
        check_text(name, getattr(new, name))
    for name in ("root", "key", "namespace"):
        if getattr(new, name) is not None:
            check_text(name, getattr(new, name), empty=False)
    for name in ("importance", "confidence", "trust"):
        check_number(name, getattr(new, name), 0, 1)
    for name in ("event_from", "event_to"):
        if getattr(new, name) is not None:
            check_number(name, getattr(new, name))
    if new.event_from is not None and new.event_to is not None and new.event_to < new.event_from:
        raise ValueError(f"event_to: expected at least event_from ({new.event_from}), got {new.event_to}")
    for name in ("start", "stop"):
        value = getattr(new, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53):
            raise ValueError(f"{name}: expected an offset of at least 0, got {value!r}")
    if isinstance(new.parents, str):
        raise ValueError("parents: expected a sequence of ids, got a string")
    if level != L0 and not new.parents and not new.prior:
        raise ValueError(f"parents: an item at level {level} needs the ids it was made from, or prior=True")
    if new.digest is not None:
        try:
            check_text("digest", dumps(new.digest), TEXT_LIMIT)
        except (TypeError, ValueError) as error:
            raise ValueError(f"digest: expected JSON ({error})") from None
    return replace(new, level=level, kind=kind, key=new.key or default_key(new, kind), parents=tuple(new.parents))


def default_key(new: New, kind: str) -> str:
    given = [new.text, new.level, kind, new.root, new.source, new.start, new.stop, new.event_from, new.event_to]
    return AUTO + hashlib.sha256(dumps(given).encode()).hexdigest()[:32]


def make_id(milliseconds: int, *parts: object) -> str:
    """128 bits as 32 hex digits: 48 of time, so that ids sort by it, and 80 of a hash of what the item is."""
    return f"{max(0, milliseconds) & (2**48 - 1):012x}{hashlib.sha256(dumps(parts).encode()).hexdigest()[:20]}"
