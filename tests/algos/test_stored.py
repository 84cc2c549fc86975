"""A run with a store as a level of its memory: what it reads, what it leaves, and going on after an interruption."""

import json

import pytest
import torch

pytest.importorskip("sqlalchemy")

from algos.build import problem
from algos.config import configure
from algos.jobs import train
from algos.stored import new_session, settled
from algos.trainer import Trainer
from nestmem.memory.base import state_to_dict
from nestmem.store import Store
from tests.algos.test_visits import SMALL

pytestmark = pytest.mark.usefixtures("cache")


def tensors(state):
    return state_to_dict(state).values()


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


def test_occupancy_hits_and_ages_are_in_tensorboard_and_in_the_report(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(options(tmp_path, "one"))
    train([*options(tmp_path, "two"), "trainer.eval_every=3"])
    board = EventAccumulator(str(tmp_path / "two" / "tensorboard"))
    board.Reload()
    said = json.loads((tmp_path / "one" / "result.json").read_text())["store"]
    scalars = {tag: board.Scalars(tag)[-1].value for tag in board.Tags()["scalars"] if "store" in tag}
    assert scalars["val/store/items/L0"] == said["items"]
    assert scalars["val/store/generation"] == said["generation_written"]
    shares = [value for tag, value in scalars.items() if "hits/" in tag]
    assert len(shares) == 3 and sum(shares) == pytest.approx(100), "L0, this run, nothing alike"
    assert 0 <= scalars["val/store/age of items, days"] < 1
    for kind in ("val", "test"):
        for what in ("levels", "ages"):
            (image,) = board.Images(f"{kind}/store/{what}")
            assert image.width > 400 and image.encoded_image_string.startswith(b"\x89PNG")
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["numbers"]["store, items, L0"] == said["items"]
    assert sum(result["bars"]["store-ages"]["groups"]["items"]) == pytest.approx(100)
    report = tmp_path / "two" / "report"
    assert (report / "store-levels-nested.png").stat().st_size > 1000
    assert "store, items, L0" in (report / "report.html").read_text()


def visits(folder, session):
    """A problem whose streams have sessions of so many visits, and its updates."""
    config = configure([*options(folder, f"s{session}"), f"env.session={session}"])
    made = Trainer(config, problem(config))
    return made, lambda: made.problem.update(made._optimize)


def test_a_new_session_begins_empty_but_for_what_the_store_gathered(tmp_path):
    made, update = visits(tmp_path, 2)
    for _ in range(2):
        update()
    gathered = settled(made.learner.memory, made.problem.carried).levels[-1]
    begun = new_session(made.learner.memory, made.problem.carried, 2)
    empty = made.learner.memory.initial_state(2)
    for level, fresh in zip(begun.levels[:-1], empty.levels[:-1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(level), tensors(fresh), strict=True))
    assert gathered.valid.any() and torch.equal(begun.levels[-1].shown, gathered.valid) and not begun.step.any()
    update()
    assert (
        made.problem.carried.levels[-1].shown.any()
        and made.problem.carried.step[0] == made.problem.source.streams.steps
    )
    assert int(made.problem.carried.levels[-1].shown.sum()) <= int(gathered.valid.sum())


def test_sessions_are_resumed_bit_for_bit(tmp_path):
    whole, update = visits(tmp_path, 2)
    for _ in range(5):
        update()
    half, update = visits(tmp_path, 2)
    for _ in range(3):
        update()
    rest, update = visits(tmp_path, 2)
    rest.learner.load_state_dict(half.learner.state_dict())
    rest.optimizer.load_state_dict(half.optimizer.state_dict())
    rest.problem.load_state_dict({name: tensor.clone() for name, tensor in half.problem.state_dict().items()})
    rest.step = half.step
    for _ in range(2):
        update()
    mine, theirs = ({**t.learner.state_dict(), **t.problem.state_dict()} for t in (whole, rest))
    assert set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_memory_without_a_store_begins_every_session_empty(tmp_path):
    config = configure([*options(tmp_path, "none"), "memory.store=''", "env.session=2"])
    memory = problem(config).learner.memory
    _, state = memory(torch.randn(2, 6, memory.d_model), memory.initial_state(2))
    begun = new_session(memory, state, 2)
    assert all(torch.equal(a, b) for a, b in zip(tensors(begun), tensors(memory.initial_state(2)), strict=True))


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
