"""Claims bandit-N-5, mdp-N, barcode-second-visit, first-visit-rl and recurrence-savings-rl: what RL^2 gets in trials of tasks it
never saw, beside policies made for them.

    python -m benchmarks.rl2 train NAME SEED [OPTION=VALUE]...   one run into runs/rl2 (goes on if interrupted)
    python -m benchmarks.rl2 collect [NAME]...                   test the newest weights of these runs, or of all; finished or not;
                                                                 seeds of the same recipe that were collected before stay in

Rows of runs: mean return of a trial on fresh tasks with actions drawn from the policy; the interval is over seeds, or over trials
if there is one seed. Rows of policies: one pass over the tasks of the first seed, interval over trials.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from algos import jobs
from algos.rl2 import RL2Problem, maker, regret_by_visit
from benchmarks.results import common, load, merged, paired_ratio, recipe, row, save, seeded
from envs.bandit_baselines import optimum
from envs.bandits import Barcodes
from envs.trials import Trials
from nestmem.memory.base import state_bytes
from nestmem.probes import mean_interval

ROOT = Path("runs/rl2")
RUNS: dict[str, tuple[str, list[str], str]] = {  # name: claim, options, title
    "bandit10": ("bandit-10-5", ["experiment=bandit10"], "RL2, linear attention"),
    "bandit10-lstm": ("bandit-10-5", ["experiment=bandit10", "memory=lstm"], "RL2, LSTM"),
    "bandit100": ("bandit-100-5", ["experiment=bandit100"], "RL2, linear attention"),
    "bandit100-end": ("bandit-100-5", ["experiment=bandit100_end", "algo.start={bandit100}"], "RL2, second stage"),
    "bandit500": ("bandit-500-5", ["experiment=bandit500", "algo.start={bandit100-end}"], "RL2, linear attention"),
    "mdp10": ("mdp-10", ["experiment=mdp10"], "RL2, linear attention"),
    "mdp25": ("mdp-25", ["experiment=mdp25", "algo.start={mdp10}"], "RL2, linear attention"),
    "barcode-kept": ("barcode", ["experiment=barcode", "memory.key_size=256"], "RL2, nested: LSTM, kept fast weights"),
    "barcode-lstm": ("barcode", ["experiment=barcode", "memory=lstm"], "RL2, LSTM"),
    "barcode-eplstm": ("barcode", ["experiment=barcode", "memory=eplstm"], "RL2, episodic LSTM"),
}
PUBLISHED = {
    "bandit-10-5": [("RL2, TRPO-GRU", 6.7), ("Gittins", 6.6)],
    "bandit-100-5": [("RL2, TRPO-GRU", 78.7), ("Gittins", 78.3)],
    "bandit-500-5": [("RL2, TRPO-GRU", 401.6), ("Gittins", 405.8)],
    "mdp-10": [("RL2, TRPO-GRU", 156.2), ("PSRL", 138.1), ("BEB", 150.2)],
    "mdp-25": [("RL2, TRPO-GRU", 445.7), ("PSRL", 408.8), ("OPSRL", 425.2)],
}
PULLS = {"1": "first-visit-rl", "2": "recurrence-savings-rl"}


def train(name: str, seed: str, extra: list[str]) -> None:
    run = ROOT / f"{name}-s{seed}"
    if run.exists():
        jobs.train([f"resume={run}"])
    else:
        runs = {other: ROOT / f"{other}-s{seed}" for other in RUNS}
        options = [option.format_map(runs) for option in RUNS[name][1]]
        jobs.train([*options, f"seed={seed}", f"run={run}", *extra])


def collect(names: list[str]) -> None:
    """Rows of the runs of `names` (all, if none is given) are made anew; what has no run stays as it was."""
    rows: list[dict[str, Any]] = []
    for name in names or RUNS:
        claim, _, title = RUNS[name]
        if runs := sorted(path.parent for path in ROOT.glob(f"{name}-s[0-9]/checkpoints")):
            rows += measured(claim, title, {run: jobs.restored(jobs.stored_config(run)) for run in runs})
            save("rl2", merged("rl2", rows))
    save("rl2", merged("rl2", ratios(merged("rl2", rows))))


def measured(claim: str, title: str, trainers: dict[Path, Any]) -> list[dict[str, Any]]:
    """Rows of one method, from all its runs, and of what it is compared with."""
    problems: dict[str, Any] = {run.name.rpartition("-s")[2]: trainer.problem for run, trainer in trainers.items()}
    one, options = next(iter(trainers.values())), next(iter(problems.values())).options
    learner = one.problem.learner
    size = {
        "params": sum(p.numel() for p in learner.parameters()),
        "state_bytes": state_bytes(learner.memory.initial_state(1)),
        "wall_s": round(sum(trainer.seconds for trainer in trainers.values()) / len(trainers)),
    }
    made_by = common(recipe(jobs.stored_config(run), trainer.step) for run, trainer in trainers.items())
    trials, done = options.test_tasks, f"{one.step} of {options.steps} updates of {options.tasks} trials"
    note = f"{trials} trials each; after {done}; one busy core of two"
    rows = []
    tested = {seed: problem.evaluate("test", trials) for seed, problem in problems.items()}
    greedy = {seed: problem.evaluate("test", trials, greedy=True) for seed, problem in problems.items()}
    for suffix, played in (("", tested), (", likeliest actions", greedy)):
        returns = {seed: rewards.sum(1) for seed, (_, rewards) in played.items()}
        each = {seed: float(values.mean()) for seed, values in returns.items()}
        first = mean_interval(next(iter(returns.values())))
        bounds = {"low": first.low, "high": first.high, "over": "trials"}
        rows.append(seeded("rl2", claim, title + suffix, each, made_by, unit="return", note=note, **bounds, **size))
    if isinstance(one.problem.env, Barcodes):
        shuffled = {seed: _shuffled(run) for seed, run in zip(problems, trainers, strict=True)}
        for control, games in (("", tested), (", barcodes shuffled", shuffled)):
            regrets = {seed: [point[1] for point in regret_by_visit(*game)] for seed, game in games.items()}
            for visit in range(one.problem.env.visits):
                each = {seed: values[visit] for seed, values in regrets.items()}
                method = f"{title}{control}, visit {visit + 1}"
                rows.append(seeded("rl2", "barcode-regret", method, each, made_by, unit="per pull"))
        for visit in range(one.problem.env.visits):
            each = {seed: pulls_to_most(*game, visit) for seed, game in tested.items()}
            method = f"{title}, visit {visit + 1}"
            rows.append(
                seeded("rl2", "barcode-pulls", method, each, made_by, unit="pulls", note="to 90 % of the best arm")
            )
    if not any((r["claim"], r["method"]) == (claim, "random") for r in load("rl2")):
        rows += _policies(one.problem, claim)
    source = "Duan et al. 2016, as listed by github.com/lucaslingle/pytorch_rl2"
    published = PUBLISHED.get(claim, [])
    return rows + [row(claim, f"published: {who}", value, unit="return", n=0, note=source) for who, value in published]


def pulls_to_most(env: Barcodes, rewards: Any, visit: int) -> float:
    """Pulls until the mean reward is at least 90 % of the best arm's, one more than a visit has if it never is."""
    paid = rewards.reshape(len(rewards), env.episodes, env.horizon)[env.visit() == visit].mean(0)
    return float(np.argmax([*(paid >= 0.9 * env.known().max() / env.horizon), True])) + 1


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For nested memories, of seeds that have an LSTM beside them: regret on a second visit over its, and its pulls over theirs."""
    by_visit = {
        (r["claim"], *r["method"].rsplit(", visit ", 1)): r.get("each", {}) for r in rows if ", visit " in r["method"]
    }
    found = []
    for claim, method, visit in by_visit:
        flat, each = by_visit.get((claim, "RL2, LSTM", visit), {}), by_visit[claim, method, visit]
        seeds = sorted(flat.keys() & each.keys())
        if not seeds or "shuffled" in method or "nested" not in method:
            continue
        if claim == "barcode-regret" and visit == "2":
            shared = {seed: each[seed] / flat[seed] for seed in seeds}
            found.append(seeded("rl2", "barcode-second-visit", f"{method} over LSTM", shared, "", unit="ratio"))
        if claim == "barcode-pulls" and visit in PULLS:
            over, under = [flat[seed] for seed in seeds], [each[seed] for seed in seeds]
            found.append(paired_ratio(PULLS[visit], f"LSTM over {method}, barcodes", over, under))
    return found


def _policies(problem: RL2Problem, claim: str) -> list[dict[str, Any]]:
    """Policies made for the family, on the tasks the first seed is tested on."""
    env, seed = problem.make_env(problem.options.test_tasks), problem.seeds["test"]
    rows = []
    for name, rewards in problem.others(env, seed).items():
        mean = mean_interval(rewards.sum(1))
        note = "interval over trials"
        rows.append(row(claim, name, mean.mean, low=mean.low, high=mean.high, unit="return", n=len(rewards), note=note))
    best = mean_interval(env.known().sum(1))
    rows.append(
        row(claim, "who knows the task", best.mean, low=best.low, high=best.high, unit="return", n=len(rewards))
    )
    if claim == "bandit-10-5":
        rows.append(row(claim, "exact optimum", optimum(10, 5), unit="return", n=1, note="dynamic programming"))
    return rows


def _shuffled(run: Path) -> tuple[Trials, Any]:
    """What the same weights get where barcodes say nothing."""
    config = jobs.stored_config(run)
    problem: Any = jobs.restored(config).problem
    problem.make_env = maker(OmegaConf.merge(config.env, {"shuffled": True}))
    found: tuple[Trials, Any] = problem.evaluate("test", problem.options.test_tasks)
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if sys.argv[1] == "train":
        train(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        collect(sys.argv[2:])
