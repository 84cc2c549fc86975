"""From a configuration to its parts: image sets, learner, problem."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

import nestmem
from algos import continual, rl2, visits
from algos.blackbox import BlackBox
from algos.config import memory_options
from algos.fewshot import FewShotProblem
from algos.filtering import Filter
from algos.lessons import LessonProblem
from algos.maml import MAML, Classifier
from algos.oml import OML, Gated
from algos.problem import Problem
from algos.prototypes import Prototypes
from algos.timescales import TimescalesProblem
from envs import folder, glyphs, omniglot, sequential_omniglot
from envs.fewshot import ImageSet
from nestmem.errors import UserError
from nestmem.memory import registry
from nestmem.memory.base import Fields, state_bytes
from nestmem.nets import Conv

LESSONS = ("oml", "anml", "classifier")  # algos on lessons instead of tasks
COMPONENTS = ("weights", "train", "val", "test", "global", "strategy")


def seeds(seed: int) -> dict[str, int]:
    """One seed for each component of a run, so that nothing shares a stream of random numbers."""
    children = np.random.SeedSequence(seed).spawn(len(COMPONENTS))
    return {name: int(child.generate_state(1)[0]) for name, child in zip(COMPONENTS, children, strict=True)}


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


def problem(config: DictConfig) -> Problem:
    """What a run trains."""
    chosen = device(config.trainer.device)
    if config.env.name in visits.NAMES:
        return visits.problem(config, learner(config).to(chosen), seeds(config.seed), chosen)
    if (config.env.name == "tasks") != (config.algo.name == "continual"):
        raise UserError(f"env=tasks and algo=continual go together; got env={config.env.name}, algo={config.algo.name}")
    if (config.env.name in rl2.FAMILIES) != (config.algo.name == "rl2"):
        raise UserError(
            f"algo=rl2 goes with env={', '.join(rl2.FAMILIES)}; got env={config.env.name}, algo={config.algo.name}"
        )
    if config.algo.name == "rl2":
        return rl2.problem(config, seeds(config.seed), chosen)
    if (config.env.name == "timescales") != (config.algo.name == "filtering"):
        raise UserError(
            f"env=timescales and algo=filtering go together; got env={config.env.name}, algo={config.algo.name}"
        )
    if config.algo.name == "filtering":
        return TimescalesProblem(filtering(config).to(chosen), config.env, config.trainer, seeds(config.seed), chosen)
    if config.algo.name == "continual":
        return continual.problem(config, seeds(config.seed), chosen)
    if config.algo.name in LESSONS:
        ways = 0 if config.algo.name == "classifier" else config.env.ways
        return LessonProblem(
            lesson_learner(config).to(chosen), image_sets(config.env), config.env, ways, config.algo.remember,
            config.trainer, seeds(config.seed), chosen,
        )  # fmt: skip
    return FewShotProblem(
        learner(config).to(chosen), image_sets(config.env), config.env, config.trainer, seeds(config.seed), chosen
    )


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


def lesson_learner(config: DictConfig) -> OML:
    """The learner of lessons with freshly drawn weights; the global generator is left as it was."""
    algo = config.algo
    if config.memory.name != "none":
        raise UserError(f"memory: algo={algo.name} goes with memory=none, got {config.memory.name}")
    with torch.random.fork_rng():
        torch.manual_seed(seeds(config.seed)["weights"])
        try:
            sizes: dict[str, Any] = options(config.encoder)
            encoder: Conv | Gated = Conv(**sizes)
            if algo.name == "anml":
                encoder = Gated(encoder, Conv(**sizes | {"channels": algo.modulator}))
            return OML(encoder, encoder.features, algo.outputs, algo.get("rate", 0.0))
        except ValueError as error:
            raise UserError(str(error)) from None


def filtering(config: DictConfig) -> Filter:
    """The learner of env=timescales with freshly drawn weights; the global generator is left as it was."""
    algo, memory = config.algo, config.memory
    if memory.name == "none":
        raise UserError(f"memory: algo=filtering needs one, got none; known: {', '.join(nestmem.memories())}")
    with torch.random.fork_rng():
        torch.manual_seed(seeds(config.seed)["weights"])
        try:
            built = registry.build(memory.name, algo.width, **options(memory))
            return Filter(built, (algo.encoder, algo.decoder), algo.frozen)
        except ValueError as error:
            raise UserError(str(error)) from None


def learner(config: DictConfig) -> Any:
    """The learner with freshly drawn weights; the global generator is left as it was."""
    if config.algo.name == "rl2":
        return rl2.agent(config, seeds(config.seed)["weights"])
    if config.algo.name == "filtering":
        return filtering(config)
    with torch.random.fork_rng():
        torch.manual_seed(seeds(config.seed)["weights"])
        algo, ways = options(config.algo), config.env.ways
        try:
            if config.env.name in visits.NAMES:
                return visits.learner(config, _memory)
            encoder = Conv(**OmegaConf.to_container(config.encoder))
            fields = Fields(encoder.features, 0, ways)
            if config.algo.name == "maml":
                if config.encoder.norm == "running":
                    raise UserError(
                        "encoder.norm: running statistics cannot be kept in an inner loop; "
                        "expected batch, instance, layer, group, rms or none"
                    )
                memory = None if config.memory.name == "none" else _memory(config.memory, fields)
                return MAML(Classifier(encoder, encoder.features, ways, memory), **algo)
            if config.algo.name == "prototypes":
                if config.memory.name != "none":
                    raise UserError(f"memory: algo=prototypes goes with memory=none, got {config.memory.name}")
                return Prototypes(encoder)
            if config.memory.name == "none":
                raise UserError(f"memory: algo=blackbox needs one, got none; known: {', '.join(nestmem.memories())}")
            return BlackBox(encoder, _memory(config.memory, fields), fields, **algo)
        except ValueError as error:
            raise UserError(str(error)) from None


def options(group: DictConfig) -> dict[str, Any]:
    """The options of a group without its name."""
    return {str(key): value for key, value in OmegaConf.to_container(group).items() if key != "name"}


def _memory(memory: DictConfig, fields: Fields) -> nestmem.Memory:
    return registry.build(memory.name, fields.width, fields, **options(memory))


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def baseline(config: DictConfig, name: str) -> DictConfig:
    """The same run with memory `name`, matched in size."""
    if config.algo.name == "continual":
        raise UserError("baselines: a continual run has none; expected [], other strategies are runs of their own")
    copy = OmegaConf.create(OmegaConf.to_container(config))
    copy.memory = memory_options(name)
    copy.run, copy.baselines = f"{config.run}/baselines/{name}", []
    match(copy, config)
    OmegaConf.set_readonly(copy, True)
    return copy


def match(config: DictConfig, reference: DictConfig, fixed: Collection[str] = ()) -> None:
    """Set the `slots` of a configuration's memory to as many state bytes as the reference has, and `hidden` to as many
    parameters; what the memory lacks, or `fixed` names, stays. Never more than the reference, if that can be."""
    for option, size in (("slots", state_size), ("hidden", lambda c: parameters(learner(c)))):
        if option not in config.memory or option in fixed:
            continue
        with torch.device("meta"):  # shapes alone
            wanted, low, high = size(reference), 1, 4096
            while low < high:  # sizes grow with either
                config.memory[option] = (low + high + 1) // 2
                if size(config) <= wanted:
                    low = config.memory[option]
                else:
                    high = config.memory[option] - 1
        config.memory[option] = low


def state_size(config: DictConfig) -> int:
    """Bytes that the memory of a run holds for one stream."""
    return state_bytes(learner(config).memory.initial_state(1))
