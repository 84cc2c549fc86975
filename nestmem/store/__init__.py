"""The persistent hierarchical store: verbatim items, what was made of them, and everything that ever changed, in one
database.

Needs the extra `store` (SQLAlchemy). `Store` is the way in; `Reader` is the same without writing; policies say what
to keep.
"""

from nestmem.store.associate import associate
from nestmem.store.codebook import Prototypes
from nestmem.store.communities import Communities
from nestmem.store.descend import Descent, descend
from nestmem.store.errors import StoreError
from nestmem.store.fusion import CalibratedSum, ReciprocalRank
from nestmem.store.layers import Layered
from nestmem.store.matrix import Slots, matrix_export, matrix_import
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
from nestmem.store.segment import Episodes
from nestmem.store.session import Session
from nestmem.store.store import Diff, Store, restore
from nestmem.store.verify import Report
from nestmem.store.writer import Erased

__all__ = [
    "L0",
    "L1",
    "L2",
    "L3",
    "PROC",
    "Budget",
    "CalibratedSum",
    "Communities",
    "Derived",
    "Descent",
    "Diff",
    "Dynamics",
    "Episodes",
    "Erased",
    "Evidence",
    "Filter",
    "Found",
    "Hit",
    "Hyperedge",
    "Item",
    "Layered",
    "Link",
    "New",
    "NoveltyGate",
    "Policy",
    "PredictCalibrate",
    "Prototypes",
    "Pyramid",
    "PyramidMerge",
    "Reader",
    "ReciprocalRank",
    "Report",
    "Retention",
    "Session",
    "Slots",
    "Space",
    "Store",
    "StoreError",
    "Written",
    "associate",
    "descend",
    "matrix_export",
    "matrix_import",
    "restore",
]
