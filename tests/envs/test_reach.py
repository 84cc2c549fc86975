"""Reach without the robot: goals of splits, the reward, what training shows, state that is saved."""

import numpy as np
import pytest

from envs.reach import HIGH, LOW, START, Reach
from nestmem.errors import UserError


def test_who_knows_the_goal_gets_there_and_stays():
    env = Reach(50, episodes=2, horizon=60, split="test")
    observation, _ = env.reset(seed=0)
    for t in range(env.steps):
        assert env.observation_space.contains(observation)
        if t % 60 == 0:
            assert np.allclose(observation[:, :3], START, atol=1e-6)
        goal = (LOW + HIGH) / 2 + env.hidden() * (HIGH - LOW) / 2
        observation, rewards, over, *_ = env.step((goal - env.target) / 0.01)
        assert (over == (t % 60 == 59)).all() and ((rewards == 10) == env.success).all()
        if t % 60 == 59:
            assert env.success.all()
        elif t % 60 == 0:
            assert (rewards < 2).all()


def test_goals_of_splits_differ_and_held_out_ones_come_in_order():
    envs = {split: Reach(20, split=split, goals=20) for split in ("train", "val", "test")}
    for env in envs.values():
        env.reset(seed=0)
    assert len({goal for env in envs.values() for goal in map(tuple, env.all_goals)}) == 60
    assert (envs["test"].goal == envs["test"].all_goals).all() and (envs["test"].thing == envs["test"].all_things).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_thing_gives_the_goal_away_unless_mixed(mixed):
    env = Reach(400, goals=5, mixed=mixed)
    env.reset(seed=0)
    pairs = {(*goal, *thing) for goal, thing in zip(env.goal, env.thing, strict=True)}
    assert len(pairs) == (25 if mixed else 5)


def test_a_saved_env_goes_on_with_the_same_goals():
    env, other = Reach(4), Reach(4)
    env.reset(seed=0)
    other.load_state_dict(env.state_dict())
    env.reset(), other.reset()
    assert (env.goal == other.goal).all() and (env.thing == other.thing).all()


def test_goals_come_back_with_their_barcodes():
    env = Reach(50, tasks=3, visits=2, episodes=2, horizon=2, bits=6)
    observation, _ = env.reset(seed=0)
    goals, codes = [], []
    for _ in range(env.episodes):
        goals.append(env.goal)
        codes.append(observation[:, 8:])
        for _ in range(env.horizon):
            observation, *_ = env.step(np.zeros((50, 3)))
    goals, codes = np.stack(goals, 1)[:, ::2], np.stack(codes, 1)[:, ::2]  # of visits, which are two episodes each
    assert env.episodes == 12 and set(np.unique(codes)) == {-1, 1}
    same = env.order[:, :, None] == env.order[:, None]
    assert ((goals[:, :, None] == goals[:, None]).all(-1) >= same).all(), "a task keeps its goal"
    assert ((codes[:, :, None] == codes[:, None]).all(-1) == same).all(), "and has a barcode of its own"
    assert (np.sort(env.order[:, :3], 1) == np.arange(3)).all() and (env.order[:, 2] != env.order[:, 3]).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 1, "tasks": 3}, "env.bits: expected at most 20, and 2\\^bits barcodes for 3 tasks, got 1"),
        ({"split": "dev"}, "split: expected one of train"),
        ({"goals": 0}, "env.goals: expected at least 1"),
    ],
)
def test_mistakes_are_one_sentence(options, says):
    with pytest.raises(UserError, match=says):
        Reach(2, **options)
