"""What a store says when it cannot do what was asked: one sentence, and nothing was lost."""

from nestmem.errors import UserError


class StoreError(UserError):
    """The store is locked, damaged, full, read-only or in use; or an id or a snapshot is not what it should be."""
