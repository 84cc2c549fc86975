"""The one training loop: sample, step, evaluate, save; stop and go on at any step.

Metrics (x-axis: updates of the slow weights):
    train/loss, train/accuracy, train/gradient_norm, train/rate; train/gate/L for each level L
    val/accuracy in percent with val/low and val/high (95 %), val/accuracy/P after P shots or inner steps
    time/seconds of training so far, time/tasks_per_second
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from algos import build, checkpoint, figures
from algos.checkpoint import Checkpoint
from algos.learner import Outcome
from algos.logs import Log, picture
from envs.fewshot import Episodes, ImageSet
from nestmem.errors import UserError
from nestmem.memory.base import state_bytes
from nestmem.probes import mean_interval


class Stopped(Exception):
    """Training was interrupted and everything is saved."""


class Trainer:
    """Trains one run from a configuration, or from its newest checkpoint if `resume`."""

    def __init__(self, config: DictConfig, sets: dict[str, ImageSet], resume: bool = False):
        self.config, self.options, self.run_dir = config, config.trainer, Path(config.run)
        self.device = _device(self.options.device)
        torch.set_num_threads(self.options.threads or os.cpu_count() or 1)
        keep_freed_memory()
        self.sets, self.seeds = sets, build.seeds(config.seed)
        torch.manual_seed(self.seeds["global"])  # nothing here draws from it; a memory of yours might
        self.train_tasks = build.sampler(
            config.env, sets["train"], self.seeds["train"], self.device, augment=config.env.augment
        )
        for split in ("val", "test"):  # refuse what cannot be sampled before any work starts
            build.sampler(config.env, sets[split], 0, torch.device("cpu"))
        self.learner = build.learner(config).to(self.device)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=self.options.lr)
        self.step, self.seconds, self.last_saved = 0, 0.0, 0
        self.notes: list[str] = []
        if resume:
            found, self.notes = checkpoint.read(self.run_dir)
            self.restore(found)

    def fit(self) -> dict[str, Any]:
        """Train to the end, then test; returns what RUN/result.json holds. Raises Stopped on Ctrl-C."""
        options, interrupted = self.options, _Interrupt()
        self.log = Log(self.run_dir, self.step)
        if self.step == 0:
            OmegaConf.save(self.config, self.run_dir / "config.yaml")
            self.log.text("config", OmegaConf.to_yaml(self.config))
        reached = False
        with interrupted, _progress() as bar:
            task = bar.add_task(self.config.memory.name, total=options.steps, completed=self.step, info="")
            while self.step < options.steps and not reached:
                started = time.perf_counter()
                metrics = self._update()
                self.seconds += time.perf_counter() - started
                self.step += 1
                rate = options.tasks / (time.perf_counter() - started)
                bar.update(
                    task, completed=self.step, info=f"accuracy {100 * metrics['accuracy']:.1f} %, {rate:.0f} tasks/s"
                )
                last = self.step == options.steps
                if self.step % 10 == 0 or last:
                    self.log.scalars(self.step, {f"train/{k}": v for k, v in metrics.items()})
                if self.step % options.eval_every == 0 or last:
                    reached = self._validate(rate)
                if interrupted.asked or self.step % options.checkpoint_every == 0 or last or reached:
                    self.save()
                if interrupted.asked:
                    self.log.close()
                    raise Stopped(f"stopped at step {self.step}; go on with: nestmem train resume={self.run_dir}")
        result = self.test()
        self.log.close()
        return result

    def save(self) -> None:
        tensors = {f"learner.{k}": v for k, v in self.learner.state_dict().items()}
        tensors |= checkpoint.pack_optimizer(self.optimizer)
        tensors["rng.sampler"] = self.train_tasks.generator.get_state()
        tensors["rng.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        meta = {"config": OmegaConf.to_container(self.config), "seconds": self.seconds}
        checkpoint.write(self.run_dir, self.step, tensors, meta, self.options.keep)
        self.last_saved = self.step

    def evaluate(self, split: str, tasks: int, **changes: int) -> Outcome:
        """The learner on `tasks` tasks of a split, always the same ones; `changes` replace ways, shots or queries."""
        source = build.sampler(self.config.env, self.sets[split], self.seeds[split], self.device, **changes)
        self.learner.eval()
        accuracy, gates = [], []
        for start in range(0, tasks, self.options.chunk):
            outcome = self.learner.evaluate(source.sample(min(self.options.chunk, tasks - start)))
            accuracy.append(outcome.accuracy)
            if outcome.gates is not None:
                gates.append(outcome.gates)
        self.learner.train()
        return Outcome(torch.cat(accuracy).cpu(), torch.stack(gates).mean(0).cpu() if gates else None)

    def test(self) -> dict[str, Any]:
        """Accuracy on the test classes, written to RUN/result.json."""
        outcome = self.evaluate("test", self.options.test_tasks)
        result = summary(self.config, self.learner, outcome) | {"step": self.step, "seconds": round(self.seconds, 1)}
        path = self.run_dir / "result.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(path)
        flat = {f"{g}.{k}": v for g in ("env", "algo", "memory", "trainer") for k, v in self.config[g].items()}
        self.log.hparams(flat | {"seed": self.config.seed}, {"test/accuracy": result["accuracy"]})
        return result

    def _update(self) -> dict[str, float]:
        """One update of the slow weights; gradients of chunks of tasks add up to that of the batch."""
        options, batch = self.options, self.train_tasks.sample(self.options.tasks)
        rate = _rate(self.step, options.lr, options.warmup, options.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        totals: dict[str, float] = {}
        for start in range(0, options.tasks, options.chunk):
            part = Episodes(*(tensor[start : start + options.chunk] for tensor in batch))
            share = len(part.support_x) / options.tasks
            with torch.autocast(self.device.type, torch.bfloat16, enabled=options.amp):
                loss, metrics = self.learner.loss(part)
            (share * loss).backward()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + share * float(value)
        norm = float(torch.nn.utils.clip_grad_norm_(self.learner.parameters(), options.clip))
        if not math.isfinite(totals["loss"]) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(totals["loss"]) else "gradient"
            kept = f"checkpoint {self.last_saved} is kept" if self.last_saved else "no checkpoint was due yet"
            raise UserError(
                f"trainer.lr: the {what} is not finite at step {self.step + 1}; {kept}; try less than {options.lr}"
            )
        self.optimizer.step()
        return totals | {"gradient_norm": norm, "rate": rate}

    def _validate(self, rate: float) -> bool:
        """Log validation accuracy; whether the target is reached."""
        outcome = self.evaluate("val", self.options.eval_tasks)
        intervals = curve(outcome)
        mean, low, high, _ = intervals[-1]
        scalars = {"val/accuracy": mean, "val/low": low, "val/high": high}
        scalars |= {f"val/accuracy/{i}": interval.mean for i, interval in enumerate(intervals)}
        self.log.scalars(self.step, scalars | {"time/seconds": self.seconds, "time/tasks_per_second": rate})
        columns = tuple(zip(*[(i.mean, i.low, i.high) for i in intervals], strict=True))
        figure = figures.adaptation({self.config.memory.name: columns}, self.learner.point, 100 / self.config.env.ways)
        self.log.image(self.step, "val/adaptation", picture(figure))
        if outcome.gates is not None:
            figure = figures.gates(outcome.gates.tolist(), level_names(self.learner), self.learner.point)
            self.log.image(self.step, "val/gates", picture(figure))
        return mean >= self.options.target

    def restore(self, found: Checkpoint) -> None:
        """Put everything back to where a checkpoint of this configuration was written."""
        different = first_difference(found.meta.get("config"), OmegaConf.to_container(self.config))
        if different:
            raise UserError(f"{found.path}: this checkpoint is of another configuration ({different})")
        weights = {k.removeprefix("learner."): v for k, v in found.tensors.items() if k.startswith("learner.")}
        try:
            self.learner.load_state_dict(weights)
            checkpoint.unpack_optimizer(self.optimizer, found.tensors)
            self.train_tasks.generator.set_state(found.tensors["rng.sampler"])
            torch.set_rng_state(found.tensors["rng.torch"])
            if self.device.type == "cuda" and "rng.cuda" in found.tensors:
                torch.cuda.set_rng_state(found.tensors["rng.cuda"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{found.path}: does not fit this configuration ({reason})") from None
        self.step = self.last_saved = found.step
        self.seconds = float(found.meta["seconds"])


def keep_freed_memory() -> None:
    """Have the C library reuse freed memory instead of returning it: fresh pages cost some 5 % of a step on a CPU."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the largest it takes
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # not glibc


def curve(outcome: Outcome) -> list[Any]:
    """Interval of the accuracy in percent at each amount of adaptation."""
    return [mean_interval(100 * np.asarray(column)) for column in outcome.accuracy.T]


def summary(config: DictConfig, learner: torch.nn.Module, outcome: Outcome) -> dict[str, Any]:
    """What a result file says."""
    intervals = curve(outcome)
    memory = getattr(learner, "memory", None)
    return {
        "memory": config.memory.name,
        "algo": config.algo.name,
        "env": OmegaConf.to_container(config.env),
        "seed": config.seed,
        "accuracy": intervals[-1].mean,
        "low": intervals[-1].low,
        "high": intervals[-1].high,
        "tasks": intervals[-1].n,
        "point": learner.point,
        "curve": [[i.mean, i.low, i.high] for i in intervals],
        "gates": None if outcome.gates is None else outcome.gates.tolist(),
        "levels": level_names(learner),
        "parameters": build.parameters(learner),
        "state_bytes": state_bytes(memory.initial_state(1)) if memory is not None else 0,
    }


def level_names(learner: torch.nn.Module) -> list[str]:
    memory = getattr(learner, "memory", None)
    return [type(level).__name__ for level in getattr(memory, "levels", [])]


def first_difference(a: Any, b: Any, where: str = "") -> str:
    """The first option in which two configurations differ, in words; empty if they agree. Where a run lies does not count."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            path = f"{where}.{key}" if where else str(key)
            if path != "run" and (found := first_difference(a.get(key), b.get(key), path)):
                return found
        return ""
    return "" if a == b else f"{where} was {a!r}, is {b!r}"


def _rate(step: int, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device: {name!r} is not usable here ({reason}); expected auto, cpu or cuda") from None
    return device


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )


class _Interrupt:
    """Ctrl-C (or SIGTERM) asks to stop after the current step; a second Ctrl-C stops at once."""

    def __enter__(self) -> _Interrupt:
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
