"""Claims ml1-reach-any, ml1-reach-final and ml1-reach-adaptation: what is reached in Meta-World's reach with goals of a test.

    python -m benchmarks.ml1 train NAME SEED [OPTION=VALUE]...   one run into runs/ml1 (goes on if interrupted)
    python -m benchmarks.ml1 collect [GOALS] [STEPS] [NAME]...   test the newest weights of these runs, or of all; finished or not
    python -m benchmarks.ml1 official NAME SEED [GOALS] [STEPS]  Meta-World's own evaluator beside ours, on the same weights

Ten episodes to adapt in and three that are scored for every goal, by default 50 goals and episodes as long as in training; with
STEPS (500) a second test of that length. Controls: rewards not told, every episode begun as the first; open loops. Intervals are
over seeds, or over goals if there is one. ml1-reach-adaptation: return of a scored over that of the first episode. What was tested
is kept per part in the run's folder, so that a collection that is interrupted goes on. Rows of what has no run stay as they were.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos import goal_trials, jobs
from algos.agent import Agent, Seen
from benchmarks.results import common, merged, recipe, row, save, seeded
from envs.meta_world_sweeps import open_loop
from nestmem.memory.base import state_bytes
from nestmem.probes import mean_interval, ratio_interval

ROOT = Path("runs/ml1")
NESTED = "RL2, nested (LSTM, leaky averages)"
# Beside the LSTM of the flat one, averages over some ten steps and over some hundred.
LEAKY = ["memory.hidden=96", "memory.reset_every=0", "memory.middle=32"]
RUNS: dict[str, tuple[list[str], str]] = {
    "lstm": (["experiment=ml1_reach"], "RL2, LSTM"),
    "lstm-plain": (
        ["experiment=ml1_reach", "algo.baseline=critic", "algo.infer=0"],
        "RL2, LSTM, not told the goal in training",
    ),
    "lstm-given-away": (["experiment=ml1_reach", "env.mixed=false"], "RL2, LSTM, things give training goals away"),
    "nested": (["experiment=ml1_reach", "memory=nested_leaky", *LEAKY], NESTED),
    "lstm-rewards": (["experiment=ml1_reach", "algo.bonus=0"], "RL2, LSTM, being there counts for nothing"),
    "maml": (["experiment=maml_ml1"], "MAML"),
    "anil": (["experiment=maml_ml1", "algo.adapt=head"], "ANIL"),
}
CONTROLS: dict[str, dict[str, Any]] = {
    "": {}, ", likeliest actions": {"greedy": True}, ", every episode begun as the first": {"clear": "all"},
    ", rewards not told": {"blind": True},
}  # fmt: skip
ADAPT, SCORED = 10, 3
CLAIMS: dict[str, tuple[str, Callable[[goal_trials.Played], Any]]] = {
    "ml1-reach-any": ("percent", lambda found: mean_interval(100 * found.any[:, -SCORED:].mean(1))),
    "ml1-reach-final": ("percent", lambda found: mean_interval(100 * found.last[:, -SCORED:].mean(1))),
    "ml1-reach-adaptation": (
        "ratio",
        lambda found: ratio_interval(found.returns[:, -SCORED:].mean(1), found.returns[:, 0], paired=True),
    ),
}


def train(name: str, seed: str, extra: list[str]) -> None:
    run = ROOT / f"{name}-s{seed}"
    if run.exists():
        jobs.train([f"resume={run}"])
    else:
        jobs.train([*RUNS[name][0], f"seed={seed}", f"run={run}", *extra])


def tested(run: Path, trainer: Any, goals: int, part: str, **options: Any) -> goal_trials.Played:
    """One part of a test, from the run's folder if it was made before with these weights."""
    name = f"{trainer.step}-{goals}-{part or 'plain'}".replace(" ", "_").replace(",", "")
    path = run / "tested" / f"{name}.json"
    if not path.exists():
        _, found = goal_trials.play(trainer.problem, "test", goals, episodes=ADAPT + SCORED, **options)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([values.tolist() for values in found]))
        print(f"{path}: {goal_trials.table(found, SCORED)}", flush=True)
    return goal_trials.Played(*(np.array(values) for values in json.loads(path.read_text())))


def collect(goals: int, steps: int, names: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    problem = None
    for name, (_, title) in RUNS.items():
        runs = sorted(path.parent for path in ROOT.glob(f"{name}-s[0-9]/checkpoints"))
        if runs and (not names or name in names):
            trainers = {run: jobs.restored(jobs.stored_config(run)) for run in runs}
            torch.set_num_threads(1)
            problem = trainers[runs[0]].problem
            rows += measured(title, trainers, goals, steps)
            save("ml1", merged("ml1", rows))
    if problem is not None:
        save("ml1", merged("ml1", rows + open_loops(problem, goals)))


def measured(title: str, trainers: dict[Path, Any], goals: int, steps: int) -> list[dict[str, Any]]:
    """Rows of one method, from all its runs."""
    first = next(iter(trainers.values()))
    env, learner = first.problem.env, first.problem.learner
    memory = getattr(learner, "memory", None)
    size = {
        "params": sum(p.numel() for p in learner.parameters()),
        "state_bytes": state_bytes(memory.initial_state(1)) if memory is not None else 0,
        "wall_s": round(sum(trainer.seconds for trainer in trainers.values()) / len(trainers)),
    }
    made_by = common(recipe(jobs.stored_config(run), trainer.step) for run, trainer in trainers.items())
    done = " and ".join(sorted({f"{t.step * env.num_envs * env.steps / 1e6:.2f} M" for t in trainers.values()}))
    tests = {suffix: {"horizon": env.horizon} | options for suffix, options in CONTROLS.items()}
    if steps:
        tests[f", {steps} steps"] = {"horizon": steps}
    rows = []
    for suffix, options in tests.items():
        found = {
            run.name.rpartition("-s")[2]: tested(run, trainer, goals, suffix, **options)
            for run, trainer in trainers.items()
        }
        note = f"{done} training steps; {goals} goals, episodes of {options['horizon']} steps"
        for claim, (unit, score) in CLAIMS.items():
            scores = {seed: score(one) for seed, one in found.items()}
            each = {seed: float(one.mean) for seed, one in scores.items()}
            one = next(iter(scores.values()))
            bounds = {"low": one.low, "high": one.high, "over": "goals"}
            rows.append(seeded("ml1", claim, title + suffix, each, made_by, unit=unit, note=note, **bounds, **size))
    return rows


def open_loops(problem: Any, goals: int) -> list[dict[str, Any]]:
    env, rows = problem.make_env(goals, "test"), []
    for name, (rewards, success) in open_loop(env, problem.seeds["test"]).items():
        found = goal_trials.played(rewards, success, 1)
        for claim, values in (("ml1-reach-any", found.any), ("ml1-reach-final", found.last)):
            mean, note = mean_interval(100 * values[:, 0]), "open loop; interval over goals"
            rows.append(row(claim, name, mean.mean, low=mean.low, high=mean.high, unit="percent", n=1, note=note))
    return rows


class Official:
    """An RL^2 agent as Meta-World's evaluator asks for one; what is told comes with the observation."""

    def __init__(self, agent: Agent, trials: int):
        self.agent, self.trials = agent, trials
        self.generator = torch.Generator().manual_seed(0)

    def init(self) -> None:
        self.state, self.ended = self.agent.memory.initial_state(self.trials), torch.zeros(self.trials, 1)
        self.look, self.paid = torch.zeros(self.trials, 39), torch.zeros(self.trials, 1)
        self.begins = self.began = torch.ones(
            self.trials, 1
        )  # whether this token, and the one before, is an episode's first

    @torch.no_grad()
    def eval_action(self, told: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(told, dtype=torch.float32)
        known = x.new_zeros(len(x), self.agent.secret)
        look, paid = x[:, :39], 10 * x[:, 43:44]
        moved = (look - self.look) * (1 - self.begins)
        gained = (paid - self.paid) * (1 - self.begins) * (1 - self.began)
        seen = Seen(look, x[:, 39:43].clamp(-1, 1), paid, self.ended, known, moved, gained)
        policy, _, self.state = self.agent.step(seen, self.state)
        self.look, self.paid, self.began = look, paid, self.begins
        self.ended = self.begins = torch.zeros_like(self.ended)
        action = policy.mean + policy.stddev * torch.randn(policy.mean.shape, generator=self.generator)
        return self.agent.bounded(action).numpy()

    def adapt_action(self, told: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.eval_action(told), {}

    def step(self, timestep: Any) -> None:
        self.reset(timestep.terminated | timestep.truncated)

    def adapt(self) -> None:
        """The memory has adapted on the way."""

    def reset(self, env_mask: np.ndarray) -> None:
        """An episode is over; the memory goes on."""
        self.ended = self.begins = torch.as_tensor(env_mask, dtype=torch.float32)[:, None]


def official(name: str, seed: str, goals: int, steps: int) -> None:
    """Both evaluators with ten parallel goals at a time."""
    import metaworld
    from metaworld.evaluation import metalearning_evaluation

    run = ROOT / f"{name}-s{seed}"
    trainer = jobs.restored(jobs.stored_config(run))
    torch.set_num_threads(1)
    problem: Any = trainer.problem
    agent = problem.learner.eval()
    envs = metaworld.make_ml_envs(
        "reach-v3", seed=1, meta_batch_size=10, total_tasks_per_cls=goals, split="test", max_episode_steps=steps,
        recurrent_info_in_obs=True, task_select="pseudorandom",
    )  # fmt: skip
    agent_of_theirs = Official(agent, 10)
    agent_of_theirs.init()
    theirs, _, _ = metalearning_evaluation(
        agent_of_theirs, envs, num_evals=goals // 10, adaptation_episodes=ADAPT, evaluation_episodes=SCORED
    )
    found = tested(run, trainer, goals, f"{steps} steps official", horizon=steps)
    ours = mean_interval(100 * found.any[:, -SCORED:].mean(1))
    note = f"success at any step; {goals} test goals each, {steps} steps; {RUNS[name][1]}"
    percent = {"unit": "percent", "n": 1, "note": note}
    rows = [
        row("ml1-evaluators", "Meta-World's: the first episodes that finish", 100 * theirs, **percent),
        row("ml1-evaluators", "ours", ours.mean, low=ours.low, high=ours.high, **percent),
    ]
    save("ml1", merged("ml1", rows))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    verb, *rest = sys.argv[1:]
    if verb == "train":
        train(rest[0], rest[1], rest[2:])
    elif verb == "official":
        official(rest[0], rest[1], *(int(x) for x in (rest[2:] + ["10", "500"][len(rest[2:]) :])))
    else:
        goals, steps = (int(x) for x in (rest[:2] + ["50", "0"][len(rest) :]))
        collect(goals, steps, rest[2:])
