"""Control with hidden dynamics: what is hidden changes what happens, drifts within its bounds, and comes back with the seed."""

import numpy as np
import pytest

from envs.control import WORLDS, Control
from nestmem.errors import UserError


def play(env, seed=None, steps=None):
    """Observations and rewards of random actions, the same ones for every trial."""
    observations, rewards = [env.reset(seed=seed)[0]], []
    rng = np.random.default_rng(0)
    for _ in range(steps or env.steps):
        if hasattr(env.single_action_space, "n"):
            actions = np.full(env.num_envs, rng.integers(env.single_action_space.n))
        else:
            actions = np.tile(rng.uniform(-1, 1, env.single_action_space.shape), (env.num_envs, 1))
        observation, reward, *_ = env.step(actions)
        assert env.observation_space.contains(observation)
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), np.stack(rewards)


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_is_its_seed_and_goes_on_from_where_it_was_saved(world):
    env = Control(3, world, episodes=2, horizon=8, drift=0.2)
    first = play(env, seed=1)
    assert first[1].shape == (16, 3) and (first[1] <= 1).all()
    state, there = env.state_dict(), play(env)
    other = Control(3, world, episodes=2, horizon=8, drift=0.2)
    other.load_state_dict(state)
    assert all((a == b).all() for a, b in zip(play(other), there, strict=True))
    assert all((a == b).all() for a, b in zip(play(Control(3, world, 2, 8, 0.2), seed=1), first, strict=True))
    assert (there[0] != first[0]).any()


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_hidden_makes_a_difference(world):
    """From the same start with the same actions, every hidden number changes what follows or what is paid."""
    outcomes = []
    for changed in range(WORLDS[world].hidden + 1):
        env = Control(1, world, episodes=1, horizon=12)
        env.reset(seed=0)
        env.h = np.full((1, env.hidden_size), 0.5)
        if changed:
            env.h[0, changed - 1] = -0.5
        env.np_random = np.random.default_rng(0)
        env.begin()
        rng, seen = np.random.default_rng(1), []
        for _ in range(12):
            if hasattr(env.single_action_space, "n"):
                action = np.array([rng.integers(2)])
            else:
                action = rng.uniform(-1, 1, (1, *env.single_action_space.shape))
            observation, reward, *_ = env.step(action)
            seen.append(np.append(observation[0], reward))
        outcomes.append(np.stack(seen))
    assert all((other != outcomes[0]).any() for other in outcomes[1:])


def test_dynamics_drift_within_their_bounds():
    env = Control(50, "pendulum", episodes=30, horizon=1, drift=0.3)
    env.reset(seed=0)
    seen = [env.h.copy()]
    for _ in range(29):
        env.step(np.zeros((50, 1)))
        seen.append(env.h.copy())
    moves = np.diff(seen, axis=0)
    assert np.abs(seen).max() <= 1 and moves.std() == pytest.approx(0.3, abs=0.05)
    assert np.std(seen[-1]) == pytest.approx(3**-0.5, abs=0.1)  # still uniform
    still = Control(2, "pendulum", episodes=3, horizon=1)
    still.reset(seed=0)
    before = still.h.copy()
    still.step(np.zeros((2, 1)))
    assert (still.h == before).all()


def test_a_pole_that_fell_rests_and_pays_nothing_until_the_next_episode():
    env = Control(4, "cartpole", episodes=2, horizon=60)
    env.reset(seed=0)
    observations, rewards = [], []
    for _ in range(env.steps):
        observation, reward, *_ = env.step(np.ones(4, np.int64))
        observations.append(observation)
        rewards.append(reward)
    rewards = np.stack(rewards).reshape(2, 60, 4)
    assert (rewards[:, 0] == 1).all() and (rewards[:, -1] == 0).all() and (np.diff(rewards, axis=1) <= 0).all()
    assert (observations[57] == observations[58]).all() and (observations[59] != observations[58]).any(1).all()


def test_what_is_refused():
    with pytest.raises(UserError, match=r"env.world: expected one of pendulum, .*, got 'moon'"):
        Control(1, "moon")
    with pytest.raises(UserError, match=r"env.drift: expected 0 to 1, got 2"):
        Control(1, drift=2)
