"""The examples of docs/store.md run, one after the other, and say what the page says."""

import re
from pathlib import Path

from nestmem.store.associations import ALSO

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "store.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, said = {}, []
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(example, names)
        # Expressions whose value the page gives in quotes or parentheses right behind them.
        if "valid_at" in example:
            continue
        for line in example.splitlines():
            if match := re.match(r'(\S.*?)  # \("(.*?)", \.\.\.\)$', line):
                said.append((eval(match[1], names)[0], match[2]))
    assert said and all(found == written for found, written in said)
    with names["Store"]("memory.db") as store, names["Store"]("elsewhere.db") as other:
        assert {i.id for i in store.items()} == {i.id for i in other.items()} and other.verify().clean
        assert store.items(), "the snapshot was restored"


def test_every_policy_and_operation_is_named():
    import nestmem.store

    strategies = (
        "PyramidMerge",
        "Episodes",
        "Communities",
        "Prototypes",
        "PredictCalibrate",
        "NoveltyGate",
        "associate",
    )
    strategies += ("Retention", "Layered", "ReciprocalRank", "CalibratedSum", "descend", "StoreLevel")
    missing = [name for name in (*strategies, *ALSO) if name not in PAGE]
    public = [n for n, f in vars(nestmem.store.Store).items() if not n.startswith("_") and callable(f)]
    own = {"unrelate", "unlink", "repair", "stats", "diff", "fingerprint"}
    missing += [n for n in public if n not in own and n not in PAGE]
    assert not missing
