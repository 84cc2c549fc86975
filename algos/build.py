"""From a configuration to what a run trains.

A kind of problem is a module with ALGOS, the learners it goes with, and
    learner(config)                  a learner with freshly drawn weights; the sizes of runs are matched by it
    problem(config, seeds, device)   the learner joined with its experience
"""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from algos import continual, fewshot, lessons, maml_rl, recall, rl2, text, timescales, visits
from algos.config import memory_options
from algos.parts import device, parameters, seeds
from algos.problem import Problem
from nestmem.errors import UserError
from nestmem.memory.base import state_bytes

BY_ENV = {
    "tasks": continual,
    "timescales": timescales,
    "text": text,
    **dict.fromkeys(recall.NAMES, recall),
    **dict.fromkeys(visits.NAMES, visits),
    **dict.fromkeys(rl2.FAMILIES, rl2),
}  # all others are sets of images, for few-shot tasks or for lessons


def kind(config: DictConfig) -> ModuleType:
    """The kind of problem a configuration asks for."""
    env, algo = config.env.name, config.algo.name
    if env in rl2.FAMILIES and algo in maml_rl.ALGOS:
        return maml_rl
    found = BY_ENV.get(env) or (lessons if algo in lessons.ALGOS else fewshot)
    if algo not in found.ALGOS:
        expected = found.ALGOS if env in BY_ENV else (*fewshot.ALGOS, *lessons.ALGOS)
        raise UserError(f"algo: env={env} goes with algo={', '.join(expected)}, got {algo}")
    return found


def problem(config: DictConfig) -> Problem:
    """What a run trains."""
    made: Problem = kind(config).problem(config, seeds(config.seed), device(config.trainer.device))
    return made


def learner(config: DictConfig) -> Any:
    """The learner of a run with freshly drawn weights; the global generator is left as it was."""
    return kind(config).learner(config)


def baseline(config: DictConfig, name: str) -> DictConfig:
    """The same run with memory `name`, matched in size."""
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
