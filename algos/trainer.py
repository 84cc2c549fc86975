"""The one training loop: update, judge, save; stop and go on at any step.

Metrics (x-axis: updates of the slow weights):
    train/loss, train/gradient_norm, train/rate, and what the learner says of itself: train/accuracy, train/gate/L, ...
    val/MEASURE in percent with val/low and val/high (95 %), and what the problem adds to it
    time/seconds of training so far, time/tasks_per_second
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from algos import checkpoint
from algos.checkpoint import Checkpoint, below
from algos.logs import Log, picture
from algos.parts import parameters, seeds
from algos.problem import Part, Problem
from algos.stored import watched, write_back
from nestmem.errors import UserError
from nestmem.memory.base import state_bytes
from nestmem.probes.value import jsonable


class Stopped(Exception):
    """Training was interrupted and everything is saved."""


class Trainer:
    """Trains one problem as its configuration says, from its newest checkpoint if `resume`."""

    def __init__(self, config: DictConfig, problem: Problem, resume: bool = False):
        self.config, self.options, self.run_dir, self.problem = config, config.trainer, Path(config.run), problem
        if (schedule := self.options.get("schedule", "cosine")) not in ("cosine", "constant"):
            raise UserError(f"trainer.schedule: expected cosine or constant, got {schedule!r}")
        torch.set_num_threads(self.options.threads or cores())
        keep_freed_memory()
        torch.manual_seed(seeds(config.seed)["global"])  # nothing here draws from it; a memory of yours might
        self.learner = problem.learner
        self.on_gpu = next(self.learner.parameters()).is_cuda
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=self.options.lr)
        self.step, self.seconds, self.last_saved = 0, 0.0, 0
        self.notes: list[str] = []
        self.stored: dict[str, Any] = {}  # what became of a store that the memory has as a level
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
                metrics = self.problem.update(self._optimize)
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                self.step += 1
                rate = options.tasks / elapsed
                last = self.step == options.steps
                shown = f"loss {metrics['loss']:.3f}"
                if "accuracy" in metrics:
                    shown = f"accuracy {100 * metrics['accuracy']:.1f} %"
                bar.update(task, completed=self.step, info=f"{shown}, {rate:.0f} tasks/s")
                if self.step % 10 == 0 or last:
                    self.log.scalars(self.step, {f"train/{k}": v for k, v in metrics.items()})
                if self.step % options.eval_every == 0 or last:
                    reached = self._validate(rate)
                if interrupted.asked or self.step % options.checkpoint_every == 0 or last or reached:
                    self.save()
                if interrupted.asked:
                    self.log.close()
                    raise Stopped(f"stopped at step {self.step}; go on with: nestmem train resume={self.run_dir}")
        self.stored = write_back(self.problem, str(self.run_dir))
        result = self.test()
        self.log.close()
        return result

    def save(self) -> None:
        tensors = {f"learner.{k}": v for k, v in self.learner.state_dict().items()}
        tensors |= {f"problem.{k}": v for k, v in self.problem.state_dict().items()}
        tensors |= checkpoint.pack_optimizer(self.optimizer)
        tensors["rng.torch"] = torch.get_rng_state()
        if self.on_gpu:
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        meta = {"config": OmegaConf.to_container(self.config), "seconds": self.seconds}
        checkpoint.write(self.run_dir, self.step, tensors, meta, self.options.keep)
        self.last_saved = self.step

    def test(self) -> dict[str, Any]:
        """Judge on what was never trained on; written to RUN/result.json."""
        judged = watched(self.problem, self.problem.test)
        memory = getattr(self.learner, "memory", None)
        result = {
            "memory": self.config.memory.name,
            "algo": self.config.algo.name,
            "env": OmegaConf.to_container(self.config.env),
            "seed": self.config.seed,
            "measure": self.problem.measure,
            "unit": getattr(self.problem, "unit", "%"),
            "lower_is_better": getattr(self.problem, "lower_is_better", False),
            "score": judged.score.mean,
            "low": judged.score.low,
            "high": judged.score.high,
            "n": judged.score.n,
            "counted": self.problem.counted,
            "parameters": parameters(self.learner),
            "state_bytes": state_bytes(memory.initial_state(1)) if memory is not None else 0,
            "step": self.step,
            "seconds": round(self.seconds, 1),
        } | judged.details
        result |= self.stored
        path = self.run_dir / "result.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(jsonable(result), indent=1))
        partial.replace(path)
        for tag, figure in judged.figures.items():
            self.log.image(self.step, f"test/{tag}", picture(figure))
        for tag, frames in judged.videos.items():
            self.log.video(self.step, f"test/{tag}", frames)
        flat = {f"{g}.{k}": v for g in ("env", "algo", "memory", "trainer") for k, v in self.config[g].items()}
        self.log.hparams(flat | {"seed": self.config.seed}, {f"test/{self.problem.measure}": judged.score.mean})
        return result

    def _optimize(self, parts: Iterable[Part]) -> dict[str, float]:
        """One update of the slow weights; the gradients of the parts add up."""
        options = self.options
        rate = _rate(self.step, options.lr, options.warmup, options.steps, options.get("schedule", "cosine"))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        totals = {"loss": 0.0}
        for loss, metrics, share in parts:
            (share * loss).backward()
            for name, value in ({"loss": loss.detach()} | metrics).items():
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
        """Log a judgement on the validation part; whether the target is reached."""
        judged = watched(self.problem, self.problem.validate)
        score = judged.score
        scalars = {self.problem.measure: score.mean, "low": score.low, "high": score.high} | judged.scalars
        clock = {"time/seconds": self.seconds, "time/tasks_per_second": rate}
        self.log.scalars(self.step, {f"val/{tag}": value for tag, value in scalars.items()} | clock)
        for tag, figure in judged.figures.items():
            self.log.image(self.step, f"val/{tag}", picture(figure))
        return score.mean >= self.options.target

    def restore(self, found: Checkpoint) -> None:
        """Put everything back to where a checkpoint of this configuration was written."""
        different = first_difference(found.meta.get("config"), OmegaConf.to_container(self.config))
        if different:
            raise UserError(f"{found.path}: this checkpoint is of another configuration ({different})")
        try:
            self.learner.load_state_dict(below(found.tensors, "learner."))
            self.problem.load_state_dict(below(found.tensors, "problem."))
            checkpoint.unpack_optimizer(self.optimizer, found.tensors)
            torch.set_rng_state(found.tensors["rng.torch"])
            if self.on_gpu and "rng.cuda" in found.tensors:
                torch.cuda.set_rng_state(found.tensors["rng.cuda"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{found.path}: does not fit this configuration ({reason})") from None
        self.step = self.last_saved = found.step
        self.seconds = float(found.meta["seconds"])


def cores() -> int:
    """Threads to compute on where trainer.threads does not say: as many as OMP_NUM_THREADS asks for, else one for each core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Have the C library reuse freed memory instead of returning it: fresh pages cost some 5 % of a step on a CPU."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the largest it takes
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # not glibc


def first_difference(a: Any, b: Any, where: str = "") -> str:
    """The first option in which two configurations differ, in words; empty if they agree. Where a run lies does not count, nor
    does an option that only the second has: it is newer than the first."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a):
            path = f"{where}.{key}" if where else str(key)
            if path != "run" and (found := first_difference(a.get(key), b.get(key), path)):
                return found
        return ""
    return "" if a == b else f"{where} was {a!r}, is {b!r}"


def _rate(step: int, peak: float, warmup: int, steps: int, schedule: str) -> float:
    """Linear warm-up; then a cosine to zero at the last step, or no change."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


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
