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


@pytest.mark.parametrize(
    ("options", "says"),
    [({"split": "dev"}, "split: expected one of train"), ({"goals": 0}, "env.goals: expected at least 1")],
)
def test_mistakes_are_one_sentence(options, says):
    with pytest.raises(UserError, match=says):
        Reach(2, **options)
