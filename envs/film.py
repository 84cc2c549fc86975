"""Pictures of a MuJoCo simulator, where rendering works; where it does not, one line in the log says so.

Without a display the EGL of the machine is asked, unless MUJOCO_GL says otherwise.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from envs.trials import Array

log = logging.getLogger(__name__)


class Film:
    """frames: pictures [size, size, 3] of 0 to 255, in the order they were taken."""

    def __init__(self, size: int = 160, camera: str = "corner2"):
        self.size, self.camera, self.broken = size, camera, False
        self.frames: list[Array] = []
        self.seen: tuple[Any, Any] = (None, None)  # a simulator and its renderer

    def take(self, sim: Any) -> None:
        """One more picture; none if the machine cannot."""
        if self.broken:
            return
        if "DISPLAY" not in os.environ:
            os.environ.setdefault("MUJOCO_GL", "egl")
        try:
            if self.seen[0] is not sim:
                from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

                self.close()
                self.seen = (
                    sim,
                    MujocoRenderer(sim.model, sim.data, None, self.size, self.size, camera_name=self.camera),
                )
            picture = self.seen[1].render("rgb_array")
            self.frames.append(np.asarray(picture, np.uint8).copy())
        except Exception as error:  # whatever OpenGL says: training does not depend on pictures
            self.broken = True
            log.warning("no videos: rendering does not work here (%s: %s)", type(error).__name__, error)

    def close(self) -> None:
        if self.seen[1] is not None:
            self.seen[1].close()
        self.seen = None, None
