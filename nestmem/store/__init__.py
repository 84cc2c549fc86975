"""The persistent hierarchical store: verbatim items, what was made of them, and everything that ever changed, in one
database.

Needs the extra `store` (SQLAlchemy). `Store` is the way in; `Reader` is the same without writing; policies say what
to keep.
"""

from nestmem.store.errors import StoreError
from nestmem.store.fusion import ReciprocalRank
from nestmem.store.model import (
    L0,
    L1,
    L2,
    L3,
    PROC,
    Budget,
    Dynamics,
    Evidence,
    Found,
    Hit,
    Hyperedge,
    Item,
    Link,
    New,
    Space,
    Written,
)
from nestmem.store.novelty import NoveltyGate
from nestmem.store.policies import Derived, Policy, PredictCalibrate, PyramidMerge
from nestmem.store.pyramid import Pyramid
from nestmem.store.reader import Reader
from nestmem.store.retention import Retention
from nestmem.store.rows import Filter
from nestmem.store.store import Diff, Erased, Store, restore
from nestmem.store.verify import Report

__all__ = [
    "L0",
    "L1",
    "L2",
    "L3",
    "PROC",
    "Budget",
    "Derived",
    "Diff",
    "Dynamics",
    "Erased",
    "Evidence",
    "Filter",
    "Found",
    "Hit",
    "Hyperedge",
    "Item",
    "Link",
    "New",
    "NoveltyGate",
    "Policy",
    "PredictCalibrate",
    "Pyramid",
    "PyramidMerge",
    "Reader",
    "ReciprocalRank",
    "Report",
    "Retention",
    "Space",
    "Store",
    "StoreError",
    "Written",
    "restore",
]
