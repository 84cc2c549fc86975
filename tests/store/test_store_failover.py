"""The primary is killed under load; its synchronous standby takes over: no acknowledged write is lost, the old one is fenced."""

import threading
import time

import pytest

from nestmem.store import Store, StoreError
from tests.store.server import Server

ENOUGH = 60  # writes before the primary is killed, and after
DURABLE = ("synchronous_commit=on", "wal_level=replica", "max_wal_senders=4", "hot_standby=on")


@pytest.mark.slow
def test_failover_under_load_loses_no_acknowledged_write():
    acknowledged, lost = failover()
    assert acknowledged > 0 and not lost, "zero acknowledged writes lost"


def until(done):
    """Wait for something that happens unless all is lost."""
    deadline = time.monotonic() + 600
    while not done():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def failover():
    """How many writes were acknowledged, and which of them were lost."""
    primary = Server(DURABLE)
    standby = None
    try:
        with Store(primary.url()) as first:
            first.put("the first")
        standby = Server((), source=primary)
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.sql("SELECT pg_reload_conf()")
        while not primary.sql("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
            time.sleep(0.05)
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://nestmem@{hosts}/postgres?target_session_attrs=read-write"
        acknowledged, attempted = [], []
        stop = threading.Event()

        def load(who):
            with Store(url, timeout=5.0) as mine:
                step = 0
                while not stop.is_set():
                    text = f"{who} {step}"
                    attempted.append(text)
                    try:
                        mine.put(text)  # a call whose answer was lost is made again
                        acknowledged.append(text)
                        step += 1
                    except StoreError:
                        time.sleep(0.1)

        threads = [threading.Thread(target=load, args=(f"writer {n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(acknowledged) >= ENOUGH)
        before = len(acknowledged)
        primary.kill()
        standby.sql("SELECT pg_promote(true, 600)")
        until(lambda: len(acknowledged) >= before + ENOUGH)
        stop.set()
        for thread in threads:
            thread.join(600)
        with Store(url, timeout=5.0) as after:
            recovered = {i.text for i in after.items()}
            assert recovered <= {*attempted, "the first"}
            lost = set(acknowledged) - recovered
            assert after.verify().clean
            assert len(acknowledged) > before > 0, "and the load went on at the new primary"
            standby.sql("SELECT 1")
            # The old primary comes back as it was. Who has seen the new one refuses it.
            primary.start()
            after._shards.engines[0]._pool.dispose()
            with pytest.raises(StoreError, match="was replaced"):
                after.put("to the wrong one")
            assert not primary.sql("SELECT 1 FROM item WHERE text = 'to the wrong one'")
        return len(acknowledged), lost
    finally:
        primary.stop()
        if standby is not None:
            standby.stop()
