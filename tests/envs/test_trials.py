"""Bandits and worlds behave as the papers say, through gymnasium's vector API; known policies score what is known of them."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from envs import bandit_baselines as known
from envs.bandits import HIGH, LOW, Bandits, Barcodes
from envs.mdp_baselines import play as play_mdp
from envs.mdps import MDPs, plan
from nestmem.errors import UserError

FAMILIES = [lambda n: Bandits(n, episodes=6, arms=3), lambda n: Barcodes(n, 3, 2, 4, 5), lambda n: MDPs(n, 3, 4, 5, 2)]


def walk(env, seed=None):
    """All that a trial of random actions shows."""
    observations, rewards, over = [env.reset(seed=seed)[0]], [], []
    rng = np.random.default_rng(0)
    for _ in range(env.steps):
        action = rng.integers(env.single_action_space.n, size=env.num_envs)
        observation, reward, terminated, truncated, infos = env.step(action)
        assert env.observation_space.contains(observation) and not truncated.any()
        observations.append(observation)
        rewards.append(reward)
        over.append(terminated)
    assert infos["trial_over"].all()
    return np.stack(observations), np.stack(rewards), np.stack(over)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_vector_api(make):
    env = make(7)
    observations, rewards, over = walk(env, seed=3)
    assert rewards.dtype == np.float32 and rewards.shape == (env.steps, 7)
    ends = np.arange(1, env.steps + 1) % env.horizon == 0
    assert (over == ends[:, None]).all() and ends.sum() == env.episodes
    with pytest.raises(ResetNeeded, match="the trials are over"):
        env.step(np.zeros(7, np.int64))
    again = walk(make(7), seed=3)
    assert all((a == b).all() for a, b in zip((observations, rewards, over), again))
    assert (walk(env)[1] != rewards).any()  # new tasks


@pytest.mark.parametrize("make", FAMILIES)
def test_a_saved_env_draws_the_same_tasks_next(make):
    env = make(5)
    walk(env, seed=1)
    state = env.state_dict()
    there, other = walk(env)[1], make(5)
    other.load_state_dict(state)
    assert (walk(other)[1] == there).all()


def test_bandits_pay_as_their_arms_say():
    env = Bandits(4000, episodes=2, arms=3)
    env.reset(seed=0)
    paid = np.mean([env.step(env.p.argmax(1))[1] for _ in range(2)])
    assert paid == pytest.approx(3 / 4, abs=0.02) and env.known().mean() == pytest.approx(3 / 4, abs=0.01)


def test_barcodes_name_tasks_that_come_back():
    env = Barcodes(200, tasks=4, visits=3, pulls=2, arms=5, bits=6)
    observations, _, _ = walk(env, seed=0)
    codes = observations[:-1:2] @ (1 << np.arange(6))  # [episodes, N]
    assert (np.take_along_axis(env.codes, env.order, 1) == codes.T).all()
    assert all(len(set(row)) == 4 for row in env.codes)
    assert (np.sort(env.order, 1) == np.repeat(np.arange(4), 3)).all()
    assert (np.diff(env.order, axis=1) != 0).all(), "never twice in a row"
    assert sorted(env.visit()[0]) == [0] * 4 + [1] * 4 + [2] * 4
    assert len({tuple(row) for row in env.order}) > 190
    env.reset(seed=0)
    first = env.order[:, 0]
    right = env.step(env.good[env.rows, first])[1].mean()
    wrong = env.step((env.good[env.rows, first] + 1) % 5)[1].mean()
    assert right == pytest.approx(HIGH, abs=0.07) and wrong == pytest.approx(LOW, abs=0.07)


def test_shuffled_barcodes_say_nothing():
    env = Barcodes(500, tasks=4, visits=3, shuffled=True)
    env.reset(seed=0)
    assert (env.shown == env.order).mean() == pytest.approx(1 / 4, abs=0.03)
    assert (np.sort(env.shown, 1) == np.sort(env.order, 1)).all()


def test_worlds_have_the_priors_of_the_paper():
    env = MDPs(300)
    env.reset(seed=0)
    assert env.means.mean() == pytest.approx(1, abs=0.02) and env.means.std() == pytest.approx(1, abs=0.02)
    assert np.allclose(env.p.sum(-1), 1) and env.p.var() == pytest.approx(
        0.9 * 0.1 / 11, rel=0.05
    )  # Dirichlet(1, ..., 1)
    assert (env.observe() == 0).all()
    action = np.zeros(300, np.int64)
    rewards = env.step(action)[1]
    assert np.std(rewards - env.means[:, 0, 0]) == pytest.approx(1, abs=0.1)
    for _ in range(9):
        observation = env.step(action)[0]
    assert (observation == 0).all()  # the next episode


def test_transitions_follow_the_world():
    env = MDPs(20000, horizon=3, states=4, actions=2)
    env.reset(seed=0)
    env.p[:] = [0.1, 0.2, 0.3, 0.4]
    env.upto = env.p.cumsum(-1)
    observation = env.step(np.ones(20000, np.int64))[0]
    assert np.allclose(np.bincount(observation) / 20000, [0.1, 0.2, 0.3, 0.4], atol=0.015)


def test_planning_agrees_with_following_the_plan():
    env = MDPs(4000, episodes=1, horizon=4, states=3, actions=2)
    state, _ = env.reset(seed=0)
    values, got = plan(env.p, env.means, 4), 0
    for step in range(4):
        state, reward, _, _, _ = env.step(values[step, env.rows, state].argmax(-1))
        got += reward
    assert got.mean() == pytest.approx(env.known().mean(), abs=0.12)  # four standard errors


@pytest.mark.parametrize(
    "make",
    [lambda: MDPs(8000, 2, 4, 3, 2), lambda: Bandits(8000, episodes=8), lambda: Barcodes(8000, 2, 2, 3, 3)],
    ids=["mdps", "bandits", "barcodes"],
)
def test_regret_is_what_returns_lack(make):
    """By expectation: luck in rewards and in where steps lead is left out of it, and nothing else."""
    env, rng = make(), np.random.default_rng(0)
    env.reset(seed=0)
    paid, lost = np.zeros(env.num_envs), np.zeros(env.num_envs)
    for _ in range(env.steps):
        told = env.hidden()
        assert (told.min(1) == 0).all(), "the best action costs nothing"
        actions = rng.integers(env.single_action_space.n, size=env.num_envs)
        paid += env.step(actions)[1]
        assert (env.regret == told[env.rows, actions]).all()
        lost += env.regret
    gap = paid - (env.known().sum(1) - lost)
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(env.num_envs) and lost.mean() > 1


def test_the_exact_optimum():
    assert known.optimum(1, 3) == pytest.approx(1 / 2)
    assert known.optimum(2, 2) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)  # stay after a win, else change
    assert known.optimum(10, 5) == pytest.approx(6.660, abs=5e-4)


def test_gittins_indices_of_the_printed_tables():
    """Gittins, Glazebrook & Weber 2011, table 8.1 has these for a uniform prior."""
    assert known.gittins_table(0.9, 3)[0, 0] == pytest.approx(0.7029, abs=2e-4)
    assert known.gittins_table(0.99, 3)[0, 0] == pytest.approx(0.8699, abs=2e-4)
    table = known.gittins_table(0.9, 3)
    assert table[1, 0] > table[0, 0] > table[0, 1] and np.isnan(table[2, 2])


def test_known_policies_on_ten_pulls():
    rewards = known.bandit_rewards(Bandits(4000), seed=0)
    names = ("random", "greedy", "UCB1", "Thompson", "Gittins")
    got = dict(zip(names, (r.sum(1).mean() for r in rewards.values())))
    published = {"random": 4.99, "greedy": 6.61, "Thompson": 5.81, "Gittins": 6.64}  # standard error .035
    assert got == pytest.approx(published | {"UCB1": 6.64}, abs=0.12)
    assert max(got.values()) < known.optimum(10, 5) + 0.1


def test_gittins_on_500_pulls():
    """Published (Duan et al. 2016): 405.8 where the best arm gives 416.7, a regret of 10.9, with an approximation of the index."""
    env = Bandits(250, episodes=500)
    rewards = known.play(env, known.gittins(0.995, 500), seed=0)
    assert 5 < (env.known() - rewards).sum(1).mean() < 10.9  # standard error .6


def test_remembering_a_barcode_saves_exploration():
    env = Barcodes(500)
    rewards = known.barcode_rewards(env, seed=0)
    best = env.known().sum(1).mean()
    regret = {name: best - r.sum(1).mean() for name, r in rewards.items()}
    guessing, anew, remembered = regret.values()
    assert guessing == pytest.approx(200 * (HIGH - (HIGH + 9 * LOW) / 10), rel=0.03)
    assert remembered < 0.4 * anew < 0.4 * guessing


def test_planners_on_worlds():
    got = {kind: play_mdp(MDPs(300), kind, seed=0).sum(1).mean() for kind in ("random", "greedy", "beb", "psrl")}
    assert got["random"] == pytest.approx(100, abs=5) and 128 < got["psrl"] < 145  # published: 100.1 and 138.1
    assert min(got["greedy"], got["beb"]) > got["psrl"]
    assert play_mdp(MDPs(300), "psrl", seed=0, prior=0.0).sum(1).mean() == pytest.approx(138.1, abs=6)
    assert play_mdp(MDPs(300), "greedy", seed=0, every=1).sum(1).mean() > got["greedy"] + 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Bandits(1, arms=1), "arms: expected at least 2, got 1"),
        (lambda: Bandits(0), "trials: expected at least 1, got 0"),
        (lambda: Barcodes(1, tasks=5, bits=2), "bits: expected at most 20, and 2\\^bits barcodes for 5 tasks, got 2"),
        (lambda: MDPs(1, horizon=0), "horizon: expected at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
