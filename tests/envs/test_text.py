"""Text sources and lanes: nothing lost, true resets, exact places; and what is refused."""

import numpy as np
import pytest
import torch

from envs import documents
from envs.documents import Document, folder, source
from envs.tales import tale
from envs.text import Lanes, held
from envs.vocabulary import Bytes, trained
from nestmem.cli import main
from nestmem.errors import UserError

START = 256


def texts(*sizes):
    """Documents whose bytes tell which one they are of and where."""
    return [
        Document(f"d{i}", 0, size, data=((np.arange(size) * 7 + 50 * i) % 256).astype(np.uint8))
        for i, size in enumerate(sizes)
    ]


def followed(lanes, pieces):
    """What each lane says was wanted, cut into documents."""
    found = [[] for _ in range(lanes.rows)]
    for _ in range(pieces):
        piece = lanes.next()
        for lane in range(lanes.rows):
            if piece.fresh[lane]:
                assert piece.tokens[lane, 0] == START and piece.place[lane] == 0
                found[lane].append([])
            found[lane][-1] += piece.targets[lane][piece.wanted[lane]].tolist()
    return found


def test_lanes_show_every_document_once_a_round_whole_and_in_order():
    made = texts(5, 16, 33, 40)
    lanes = Lanes([made], 2, 8, START, seed=0)
    read = [tuple(d) for lane in followed(lanes, 40) for d in lane[:-1]]
    want = [tuple(d.data.tolist()) for d in made]
    assert all(document in want for document in read)
    assert set(read) == set(want)


def test_what_is_seen_is_the_token_before_what_is_asked():
    lanes = Lanes([texts(30)], 1, 8, START, seed=0)
    first, second = lanes.next(), lanes.next()
    assert torch.equal(first.tokens[:, 1:], first.targets[:, :-1])
    assert second.tokens[0, 0] == first.targets[0, -1] and not second.fresh.any() and second.place[0] == 8


def test_the_rest_of_a_piece_after_the_end_is_not_asked_for_and_does_not_begin_the_next():
    lanes = Lanes([texts(10, 10)], 1, 8, START, seed=0)
    lanes.next()
    end, begin = lanes.next(), lanes.next()
    assert end.wanted[0].tolist() == [True] * 2 + [False] * 6 and (end.tokens[0, 3:] == START).all()
    assert begin.fresh[0] and begin.wanted.all()


@pytest.mark.parametrize("cut", [1, 7, 23])
def test_a_place_is_a_few_numbers(cut):
    def make():
        return Lanes(
            [texts(20, 9, 31), texts(17, 50)], 3, 8, START, seed=4, visits=(0, 1, 0), phase=10, mixing=6, longest=25
        )

    whole, half, rest = make(), make(), make()
    want = [whole.next() for _ in range(40)]
    for _ in range(cut):
        half.next()
    rest.load_state_dict({k: v.clone() for k, v in half.state_dict().items()})
    for piece in want[cut:]:
        assert all(torch.equal(a, b) for a, b in zip(piece, rest.next()))


def test_sources_follow_one_another_and_return_with_what_they_have_not_shown():
    lanes = Lanes([texts(8, 8, 8, 8), texts(8)], 1, 8, START, seed=0, visits=(0, 1, 0), phase=2)
    pieces = [lanes.next() for _ in range(6)]
    assert [int(p.source[0]) for p in pieces] == [0, 0, 1, 1, 0, 0]
    shown = {tuple(p.targets[0].tolist()) for p in pieces if p.source[0] == 0}
    assert len(shown) == 4
    lanes = Lanes([texts(80), texts(80)], 4, 8, START, seed=0, visits=(0, 1), phase=10, mixing=8)
    sources = torch.stack([lanes.next().source for _ in range(20)])
    assert sources[5].sum() == 0 and sources[14].sum() == 4
    assert 0 < sources[10].sum() < 4, "lanes change one by one"


def test_ordered_sources_keep_their_order_and_long_documents_are_entered_anywhere():
    lanes = Lanes([texts(8, 8, 8)], 1, 8, START, seed=9, ordered=[True])
    assert [int(lanes.next().targets[0, 0]) for _ in range(4)] == [0, 50, 100, 0]
    lanes = Lanes([texts(10_000)], 1, 8, START, seed=0, longest=16)
    begins = {tuple(lanes.next().targets[0].tolist()) for _ in range(10)}
    assert len(begins) == 10


def test_held_out_documents_are_read_from_the_first_token_to_the_last():
    made = texts(5, 30, 17, 8)
    found = {i: [] for i in range(4)}
    for group, pieces in held(made, 2, 8, START):
        for piece in pieces:
            for row, i in enumerate(group):
                found[i] += piece.targets[row][piece.wanted[row]].tolist()
    assert [found[i] for i in range(4)] == [d.data.tolist() for d in made]
    ends = [sum(int(p.wanted.sum()) for p in pieces) for _, pieces in held(made, 4, 8, START, longest=9)]
    assert ends == [5 + 9 + 9 + 8]


def test_a_folder_in_pg19_layout_and_any_other(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / "pg" / split).mkdir(parents=True)
        (tmp_path / "pg" / split / "1.txt").write_text(split)
    made = folder(str(tmp_path / "pg"))
    assert [made.documents[s][0].read(0, 99).tobytes() for s in documents.SPLITS] == [b"train", b"validation", b"test"]
    (tmp_path / "any" / "deep").mkdir(parents=True)
    for i in range(20):
        (tmp_path / "any" / "deep" / f"{i:02}.txt").write_text("text")
    (tmp_path / "any" / "none.txt").touch()
    assert [len(d) for d in source(str(tmp_path / "any")).documents.values()] == [18, 1, 1]
    (tmp_path / "one.txt").write_bytes(bytes(range(100)) * 10)
    cut = source(str(tmp_path / "one.txt")).documents
    assert [len(cut[s][0]) for s in cut] == [900, 50, 50] and cut["val"][0].read(0, 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no folder or file"),
        (lambda p: p.mkdir(), "holds no .txt with text in it"),
        (lambda p: p.touch(), "the file is empty, expected text"),
        (lambda p: p.write_bytes(b"short"), "5 bytes cannot be cut"),
        (lambda p: [(p / s).mkdir(parents=True) for s in ("train", "validation", "test")], "holds no .txt"),
    ],
)
def test_what_is_refused_is_refused_in_one_sentence(tmp_path, capsys, make, says):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=says):
        source(str(tmp_path / "x"))
    assert main(["train", "experiment=tales", f"env.data=[{tmp_path}/x]", f"run={tmp_path}/r"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "r").exists()


def test_two_gigabytes_are_neither_read_nor_copied(tmp_path):
    path = tmp_path / "huge.txt"
    size = 2**31 + 5000
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(2**31 + 10)
        file.write(b"far")
    made = documents.one(str(path))
    assert len(made) == size and made.read(2**31 + 10, 2**31 + 13).tobytes() == b"far"
    lanes = Lanes([[made]], 1, 64, START, seed=0)
    lanes.next()
    lanes.load_state_dict(lanes.state_dict() | {"at": torch.tensor([[0, 0, 2**31]])})
    assert bytes(lanes.next().targets[0, 10:13].tolist()) == b"far"
    cut = source(str(path)).documents
    assert sum(len(d[0]) for d in cut.values()) == size


HARD = b"caf\xc3\xa9 \xff\xfe\x00 caf\xe9\r\n\xe2\x82 the end of the end"


def test_bytes_that_are_no_text_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("NESTMEM_CACHE", str(tmp_path / "cache"))
    assert Bytes().decode(Bytes().encode(HARD).tolist()) == HARD
    often = np.frombuffer(20 * HARD, np.uint8)
    pairs = trained([Document("hard", 0, len(often), data=often)], 280)
    found = pairs.encode(HARD)
    assert pairs.decode(found.tolist()) == HARD and len(found) < len(HARD)
    assert pairs.lengths[found].sum() == len(HARD)
    path = tmp_path / "hard.txt"
    path.write_bytes(HARD * 10)
    for _ in range(2):  # the second time from the cache
        (coded,) = pairs.documents([documents.one(str(path))])
        assert pairs.decode(coded.read(0, len(coded)).tolist()) == HARD * 10


def test_pairs_are_the_same_when_they_are_trained_again_and_when_they_are_loaded():
    made = [Document("tale", 0, 20000, data=tale(0, 20000))]
    first, again = trained(made, 300), trained(made, 300)
    assert first.saved() == again.saved() and type(first)(first.saved()).texts == first.texts
    with pytest.raises(UserError, match="expected 0 for bytes, or 257 to 65535"):
        trained(made, 100)


def test_tales_repeat_their_own_names_and_no_others():
    a, b = (set(tale(i, 30000).tobytes().split()) for i in (0, 1))
    names = [{w.strip(b".,") for w in words if w[:1].isupper()} for words in (a, b)]
    assert 5 < len(names[0]) < 40 and len(names[0] & names[1]) < 0.3 * len(names[0])
    assert np.array_equal(tale(3, 500), tale(3, 500))
    common = [{w for w in tale(0, 30000, dialect).tobytes().split() if w.islower()} for dialect in (0, 1)]
    assert len(common[0] & common[1]) < 0.3 * len(common[0]), "dialects do not share their words"


@pytest.mark.parametrize("name", ["books", "speeches", "wikitext"])
def test_named_sets(name, tmp_path, monkeypatch):
    from envs import archives

    if any(archives.locate(a) is None for a in documents.ARCHIVES[name]):
        pytest.skip(f"{name} is not under NESTMEM_DATA")
    made = source(name)
    assert all(made.documents[split] for split in documents.SPLITS)
    owners = [{(d.path, d.start) for d in made.documents[split]} for split in documents.SPLITS]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    if name == "speeches":
        years = [int(d.name[:4]) for d in made.documents["train"]]
        assert made.ordered and years == sorted(years)


def test_without_the_set_it_says_what_to_use_instead(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NESTMEM_DATA", str(tmp_path))
    monkeypatch.setenv("NESTMEM_CACHE", str(tmp_path))
    assert main(["train", "experiment=books"]) == 2
    assert "without it use env.data=[generated] or a folder of your own" in capsys.readouterr().err
