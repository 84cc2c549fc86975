"""Policy gradients in the inner loop: both derivatives of J against sums over everything that can happen, the meta-gradient against
a plain loop, runs from the command line."""

import itertools
import json

import pytest
import torch
from torch.func import functional_call

from algos import build, maml_rl, ppo
from algos.config import configure
from algos.policy_gradient import ESTIMATORS, dice, lvc
from algos.problem import Part
from nestmem.cli import main
from nestmem.errors import UserError
from tests.runs import cut, fitted, left

SMALL = [
    "algo.width=8", "trainer.steps=4", "trainer.tasks=6", "trainer.eval_tasks=10", "trainer.test_tasks=12",
    "trainer.eval_every=2", "trainer.checkpoint_every=2", "trainer.keep=100",
]  # fmt: skip
BANDIT = ["experiment=maml_bandit", "env.arms=3", *SMALL]
MDP = ["experiment=maml_mdp", "env.episodes=4", "env.horizon=3", "env.states=3", "algo.inner=1", *SMALL]
ML1 = [
    "experiment=maml_ml1", *SMALL, "env.horizon=5", "env.episodes=4", "env.goals=3", "env.adapt=1", "env.scored=1",
    "env.test_horizon=6", "trainer.test_tasks=2", "trainer.eval_tasks=2", "trainer.tasks=3",
]  # fmt: skip


def derivatives(value, x):
    """Value, gradient and Hessian of a scalar."""
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    second = [torch.autograd.grad(g, x, retain_graph=True)[0] for g in first]
    return value.detach(), first.detach(), torch.stack(second)


PAYS = torch.tensor([[0.3, 1.0], [-0.5, 2.0]], dtype=torch.double)  # of the second step, by both actions
FIRST = torch.tensor([0.2, -0.4], dtype=torch.double)


def episodes(horizon):
    """Every episode of `horizon` steps with two actions and a policy that looks at the step alone: log probabilities [2] of
    each step as functions of theta [2], and rewards."""
    theta = torch.tensor([0.4, -0.7], dtype=torch.double, requires_grad=True)
    logs = torch.nn.functional.logsigmoid(torch.stack([theta, -theta]))  # [action, step]
    for actions in itertools.product((0, 1), repeat=horizon):
        rewards = [FIRST[actions[0]]] + ([PAYS[actions]] if horizon == 2 else [])
        yield theta, torch.stack([logs[a, t] for t, a in enumerate(actions)])[None], torch.stack(rewards)[None]


def truth(horizon, gamma):
    """The expected return per step, from the probabilities themselves."""
    total, everything = 0.0, list(episodes(horizon))
    for _, logs, rewards in everything:
        discount = torch.tensor([gamma**t for t in range(horizon)], dtype=torch.double)
        total = total + logs.sum().exp() * (discount * rewards).mean()
    return derivatives(total, everything[0][0])


def expected(estimator, horizon, gamma, baseline):
    """Mean over all episodes, by their probability, of an estimate and its derivatives."""
    sums = None
    for theta, logs, rewards in episodes(horizon):
        found = derivatives(estimator(logs, logs, rewards, baseline[:, :horizon], gamma), theta)
        weighted = [logs.sum().exp().detach() * part for part in found]
        sums = weighted if sums is None else [a + b for a, b in zip(sums, weighted)]
    return sums


@pytest.mark.parametrize("baseline", [[[0.0, 0.0]], [[0.7, -0.3]]])
def test_every_derivative_of_dice_is_that_of_the_expected_return(baseline):
    baseline = torch.tensor(baseline, dtype=torch.double)
    for horizon in (1, 2):
        for ours, right in zip(expected(dice, horizon, 0.9, baseline), truth(horizon, 0.9)):
            torch.testing.assert_close(ours, right)


def test_lvc_has_the_gradient_and_in_bandits_the_second_derivative_too():
    baseline = torch.tensor([[0.7, -0.3]], dtype=torch.double)
    _, first, second = truth(1, 1.0)
    ours = expected(lvc, 1, 1.0, baseline)
    torch.testing.assert_close(ours[1], first)
    # a baseline that does not depend on the action costs nothing in either
    torch.testing.assert_close(ours[2], second)
    torch.testing.assert_close(expected(lvc, 2, 1.0, baseline)[1], truth(2, 1.0)[1])
    assert (expected(lvc, 2, 1.0, baseline)[2] - truth(2, 1.0)[2]).abs().max() > 0.01


def test_the_naive_surrogate_has_a_wrong_second_derivative():
    naive = lambda logs, played, rewards, baseline, gamma: (logs * (rewards - baseline)).mean()
    ours = expected(naive, 1, 1.0, torch.zeros(1, 2, dtype=torch.double))
    torch.testing.assert_close(ours[1], truth(1, 1.0)[1])
    assert (ours[2] - truth(1, 1.0)[2]).abs().max() > 0.01


@pytest.mark.parametrize(
    "options", [BANDIT, [*MDP, "algo.inner=2"], [*MDP, "algo.estimator=dice"], [*MDP, "algo.adapt=head"]]
)
def test_the_meta_gradient_is_that_of_a_plain_loop(options, tmp_path):
    config = configure([*options, "algo.epochs=1", f"run={tmp_path}"])
    made = build.problem(config)
    policy, taken = made.learner, []
    phases, last = [], {}
    collect, outer = made.trials, made.outer

    def keep(*given, **named):
        phases[:], found = collect(*given, **named)
        return phases, found

    def take(inner, final, advantage):
        last.setdefault("advantage", []).append(advantage)
        return outer(inner, final, advantage)

    made.trials, made.outer = keep, take

    def optimize(parts):
        for part in parts:
            assert isinstance(part, Part)
            taken.extend(torch.autograd.grad(part.loss, list(policy.parameters()), allow_unused=True))
        return {"loss": 0.0, "kl": 0.0}

    made.update(optimize)
    parameters, total = dict(policy.named_parameters()), 0.0
    *inner, final = phases
    advantage = torch.stack([ppo.discounted(r, config.algo.gamma) for r in final.rewards]) - final.baseline
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    for i in range(len(final.rewards)):
        fast = {name: parameters[name] for name in policy.fast}
        for phase in inner:
            logs = plain_log_prob(policy, fast, phase.seen[i], phase.actions[i])
            value = ESTIMATORS[config.algo.estimator](
                logs, phase.log_probs[i], phase.rewards[i], phase.baseline[i], config.algo.gamma
            )
            found = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            fast = {name: w + config.algo.rate * g for (name, w), g in zip(fast.items(), found)}
        logs = plain_log_prob(policy, fast, final.seen[i], final.actions[i])
        torch.testing.assert_close(logs, final.log_probs[i], atol=1e-5, rtol=1e-4)  # it is what was played
        total = total - ((logs - logs.detach()).exp() * advantage[i]).mean() / len(final.rewards)
    right = torch.autograd.grad(total, list(policy.parameters()), allow_unused=True)
    assert sum(g is not None for g in right) >= 4
    for ours, g in zip(taken, right):
        torch.testing.assert_close(
            ours if g is not None else torch.zeros(()), g if g is not None else torch.zeros(()), atol=1e-5, rtol=1e-3
        )


def plain_log_prob(policy, weights, seen, actions):
    return torch.distributions.Categorical(logits=functional_call(policy, weights, (seen,))).log_prob(actions)


def test_an_inner_step_pays_off_in_a_bandit(tmp_path):
    """A policy that knows nothing, after five pulls and one step, pulls better arms."""
    made = build.problem(
        configure([*BANDIT, "trainer.tasks=400", "algo.rate=20", "algo.adapt=head", f"run={tmp_path}"])
    )
    torch.nn.init.normal_(made.learner.body[2].bias)  # features that the head can use
    _, found = made.trials(made.env, made.generator)
    before, after = found.rewards[:, :5].mean(), found.rewards[:, 5:].mean()
    assert before == pytest.approx(0.5, abs=0.04) and after > before + 0.08
    _, same = made.trials(made.env, made.generator, adapting=False)
    assert same.rewards[:, 5:].mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("options", [BANDIT, ML1], ids=["bandit", "ml1"])
def test_a_run_from_the_command_line_and_its_resumption(options, tmp_path):
    whole = tmp_path / "whole"
    assert main(["train", *options, f"run={whole}"]) == 0
    result = json.loads((whole / "result.json").read_text())
    assert result["algo"] == "maml_rl" and result["measure"] == ("return" if options is BANDIT else "success")
    assert '"train/gained"' in (whole / "scalars.jsonl").read_text()
    run = cut(whole, tmp_path / "part", step=2)
    fitted(run, options)
    assert left(run) == left(whole)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("algo.estimator=reinforce", "algo.estimator: expected dice or lvc, got 'reinforce'"),
        ("algo.inner=10", "algo.inner: expected 1 to 9, episodes less one, got 10"),
        ("algo.adapt=tail", "algo.adapt: expected all or head, got 'tail'"),
        ("algo.gamma=2", "algo.gamma: expected 0 to 1, got 2"),
        ("memory=lstm", "memory: algo=maml_rl goes with memory=none, got lstm"),
    ],
)
def test_what_is_refused(option, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        build.problem(configure([*BANDIT, option, f"run={tmp_path}"]))


def test_phases_are_whole_episodes(tmp_path):
    made = build.problem(configure([*MDP, "algo.inner=2", f"run={tmp_path}"]))
    assert made.parts() == [slice(0, 6), slice(6, 9), slice(9, 12)] and maml_rl.ALGOS == ("maml_rl",)
