"""What the verbs do: train, evaluate; each on a configuration, each printing what a person wants to know."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from algos import build
from algos.config import Train, completed, configure
from algos.fewshot import FewShotProblem
from algos.report import report
from algos.trainer import Stopped, Trainer
from nestmem.errors import UserError

__all__ = ["Stopped", "evaluate", "train"]

console = Console()


def train(overrides: list[str]) -> Path:
    """Train the run and its baselines, or go on with `resume=RUN`; then write the report. Returns the run's folder."""
    resumed = [o.removeprefix("resume=") for o in overrides if o.startswith("resume=")]
    if resumed and len(overrides) > 1:
        other = next(o for o in overrides if not o.startswith("resume="))
        raise UserError(f"resume: a run goes on with its own configuration, but {other!r} was given too")
    config = stored_config(Path(resumed[0])) if resumed else _fresh(configure(overrides))
    flat = [build.baseline(config, name) for name in config.baselines]
    for part in [config, *flat]:
        _train_one(part)
    page = report([Path(config.run)])
    console.print(f"report: {page}\nwatch:  tensorboard --logdir {config.run}")
    return Path(config.run)


def _train_one(config: DictConfig) -> None:
    run = Path(config.run)
    if (run / "result.json").exists():
        console.print(f"{run}: finished already")
        return
    resume = any((run / "checkpoints").glob("step-*"))
    trainer = Trainer(config, build.problem(config), resume)
    for note in trainer.notes:
        console.print(f"{note}; going on from step {trainer.step} instead")
    size = build.parameters(trainer.learner)
    console.print(f"{config.algo.name} with memory {config.memory.name}: {size:,} parameters, into {run}")
    try:
        result = trainer.fit()
    except OSError as error:  # logs and results; checkpoints say so themselves
        kept = f"checkpoint {trainer.last_saved} is kept" if trainer.last_saved else "nothing was saved yet"
        raise UserError(f"run: cannot write to {run} ({error.strerror}); {kept}") from None
    console.print(
        f"test {result['measure']}: {result['score']:.2f} {result['unit']} [{result['low']:.2f}, {result['high']:.2f}] "
        f"on {result['n']} {result['counted']}; {result['seconds']:.0f} s of training"
    )


def evaluate(run: str, overrides: list[str]) -> dict[str, Any]:
    """Test the newest checkpoint of a run on other `ways=`, `shots=`, `queries=`, `tasks=` or `split=`."""
    known: dict[str, Any] = {"ways": None, "shots": None, "queries": None, "tasks": None, "split": "test"}
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in known:
            raise UserError(f"eval: no option {name!r}; known: {', '.join(known)}")
        if name == "split":
            if value not in ("val", "test"):
                raise UserError(f"split: expected val or test, got {value!r}")
        elif not value.isdigit() or int(value) < 1:
            raise UserError(f"{name}: expected a whole number of at least 1, got {value!r}")
        known[name] = value if name == "split" else int(value)
    config = stored_config(Path(run))
    if "ways" not in config.env:
        raise UserError(
            f"{run}: eval asks for other few-shot tasks, with text=FILE for bits per byte of a text, with lengths=N for recall on "
            f"longer streams, or with trials=N for trials of new tasks; this run is of env={config.env.name}; see its report"
        )
    if (known["ways"] or 1) > config.env.ways:
        raise UserError(f"ways: this model was trained for {config.env.ways} ways, got {known['ways']}")
    trainer = restored(config)
    for note in trainer.notes:
        console.print(f"{note}; step {trainer.step} is used instead")
    changes = {k: known[k] for k in ("ways", "shots", "queries") if known[k]}
    problem = trainer.problem
    if not isinstance(problem, FewShotProblem):
        raise UserError(f"{run}: not a few-shot run (algo={config.algo.name}); what its test said is in result.json")
    judged = problem.judge(problem.evaluate(known["split"], known["tasks"] or config.trainer.test_tasks, **changes))
    result = {"run": run, "step": trainer.step, "split": known["split"], "score": judged.score.mean} | judged.details
    result |= {"env": OmegaConf.to_container(config.env) | changes, "n": judged.score.n}
    table = Table(title=f"{run} at step {trainer.step}, {known['split']} classes")
    for column in (result["point"], "accuracy, %", "95 % interval"):
        table.add_column(column)
    for i, (mean, low, high) in enumerate(result["curve"]):
        table.add_row(str(i), f"{mean:.2f}", f"{low:.2f} to {high:.2f}")
    console.print(table)
    return result


def restored(config: DictConfig) -> Trainer:
    """The newest checkpoint of a run, ready to be asked."""
    return Trainer(config, build.problem(config), resume=True)


def stored_config(run: Path) -> DictConfig:
    """The configuration a run was started with, its folder being where it lies now."""
    path = run / "config.yaml"
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{run}: not a run of nestmem ({path.name} cannot be read: {type(error).__name__})") from None
    if not isinstance(config, DictConfig) or (missing := {f.name for f in fields(Train)} - set(config)):
        what = "it is not a configuration" if not isinstance(config, DictConfig) else f"{sorted(missing)[0]} is missing"
        raise UserError(f"{run}: not a run of nestmem ({path.name}: {what})")
    config.run = str(run)
    return completed(config)


def _fresh(config: DictConfig) -> DictConfig:
    """The same configuration in a folder that is not taken: `-2`, `-3`, ... is added to the name."""
    copy = OmegaConf.create(OmegaConf.to_container(config))
    number = 1
    while Path(copy.run).exists():
        number += 1
        copy.run = f"{config.run}-{number}"
    return copy
