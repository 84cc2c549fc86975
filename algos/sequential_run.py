"""`nestmem sequential RUN`: how many classes the encoder of a run can learn one image at a time, by each head."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from algos import build, jobs
from algos.sequential import Cosine, Gaussian, Gradient, Head, Means, Neighbours, embed, fit_prior, follow, shuffled
from algos.sequential_nested import Remembered, fit_read, nested
from algos.sequential_network import RATES, Network
from algos.sequential_rate import best_rate, winner
from envs import omniglot
from envs.fewshot import ImageSet
from envs.sequential_omniglot import OUTPUTS, POINTS, Trajectories, subset
from nestmem.errors import UserError
from nestmem.probes import mean_interval

SLOW: dict[str, type[Gradient]] = {"gradient": Gradient, "cosine": Cosine}
HEADS = ("means", "gaussian", "neighbours", *SLOW, "nested")
ALL = (
    *HEADS,
    "network",
    "stored",
)  # every layer learns, or each image goes into a store: minutes, so only where they are named
ENCODERS = ("trained", "random")


def sequential(run: str, overrides: list[str]) -> dict[str, Any]:
    """Test the encoder of a run on `trajectories=` of `classes=` each, in `order=random|listing`, drawn by `seed=`.

    heads=A,B: some of the heads alone, beside what the file has of the others; or `network`, in which the encoder learns too;
    or `stored`, the nested memory with a persistent store (needs nestmem[store]). encoder=random: the same encoder before
    any training. shifts=1: features are means over the shifts of an image by up to a pixel. oracle=EPOCHS: also the slow heads
    and the nested one on the same images in random order, so many times over. Writes RUN/sequential.json (`file_name` where
    encoder or shifts are given).
    The encoder must not have seen the evaluation part: a run with env.split=background, or one on other data. What a
    head needs beyond the stream (a prior, a rate) is chosen on background classes, their rotations being further classes.
    """
    known = _options(overrides)
    chosen = known["heads"].split(",")
    config = jobs.stored_config(Path(run))
    if config.env.name == "omniglot" and config.env.get("split") != "background":
        raise UserError(
            f"{run}: trained on characters of the evaluation part (env.split={config.env.get('split')}); "
            "expected a run with env.split=background"
        )
    data = omniglot.load()
    asked, val = subset(data, "meta_test"), subset(data, "val").rotated()
    draw = {key: known[key] for key in ("trajectories", "classes", "order", "seed")}
    streams = Trajectories(asked, **draw)
    choice = Trajectories(val, **draw | {"trajectories": 5, "order": "random"})
    encoder, step = _encoder(config, run, known["encoder"])
    table, background = (embed(encoder, part, known["shifts"]) for part in (asked, val))
    shape = (known["trajectories"], OUTPUTS, table.shape[-1])
    rates = {name: best_rate(background, choice, SLOW[name]) for name in SLOW if name in chosen}
    if "network" in chosen:
        rates["network"] = _network_rate(encoder, val, draw)
    make: dict[str, Callable[[], Head]] = {
        "means": lambda: Means(*shape),
        "gaussian": lambda: Gaussian(*shape, fit_prior(background)),
        "neighbours": lambda: Neighbours(*shape),
        "nested": lambda: _nested(background, choice, shape),
        "stored": lambda: _stored(background, choice, shape),
        "network": lambda: Network(encoder, *shape, rates["network"]),
    } | {name: partial(SLOW[name], *shape, rates[name]) for name in SLOW if name in rates}
    points = [n for n in POINTS if n <= known["classes"]]
    if known["order"] == "listing" or known["classes"] not in points:
        points = [known["classes"]]
    result: dict[str, Any] = known | {"run": run, "step": step, "rates": rates, "heads": {}}
    for name in chosen:
        head = make[name]()
        shown = asked.images.flatten(2) if name == "network" else table
        records = list(follow(head, shown, streams, points))
        result["heads"][name] = {
            "bytes_per_class": head.bytes_per_class,
            "held_out": {r.classes: r.held_out.tolist() for r in records},
            "learned": {r.classes: r.learned.tolist() for r in records},
        }
    if epochs := known["oracle"]:
        few = Trajectories(val, **draw | {"trajectories": max(1, 5 // epochs), "order": "random"})
        result["iid"] = {}
        for name in [n for n in chosen if n in (*SLOW, "nested")]:
            slow = best_rate(background, few, SLOW[name], epochs) if name in SLOW else None
            head = make[name]() if slow is None else SLOW[name](*shape, slow)
            result["iid"][name] = {"rate": slow, "held_out": _iid(head, table, streams, epochs).tolist()}
    _print(result, points)
    path = Path(run) / file_name(known["encoder"], known["shifts"])
    whole = path.with_suffix(".new")  # renamed into place, as it holds what earlier calls measured
    whole.write_text(json.dumps(_beside(path, result), indent=1))
    whole.replace(path)
    return result


def _beside(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """A new result and, in front of it, heads that an earlier one on the same streams has and this one does not."""
    old = json.loads(path.read_text()) if path.exists() else {}
    own = ("heads", "rates", "iid", "oracle")
    if {k: v for k, v in old.items() if k not in own} != {k: v for k, v in new.items() if k not in own}:
        return new
    oracle = {"oracle": new["oracle"] or old["oracle"]}
    if "iid" in old and oracle["oracle"] == old["oracle"]:
        oracle["iid"] = old["iid"] | new.get("iid", {})
    return new | oracle | {part: old[part] | new[part] for part in ("heads", "rates")}


def _options(overrides: list[str]) -> dict[str, Any]:
    known: dict[str, Any] = {"trajectories": 10, "classes": 600, "order": "random", "seed": 0}
    known |= {"encoder": "trained", "oracle": 0, "shifts": 0, "heads": ",".join(HEADS)}
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in known:
            raise UserError(f"sequential: no option {name!r}; known: {', '.join(known)}")
        if isinstance(known[name], int) and not value.isdigit():
            raise UserError(f"{name}: expected a whole number, got {value!r}")
        known[name] = int(value) if isinstance(known[name], int) else value
    if known["encoder"] not in ENCODERS:
        raise UserError(f"encoder: expected one of {', '.join(ENCODERS)}, got {known['encoder']!r}")
    if unknown := [name for name in known["heads"].split(",") if name not in ALL]:
        raise UserError(f"heads: expected some of {', '.join(ALL)}, got {unknown[0]!r}")
    return known


def file_name(encoder: str, shifts: int) -> str:
    """Where a run keeps what was measured so."""
    return f"sequential{'-random' if encoder == 'random' else ''}{f'-shifts{shifts}' if shifts else ''}.json"


def _encoder(config: DictConfig, run: str, which: str) -> tuple[nn.Module, int]:
    """The encoder of a run and how many updates made it what it is."""
    trainer = jobs.restored(config) if which == "trained" else None
    learner = trainer.learner if trainer else build.problem(config).learner
    if not isinstance(encoder := getattr(learner, "encoder", None), nn.Module):
        raise UserError(
            f"{run}: algo={config.algo.name} keeps no encoder apart; expected one that does, as prototypes, oml"
        )
    return encoder.eval(), trainer.step if trainer else 0


def _network_rate(encoder: nn.Module, val: ImageSet, draw: dict[str, Any]) -> float:
    """As for the heads, on streams of no more than 200 classes, which take a third of the time."""
    short = draw | {"trajectories": 5, "order": "random", "classes": min(200, draw["classes"])}
    outputs, pixels = len(val.images), val.images.flatten(2)
    width = encoder(torch.zeros(1, 1, *val.images.shape[-2:])).shape[-1]
    return winner(
        pixels,
        Trajectories(val, **short),
        lambda n, tried: Network(encoder, n, outputs, width, tried),
        torch.tensor(RATES),
    )


def _nested(background: Tensor, choice: Trajectories, shape: tuple[int, int, int]) -> Remembered:
    trajectories, outputs, features = shape
    memory = nested(features, outputs)
    fit_read(Remembered(memory, len(choice.classes)), background, choice)
    return Remembered(memory, trajectories)


def _stored(background: Tensor, choice: Trajectories, shape: tuple[int, int, int]) -> Head:
    from algos.sequential_stored import Stored  # needs the extra `store`

    fitted = Stored(len(choice.classes), *shape[1:])
    fit_read(fitted, background, choice)
    fitted.close()
    head = Stored(*shape)
    head.share(fitted)
    return head


def _iid(head: Head, table: Tensor, streams: Trajectories, epochs: int) -> Tensor:
    """Accuracy in percent [R] on held-out drawings after `epochs` of the learned ones in random order."""
    for x, y in shuffled(*streams.learned(table), epochs, seed=0):
        head.learn(x, y)
    queries, labels = streams.held_out(table)
    return 100 * (head.answer(queries).argmax(-1) == labels).float().mean(1)


def _print(result: dict[str, Any], points: list[int]) -> None:
    table = Table(title=f"{result['run']}: held-out accuracy, %, after so many classes")
    for column in ("head", *map(str, points), "learned images", "bytes per class"):
        table.add_column(column)
    for name, head in result["heads"].items():
        cells = []
        for values in [*head["held_out"].values(), head["learned"][points[-1]]]:
            interval = mean_interval(values)
            cells.append(f"{interval.mean:.1f} ± {interval.high - interval.mean:.1f}")
        table.add_row(name, *cells, f"{head['bytes_per_class']:,.0f}")
    Console(width=max(100, 12 * len(points) + 50)).print(table)
    for name, found in result.get("iid", {}).items():
        oracle = mean_interval(found["held_out"])
        print(f"{name}, {result['oracle']} epochs in random order: {oracle.mean:.1f} ± {oracle.high - oracle.mean:.1f}")
