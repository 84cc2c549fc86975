"""What problems are put together from: seeds, image sets, memories; and weights that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

import nestmem
from envs import folder, glyphs, omniglot, sequential_omniglot
from envs.fewshot import ImageSet
from nestmem.errors import UserError
from nestmem.memory import registry
from nestmem.memory.base import Fields

COMPONENTS = ("weights", "train", "val", "test", "global", "strategy")


def seeds(seed: int) -> dict[str, int]:
    """One seed for each component of a run, so that nothing shares a stream of random numbers."""
    children = np.random.SeedSequence(seed).spawn(len(COMPONENTS))
    return {name: int(child.generate_state(1)[0]) for name, child in zip(COMPONENTS, children, strict=True)}


@contextmanager
def drawn(config: DictConfig) -> Iterator[None]:
    """Weights made within are drawn from the run's seed, the global generator stays as it was, and what a constructor
    refuses is a sentence for the user."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds(config.seed)["weights"])
        try:
            yield
        except ValueError as error:
            raise UserError(str(error)) from None


def options(group: DictConfig) -> dict[str, Any]:
    """The options of a group without its name."""
    return {str(key): value for key, value in OmegaConf.to_container(group).items() if key != "name"}


def memory(config: DictConfig, d_model: int, fields: Fields | None = None) -> nestmem.Memory:
    """The memory a run names; refused where it names none."""
    name = config.memory.name
    if name == "none":
        raise UserError(f"memory: algo={config.algo.name} needs one, got none; known: {', '.join(nestmem.memories())}")
    return registry.build(name, d_model, fields, **options(config.memory))


def no_memory(config: DictConfig) -> None:
    """Refuse a memory where none is used."""
    if config.memory.name != "none":
        raise UserError(f"memory: algo={config.algo.name} goes with memory=none, got {config.memory.name}")


def image_sets(env: DictConfig) -> dict[str, ImageSet]:
    """Train, val and test classes of `env`, rotated where asked for."""
    match env.name:
        case "glyphs":
            held_out = max(env.alphabets // 3, 1)
            sizes = {"train": env.alphabets, "val": held_out, "test": held_out}
            sets = {
                split: glyphs.make(alphabets, env.characters, seed=3 * env.seed + i)
                for i, (split, alphabets) in enumerate(sizes.items())
            }
        case "omniglot":
            if env.train not in ("train", "trainval"):
                raise UserError(f"env.train: expected train or trainval, got {env.train!r}")
            lists = env.get("split", "vinyals")  # a run of before the option existed has none
            if lists not in ("vinyals", "background"):
                raise UserError(f"env.split: expected vinyals or background, got {lists!r}")
            data = omniglot.load()
            if lists == "vinyals":
                sets = {"train": omniglot.subset(data, env.train)}
                sets |= {split: omniglot.subset(data, split) for split in ("val", "test")}
            else:
                names = {"train": "train" if env.train == "train" else "meta_train", "val": "val", "test": "meta_test"}
                sets = {split: sequential_omniglot.subset(data, name) for split, name in names.items()}
        case "folder":
            sets = folder.load(env.path)
        case _:
            raise UserError(f"env.name: expected glyphs, omniglot or folder, got {env.name!r}")
    rotate = {"train": env.rotations, "val": env.test_rotations, "test": env.test_rotations}
    return {split: data.rotated() if rotate[split] else data for split, data in sets.items()}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.zeros((), device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device: {name!r} is not usable here ({reason}); expected auto, cpu or cuda") from None
    return found
