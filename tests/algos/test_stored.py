"""A run with a store as a level of its memory: what it reads, what it leaves, and going on after an interruption."""

import json

import pytest

pytest.importorskip("sqlalchemy")

from algos.build import problem
from algos.config import configure
from algos.jobs import train
from algos.trainer import Trainer
from nestmem.store import Store
from tests.algos.test_visits import SMALL


def options(folder, name):
    return [*SMALL, "baselines=[]", f"memory.store={folder / 'memory.db'}", f"run={folder / name}", "trainer.steps=3"]


def test_a_run_leaves_what_it_learned_and_the_next_says_what_it_read(tmp_path):
    train(options(tmp_path, "one"))
    first = json.loads((tmp_path / "one" / "result.json").read_text())["store"]
    with Store(tmp_path / "memory.db") as store:
        items = store.items()
        assert first["items"] == len(items) > 0 and first["generation_written"] == store.generation
        assert {i.run for i in items} == {str(tmp_path / "one")} and store.verify().clean
    memory = problem(configure(options(tmp_path, "two"))).learner.memory
    assert int(memory.levels[-1].generation) == first["generation_written"] > first["generation_read"]
    assert len(memory.levels[-1].keys) == len(items), "last month's run is where this one begins"


def test_a_run_goes_on_with_the_generation_it_began_with(tmp_path):
    """Bit for bit, though somebody wrote to the store meanwhile."""
    with Store(tmp_path / "memory.db") as store:
        store.put("somebody else's note")

    def run(name, disturbed):
        config = configure(options(tmp_path, name))
        whole = Trainer(config, problem(config))
        for _ in range(3):
            whole.problem.update(whole._optimize)
            whole.step += 1
            if disturbed and whole.step == 2:
                whole.save()
                with Store(tmp_path / "memory.db") as store:
                    store.put("another note")
                with pytest.warns(UserWarning, match="reading generation"):
                    whole = Trainer(config, problem(config), resume=True)
        return whole.learner.state_dict()

    calm = run("calm", False)
    disturbed = run("disturbed", True)
    assert set(calm) == set(disturbed) and all(calm[name].equal(disturbed[name]) for name in calm)
