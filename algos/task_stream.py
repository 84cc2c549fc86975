"""From options to a stream of tasks: which images, cut into which tasks, in which order (`env=tasks`).

    class_incremental    every task brings classes of its own: alphabets, or pairs of digits
    domain_incremental   every alphabet under the same labels
    permuted, rotated    the same classes under another order of the pixels, or turned further and further
    coarse_to_fine       first the alphabets as classes, then the characters, alphabet by alphabet
    omniglot_mnist       characters, then digits
Every image of a class beyond `held_out` is for learning; with part="val" the held-out ones are put away first and others
take their place, so that options can be chosen without a look at what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from envs import glyphs, mnist, omniglot, tasks
from envs.drift import Drift
from envs.fewshot import ImageSet
from envs.tasks import Task, alphabet
from nestmem.errors import UserError

HALF_TURN = 180.0
DATA = ("glyphs", "omniglot", "omniglot_background", "omniglot_evaluation", "mnist")
KINDS = ("class_incremental", "domain_incremental", "permuted", "rotated", "coarse_to_fine", "omniglot_mnist")


def stream(env: DictConfig, updates: int, batch: int, seed: int) -> Drift:
    """The stream that `updates` batches of `batch` images walk to its end; all visits are equally long."""
    made = make_tasks(env)
    visits = env.visits or len(made) * (1 if env.order == "once" else 2)
    if updates < 1 or updates % visits:
        raise UserError(f"trainer.steps: expected a multiple of the {visits} visits of the stream, got {updates}")
    return Drift(
        made, seed=seed, order=env.order, visits=visits, steps=updates // visits * batch, mixing=env.mixing,
        returns=env.returns, stay=env.stay, shuffle=env.shuffle, boundaries=env.boundaries, held_out=env.held_out,
    )  # fmt: skip


def make_tasks(env: DictConfig) -> list[Task]:
    """The tasks of `env` in their natural order."""
    for name, value, known in (
        ("data", env.data, DATA),
        ("kind", env.kind, KINDS),
        ("part", env.part, ("test", "val")),
    ):
        if value not in known:
            raise UserError(f"env.{name}: expected one of {', '.join(known)}, got {value!r}")
    if env.tasks < 1 or env.classes < 1:
        raise UserError(f"env: expected tasks and classes >= 1, got tasks {env.tasks}, classes {env.classes}")
    if env.kind == "omniglot_mnist":
        if not env.data.startswith("omniglot"):
            raise UserError(f"env.data: kind omniglot_mnist takes its characters from omniglot, got {env.data!r}")
        characters, digits = (_images(env, data) for data in (env.data, "mnist"))
        return tasks.class_incremental([tasks.whole("omniglot", characters), tasks.whole("mnist", digits)])
    makers: dict[str, Callable[[ImageSet], list[Task]]] = {
        "class_incremental": lambda data: tasks.class_incremental(_cut(env, data)),
        "domain_incremental": lambda data: tasks.domain_incremental(_cut(env, data)),
        "permuted": lambda data: tasks.permuted(data, env.tasks, env.seed),
        "rotated": lambda data: tasks.rotated(data, [HALF_TURN * i / env.tasks for i in range(env.tasks)]),
        "coarse_to_fine": tasks.coarse_to_fine,
    }
    return makers[env.kind](_images(env, env.data))


def _cut(env: DictConfig, data: ImageSet) -> list[Task]:
    return tasks.split(data, env.classes) if env.data == "mnist" else tasks.by_alphabet(data)


def _images(env: DictConfig, source: str) -> ImageSet:
    """`tasks` alphabets of `classes` characters each, or the first digits; one alphabet's worth for a kind of views."""
    views = env.kind in ("permuted", "rotated")
    wanted = 1 if views else env.tasks
    if source == "glyphs":
        data = glyphs.make(wanted, env.classes, env.seed)
    elif source == "mnist":
        data = mnist.load()
        count = mnist.DIGITS if env.kind == "omniglot_mnist" else wanted * env.classes
        if count > mnist.DIGITS:
            raise UserError(
                f"env: {wanted} tasks of {env.classes} digits asked for, but there are {mnist.DIGITS} digits"
            )
        data = _rows(data, range(count))
    else:
        data = _alphabets(source, wanted, env.classes)
    return _drawings(env, data)


def _alphabets(source: str, count: int, characters: int) -> ImageSet:
    """The first alphabets, in sorted order, that have so many characters, and of each the first ones."""
    data = omniglot.load()
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(data.names):
        if source == "omniglot" or (alphabet(name) in omniglot.EVALUATION_ALPHABETS) == source.endswith("evaluation"):
            groups.setdefault(alphabet(name), []).append(i)
    large = [rows for rows in groups.values() if len(rows) >= characters]
    if len(large) < count:
        raise UserError(f"env.tasks: {count} alphabets of {characters} asked for, but {source} has {len(large)}")
    return _rows(data, [i for rows in large[:count] for i in rows[:characters]])


def _rows(data: ImageSet, rows: Any) -> ImageSet:
    return ImageSet(data.images[list(rows)], [data.names[i] for i in rows])


def _drawings(env: DictConfig, data: ImageSet) -> ImageSet:
    images = data.images[:, : env.drawings] if env.drawings else data.images
    if env.part == "val":
        images = images[:, : images.shape[1] - round(env.held_out * images.shape[1])]
    return ImageSet(images, data.names)
