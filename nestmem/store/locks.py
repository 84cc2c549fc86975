"""Two lock files beside the database: who uses it, and who writes to it.

SQLite locks its own file. These locks add two things. One process at a time writes or checkpoints, which also keeps
clear of a race in the WAL of SQLite before 3.51.3 that can corrupt a file when two connections do so at one instant.
And a restore, which replaces the file, can tell whether anybody else has it open. The system drops both when a
process dies. On a system without `fcntl` (Windows) only threads of one process are kept apart, and SQLite's own locks
do the rest.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nestmem.store.errors import StoreError

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """An advisory lock on `path`, shared or exclusive, held until `release` or the end of the process."""

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None

    def acquire(self, *, shared: bool = False, timeout: float = 0.0) -> bool:
        """Whether the lock was got within `timeout` seconds. Also turns a shared lock that is held into another
        kind.
        """
        if fcntl is None:
            return True
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        deadline, pause = time.monotonic() + timeout, 0.0005
        while True:
            try:
                fcntl.flock(self._file, kind | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def unlock(self) -> None:
        if self._file is not None and fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Drop the lock as far as this process holds it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class WriterLock:
    """One writer at a time, over threads and processes: `with lock.held(): ...`. Not reentrant."""

    def __init__(self, path: Path, timeout: float):
        self.timeout = timeout
        self._thread = threading.Lock()
        self._file = FileLock(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        start = time.monotonic()
        if not self._thread.acquire(timeout=self.timeout):
            raise StoreError(f"store: another thread has been writing for {self.timeout:g} s")
        try:
            left = max(0.0, self.timeout - (time.monotonic() - start))
            if not self._file.acquire(timeout=left):
                name = str(self._file.path).removesuffix(".writer")
                raise StoreError(f"{name}: another process has been writing for {self.timeout:g} s; try again")
            try:
                yield
            finally:
                self._file.unlock()
        finally:
            self._thread.release()

    def close(self) -> None:
        self._file.close()
