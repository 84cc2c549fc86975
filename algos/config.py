"""What a run may be told: overrides become a configuration, or one sentence on what is wrong with them.

Options are dataclasses, at once their defaults, their types and their documentation: those of any run here, of the groups `env` and
`algo` in algos/env_schemas.py and algos/algo_schemas.py. Hydra checks every override against them, so a typo or a wrong type is an
error before anything runs. The memories' options come from their constructors (`nestmem.memory.registry.schema`): a new memory has
its config by being registered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import nestmem
from algos.algo_schemas import ALGOS
from algos.env_schemas import ENVS
from nestmem.errors import UserError
from nestmem.memory import registry


@dataclass
class Encoder:
    """Convolution blocks; see nestmem.nets.Conv."""

    channels: list[int] = field(default_factory=lambda: [32, 64, 64, 64])
    downsample: str = "stride"
    norm: str = "running"
    flatten: bool = True


@dataclass
class Trainer:
    steps: int = 400  # updates of the slow weights
    tasks: int = 16  # in one update
    chunk: int = 16  # tasks computed at once; lower it where memory is short, nothing else changes
    lr: float = 2e-3
    warmup: int = 0  # updates until the full rate
    schedule: str = "cosine"  # the rate then falls to zero; constant: where the stream does not end with the training
    clip: float = 10.0  # largest norm of the gradient
    amp: bool = False  # bfloat16 where it is safe
    device: str = "auto"  # cuda if there is one
    threads: int = 0  # 0: as many as OMP_NUM_THREADS asks for, else as there are cores
    eval_every: int = 100
    eval_tasks: int = 100
    test_tasks: int = 600
    target: float = 101.0  # stop early when validation accuracy, in percent, reaches this
    checkpoint_every: int = 100
    keep: int = 2  # checkpoints


@dataclass
class Train:
    env: Any = MISSING
    algo: Any = MISSING
    memory: Any = MISSING
    encoder: Encoder = field(default_factory=Encoder)
    trainer: Trainer = field(default_factory=Trainer)
    seed: int = 0
    baselines: list[str] = field(default_factory=list)  # flat memories trained alike, at equal parameters
    run: str = "runs/${env.name}-${env.ways}w${env.shots}s-${algo.name}-${memory.name}-s${seed}"


@dataclass
class NoMemory:
    """MAML's plain model, or prototypes: head and encoder only."""

    name: str = "none"


def _store() -> None:
    store = ConfigStore.instance()
    store.store("train_schema", Train)
    for env in ENVS:
        store.store(env.name, env, group="env")
    for algo in ALGOS:
        store.store(algo.name, algo, group="algo")
    store.store("none", NoMemory, group="memory")
    for name in nestmem.memories():
        store.store(name, registry.schema(name), group="memory")


_store()


def memory_options(name: str) -> DictConfig:
    """The options of a memory with their defaults; "none" is MAML's plain model."""
    if name != "none" and name not in nestmem.memories():
        raise UserError(f"baselines: no memory is called {name!r}; known: none, {', '.join(nestmem.memories())}")
    return OmegaConf.structured(NoMemory if name == "none" else registry.schema(name))


def configure(overrides: list[str]) -> DictConfig:
    """The configuration of `nestmem train OVERRIDES`; raises UserError with one sentence."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            config = compose("train", overrides=overrides)
        OmegaConf.resolve(config)
        missing = OmegaConf.missing_keys(config)
    except (HydraException, OmegaConfBaseException) as error:
        sentence = _sentence(error)
        raise UserError(sentence + _known(sentence)) from None
    if missing:
        raise UserError(f"{sorted(missing)[0]}: a value is needed, none was given")
    OmegaConf.set_readonly(config, True)
    return config


def completed(config: DictConfig) -> DictConfig:
    """A configuration that was stored, with the defaults of options that are newer than it."""
    nodes = {"encoder": OmegaConf.structured(Encoder), "trainer": OmegaConf.structured(Trainer)}
    for group, known in (("env", ENVS), ("algo", ALGOS)):
        if node := next((node for node in known if node.name == config[group].name), None):
            nodes[group] = OmegaConf.structured(node)
    if config.memory.name in ("none", *nestmem.memories()):
        nodes["memory"] = memory_options(config.memory.name)
    defaults = {group: OmegaConf.to_container(node) for group, node in nodes.items()}
    return OmegaConf.create(OmegaConf.to_container(OmegaConf.merge(defaults, config)))


def help_text() -> str:
    """Groups, choices and every option with its default."""
    from pathlib import Path

    import configs

    folder = Path(configs.__file__).parent
    experiments, tuned = (sorted(p.stem for p in (folder / group).glob("*.yaml")) for group in ("experiment", "memory"))
    choices = {
        "experiment": experiments,
        "env": [env.name for env in ENVS],
        "algo": [algo.name for algo in ALGOS],
        "memory": ["none", *nestmem.memories(), *tuned],
    }
    lines = ["nestmem train [GROUP=CHOICE] [OPTION=VALUE]...", "", "Groups:"]
    lines += [f"  {group:11} {', '.join(names)}" for group, names in choices.items()]
    lines += ["", "Options, with the values of the quick start (what they mean: algos/*_schemas.py, config.py):", ""]
    lines += ["  " + line for line in OmegaConf.to_yaml(configure([])).splitlines()]
    return "\n".join(lines)


def _known(message: str) -> str:
    """For a key that does not exist: the keys that do, beside where it was put."""
    if not (match := re.search(r"Could not override '([^']+)'", message)) or "not in" not in message:
        return ""
    parent = match[1].rpartition(".")[0]
    group = OmegaConf.select(configure([]), parent) if parent else configure([])
    return f"; known: {', '.join(map(str, group))}" if isinstance(group, DictConfig) else ""


def _sentence(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in one line, with the cause where they wrap one."""
    parts = [str(error)]
    if error.__cause__ is not None and str(error.__cause__) not in parts[0]:
        parts.append(str(error.__cause__))
    lines = [line.strip() for line in "\n".join(parts).splitlines()]
    noise = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "Config search path",
        "provider=",
        "To append to your config",
    )
    kept = [line for line in lines if line and not line.startswith(noise)]
    return " ".join(kept)
