"""`nestmem store`: what a person types, rightly and wrongly."""

import re
import subprocess
import sys

import pytest

from nestmem.cli import main
from nestmem.store import New, PyramidMerge
from tests.store.helpers import ON_SQLITE


@pytest.fixture
def memory(store, place, vectors):
    ids = store.put_many(
        [New(f"frame {i} of [bold]it[/bold]", event_from=float(i), vectors={"w": vectors[i]}) for i in range(12)]
    )
    store.consolidate(PyramidMerge("w", capacities=(4, 2)))
    store.supersede(ids.ids[11], "frame 11, corrected")
    place.close()
    return ";".join(map(str, place.urls))


def said(capsys, *arguments, code=0):
    assert main(["store", *map(str, arguments)]) == code
    return capsys.readouterr().out


def test_looking_at_a_store(memory, capsys, place):
    assert "L1" in said(capsys, "stats", memory)
    hits = said(capsys, "search", memory, "frame", "11", "k=3", "levels=0")
    assert "corrected" in hits and "[bold]" not in hits.split("corrected")[0].split("frame 11")[-1]
    ident = re.search(r"[0-9a-f]{32}", hits)[0]
    shown = said(capsys, "show", memory, ident)
    assert "frame 11, corrected" in shown and "version 1 (generation 2): frame 11 of [bold]it[/bold]" in shown
    tree = said(capsys, "tree", memory)
    assert "main" in tree and "L1" in tree and "└" in tree
    assert "clean" in said(capsys, "verify", memory)


def test_keeping_a_store_safe(memory, capsys, place):
    folder = place.folder
    said(capsys, "snapshot", memory, folder / "snap")
    ident = place.open().search("frame", k=1).ids[0]
    place.close()
    said(capsys, "forget", memory, ident)
    assert ident not in place.open().search("frame", k=50).ids
    place.close()
    said(capsys, "remember", memory, ident)
    assert ident in place.open().search("frame", k=50).ids
    place.close()
    said(capsys, "forget", memory, ident)
    said(capsys, "restore", memory, folder / "snap")
    assert ident in place.open().search("frame", k=50).ids
    said(capsys, "export", memory, folder / "out")
    said(capsys, "import", folder / "second.db", folder / "out")
    assert "clean" in said(capsys, "verify", folder / "second.db")


def test_vectors_are_written_for_the_projector(memory, capsys, place, vectors):
    """The files are read back as TensorBoard reads them."""
    pytest.importorskip("tensorboard")
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    folder = place.folder / "board"
    assert "10 vectors of space w" in said(capsys, "projector", memory, folder, "levels=0,1", "most=10")
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (shown,) = config.embeddings
    points = [[float(x) for x in line.split("\t")] for line in (folder / shown.tensor_path).read_text().splitlines()]
    head, *rows = [line.split("\t") for line in (folder / shown.metadata_path).read_text().splitlines()]
    assert len(points) == len(rows) == 10 and {len(row) for row in rows} == {len(head)}
    with place.open() as store:
        for point, row in zip(points, rows, strict=True):
            item = dict(zip(head, row, strict=True))
            assert store.vector(item["id"], "w").tolist() == pytest.approx(point, abs=1e-6)
            assert item["text"] == " ".join(store.get(item["id"]).text.split()) and item["level"] in ("L0", "L1")
    place.close()
    for options, says in (
        ([folder], "is there already"),
        ([place.folder / "other", "space=v"], "space: expected one of w"),
        ([place.folder / "other", "levels=7"], "no vectors here"),
        ([place.folder / "other", "most=0"], "most: expected"),
    ):
        assert main(["store", "projector", memory, *map(str, options)]) == 2
        assert says in capsys.readouterr().err


@ON_SQLITE
def test_damage_is_shown_and_counted(memory, capsys, place):
    place.close()
    memory = place.url
    data = bytearray(memory.read_bytes())
    data[data.find(b"frame 3 of") + 6] ^= 1
    memory.write_bytes(data)
    assert "problems" in said(capsys, "verify", memory, code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stat", "x"], "no verb 'stat'"),
        (["stats"], "expected a URL"),
        (["stats", "nowhere.db"], "no store here"),
        (["search", "MEMORY"], "expected words"),
        (["search", "MEMORY", "a", "k=many"], "k: expected int"),
        (["search", "MEMORY", "a", "k=0"], "k: expected a whole number"),
        (["search", "MEMORY", "a", "levels=x"], "levels: expected numbers"),
        (["search", "MEMORY", "a", "at=999"], "generation: expected 0 to"),
        (["show", "MEMORY", "0" * 32], "no item"),
        (["show", "MEMORY"], "expected URL ID"),
        (["forget", "MEMORY"], "at least one ID"),
        (["forget", "MEMORY", "0" * 32], "no current item"),
        (["remember", "MEMORY"], "at least one ID"),
        (["remember", "MEMORY", "0" * 32], "does not come back"),
        (["restore", "MEMORY", "nowhere"], "no complete snapshot"),
        (["import", "MEMORY", "nowhere"], "no export"),
    ],
)
def test_mistakes_get_one_sentence(memory, capsys, arguments, says):
    assert main(["store", *(str(memory) if a == "MEMORY" else a for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_the_library_does_not_need_the_store():
    """SQLAlchemy is loaded with `Store` and not before."""
    code = "import sys, nestmem; assert 'sqlalchemy' not in sys.modules; from nestmem import Store; assert Store.put"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_names_every_verb(capsys):
    from nestmem.store.cli import VERBS

    text = said(capsys)
    assert all(f"nestmem store {verb} " in text for verb in VERBS)


def test_a_password_is_never_shown(capsys):
    secret = "postgresql://me:hunter2@127.0.0.1:1/db"
    assert main(["store", "stats", secret]) == 2
    said = capsys.readouterr()
    assert "no server answers" in said.err + said.out and "hunter2" not in said.err + said.out
