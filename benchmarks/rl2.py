"""Claims bandit-N-5, mdp-N and barcode-second-visit: what RL^2 gets in trials of tasks it never saw, beside policies made for them.

    python -m benchmarks.rl2 train NAME SEED [OPTION=VALUE]...   one run into runs/rl2 (goes on if interrupted)
    python -m benchmarks.rl2 collect [NAME]...                   test the newest weights of these runs, or of all; finished or not

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
from benchmarks.results import load, row, save
from envs.bandit_baselines import optimum
from envs.bandits import Barcodes
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
    "barcode": ("barcode", ["experiment=barcode"], "RL2, nested"),
    "barcode-end": (
        "barcode",
        ["experiment=barcode", "algo.start={barcode}", "algo.entropy=5e-4", "trainer.lr=1e-3", "trainer.steps=40"],
        "RL2, second stage, nested",
    ),
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


def train(name: str, seed: str, extra: list[str]) -> None:
    run = ROOT / f"{name}-s{seed}"
    if run.exists():
        jobs.train([f"resume={run}"])
    else:
        runs = {other: ROOT / f"{other}-s{seed}" for other in RUNS}
        options = [option.format_map(runs) for option in RUNS[name][1]]
        jobs.train([*options, f"seed={seed}", f"run={run}", *extra])


def collect(names: list[str]) -> None:
    """Rows of the claims of `names` (all, if none is given) are made anew; those of other claims stay."""
    claims = {RUNS[name][0] for name in names or RUNS}
    kept = [r for r in load("rl2") if not any(_of(r, claim) for claim in claims)]
    before, rows, regrets = load("rl2"), [], {}
    for name, (claim, _, title) in RUNS.items():
        if claim not in claims:
            continue
        runs = sorted(path.parent for path in ROOT.glob(f"{name}-s[0-9]/checkpoints"))
        mine = [r for r in before if r["claim"].removesuffix("-regret") == claim and r["n"]]
        if not runs:
            rows += [r for r in mine if r["method"].startswith(title)]
            continue
        trainers = [jobs.restored(jobs.stored_config(run)) for run in runs]
        problems: list[Any] = [trainer.problem for trainer in trainers]
        tested = [problem.evaluate("test", problem.options.test_tasks) for problem in problems]
        greedy = [problem.evaluate("test", problem.options.test_tasks, greedy=True)[1] for problem in problems]
        size = {
            "params": sum(p.numel() for p in problems[0].learner.parameters()),
            "state_bytes": state_bytes(problems[0].learner.memory.initial_state(1)),
            "wall_s": round(sum(trainer.seconds for trainer in trainers) / len(trainers)),
        }
        trials = problems[0].options.test_tasks
        done = f"{trainers[0].step} of {problems[0].options.steps} updates of {problems[0].options.tasks} trials"
        for suffix, rewards in (("", [r for _, r in tested]), (", likeliest actions", greedy)):
            returns = [r.sum(1) for r in rewards]
            note = f"{'; '.join(f'{r.mean():.2f}' for r in returns)} in {trials} trials each; after {done}"
            rows.append(_row(claim, title + suffix, returns, note, **size))
        if isinstance(tested[0][0], Barcodes):
            regrets[name] = [[p[1] for p in regret_by_visit(env, rewards)] for env, rewards in tested]
            regrets[f"{name}, barcodes shuffled"] = [_shuffled(run) for run in runs]
        if not any(r["claim"] == claim and r["method"] == "random" for r in rows):
            rows += _policies(problems[0], claim)
    rows += _regrets(regrets)
    for claim, published in PUBLISHED.items():
        if claim in claims and any(r["claim"] == claim for r in rows):
            source = "Duan et al. 2016, as listed by github.com/lucaslingle/pytorch_rl2"
            rows += [
                row(claim, f"published: {name}", value, unit="return", n=0, note=source) for name, value in published
            ]
    save("rl2", kept + rows)


def _of(found: dict[str, Any], claim: str) -> bool:
    """Whether a row belongs to a claim; the regrets of barcodes are claims of their own."""
    return bool(found["claim"] == claim or (claim == "barcode" and found["claim"].startswith("barcode-")))


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


def _shuffled(run: Path) -> list[float]:
    """Regret by visit of the same weights where barcodes say nothing."""
    config = jobs.stored_config(run)
    problem: Any = jobs.restored(config).problem
    problem.make_env = maker(OmegaConf.merge(config.env, {"shuffled": True}))
    return [p[1] for p in regret_by_visit(*problem.evaluate("test", problem.options.test_tasks))]


def _regrets(regrets: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Regret per pull by visit of every memory, and the ratio the claim is about."""
    rows = []
    for name, seeds in regrets.items():
        for visit, values in enumerate(zip(*seeds, strict=True), start=1):
            mean = float(np.mean(values))
            base, _, control = name.partition(", ")
            title = ", ".join(filter(None, (RUNS[base][2], control, f"visit {visit}")))
            rows.append(row("barcode-regret", title, mean, unit="per pull", n=len(values)))
    if "barcode-lstm" in regrets:
        flat = np.mean([seed[1] for seed in regrets["barcode-lstm"]])
        for name in ("barcode", "barcode-end", "barcode-eplstm"):
            if name in regrets:
                ratio = float(np.mean([seed[1] for seed in regrets[name]]) / flat)
                title = f"{RUNS[name][2]} over LSTM"
                rows.append(row("barcode-second-visit", title, ratio, unit="ratio", n=len(regrets[name])))
    return rows


def _row(claim: str, title: str, returns: list[np.ndarray], note: str, **size: Any) -> dict[str, Any]:
    seeds = [float(r.mean()) for r in returns]
    if len(seeds) == 1:
        mean, note = mean_interval(returns[0]), note + "; interval over trials"
    else:
        mean = mean_interval(seeds)
    note += "; one busy core of two"
    return row(claim, title, mean.mean, low=mean.low, high=mean.high, unit="return", n=len(seeds), note=note, **size)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if sys.argv[1] == "train":
        train(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        collect(sys.argv[2:])
