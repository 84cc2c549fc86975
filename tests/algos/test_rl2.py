"""RL^2: the pieces against plain formulas, a run from the command line, resuming bit for bit, and what is refused."""

import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from omegaconf import OmegaConf
from safetensors.torch import load_file

from algos import build, ppo
from algos.agent import Agent, Normalizer
from algos.config import configure
from algos.rl2 import regret_by_visit
from envs.bandits import Bandits, Barcodes
from envs.mdps import MDPs
from envs.reach import Reach
from envs.trials import Trials
from nestmem.cli import main
from nestmem.errors import UserError
from nestmem.memory import registry
from nestmem.memory.leaky import Leaky
from tests.runs import Updates, cut, fitted, left

SMALL = [
    "algo.width=16", "trainer.steps=6", "trainer.tasks=32", "trainer.eval_tasks=50", "trainer.test_tasks=60",
    "trainer.eval_every=2", "trainer.checkpoint_every=2", "trainer.keep=100",
]  # fmt: skip
TINY = ["experiment=bandit10", "env.episodes=5", "env.arms=2", *SMALL]
BARCODES = ["experiment=barcode", "memory=eplstm", "env.tasks=2", "env.visits=2", "env.pulls=3", "env.arms=4", *SMALL]


def agent(env, memory="lstm", **options):
    torch.manual_seed(0)
    return Agent(env, lambda fields: registry.build(memory, fields.width, fields, **options), width=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("rl2") / "run"
    assert main(["train", *TINY, f"run={run}"]) == 0
    return run


def test_a_run_from_the_command_line(trained):
    result = json.loads((trained / "result.json").read_text())
    numbers = result["numbers"]
    best = numbers["return, who knows the task"]
    assert result["measure"] == "return" and result["n"] == 60 and best == pytest.approx(5 * 2 / 3, abs=0.5)
    assert result["score"] == pytest.approx(100 * numbers["return"]["mean"] / best)
    assert {"return, random", "return, Thompson sampling", "return, likeliest actions"} < numbers.keys()
    assert [p[0] for p in result["lines"]["adaptation_in_trial"]["points"]] == [1, 2, 3, 4, 5]
    assert (trained / "report" / "adaptation_in_trial.png").is_file()
    rows = (trained / "scalars.jsonl").read_text()
    assert all(f'"{tag}"' in rows for tag in ("val/return", "val/reward", "train/entropy", "train/explained"))


def test_a_run_is_asked_again_and_says_the_same(trained, tmp_path, capsys):
    page = tmp_path / "page.json"
    assert main(["eval", str(trained), "trials=60", "--json", str(page)]) == 0
    result = json.loads((trained / "result.json").read_text())
    assert json.loads(page.read_text())["numbers"]["return"] == result["numbers"]["return"]
    assert main(["eval", str(trained), "trials=60", "drift=0.1"]) == 2
    assert "drift: this run is of env=bandits, which has no such option" in capsys.readouterr().err


@pytest.mark.parametrize("options", [TINY, BARCODES], ids=["bandits", "barcodes"])
def test_interrupted_and_resumed_is_uninterrupted(options, tmp_path):
    fitted(tmp_path / "whole", options)
    run = cut(tmp_path / "whole", tmp_path / "part", step=2)
    fitted(run, options)
    assert left(run) == left(tmp_path / "whole")


@pytest.mark.parametrize("clear", ["task", "episode"])
@pytest.mark.parametrize("memory", ["lstm", "nested", "eplstm", "titans", "episodic", "gla"])
def test_what_was_done_is_what_is_learned_from(memory, clear):
    """Step by step and in one pass the policy is the same, so the first ratio of probabilities is 1."""
    for env in (Barcodes(6, tasks=2, visits=2, pulls=5, arms=3), MDPs(6, episodes=3, horizon=4)):
        model = agent(env, memory)
        found = ppo.collect(model, env, clear, torch.Generator().manual_seed(0), seed=0)
        policy, values = model(found.seen, found.reset)
        torch.testing.assert_close(policy.log_prob(found.actions), found.log_probs, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(values, found.values, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("clear", "times"), [("task", 0), ("episode", 3)])
def test_what_a_run_says_about_clearing_is_done_in_updates_and_in_tests(clear, times, tmp_path, monkeypatch):
    config = configure([*BARCODES, "memory=lstm", f"algo.clear={clear}", f"run={tmp_path}"])
    updates, cleared = Updates(build.problem(config)), []
    memory = updates.learner.memory
    reset = memory.reset
    monkeypatch.setattr(memory, "reset", lambda state, done: cleared.append(done.all()) or reset(state, done))
    env, found = updates.problem.play("val", 5)
    assert env.episodes == 4 and cleared == times * [True] and (found.reset is not None) == bool(times)
    whole, learned = updates.learner.whole, []
    monkeypatch.setattr(updates.learner, "whole", lambda seen, reset: learned.append(reset) or whole(seen, reset))
    updates.update()
    assert learned and all((reset is not None) == bool(times) for reset in learned)


@pytest.mark.parametrize(("clear", "crosses"), [("task", True), ("episode", False)])
def test_gradients_cross_episodes_unless_the_memory_is_cleared(clear, crosses):
    env = MDPs(4, episodes=2, horizon=3)
    model = agent(env)
    found = ppo.collect(model, env, clear, torch.Generator().manual_seed(0), seed=0)
    paid = found.seen.paid.clone().requires_grad_(True)
    _, values = model(found.seen._replace(paid=paid), found.reset)
    values[:, -1].sum().backward()
    assert bool((paid.grad[:, 1] != 0).any()) == crosses and bool((paid.grad[:, 4] != 0).any())


def test_an_informed_critic_knows_the_task_and_the_policy_does_not():
    env = Barcodes(6, tasks=2, visits=2, pulls=5, arms=3)
    torch.manual_seed(0)
    model = Agent(env, lambda fields: registry.build("lstm", fields.width, fields), informed=True)
    found = ppo.collect(model, env, "task", torch.Generator().manual_seed(0), seed=0)
    arms, clocks = found.seen.known.split([3, 2], -1)
    assert torch.equal(arms, found.hidden) and torch.allclose(arms.sum(-1), torch.tensor(1.6)), "two arms cost .8"
    assert clocks[:, 0].eq(0).all() and torch.allclose(clocks[0, 12], torch.tensor([2 / 5, 12 / 20]))
    policy, values = model(found.seen)
    other, told = model(found.seen._replace(known=found.seen.known + 1))
    assert torch.equal(policy.logits, other.logits) and not torch.isclose(values, told).any()


def test_tokens_say_what_came_before():
    env = Bandits(3, episodes=4, arms=2)
    found = ppo.collect(agent(env), env, "task", torch.Generator().manual_seed(0), seed=0)
    assert not found.seen.before[:, 0].any() and not found.seen.paid[:, 0].any() and not found.seen.ended[:, 0].any()
    assert (found.seen.before[:, 1:].argmax(-1) == found.actions[:, :-1]).all()
    assert (found.seen.paid[:, 1:, 0] == found.rewards[:, :-1]).all() and found.seen.ended[:, 1:].all()


def test_tokens_say_what_moved_and_what_it_gained():
    """Only within an episode: where one begins the hand has moved by nobody's doing."""
    env = Reach(3, episodes=2, horizon=4)
    found = ppo.collect(agent(env), env, "task", torch.Generator().manual_seed(0), seed=0)
    look, seen = found.seen.observation, found.seen
    for t in range(env.steps):
        moved = torch.zeros(3, 8) if t % 4 == 0 else look[:, t] - look[:, t - 1]
        compared = t % 4 != 1 and t > 0  # what the first step of an episode paid has nothing to be compared with
        gained = found.rewards[:, t - 1] - found.rewards[:, t - 2] if compared else torch.zeros(3)
        assert torch.equal(seen.moved[:, t], moved) and torch.equal(seen.gained[:, t, 0], gained)
    blind = ppo.collect(agent(env), env, "task", torch.Generator().manual_seed(0), seed=0, blind=True)
    assert not blind.seen.gained.any() and not blind.seen.paid.any()


def test_the_policy_acts_on_its_guess_and_does_not_bend_it():
    env = Reach(3, episodes=1, horizon=4)
    torch.manual_seed(0)
    model = Agent(env, lambda fields: registry.build("lstm", fields.width, fields), width=16, infer=True)
    found = ppo.collect(model, env, "task", torch.Generator().manual_seed(0), seed=0)
    policy, _, guess = model.whole(found.seen)
    assert guess.shape == found.hidden.shape == (3, 4, 3)
    policy.mean.square().sum().backward(retain_graph=True)
    assert all(p.grad is None for p in model.guess.parameters())
    with torch.no_grad():
        model.guess[-1].bias += 1
    assert not torch.isclose(model(found.seen)[0].mean, policy.mean).all()


def test_advantages_are_the_textbook_sum():
    rewards, values = torch.rand(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gamma, lam = 0.9, 0.7
    after = torch.nn.functional.pad(values[:, 1:], (0, 1))
    delta = rewards + gamma * after - values
    plain = [sum((gamma * lam) ** i * delta[:, t + i] for i in range(7 - t)) for t in range(7)]
    torch.testing.assert_close(ppo.advantages(rewards, values, gamma, lam), torch.stack(plain, 1))
    torch.testing.assert_close(ppo.discounted(rewards, 1.0)[:, 0], rewards.sum(1))


def test_the_linear_baseline_explains_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(200, 6, 3, generator=generator)
    rewards = torch.zeros(200, 6)
    rewards[:, -1] = 2 * observation[:, -1, 0] + 1
    values = ppo.linear_values(observation, rewards, gamma=1.0)
    assert (values[:, -1] - rewards[:, -1]).abs().mean() < (values[:, 0] - rewards[:, -1]).abs().mean()
    late = ppo.linear_values(observation[:, -1:], rewards[:, -1:], gamma=1.0)
    torch.testing.assert_close(late, rewards[:, -1:], atol=1e-2, rtol=0)


def test_normalizer_is_the_mean_and_variance_of_all_it_saw():
    parts = [np.random.default_rng(i).normal(i, 2 + i, (4, 5, 3)) for i in range(3)]
    normal = Normalizer(3)
    for part in parts:
        normal.see(torch.from_numpy(part))
    seen = np.concatenate([part.reshape(-1, 3) for part in parts])
    assert np.allclose(normal.mean, seen.mean(0)) and np.allclose(normal.square / normal.count, seen.var(0))
    x = torch.from_numpy(seen).float()
    assert torch.allclose(normal(x).mean(0), torch.zeros(3), atol=1e-5)
    assert torch.equal(Normalizer(3)(x), x.clamp(-10, 10))


class Target(Trials):
    """Real observations and actions: go to a hidden place that rewards point to."""

    hidden_size = 1

    def __init__(self, trials):
        super().__init__(trials, 2, 3, Box(-np.inf, np.inf, (2,), np.float32), Box(-3.0, 3.0, (1,), np.float32))

    def sample(self):
        self.place = self.np_random.choice([0.0, 2.0], self.num_envs)

    def observe(self):
        return np.stack([5 + 3 * self.np_random.normal(size=self.num_envs), np.full(self.num_envs, 7.0)], 1).astype(
            np.float32
        )

    def act(self, actions):
        assert actions.shape == (self.num_envs, 1)
        return -((actions[:, 0] - self.place) ** 2)

    def known(self):
        return np.zeros((self.num_envs, 2))

    def hidden(self):
        return self.place[:, None]


def test_real_actions_are_learned():
    """A blind policy gets no more than -1 a step; who learns the place from the first reward gets more from then on."""
    env, generator = Target(200), torch.Generator().manual_seed(0)
    env.reset(seed=0)
    model = agent(env)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    terms = ppo.Terms(clip=0.2, entropy=0.0, value=0.5, scale=6.0)
    for _ in range(25):
        found = ppo.collect(model, env, "task", generator)
        values = terms.scale * found.values
        advantage = ppo.advantages(found.rewards, values, 0.99, 0.9)
        target = (values + advantage) / terms.scale
        advantage = (advantage - advantage.mean()) / advantage.std()
        for _ in range(4):
            optimizer.zero_grad()
            ppo.loss(model, found, advantage, target, terms)[0].backward()
            optimizer.step()
        model.normal.see(found.seen.observation)
    rewards = ppo.collect(model, env, "task", generator, greedy=True).rewards
    assert rewards[:, 1:].mean() > -0.5


def test_a_bandit_is_learned(tmp_path):
    changes = ["trainer.tasks=200", "trainer.steps=12", "algo.minibatches=4", "trainer.test_tasks=2000"]
    found = fitted(tmp_path / "run", [*TINY, *changes])["numbers"]
    random, greedy = (found[f"return, {name}"].mean for name in ("random", "greedy on the posterior mean"))
    assert found["return"].mean > random + 0.6 * (greedy - random)


def test_a_world_is_learned_from_what_actions_cost(tmp_path):
    sizes = [
        "env.states=3",
        "env.actions=3",
        "env.episodes=5",
        "env.horizon=4",
        "algo.minibatches=4",
        "trainer.tasks=200",
    ]
    changes = ["trainer.steps=16", "trainer.test_tasks=2000", "trainer.eval_every=16", "trainer.lr=1e-2"]
    found = fitted(tmp_path / "run", ["experiment=mdp10", *SMALL, *sizes, *changes])["numbers"]
    random, greedy = (found[f"return, {name}"].mean for name in ("random", "greedy on the posterior mean"))
    assert found["return"].mean > random + 0.6 * (greedy - random)


def test_weights_of_another_run_are_the_start(trained, tmp_path):
    same = configure([*TINY, f"algo.start={trained}", f"run={tmp_path}/b", "env.episodes=9"])
    weights = load_file(trained / "checkpoints/step-00000006/tensors.safetensors")
    for name, tensor in build.learner(same).state_dict().items():
        assert torch.equal(tensor, weights[f"learner.{name}"])


def test_regret_of_one_who_knows_is_nothing():
    env = Barcodes(300, tasks=3, visits=3, pulls=4)
    env.reset(seed=0)
    rewards = np.stack([env.step(env.good[env.rows, env.order[:, env.episode]])[1] for _ in range(env.steps)], 1)
    points = regret_by_visit(env, rewards)
    assert [p[0] for p in points] == [1, 2, 3] and all(abs(p[1]) < 0.03 for p in points)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["memory=none"], "memory: algo=rl2 needs one, got none"),
        (["algo.minibatches=33"], "algo.minibatches: expected 1 to trainer.tasks (32), got 33"),
        (["algo.clear=never"], "algo.clear: expected task or episode, got 'never'"),
        (["algo.credit=all"], "algo.credit: expected reward or regret, got 'all'"),
        (["algo.lam=2"], "algo.lam: expected 0 to 1, got 2.0"),
        (["env.arms=1"], "arms: expected at least 2, got 1"),
    ],
)
def test_mistakes_are_one_sentence(changes, says, tmp_path, capsys):
    assert main(["train", *TINY, *changes, f"run={tmp_path}/run"]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_learning_credits_the_goal_and_the_agent_is_told_rewards():
    sizes = ["algo.bonus=2", "algo.minibatches=2", "trainer.tasks=4", "env.horizon=30"]
    problem = build.problem(configure(["experiment=reach", *sizes, "run=unused"]))
    _, found = problem.play("train", 4)
    at_goal = found._replace(success=torch.ones_like(found.success))
    torch.testing.assert_close(problem.credited(at_goal), found.rewards + 2)
    assert (found.seen.paid[:, 1:, 0] == found.rewards[:, :-1]).all()
    with pytest.raises(UserError, match="expected 0, as this env has no goal to meet"):
        build.problem(configure([*TINY, "algo.bonus=1", "run=unused"]))


@pytest.mark.parametrize("memory", ["nested_leaky", "nested_fed"])
def test_leaky_levels_follow_where_their_averages_rest(memory):
    problem = build.problem(configure([*TINY, f"memory={memory}", "run=unused"]))
    Updates(problem).update()
    leaky = [part for part in problem.learner.memory.modules() if isinstance(part, Leaky)]
    assert leaky and all(part.centre.abs().min() > 0 for part in leaky)


def test_credit_by_regret_needs_an_env_that_knows_it():
    with pytest.raises(UserError, match="expected reward, as what an action costs is not known"):
        build.problem(configure(["experiment=reach", "algo.credit=regret", "run=unused"]))


def test_trials_and_rl2_go_together():
    config = OmegaConf.create(OmegaConf.to_container(configure([*TINY, "run=unused"])))
    config.algo.name = "blackbox"
    with pytest.raises(UserError, match="algo: env=bandits goes with algo=rl2, got blackbox"):
        build.problem(config)
