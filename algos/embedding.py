"""Frozen features for streams of visits: characters through an encoder that has never seen the test classes, in a few dimensions.

    features = normalise(P (encoder(image) - mean)),   P the widest principal directions of the training classes
The encoder comes from a run (`env.encoder=RUN`, trained with experiment=omniglot_prototypes) or is trained on the spot as a
prototypical network for `env.encoder_steps` updates: half a minute. Either is done once; the features are kept in the cache.
Legend: C classes, E drawings, F features.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from algos import checkpoint
from algos.prototypes import Prototypes
from algos.sequential import embed
from envs import glyphs, omniglot, sequential_omniglot
from envs.archives import cache_dir
from envs.fewshot import FewShot, ImageSet
from nestmem.errors import UserError
from nestmem.nets import Conv

WAYS, QUERIES, AUGMENT, RATE = 60, 2, 0.5, 3e-3  # of the encoder trained on the spot


def embedding(env: DictConfig, encoder: DictConfig) -> dict[str, Tensor]:
    """Unit features [C, E, F] of train, val and test classes. `encoder` shapes the one that is trained on the spot."""
    key = _key(env, encoder)
    cached = cache_dir() / "embeddings" / f"{env.images}-{key}.safetensors"
    try:
        return load_file(cached)
    except (OSError, SafetensorError):
        pass  # not there yet, or torn by a crash
    sets = image_sets(env.images)
    net = _of_run(env.encoder) if env.encoder else _trained(sets["train"], encoder, env.encoder_steps)
    features = principal({split: embed(net.eval(), data) for split, data in sets.items()}, env.features)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}.part")
        save_file(features, partial)
        partial.replace(cached)
    except OSError:
        pass  # a cache that cannot be written costs half a minute next time, nothing else
    return features


def image_sets(images: str) -> dict[str, ImageSet]:
    """Background classes in two parts and evaluation classes; for glyphs, alphabets of three seeds."""
    match images:
        case "omniglot":
            data, names = omniglot.load(), {"train": "train", "val": "val", "test": "meta_test"}
            return {split: sequential_omniglot.subset(data, name) for split, name in names.items()}
        case "glyphs":
            return {
                split: glyphs.make(n, 20, seed=i)
                for i, (split, n) in enumerate([("train", 20), ("val", 5), ("test", 5)])
            }
    raise UserError(f"env.images: expected omniglot or glyphs, got {images!r}")


def principal(features: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Features [C, E, F'] of every split to unit vectors [C, E, size] along the widest directions of the training split."""
    train = features["train"].double().flatten(0, 1)
    if not 1 <= size <= train.shape[-1]:
        raise UserError(f"env.features: expected 1..{train.shape[-1]} (the encoder's width), got {size}")
    mean = train.mean(0)
    _, directions = torch.linalg.eigh((train - mean).mT @ (train - mean))
    top = directions[:, -size:].flip(1)
    # The sign of an eigenvector is anybody's choice; ours makes its largest component positive.
    top = top * top.gather(0, top.abs().argmax(0, keepdim=True)).sign()
    return {s: F.normalize((f.double() - mean) @ top, dim=-1).float().contiguous() for s, f in features.items()}


def _key(env: DictConfig, encoder: DictConfig) -> str:
    """Changes with everything the features depend on."""
    if env.encoder:
        source = checkpoint.read(Path(env.encoder))[0].meta["sha256"]
    else:
        source = f"{OmegaConf.to_container(encoder)} {WAYS} {QUERIES} {AUGMENT} {RATE} {env.encoder_steps}"
    return hashlib.sha256(f"{source} {env.features}".encode()).hexdigest()[:12]


def _of_run(run: str) -> nn.Module:
    from algos import jobs  # which builds problems, and so imports this file

    config = jobs.stored_config(Path(run))
    if config.env.name == "omniglot" and config.env.get("split") != "background":
        raise UserError(
            f"env.encoder: {run} was trained on characters of the evaluation part; expected env.split=background"
        )
    net = getattr(jobs.restored(config).learner, "encoder", None)
    if not isinstance(net, nn.Module):
        raise UserError(
            f"env.encoder: {run} has no encoder; expected a run of algo=prototypes or algo=blackbox on images"
        )
    return net.cpu()


def _trained(data: ImageSet, encoder: DictConfig, steps: int) -> nn.Module:
    """A prototypical network, always the same one: seeds do not vary it."""
    if steps < 1:
        raise UserError(f"env.encoder_steps: expected at least 1, got {steps}")
    Console().print(f"training an encoder for {steps} steps (half a minute, once)")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            learner = Prototypes(Conv(**{str(k): v for k, v in encoder.items()}))
        except ValueError as error:
            raise UserError(str(error)) from None
    tasks = FewShot(data, ways=WAYS, shots=1, queries=QUERIES, augment=AUGMENT, seed=0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        loss, _ = learner.loss(tasks.sample(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return learner.encoder
