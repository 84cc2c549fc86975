"""Servers that go away, refuse, or are busy: one clear sentence, and nothing lost."""

import pytest
import torch

from nestmem.store import New, Store, StoreError
from nestmem.store.engine import last_commit
from tests.store.helpers import SERVED, roots_on
from tests.store.server import Server, server


@pytest.fixture
def own():
    """A server for this test alone, durable as by default."""
    running = Server()
    yield running
    running.stop()


def refused(match, act):
    with pytest.raises(StoreError, match=match) as caught:
        act()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_server_that_vanishes_and_comes_back(own):
    store = Store(own.url(), timeout=60.0)
    store.put("before")
    own.kill()
    refused("the connection was lost|no server answers", lambda: store.put("during"))
    refused("no server answers", lambda: store.search("before"))
    refused("no server answers", lambda: Store(own.url(), timeout=60.0))
    own.start()
    assert store.search("before").texts == ("before",), "the same object goes on"
    assert store.put("during").generation == 2 and store.verify().clean
    store.close()


def test_one_of_several_shards_vanishes_and_comes_back(own, tmp_path):
    store = Store([own.url(), tmp_path / "a.db", tmp_path / "b.db"], timeout=60.0)
    roots = [root for n in range(3) for root in roots_on(store, n, 1)]
    store.put_many([New(f"before {root}", root=root) for root in roots])
    before = store.fingerprint()
    own.kill()
    news = [New(f"during {root}", root=root) for root in roots]
    refused("the connection was lost|no server answers", lambda: store.put_many(news))
    refused("no server answers", lambda: store.search("before"))
    own.start()
    assert store.fingerprint() == before, "nothing of the call was done on the shards that were there"
    store.put_many(news)
    assert len(store.items()) == 6 and store.verify().clean
    store.close()


def test_a_servers_disk_that_is_full_loses_nothing_that_was_acknowledged():
    """A limit on the size of files stands for the disk."""
    running = Server(limit=4_000_000)
    try:
        running.sql("CREATE EXTENSION vector")
        with Store(running.url(), timeout=60.0) as store:
            store.space("wide", 4000)
            vectors = torch.randn(300, 4000, generator=torch.Generator().manual_seed(0))
            done = 0
            said = ""
            while done < 300 and not said:
                try:
                    store.put_many([New(f"item {n}", vectors={"wide": vectors[n]}) for n in range(done, done + 20)])
                    done += 20
                except StoreError as error:
                    said = str(error)
            assert said.endswith("the server's disk is full; nothing was written")
            assert 0 < done < 300 and [i.text for i in store.items()] == [f"item {n}" for n in range(done)]
            assert store.verify().clean and store.search("item", k=3).ids
    finally:
        running.stop()


def test_a_user_who_may_only_read(own):
    own.sql("CREATE EXTENSION vector")
    with Store(own.url()) as store:
        store.put("kept")
    own.sql("CREATE ROLE guest LOGIN")
    own.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest")
    guest = own.url().replace("nestmem@", "guest@")
    with Store(guest, read_only=True) as reader:
        assert reader.search("kept").texts == ("kept",)
    with Store(guest) as writer:
        refused("no permission", lambda: writer.put("new"))
        assert [i.text for i in writer.items()] == ["kept"]


@SERVED
def test_a_writer_that_does_not_end_is_waited_for_and_named(place):
    store = place.open(timeout=0.3)
    store.put("before")
    with place.open() as other, other._shards.write("put"):
        refused("another process has been writing for 0.3 s", lambda: store.put("never"))
        assert store.search("before").texts == ("before",), "readers do not wait"
    assert store.put("later").generation == 2


@SERVED
def test_a_connection_that_is_cut_loses_nothing_acknowledged(place):
    """The server ends the connections of a writer, as an administrator or a crash of one process would."""
    store = place.open()
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'nestmem' AND pid <> pg_backend_pid()"
    for step in range(6):
        store.put(f"step {step}")
        if step % 2:
            server().sql(cut)
    assert [i.text for i in store.items()] == [f"step {n}" for n in range(6)]

    def interrupted():
        with store._shards.write("put") as writing:
            server().sql(cut)
            writing.changes[0].conn.exec_driver_sql("SELECT 1")

    refused("connection was lost", interrupted)
    assert store.put("after").generation == 7 and store.verify().clean


@SERVED
def test_a_server_that_only_reads(place):
    with place.open() as store:
        store.put("kept")
    with Store(place.url, read_only=True) as reader:
        assert reader.search("kept").texts == ("kept",)
        refused("read-only", lambda: reader.put("new"))


@SERVED
def test_addresses_that_are_wrong(place):
    url = server().url()
    refused("no server answers", lambda: Store("postgresql://127.0.0.1:1/x"))
    refused("no such database", lambda: Store(url.replace("/postgres", "/nothing")))
    refused("refuses this user", lambda: Store(url.replace("nestmem@", "nobody@")))
    refused("no store here", lambda: Store(place.url, read_only=True))
    with pytest.raises(ValueError, match="url: expected postgresql"):
        Store("postgresql://host/db?colour=red")
    server().sql("CREATE SCHEMA IF NOT EXISTS foreign_tables")
    server().sql("CREATE TABLE IF NOT EXISTS foreign_tables.item (x int)")
    theirs = server().url(options="-csearch_path=foreign_tables,public")
    refused("something else", lambda: Store(theirs))


@SERVED
def test_a_vector_too_long_for_the_server(place):
    with place.open() as store:
        with pytest.raises(ValueError, match="at most 16,000"):
            store.space("long", 16_001)
        assert store.spaces() == {}


def test_a_server_without_pgvector_says_so(own):
    own.sql("CREATE ROLE guest LOGIN")
    guest = own.url().replace("nestmem@", "guest@")
    refused("pgvector|no permission", lambda: Store(guest))


@SERVED
def test_many_readers_meanwhile(place):
    """A reader keeps its generation while a writer goes on."""
    store, other = place.open(), place.open()
    store.put_many([New(f"{n}") for n in range(5)])
    with store._shards.read() as sources:
        before = last_commit(sources[0].conn)
        other.put("later")
        assert last_commit(sources[0].conn) == before
    assert store.generation == before[0] + 1
