"""Meta-World: goals of splits kept apart, the package's own resets, state saved halfway, simulators that fail."""

import gc
import logging
import signal
import time

import numpy as np
import pytest
import scipy.spatial.transform
from gymnasium.error import ResetNeeded
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from envs import meta_world, meta_world_simulator, meta_world_sweeps
from envs.meta_world import OBSERVED, MetaWorld, moved
from envs.simulated import PATIENCE
from nestmem.errors import UserError

GOALS = 8


def reach(trials=2, **options):
    return MetaWorld(trials, **({"episodes": 2, "horizon": 6, "goals": GOALS} | options))


def steps(env, n, seed=0):
    """Observations, rewards and successes of n random steps."""
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(n):
        observation, reward, *_ = env.step(rng.uniform(-1, 1, (env.num_envs, 4)))
        seen.append(np.column_stack([observation, reward, env.success]))
    return np.stack(seen)


def test_the_vector_api():
    env = reach()
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation) and observation.shape == (2, OBSERVED)
    assert not observation[:, 36:].any()  # the goal is hidden
    env.action_space.seed(0)
    for t in range(env.steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation) and (terminated == (t % 6 == 5)).all()
        assert reward.dtype == np.float32 and (reward >= 0).all() and (reward <= 10).all() and not truncated.any()
    with pytest.raises(ResetNeeded, match="the trials are over"):
        env.step(env.action_space.sample())


def test_goals_of_training_validation_and_test_never_meet():
    """What is played, not only what was drawn: the package's registered ML1-train plays goals of the test."""
    played = {split: set() for split in ("train", "val", "test")}
    for split, seen in played.items():
        env = reach(4, split=split, horizon=1, episodes=1)
        env.reset(seed=0)
        for _ in range(6):
            seen |= {tuple(sim._target_pos) for sim in env.sims}
            env.reset()
        assert seen <= {tuple(task.vector[-3:]) for task in meta_world.draw("reach-v3", split, GOALS, 0)}
    assert len(played["train"]) > 4 and len(played["val"]) == len(played["test"]) == 4
    assert not played["train"] & played["test"] and not played["train"] & played["val"] | played["val"] & played["test"]
    assert (meta_world.draw("reach-v3", "train", GOALS, 1)[0].vector != env.task(0).vector).any()


def test_held_out_trials_go_through_the_goals_in_order_and_training_draws_them():
    env = reach(GOALS, split="test", horizon=1, episodes=1)
    env.reset(seed=0)
    assert [env.task(row) for row in range(GOALS)] == list(meta_world.draw("reach-v3", "test", GOALS, 0))
    env.reset()
    assert [env.task(row) for row in range(GOALS)] == list(meta_world.draw("reach-v3", "test", GOALS, 0))


def test_mixed_training_pairs_goals_with_things_of_other_tasks():
    """What is seen no longer names the goal; goals and places are those of training tasks. Held-out tasks stay as they are."""
    pool = meta_world.draw("reach-v3", "train", GOALS, 0)
    goals, things = ({tuple(task.vector[part]) for task in pool} for part in (slice(3, 6), slice(0, 3)))
    env = reach(4, horizon=1, episodes=1, mixed=True)
    found = set()
    for seed in range(6):
        env.reset(seed=seed)
        for row, sim in enumerate(env.sims):
            vector = env.task(row).vector
            assert (sim._target_pos == vector[3:]).all() and np.allclose(env.seen[row, 4:6], vector[:2], atol=0.01)
            found.add((tuple(vector[3:]), tuple(vector[:3])))
    assert {goal for goal, _ in found} <= goals and {thing for _, thing in found} <= things
    assert len({goal for goal, _ in found}) < len(found)
    held_out = reach(GOALS, split="test", mixed=True)
    held_out.reset(seed=0)
    assert [held_out.task(row) for row in range(GOALS)] == list(meta_world.draw("reach-v3", "test", GOALS, 0))


def test_a_kept_start_is_what_the_package_resets_to():
    """The first episode starts with the simulator's own reset, the second from the snapshot; another row takes it over, too."""
    env = reach(1, horizon=25)
    env.reset(seed=0)
    first = steps(env, 25)
    assert len(env.starts) == 1
    second = steps(env, 24)
    assert (first[:24] == second).all()
    sim = ALL_V3_ENVIRONMENTS["reach-v3"]()
    meta_world.settle(sim, env.task(0))
    official, rng = [sim.reset()[0]], np.random.default_rng(0)
    for _ in range(24):
        observation, reward, _, _, info = sim.step(rng.uniform(-1, 1, (1, 4))[0])
        official.append(np.concatenate([observation, [reward, info["success"]]]).astype(np.float32))
    assert (np.stack(official[1:]) == second[:, 0]).all()
    other = reach(1, horizon=25, split="val")
    other.reset(seed=0)
    other.tasks_of, other.starts = env.tasks_of, env.starts
    other.visit = -1
    other.begin()
    assert (steps(other, 24) == second).all()


@pytest.mark.parametrize("name", ["door-open-v3", "peg-insert-side-v3"])
def test_a_snapshot_in_the_middle(name):
    env = reach(1, task=name, goals=2, horizon=20, episodes=1)
    env.reset(seed=0)
    steps(env, 5, seed=1)
    held = env.snapshot(0)
    there = steps(env, 6, seed=2)
    env.restore(0, held)
    assert (steps(env, 6, seed=2) == there).all()


@pytest.mark.parametrize("name", ["reach-v3", "drawer-open-v3", "stick-push-v3", "hammer-v3", "soccer-v3"])
def test_what_is_seen_is_what_the_package_shows(name):
    ours, theirs = meta_world.simulator(name), ALL_V3_ENVIRONMENTS[name]()
    task, rng = meta_world.draw(name, "val", 1, 0)[0], np.random.default_rng(0)
    for sim in (ours, theirs):
        meta_world.settle(sim, task)
    assert np.allclose(ours.reset()[0], theirs.reset()[0], rtol=0, atol=1e-12)
    for _ in range(5):
        action = rng.uniform(-1, 1, 4)
        (seen, paid, *_), (shown, pays, *_) = ours.step(action), theirs.step(action)
        assert np.allclose(seen, shown, rtol=0, atol=1e-12) and paid == pytest.approx(pays, abs=1e-12)


def test_quaternions_are_those_of_scipy():
    turns = scipy.spatial.transform.Rotation.random(300, rng=0)
    for matrix, quaternion in zip(turns.as_matrix(), turns.as_quat(), strict=True):
        ours = meta_world_simulator.Rotation.from_matrix(matrix).as_quat()
        assert np.allclose(ours, scipy.spatial.transform.Rotation.from_matrix(matrix).as_quat(), rtol=0, atol=1e-14)
        assert abs(ours @ quaternion) == pytest.approx(1)


def test_saved_halfway_it_goes_on_bit_for_bit():
    options = dict(task="reach-v3+push-v3", tasks=2, visits=2, episodes=1, drift=0.02, bits=4)
    env = reach(**options)
    env.reset(seed=5)
    steps(env, 9)
    state = env.state_dict()
    there = steps(env, env.steps - 9, seed=1)
    again, _ = env.reset()
    other = reach(**options)
    other.load_state_dict(state)
    assert (steps(other, env.steps - 9, seed=1) == there).all()
    assert (other.reset()[0] == again).all()


def test_tasks_come_back_with_their_barcodes_and_drift():
    env = reach(3, tasks=2, visits=3, episodes=1, horizon=2, bits=5, drift=0.01)
    env.reset(seed=0)
    goals, codes = [], []
    for _ in range(6):
        goals.append([sim._target_pos.copy() for sim in env.sims])
        codes.append(env.observe()[:, OBSERVED:])
        steps(env, 2)
    goals, codes = np.stack(goals, 1), np.stack(codes, 1)  # [N, visits, ...]
    assert set(np.unique(codes)) == {-1, 1}
    for row in range(3):
        assert sorted(env.order[row]) == [0, 0, 0, 1, 1, 1]
        for task in range(2):
            mine = env.order[row] == task
            assert (codes[row, mine] == codes[row, mine][0]).all()
            moves = np.abs(np.diff(goals[row, mine], axis=0))
            assert (moves.max(1) > 0).all() and (moves <= 0.01 + 1e-9).all()
        assert (codes[row, env.order[row] == 0][0] != codes[row, env.order[row] == 1][0]).any()


def test_a_task_drifts_within_the_space_it_was_drawn_from():
    space, task = (
        meta_world.simulator("reach-v3")._random_reset_space,
        meta_world.draw("reach-v3", "train", GOALS, 0)[0],
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        task = moved(task, 0.5, rng)
        assert space.contains(task.vector) and np.linalg.norm(task.vector[:2] - task.vector[3:5]) >= 0.15


def test_ml10_deals_its_tasks_over_the_trials():
    train, test = (meta_world.names("ML10", "", split) for split in ("train", "test"))
    assert len(train) == 10 and len(test) == 5 and not set(train) & set(test)
    assert meta_world.names("ML10", "", "val") == train
    assert len(meta_world.names("ML45", "", "train")) == 45
    env = MetaWorld(5, "ML10", split="test", goals=1, episodes=1, horizon=2)
    env.reset(seed=0)
    assert [env.task(row).name for row in range(5)] == test
    assert np.isfinite(steps(env, 2)).all()


def test_a_blind_sweep_meets_goals_without_adapting():
    env = MetaWorld(6, split="test", goals=6, horizon=60, episodes=2)
    found = meta_world_sweeps.open_loop(env, seed=0)
    assert found.keys() == {f"{name}, {n} steps" for name in ("the middle", "a blind sweep") for n in (60, 500)}
    rewards, success = found["a blind sweep, 500 steps"]
    assert rewards.shape == (6, 500) and (success.max(1) > 0).mean() >= 5 / 6 and success[:, -1].mean() <= 0.5
    assert ((rewards >= 10) == (success > 0)).all()
    assert meta_world_sweeps.open_loop(MetaWorld(1, task="push-v3"), seed=0) == {}


class Faulty(MetaWorld):
    """A simulator of row 1 that fails once, at its third step."""

    fault = "raises"

    def build(self, row):
        sim = super().build(row)
        if row == 1 and not self.restarts:
            sim.do_simulation = lambda *given, **named: self.break_down(sim, *given, **named)
        return sim

    def break_down(self, sim, *given, **named):
        type(sim).do_simulation(sim, *given, **named)
        if sim.curr_path_length == 2:
            match self.fault:
                case "raises":
                    raise RuntimeError("the arm came off")
                case "hangs":
                    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= self.patience
                    signal.setitimer(signal.ITIMER_REAL, 0.01)  # so that nobody waits for it
                    time.sleep(60)
                case "not a number":
                    sim._target_pos = np.full(3, np.nan)  # so is the reward


@pytest.mark.parametrize(
    ("fault", "said"), [("raises", "the arm came off"), ("hangs", "no answer"), ("not a number", "finite")]
)
def test_a_simulator_that_fails_is_named_and_the_run_goes_on(fault, said, caplog):
    env = Faulty(2, episodes=2, horizon=6, goals=2)
    env.fault = fault
    healthy = MetaWorld(2, episodes=2, horizon=6, goals=2)
    env.reset(seed=0), healthy.reset(seed=0)
    with caplog.at_level(logging.WARNING):
        got, want = steps(env, 12), steps(healthy, 12)
    assert env.restarts == 1 and len(caplog.records) == 1
    assert said in caplog.text and "reach-v3" in caplog.text and "trial 1, step 2" in caplog.text
    assert (got[:, 0] == want[:, 0]).all() and (got[:2, 1] == want[:2, 1]).all()
    assert got[2, 1, -2] == 0 and np.isfinite(got).all()
    assert (got[2, 1, :OBSERVED] == want[5, 1, :OBSERVED]).all()  # where an episode of that task starts
    assert (got[6:, 1] == want[6:, 1]).all()


def test_a_simulator_that_never_works_ends_the_run_with_its_name():
    class Broken(MetaWorld):
        def place(self, row):
            raise OSError("no such robot")

    with pytest.raises(UserError, match=f"reach-v3, goal .*no such robot; failed {PATIENCE} times in a row"):
        Broken(1, goals=2).reset(seed=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the viewer that did not come to be
def test_where_rendering_does_not_work_one_line_says_so(caplog, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "no such thing")
    env = reach(1, film=2)
    env.reset(seed=0)
    with caplog.at_level(logging.WARNING):
        steps(env, 12)
    assert [record.message[:40] for record in caplog.records] == ["no videos: rendering does not work here "]
    assert env.film.frames == []
    caplog.clear()
    gc.collect()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "reach-v9"}, "env.task: Meta-World has no 'reach-v9'; known: .*reach-v3"),
        ({"benchmark": "ML11"}, "env.benchmark: expected ML1, ML10 or ML45, got 'ML11'"),
        ({"horizon": 501}, "env.horizon: expected 1 to 500 steps, got 501"),
        ({"tasks": 0}, "env.tasks: expected at least 1, got 0"),
        ({"drift": -1.0}, "env.drift: expected metres"),
        ({"drift": 0.1}, "env.drift: tasks move before they return"),
        ({"bits": 1, "tasks": 3}, "env.bits: expected at most 20, and 2\\^bits barcodes for 3 tasks, got 1"),
        ({"split": "all"}, "split: expected one of train, val, test, got 'all'"),
    ],
)
def test_what_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        reach(**options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_V3_ENVIRONMENTS)
def test_every_simulator_repeats_itself_from_a_snapshot_and_shows_what_the_package_does(name):
    """All fifty: a reset does not depend on what went before, and a snapshot taken to another instance goes on alike."""
    tasks, rng = meta_world.draw(name, "train", 2, 0), np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, 4))

    def play(sim):
        steps = (sim.step(action) for action in actions)
        return np.stack([np.append(seen, [paid, info["success"]]) for seen, paid, _, _, info in steps])

    one, two, theirs = meta_world.simulator(name), meta_world.simulator(name), ALL_V3_ENVIRONMENTS[name]()
    meta_world.settle(one, tasks[0]), meta_world.settle(two, tasks[1]), meta_world.settle(theirs, tasks[0])
    one.reset(), two.reset(), theirs.reset()
    start, first = meta_world_simulator.snapshot(one), play(one)
    assert np.allclose(first, play(theirs), rtol=0, atol=1e-10)
    play(two)
    meta_world_simulator.restore(two, start)
    assert (play(two) == first).all()
    meta_world.settle(one, tasks[1])
    one.reset()
    play(one)
    meta_world.settle(one, tasks[0])
    one.reset()
    assert (play(one) == first).all()
