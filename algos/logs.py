"""The log of a run: TensorBoard, and a JSONL twin of every scalar so that results need no TensorBoard to be read."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from nestmem.errors import UserError


class Log:
    """Scalars, images and text at a step, into RUN/tensorboard and RUN/scalars.jsonl.

    step: where the run goes on from; rows of later steps are left over from an interrupted run and are dropped.
    """

    def __init__(self, run: Path, step: int = 0):
        self.path = run / "scalars.jsonl"
        try:
            run.mkdir(parents=True, exist_ok=True)
            if not step:  # a run killed before its first checkpoint begins anew
                shutil.rmtree(run / "tensorboard", ignore_errors=True)
            kept = [json.dumps(row) + "\n" for row in rows(run) if row["step"] <= step] if step else []
            partial = self.path.with_suffix(".part")
            partial.write_text("".join(kept))
            partial.replace(self.path)
            self.file = open(self.path, "a", buffering=1)  # noqa: SIM115  (closed in close)
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
        except OSError as error:
            raise UserError(f"run: cannot write to {run} ({error.strerror})") from None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self.board.add_scalar(tag, value, step)
            self.file.write(
                json.dumps({"step": step, "tag": tag, "value": value if math.isfinite(value) else None}) + "\n"
            )

    def image(self, step: int, tag: str, picture: Tensor) -> None:
        """picture [H, W, 3] in 0..1."""
        self.board.add_image(tag, picture, step, dataformats="HWC")

    def video(self, step: int, tag: str, frames: Sequence[NDArray[np.uint8]], milliseconds: int = 100) -> None:
        """Frames [H, W, 3] of 0 to 255 as a moving picture (GIF), which TensorBoard plays among the images."""
        pictures = [Image.fromarray(frame) for frame in frames]
        buffer = io.BytesIO()
        pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
        height, width, _ = frames[0].shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
        self.board.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def text(self, tag: str, text: str) -> None:
        self.board.add_text(tag, "```\n" + text + "\n```")

    def hparams(self, options: dict[str, Any], metrics: dict[str, float]) -> None:
        """Into this run, where `SummaryWriter.add_hparams` would make a second one beside it."""
        flat = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in options.items()}
        for summary in hparams(flat, metrics):
            self.board.file_writer.add_summary(summary)

    def close(self) -> None:
        self.board.close()
        self.file.close()


def rows(run: Path) -> list[dict[str, Any]]:
    """The scalars of a run; a last line torn by a crash is left out."""
    found = []
    path = run / "scalars.jsonl"
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def picture(figure: Any) -> Tensor:
    """A matplotlib figure as [H, W, 3] in 0..1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return (
        torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).view(
            *reversed(canvas.get_width_height()), 4
        )[..., :3]
        / 255
    )
