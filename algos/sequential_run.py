"""`nestmem sequential RUN`: how many classes the encoder of a run can learn one image at a time, by each head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from algos import jobs
from algos.sequential import Gaussian, Gradient, Head, Means, Neighbours, fit_prior, follow
from envs import omniglot
from envs.fewshot import ImageSet
from envs.sequential_omniglot import OUTPUTS, POINTS, Trajectories, subset
from nestmem.errors import UserError
from nestmem.probes import mean_interval

RATES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
BATCH = 500  # images encoded at once


def sequential(run: str, overrides: list[str]) -> dict[str, Any]:
    """Test the encoder of a run on `trajectories=` of `classes=` each, in `order=random|listing`, drawn by `seed=`.

    Writes RUN/sequential.json. The encoder must not have seen the evaluation part: a run with env.split=background, or
    one on other data. What a head needs beyond the stream (a prior, a rate) is chosen on background classes.
    """
    known: dict[str, Any] = {"trajectories": 10, "classes": 600, "order": "random", "seed": 0}
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in known:
            raise UserError(f"sequential: no option {name!r}; known: {', '.join(known)}")
        if name != "order" and not value.isdigit():
            raise UserError(f"{name}: expected a whole number, got {value!r}")
        known[name] = value if name == "order" else int(value)
    config = jobs.stored_config(Path(run))
    if config.env.name == "omniglot" and config.env.get("split") != "background":
        raise UserError(
            f"{run}: trained on characters of the evaluation part (env.split={config.env.get('split')}); "
            "expected a run with env.split=background"
        )
    data = omniglot.load()
    asked, val = subset(data, "meta_test"), subset(data, "val")
    trajectories = Trajectories(asked, **known)
    trainer = jobs.restored(config)
    encoder = trainer.learner.encoder.eval()
    table, background = (embed(encoder, part) for part in (asked, val))
    size, rate = table.shape[-1], best_rate(background, val, min(known["classes"], len(val.images)), known["seed"])
    shape = (known["trajectories"], OUTPUTS, size)
    heads: dict[str, Head] = {
        "means": Means(*shape),
        "gaussian": Gaussian(*shape, fit_prior(background)),
        "neighbours": Neighbours(*shape),
        "gradient": Gradient(*shape, rate),
    }
    points = [n for n in POINTS if n <= known["classes"]]
    if known["order"] == "listing" or known["classes"] not in points:
        points = [known["classes"]]
    result: dict[str, Any] = known | {"run": run, "step": trainer.step, "rate": rate, "heads": {}}
    for name, head in heads.items():
        records = list(follow(head, table, trajectories, points))
        result["heads"][name] = {
            "bytes_per_class": head.bytes_per_class,
            "held_out": {r.classes: r.held_out.tolist() for r in records},
            "learned": {r.classes: r.learned.tolist() for r in records},
        }
    (Path(run) / "sequential.json").write_text(json.dumps(result, indent=1))
    _print(result, points)
    return result


@torch.no_grad()
def embed(encoder: torch.nn.Module, data: ImageSet) -> Tensor:
    """Features [C, E, F] of every image, on the CPU."""
    images, device = data.images.flatten(0, 1)[:, None], next(encoder.parameters()).device
    parts = [encoder(part.to(device).float() / 255).float().cpu() for part in images.split(BATCH)]
    return torch.cat(parts).unflatten(0, data.images.shape[:2])


def best_rate(features: Tensor, data: ImageSet, classes: int, seed: int) -> float:
    """OML's rule on background classes: the rate that most often is best by accuracy on the learned images, of five draws."""
    draws = 5
    trajectories = Trajectories(data, seed=seed, classes=classes, trajectories=draws, order="random")
    x, y = (part.repeat(len(RATES), *[1] * (part.dim() - 1)) for part in trajectories.learned(features))
    head = Gradient(len(x), len(data.images), features.shape[-1], torch.tensor(RATES).repeat_interleave(draws))
    head.learn(x, y)
    right = (head.answer(x).argmax(-1) == y).float().mean(1).view(len(RATES), draws)
    return RATES[int(right.argmax(0).mode().values)]


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
