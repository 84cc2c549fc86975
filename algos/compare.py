"""`nestmem compare`: the same experiment with several memories, matched in size, over several seeds; and what follows from it.

The first memory is the one on trial, the others are its rivals. A rival's `slots`, where it has them, are set so that its state
takes as many bytes; its `hidden` so that it has as many parameters: no flat memory can match both, so the table prints
both. Runs that are finished stay, runs that stopped go on. The verdict is read off the intervals: on each axis the
experiment measures (adaptation, retention) the first memory is above a rival only if the 95 % interval of its probability of
improvement lies above 1/2.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from algos import build, comparison
from algos.config import configure
from nestmem.errors import UserError

console = Console()


class Entry(NamedTuple):
    """One memory with options of its own, as in `lstm` or `lstm:reset_every=15`."""

    label: str
    name: str
    options: list[str]


def compare(arguments: Sequence[str]) -> Path:
    """Run the comparison, or go on with it; returns the page. See the module for what is matched."""
    ours = {"memories": "", "seeds": "5", "jobs": "0", "run": ""}
    overrides = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in ours:
            ours[name] = value
        elif name in ("memory", "seed", "baselines", "resume"):
            raise UserError(f"compare: {name}= is set by the comparison itself; use memories=A,B and seeds=N")
        else:
            overrides.append(argument)
    entries = [_entry(text) for text in ours["memories"].split(",") if text]
    if len(entries) < 2 or len({e.label for e in entries}) < len(entries):
        raise UserError(f"memories: expected at least two different ones, as in nested,lstm, got {ours['memories']!r}")
    for name in ("seeds", "jobs"):
        if not ours[name].isdigit():
            raise UserError(f"{name}: expected a whole number, got {ours[name]!r}")
    seeds, cores = int(ours["seeds"]), os.cpu_count() or 1
    if seeds < 1:
        raise UserError("seeds: expected at least 1, got 0")
    jobs = min(int(ours["jobs"]) or cores, seeds * len(entries))
    title = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "quickstart")
    folder = Path(ours["run"] or f"runs/compare-{title}")
    runs = _prepare(folder, entries, seeds, overrides, threads=max(cores // jobs, 1))
    _train(runs, jobs)
    page, found = comparison.write(folder, title, {e.label: [runs[e.label, s] for s in range(seeds)] for e in entries})
    _print(title, found)
    console.print(f"report: {page}")
    return page


def _entry(text: str) -> Entry:
    name, *options = text.split(":")
    if any("=" not in option for option in options):
        raise UserError(f"memories: expected NAME or NAME:OPTION=VALUE, as in lstm:reset_every=16, got {text!r}")
    return Entry(text, name, [f"memory.{option}" for option in options])


def _prepare(
    folder: Path, entries: list[Entry], seeds: int, overrides: list[str], threads: int
) -> dict[tuple[str, int], Path]:
    """A folder with its configuration for every run; refused where another comparison lies."""
    runs = {}
    for entry, config in zip(entries, _configurations(entries, overrides, threads), strict=True):
        for seed in range(seeds):
            run = folder / entry.label.replace("=", "-").replace(":", "-") / f"s{seed}"
            config.seed, config.run = seed, str(run)
            path = run / "config.yaml"
            if path.exists() and _comparable(OmegaConf.load(path)) != _comparable(config):
                raise UserError(f"run: {folder} holds another comparison; give run=FOLDER, or remove it")
            if not path.exists():
                try:
                    run.mkdir(parents=True, exist_ok=True)
                    path.write_text(OmegaConf.to_yaml(config))
                except OSError as error:
                    raise UserError(f"run: cannot write to {run} ({error.strerror})") from None
            runs[entry.label, seed] = run
    return runs


def _configurations(entries: list[Entry], overrides: list[str], threads: int) -> list[DictConfig]:
    """One for each memory, the rivals matched in size to the first."""
    configs = []
    for entry in entries:
        config = OmegaConf.create(
            OmegaConf.to_container(configure([*overrides, f"memory={entry.name}", *entry.options, "baselines=[]"]))
        )
        config.trainer.threads = config.trainer.threads or threads
        build.learner(config)  # a wrong option is found before any work starts
        if configs:
            given = {option.partition("=")[0].removeprefix("memory.") for option in entry.options}
            build.match(config, configs[0], fixed=given)
        configs.append(config)
    return configs


def _comparable(config: Any) -> Any:
    """What makes it this comparison; how many threads it takes does not."""
    plain = OmegaConf.to_container(config)
    plain["trainer"].pop("threads")
    plain.pop("run")
    return plain


def _train(runs: dict[tuple[str, int], Path], jobs: int) -> None:
    """Every run in a process of its own, `jobs` at a time; Ctrl-C lets the running ones save."""
    left = {key: run for key, run in sorted(runs.items(), key=lambda item: item[0][1]) if not _finished(run)}
    console.print(f"{len(runs) - len(left)} of {len(runs)} runs finished already, {len(left)} to go, {jobs} at a time")
    running: set[subprocess.Popen[bytes]] = set()

    def one(key: tuple[str, int], run: Path) -> None:
        with open(run / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nestmem.cli", "train", f"resume={run}"], stdout=log, stderr=log
            )
            running.add(process)
            code = process.wait()
            running.discard(process)
        if code:
            lines = (run / "log.txt").read_text(errors="replace").strip().splitlines()
            raise UserError(
                f"compare: {key[0]} with seed {key[1]} stopped ({lines[-1] if lines else code}); see {run}/log.txt"
            )
        result = json.loads((run / "result.json").read_text())
        console.print(f"  {key[0]}, seed {key[1]}: {result['score']:.2f} % in {result['seconds']:.0f} s")

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, key, run) for key, run in left.items()]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:  # KeyboardInterrupt too: what runs saves itself, what waits does not start
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.send_signal(signal.SIGINT)
            raise


def _finished(run: Path) -> bool:
    return (run / "result.json").is_file()


def _print(title: str, found: comparison.Comparison) -> None:
    for name, rows in (("", found.table), *found.axes.items()):
        table = Table(title=f"{title}: {name}" if name else title)
        for column in rows[0]:
            table.add_column(column)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    console.print(found.verdict)
