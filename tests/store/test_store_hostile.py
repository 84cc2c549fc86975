"""Bad input, bad files, bad machines: one clear sentence, and nothing lost."""

import os
import resource
import sqlite3
import sys

import pytest
import torch

from nestmem.errors import UserError
from nestmem.store import Budget, CalibratedSum, Filter, New, Store, StoreError, restore
from tests.store.helpers import ON_SQLITE

SQL = [
    "'; DROP TABLE item; --", '" OR 1=1 --', "%_\\", "words MATCH 'x'", "NEAR(a b)", "a* AND (b OR NOT c)", "{text}: x", "^x",
    "-x", '"', "''", "ümläut ß 日本語 🙂", "\n\t\r", "$1 :name ?1 @x", "\u202e\u200b",
]  # fmt: skip


@pytest.mark.parametrize("place", ["sqlite", "postgres", "files"], indirect=True)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vectors": {"w": torch.ones(7)}}, r"vector: expected \[8\] in space 'w', got \[7\]"),
        ({"vectors": {"w": torch.ones(1, 8)}}, r"got \[1, 8\]"),
        ({"vectors": {"w": torch.full((8,), float("nan"))}}, "finite numbers"),
        ({"vectors": {"w": torch.full((8,), float("inf"))}}, "finite numbers"),
        ({"vectors": {"w": torch.full((8,), 1e300, dtype=torch.double)}}, "finite numbers"),
        ({"vectors": {"w": torch.zeros(8)}}, "direction"),
        ({"vectors": {"w": torch.ones(8, dtype=torch.complex64)}}, "real numbers"),
        ({"vectors": {"nowhere": torch.ones(8)}}, "space: expected one of w, got 'nowhere'"),
        ({"vectors": torch.ones(8)}, "vectors: expected a mapping"),
        ({"text": ""}, "text: expected some text"),
        ({"text": "x" * 10_000_000}, "at most 1,000,000 characters, got 10,000,000"),
        ({"text": "a\0b"}, "NUL"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": b"bytes"}, "expected a string, got bytes"),
        ({"key": "k" * 2000}, "key: expected at most"),
        ({"level": 16}, "level: expected a level"),
        ({"level": True}, "level: expected a level"),
        ({"level": 1}, "parents: an item at level 1"),
        ({"level": 1, "parents": "abc"}, "parents: expected a sequence"),
        ({"level": 1, "parents": ["0" * 32]}, "parents: no item"),
        ({"kind": "poem"}, "kind: expected one of span"),
        ({"importance": 2}, "importance: expected 0 to 1"),
        ({"trust": float("nan")}, "trust: expected a finite number"),
        ({"event_from": "yesterday"}, "event_from: expected a finite number"),
        ({"event_from": 2.0, "event_to": 1.0}, "event_to: expected at least"),
        ({"start": -1}, "start: expected an offset"),
        ({"digest": {"a": {1, 2}}}, "digest: expected JSON"),
        ({"digest": {"a": float("nan")}}, "digest: expected JSON"),
        ({"colour": "red"}, "no field 'colour'"),
    ],
)
def test_a_bad_item_is_refused_in_one_sentence(store, change, says):
    store.put("there before")
    before = store.fingerprint()
    with pytest.raises((ValueError, StoreError), match=says) as caught:
        store.put(**{"text": "some text", **change})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert store.fingerprint() == before


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({}, "expected a text, a vector"),
        ({"text": 3}, "text: expected a string"),
        ({"text": "a", "k": 0}, "k: expected"),
        ({"vector": torch.ones(8)}, "together with space"),
        ({"vector": torch.ones(9), "space": "w"}, r"got \[9\]"),
        ({"vector": torch.ones(8), "space": "v"}, "space: expected one of w"),
        ({"text": "a", "near": float("nan")}, "near"),
        ({"text": "a", "where": Filter(levels=[99])}, "levels"),
        ({"text": "a", "where": Filter(kinds="span")}, "kinds"),
        ({"text": "a", "where": Filter(event_between=(2.0, 1.0))}, "event_between"),
        ({"text": "a", "budget": Budget(bytes=-1)}, "budget.bytes"),
        ({"text": "a", "diversity": 0.5}, "diversity: needs a vector"),
        ({"vector": torch.ones(8), "space": "w", "diversity": 2.0}, "diversity: expected 0 to 1"),
        ({"text": "a", "vector": torch.ones(8), "space": "w", "fusion": CalibratedSum()}, "by a vector alone"),
    ],
)
def test_a_bad_question_is_refused_in_one_sentence(store, ask, says):
    with pytest.raises(ValueError, match=says):
        store.search(**ask)


def test_a_vector_of_another_space_or_encoder_is_refused(store):
    store.space("other", 16, encoder="v1")
    with pytest.raises(ValueError, match="give a new encoder a new name"):
        store.space("other", 16, encoder="v2")
    store.put("in w", vectors={"w": torch.ones(8)})
    assert store.search(vector=torch.ones(16), space="other").ids == ()
    with pytest.raises(ValueError, match="space 'other'"):
        store.search(vector=torch.ones(8), space="other")


@pytest.mark.parametrize("text", SQL)
def test_sql_in_every_text_field_is_text(store, text):
    fields = dict(key=text, root=text, source=text, source_hash=text, writer=text, run=text, call_path=text)
    a = store.put(text, namespace=text, digest={text: text}, **fields).id
    b = store.put(text + "2", namespace=text, root=text).id
    up = store.put(text, level=1, prior=True, namespace=text, root=text).id
    store.link(up, a, "contains", evidence=text)
    store.relate(text, {a: text, b: text})
    item = store.get(a)
    assert all(
        getattr(item, name) == text
        for name in ("text", "key", "root", "source", "writer", "run", "call_path", "namespace")
    )
    where = Filter(roots=[text], writers=[text], runs=[text])
    assert [i.id for i in store.items(where, namespace=text)] == [a]
    store.search(text, namespace=text, where=where)
    store.search(text)
    with pytest.raises(StoreError):
        store.get(text)
    assert store.find(text, namespace=text).id == a and store.verify().clean


def test_what_is_no_store_is_not_touched(tmp_path):
    (tmp_path / "text.db").write_text("dear diary, " * 100)
    (tmp_path / "empty.db").touch()
    (tmp_path / "folder.db").mkdir()
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE mine (x)")
    foreign.commit()
    foreign.close()
    for name, says in (
        ("text.db", "not a SQLite file"),
        ("empty.db", "an empty file"),
        ("folder.db", "got a folder"),
        ("foreign.db", "something else"),
        ("none/memory.db", "does not exist"),
    ):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        with pytest.raises(UserError, match=says):
            Store(tmp_path / name)
        if before is not None and name != "foreign.db":
            assert (tmp_path / name).read_bytes() == before
    with pytest.raises(ValueError, match="url: expected"):
        Store("mysql://nowhere")
    with pytest.raises(StoreError, match="no store here"):
        Store(tmp_path / "not_there.db", read_only=True)
    with pytest.raises(StoreError, match="no complete snapshot"):
        restore(tmp_path / "not_there.db", tmp_path / "x.db")


def _sound(path, clock, expected):
    """Either the harm is noticed (and said in one sentence), or every answer is as before."""
    try:
        with Store(path, clock=clock) as store:
            report = store.verify()
            if not report.clean:
                return "noticed"
            said = {i.id: i.text for i in store.items()}
            assert said == expected
            return "harmless"
    except UserError as error:
        return "noticed" if "\n" not in str(error) else "noticed, but in more than a sentence"


@ON_SQLITE
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_noticed(store, place, vectors, share):
    store.put_many([New(f"text number {i}", vectors={"w": vectors[i]}) for i in range(40)])
    place.close()
    data = place.url.read_bytes()
    place.url.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StoreError, match="damaged"):
        Store(place.url)


@ON_SQLITE
def test_flipped_bits_are_noticed_or_harmless(store, place, vectors):
    store.put_many([New(f"text number {i}", vectors={"w": vectors[i]}, digest={"n": i}) for i in range(40)])
    store.supersede(store.find(store.items()[0].key).id, "newer")
    expected = {i.id: i.text for i in store.items()}
    place.close()
    data = place.url.read_bytes()
    assert _sound(place.url, place.clock, expected) == "harmless"
    random = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(25):
        at, bit = int(torch.randint(len(data), (), generator=random)), int(torch.randint(8, (), generator=random))
        harmed = bytearray(data)
        harmed[at] ^= 1 << bit
        place.url.write_bytes(harmed)
        seen.append(_sound(place.url, place.clock, expected))
    where = data.find(b"text number 17")
    harmed = bytearray(data)
    harmed[where + 3] ^= 1
    place.url.write_bytes(harmed)
    assert _sound(place.url, place.clock, expected) == "noticed", "a bit in a text"
    blob = data.find(vectors[17].numpy().tobytes())
    harmed = bytearray(data)
    harmed[blob + 5] ^= 1
    place.url.write_bytes(harmed)
    assert _sound(place.url, place.clock, expected) == "noticed", "a bit in a vector"
    assert set(seen) <= {"noticed", "harmless"}, (
        "most fall where nothing is written, and which ones do is drawn with the ids"
    )


@ON_SQLITE
@pytest.mark.parametrize("where", [b"CREATE TABLE item", b"CREATE TABLE meta", b"CREATE TABLE journal"])
def test_a_damaged_schema_is_noticed(store, place, where):
    """The top bit of a letter: no longer UTF-8, and SQLite quotes it when it complains."""
    store.put("before")
    expected = {i.id: i.text for i in store.items()}
    place.close()
    data = place.url.read_bytes()
    for offset in range(7, 17):
        harmed = bytearray(data)
        harmed[data.find(where) + offset] ^= 0x80
        place.url.write_bytes(harmed)
        assert _sound(place.url, place.clock, expected) == "noticed"


@ON_SQLITE
@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("item", "source = x'ff00'"),
        ("item", "text = CAST(text AS BLOB)"),
        ("item", "born = 'soon'"),
        ("journal", "payload = x'00'"),
        ("journal", "actor = CAST('me' AS BLOB)"),
        ("embedding", "blob = 'no bytes'"),
        ("embedding", "checksum = 'x'"),
    ],
)
def test_a_column_of_another_kind_is_noticed(store, place, table, change):
    """What a flipped bit in the header of a row does: SQLite takes any kind of value in any column."""
    store.put("before", vectors={"w": torch.ones(8)})
    expected = {i.id: i.text for i in store.items()}
    place.close()
    with sqlite3.connect(place.url) as raw:
        raw.execute(f"UPDATE {table} SET {change}")
    raw.close()
    assert _sound(place.url, place.clock, expected) == "noticed"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE item SET text = 'another'",
        "UPDATE item SET trust = 0.25",
        "UPDATE item SET digest = '{}'",
        "UPDATE item SET born = 99",
        "UPDATE embedding SET checksum = checksum + 1",
        "UPDATE journal SET payload = 'another' WHERE generation = 2",
        "UPDATE journal SET actor = 'somebody' WHERE generation = 3",
    ],
)
def test_a_row_changed_by_another_program_is_noticed(store, change):
    store.put("first", vectors={"w": torch.ones(8)})
    store.put("second")
    assert store.verify().clean
    for engine in store._shards.engines:
        with engine.connection(write=True) as conn, conn.begin():
            conn.exec_driver_sql(change)
    report = store.verify()
    assert report.problems and all("\n" not in problem for problem in report.problems)


@ON_SQLITE
def test_a_locked_database_says_so_and_goes_on_later(place):
    store = place.open(timeout=0.2)
    store.put("before")
    other = sqlite3.connect(place.url, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"locked by another program for 0\.2 s"):
        store.put("during")
    assert store.search("before").texts == ("before",), "readers do not wait"
    other.execute("ROLLBACK")
    other.close()
    store.put("after")
    assert {i.text for i in store.items()} == {"before", "after"}


@ON_SQLITE
def test_another_writer_that_does_not_end_is_named(place):
    store, other = place.open(timeout=0.2), place.open()
    with other._shards.engines[0].exclusive(), pytest.raises(StoreError, match="another process has been writing"):
        store.put("never")
    assert store.put("later").generation == 1


@ON_SQLITE
def test_reading_goes_on_where_nothing_may_be_written(store, place, vectors):
    """Run as another user: the permissions of a folder mean nothing to root."""
    store.put("kept", vectors={"w": vectors[0]})
    place.close()
    for path in place.folder.glob("memory.db.*"):
        if path.is_file():
            path.unlink()
    os.chmod(place.url, 0o444)
    os.chmod(place.folder, 0o555)
    for above in place.folder.parents:
        if above.stat().st_uid == os.getuid() and above != above.parent and not above.stat().st_mode & 0o001:
            os.chmod(above, above.stat().st_mode | 0o011)

    def work():
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(StoreError, match="no permission to write"):
            Store(place.url)
        with Store(place.url, read_only=True) as reader:
            assert reader.search("kept", vector=vectors[0], space="w").texts == ("kept",)
            with pytest.raises(StoreError, match="read-only"):
                reader.put("new")

    assert _forked(work) == 0
    os.chmod(place.folder, 0o755)
    assert sorted(p.name for p in place.folder.glob("memory.db*") if p.is_file()) == ["memory.db"], (
        "nothing was left there"
    )


@ON_SQLITE
def test_a_full_disk_loses_nothing_that_was_acknowledged(store, place):
    """A limit on the size of files stands for the disk."""
    read, write = os.pipe()
    place.close()

    def work():
        with Store(place.url, clock=place.clock) as mine:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
            for step in range(200):
                try:
                    mine.put(f"{step} " + "x" * 20_000)
                except StoreError as error:
                    os.write(write, b"full\n" if "nothing was written" in str(error) else b"unclear\n")
                    break
                os.write(write, f"{step}\n".encode())
            mine.search("x")
            mine._shards.engines[0]._pool.dispose(close=False)
            os._exit(0)

    assert _forked(work) == 0
    os.close(write)
    said = os.read(read, 100_000).decode().split()
    assert said[-1] == "full" and len(said) > 3
    store = place.open()
    assert [i.text.split()[0] for i in store.items()] == said[:-1]
    assert store.verify().clean and store.put("there is room again")


@ON_SQLITE
def test_a_snapshot_or_export_on_a_full_disk_leaves_nothing_behind(store, place):
    store.put_many([f"{i} " + "x" * 20_000 for i in range(40)])
    before = store.fingerprint()
    place.close()

    def work():
        with Store(place.url, clock=place.clock) as mine:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            for name, act in (("s", mine.snapshot), ("e", mine.export)):
                with pytest.raises(StoreError):
                    act(place.folder / name)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            os._exit(0)

    assert _forked(work) == 0
    left = {p.name for p in place.folder.iterdir()}
    assert not {n for n in left if n.startswith(("s", "e"))}
    assert place.open().fingerprint() == before


def _forked(work):
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
