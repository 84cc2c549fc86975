"""Checkpoints that are whole or absent: `RUN/checkpoints/step-00000100/{tensors.safetensors, meta.json}`.

A checkpoint is written beside its place, synced to disk and renamed, so a crash leaves the previous one untouched. The
side-car holds the sha256 of the tensors, the configuration and everything that is not a tensor. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nestmem import __version__
from nestmem.durable import sync
from nestmem.errors import UserError

FORMAT = 1


class Checkpoint(NamedTuple):
    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def write(run: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: int) -> Path:
    """Write checkpoint `step`, then remove all but the `keep` newest. Raises UserError if the disk refuses."""
    folder = run / "checkpoints"
    final, partial = folder / f"step-{step:08d}", folder / f".writing-{step:08d}"
    blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    meta = {"format": FORMAT, "nestmem": __version__, "step": step, "sha256": hashlib.sha256(blob).hexdigest(), **meta}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _write_synced(partial / "tensors.safetensors", blob)
        _write_synced(partial / "meta.json", json.dumps(meta, indent=1).encode())
        if final.exists():  # a resumed run passes the same step again
            shutil.rmtree(final)
        partial.rename(final)
        sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"run: checkpoint {step} could not be written to {folder} ({error.strerror}); the previous one is kept"
        ) from None
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def read(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint of a run, and one sentence for each newer one that is damaged."""
    folders = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    if not folders:
        raise UserError(f"{run}: no checkpoint here; expected {run}/checkpoints/step-*")
    complaints: list[str] = []
    for folder in folders:
        try:
            return read_one(folder), complaints
        except UserError as error:
            complaints.append(str(error))
    raise UserError(f"{run}: no whole checkpoint is left ({'; '.join(complaints)})")


def read_one(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; raises UserError if it is damaged or foreign."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        blob = (folder / "tensors.safetensors").read_bytes()
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise UserError(f"{folder}: not a checkpoint of nestmem (format {FORMAT} expected)")
        if hashlib.sha256(blob).hexdigest() != meta["sha256"]:
            raise UserError(f"{folder}: tensors.safetensors is damaged (its sha256 is not the recorded one)")
        return Checkpoint(int(meta["step"]), load(blob), meta, folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged ({type(error).__name__}: {error})") from None


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter tensors by position and name."""
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
