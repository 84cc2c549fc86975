"""Streams that go on in another process: which visits count, what is measured in them, and the command line."""

import json

import numpy as np
import pytest

pytest.importorskip("sqlalchemy")

from algos.sessions import adaptation, judged, kind_of_visit
from nestmem.cli import main
from nestmem.probes import Undefined
from nestmem.store import Store
from tests.algos.test_visits import SMALL


def test_visits_are_told_apart_by_what_earlier_sessions_met():
    context = np.array([[0, 1, 2, 0, 3, 0, 3, 1], [0, 1, 2, 3, 4, 4, 5, 2]])
    # The second session is the last four visits: context 0 and 1 are known, 3 is not.
    assert kind_of_visit(context, 4).tolist() == [[-1, 0, -2, 0], [-1, -2, -1, 0]]
    assert kind_of_visit(context[:, :4], 4).tolist() == [[-1, -1, -1, -2], [-1, -1, -1, -1]], "nothing comes before"


def test_adaptation_is_counted_by_shots_and_steps():
    """Three visits of four steps to two classes, each shown twice; two of them count."""
    right = np.array([[[0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]]], dtype=bool)
    seen = np.array([[[0, 0, 1, 1]] * 3])
    chosen = np.array([[True, True, False]])
    found = adaptation(np.stack([right, seen]), chosen)
    assert found["visits"] == 2 and found["after 0 shots"].mean == 25 and found["after 1 shots"].mean == 100
    assert found["shots to 90 %"] == 1 and found["steps to 90 %"] == 3 and found["all"].mean == pytest.approx(62.5)
    none = adaptation(np.stack([right, seen]), np.array([[False, False, True]]))
    assert isinstance(none["shots to 90 %"], Undefined) and none["after 0 shots"].mean == 0
    assert adaptation(np.stack([right, seen]), np.zeros((1, 3), bool)) == {"visits": 0}
    numbers = judged(np.stack([right, seen]), np.array([[7, 8, 8, 7, 9]]), 3)
    assert [numbers[name]["visits"] for name in ("known, visit 1", "known, visit 2", "new")] == [2, 0, 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    options = [*SMALL, "baselines=[]", "trainer.steps=4", "env.session=4", f"memory.store={folder / 'training.db'}"]
    assert main(["train", *options, f"run={folder / 'run'}"]) == 0
    return folder / "run"


def asked(run, folder, *options):
    target = folder / "said.json"
    assert main(["eval", str(run), *options, "streams=4", "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_the_second_session_knows_what_the_first_wrote_and_nothing_when_it_is_gone(run, tmp_path):
    store, empty = f"store={tmp_path / 'memory.db'}", f"store={tmp_path / 'empty.db'}"
    first = asked(run, tmp_path, "session=1", store)
    written = first["stored"]
    assert written["items_read"] == 0 < written["items_written"] and first["numbers"]["known, visit 1"]["visits"] == 0
    with Store(tmp_path / "memory.db") as there:
        assert len(there.items()) == written["items_written"] and there.generation == written["generation_written"]
    warm = asked(run, tmp_path, "session=2", store, "write=false")
    assert warm["stored"] == {"generation_read": written["generation_written"], "items_read": written["items_written"]}
    assert asked(run, tmp_path, "session=2", store, "write=false") == warm, "reading changes nothing"
    with Store(tmp_path / "memory.db") as there:
        there.forget([item.id for item in there.items()])
    cleared, cold = (asked(run, tmp_path, "session=2", each, "write=false") for each in (store, empty))
    assert cleared["numbers"] == cold["numbers"], "the gain vanishes with what was stored"
    guesses = [each["numbers"]["known, visit 1"]["after 0 shots"]["mean"] for each in (warm, cold)]
    assert guesses[0] > guesses[1] + 15, "an untrained gate hears it among others"
    assert asked(run, tmp_path, "session=2", empty, "carry=true")["numbers"] != cold["numbers"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["session=3"], "which must divide the 12 visits"),
        (["session=1", "of=5"], "which must divide the 12 visits"),
        (["session=0"], "a whole number of at least 1"),
        (["session=1", "carry=maybe"], "carry: expected true or false"),
        (["session=1", "split=train"], "split: expected val or test"),
        (["session=1", "ways=3"], "no option 'ways'"),
        (["session=1", "store="], "was trained with a store"),
    ],
)
def test_mistakes_get_one_sentence(run, tmp_path, capsys, options, says):
    given = options if any(o.startswith("store=") for o in options) else [*options, f"store={tmp_path / 'm.db'}"]
    assert main(["eval", str(run), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
