"""The command line. Learners and environments live in the checkout and are imported only when a verb needs them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from nestmem.errors import UserError

HELP = """\
nestmem: continual meta-learning with nested fast and slow memory

  nestmem train                          the quick start: nested memory on built-in glyphs, with a report
  nestmem train OVERRIDE...              e.g. experiment=omniglot memory=nested seed=1 trainer.steps=500
  nestmem train --cfg job OVERRIDE...    print the resolved configuration and stop
  nestmem train --help                   groups, options and their defaults
  nestmem train resume=RUN               go on with an interrupted run, bit for bit on a CPU
  nestmem eval RUN [ways=N shots=K queries=Q tasks=T split=val|test] [--json FILE]
  nestmem eval RUN text=FILE [tokens=N]  bits per byte of any text, by a run of env=text, with the memory carried all along
  nestmem eval RUN lengths=N,M [streams=S]
                                         accuracy on streams of any length, by a run of env=recall or babilong
  nestmem eval RUN session=N [of=2 store=PATH streams=32 split=val|test]
                                         recurring streams that go on over several processes, with a store in between
  nestmem eval RUN trials=N [split=val|test horizon=H drift=D]
                                         trials of new tasks, by the newest weights of a run of algo=rl2 or maml_rl, finished or not
  nestmem generate RUN [prompt=TEXT file=FILE tokens=300 temperature=0.8 seed=0]
                                         the prompt's continuation, after the memory has read FILE
  nestmem sequential RUN [trajectories=10 classes=600 order=random|listing seed=0]
                         [heads=means,gaussian,neighbours,gradient,cosine,nested encoder=trained|random shifts=0 oracle=EPOCHS]
                                         hundreds of Omniglot classes, one image at a time, on a run's encoder
  nestmem compare memories=A,B,... [seeds=5 jobs=CORES run=FOLDER] [OVERRIDE...]
                                         one experiment with several memories of one size; the same command goes on
  nestmem report RUN...                  write RUN/report/report.html
  nestmem store VERB URL                 the persistent store: stats, search, show, tree, verify, snapshot, ... (`nestmem store`)
  nestmem data list|get|check [SET]      data sets: where they are, download, verify
  nestmem memories                       the memories that can be named, with one line each
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; 0 if it went well, 2 for bad input (one sentence on stderr), 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    try:
        if verb in ("-h", "--help", "help"):
            print(HELP, end="")
            return 0
        if verb not in VERBS:
            raise UserError(f"nestmem: no verb {verb!r}; known: {', '.join(VERBS)}")
        return VERBS[verb](rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _train(arguments: list[str]) -> int:
    config = _checkout("algos.config")
    if any(a in ("-h", "--help") for a in arguments):
        print(config.help_text())
        return 0
    if arguments[:2] == ["--cfg", "job"]:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config.configure(arguments[2:])), end="")
        return 0
    if flag := next((a for a in arguments if a.startswith("-")), None):
        raise UserError(f"train: no flag {flag!r}; known: --help, --cfg job; options are given as name=value")
    jobs = _checkout("algos.jobs")
    try:
        jobs.train(arguments)
    except jobs.Stopped as stop:
        print(stop)
        return 130
    return 0


def _eval(arguments: list[str]) -> int:
    target = None
    if "--json" in arguments:
        at = arguments.index("--json")
        if at + 1 >= len(arguments):
            raise UserError("eval: --json needs a file name")
        target = arguments[at + 1]
        del arguments[at : at + 2]
    if not arguments or "=" in arguments[0]:
        raise UserError("eval: expected the folder of a run first, as in: nestmem eval RUN ways=5")
    other = {
        "text": "algos.text_run",
        "lengths": "algos.recall_run",
        "session": "algos.sessions",
        "trials": "algos.trials_run",
    }
    module = next(
        (module for name, module in other.items() if any(a.startswith(f"{name}=") for a in arguments[1:])), None
    )
    result = _checkout(module or "algos.jobs").evaluate(arguments[0], arguments[1:])
    if target:
        try:
            with open(target, "w", encoding="utf-8") as file:
                json.dump(result, file, indent=1)
        except OSError as error:
            raise UserError(f"--json: cannot write {target} ({error.strerror})") from None
    return 0


def _generate(arguments: list[str]) -> int:
    if not arguments or "=" in arguments[0]:
        raise UserError("generate: expected the folder of a run first, as in: nestmem generate RUN prompt='It was'")
    _checkout("algos.text_run").generate(arguments[0], arguments[1:])
    return 0


def _sequential(arguments: list[str]) -> int:
    if not arguments or "=" in arguments[0]:
        raise UserError("sequential: expected the folder of a run first, as in: nestmem sequential RUN classes=100")
    _checkout("algos.sequential_run").sequential(arguments[0], arguments[1:])
    return 0


def _compare(arguments: list[str]) -> int:
    _checkout("algos.compare").compare(arguments)
    return 0


def _report(arguments: list[str]) -> int:
    if not arguments:
        raise UserError("report: expected at least one folder of a run")
    from pathlib import Path

    print(_checkout("algos.report").report([Path(a) for a in arguments]))
    return 0


def _data(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in ("list", "get", "check"):
        raise UserError(f"data: expected list, get or check, got {arguments[0] if arguments else 'nothing'!r}")
    return int(_checkout("envs.datasets").run(arguments[0], arguments[1:]))


def _store(arguments: list[str]) -> int:
    try:
        from nestmem.store import cli
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("sqlalchemy", "rich"):
            raise UserError(f"store: the package {error.name!r} is missing; pip install 'nestmem[store]'") from None
        raise
    return cli.run(arguments)


def _memories(arguments: list[str]) -> int:
    import nestmem

    width = max(len(name) for name in nestmem.memories())
    for name, line in nestmem.memories().items():
        print(f"{name:{width}}  {line}")
    return 0


VERBS = {
    "train": _train,
    "eval": _eval,
    "generate": _generate,
    "sequential": _sequential,
    "compare": _compare,
    "report": _report,
    "store": _store,
    "data": _data,
    "memories": _memories,
}


def _checkout(module: str) -> Any:
    """A module of the checkout. The wheel carries the library alone."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("algos", "envs", "configs"):
            raise UserError(
                "nestmem: training runs in a checkout of the repository (the installed package is the library alone); "
                "clone it and use `uv run nestmem ...` there"
            ) from None
        raise UserError(
            f"nestmem: the package {missing!r} is missing; install the extra: pip install 'nestmem[train]'"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
