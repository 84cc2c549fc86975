"""Meta-World's simulators, made and looked at faster than by the package, with the same numbers; and their state, to keep.

Simulators of one name share one parsed model, so that they take milliseconds to make. What is observed is put together without the
general conversions the package goes through at every step: most of a step's time is Python, not physics.
"""

from __future__ import annotations

import copy
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from envs.simulated import copied, python_state
from envs.trials import Array
from nestmem.errors import UserError


@cache
def package() -> Any:
    """Meta-World with the tables it keeps elsewhere, and MuJoCo; imported late, as that takes seconds."""
    try:
        import metaworld
        import mujoco
        from metaworld import env_dict
    except ImportError as error:
        raise UserError(f"env: Meta-World is not installed ({error}); pip install nestmem[rl]") from None
    tables = {key: getattr(env_dict, key) for key in ("ALL_V3_ENVIRONMENTS", "ML10_V3", "ML45_V3")}
    return SimpleNamespace(mujoco=mujoco, Task=metaworld.Task, **tables)


def simulator(name: str) -> Any:
    """A robot at a task's table, no task given yet."""
    return quick(name)()


@cache
def quick(name: str) -> Any:
    """The class of a simulator, made faster."""
    original = package().ALL_V3_ENVIRONMENTS[name]
    parsed: list[Any] = []

    def initialize(self: Any) -> tuple[Any, Any]:
        if not parsed:
            parsed.append(original._initialize_simulation(self)[0])  # noqa: SLF001
        model = copy.copy(parsed[0])
        return model, package().mujoco.MjData(model)

    faster = {"_initialize_simulation": initialize, "_get_curr_obs_combined_no_goal": look}
    quaternions = vars(original).get("_get_quat_objects")
    if quaternions is not None and "Rotation" in quaternions.__globals__:
        # The same code with another Rotation in sight; the package's own module stays as it is.
        seen = {**quaternions.__globals__, "Rotation": Rotation}
        faster["_get_quat_objects"] = FunctionType(quaternions.__code__, seen, quaternions.__name__)
    return type(original.__name__, (original,), faster)


def look(self: Any) -> Array:
    """What the package calls the current observation without a goal: hand [3], opening of the fingers, position and quaternion of
    up to two objects, zeros to 18 numbers."""
    data = self.data
    found = np.zeros(4 + self._obs_obj_max_len)
    found[:3] = self.get_endeff_pos()
    apart = data.body("rightclaw").xpos - data.body("leftclaw").xpos
    found[3] = min(max(np.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
    places, turns = self._get_pos_objects(), self._get_quat_objects()
    for i in range(min(len(places) // 3, len(turns) // 4)):
        found[4 + 7 * i : 7 + 7 * i] = places[3 * i : 3 * i + 3]
        found[7 + 7 * i : 11 + 7 * i] = turns[4 * i : 4 * i + 4]
    return found


class Rotation:
    """A rotation matrix as a quaternion x, y, z, w (Markley 2008), as scipy's class of the same name has it."""

    def __init__(self, matrix: Array):
        self.matrix = matrix

    from_matrix = classmethod(lambda cls, matrix: cls(matrix))

    def as_quat(self) -> Array:
        m = self.matrix
        trace = m[0, 0] + m[1, 1] + m[2, 2]
        choices = (m[0, 0], m[1, 1], m[2, 2], trace)
        i = max(range(4), key=choices.__getitem__)
        if i == 3:
            q = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + trace])
        else:
            j, k = (i + 1) % 3, (i + 2) % 3
            q = np.empty(4)
            q[i], q[3] = 1 - trace + 2 * m[i, i], m[k, j] - m[j, k]
            q[j], q[k] = m[j, i] + m[i, j], m[k, i] + m[i, k]
        unit: Array = q / np.sqrt(q.dot(q))
        return unit


class Snapshot(NamedTuple):
    physics: Array  # MuJoCo's integration state
    bodies: Array  # where the model has its bodies and sites: a reset moves some of them
    sites: Array
    python: dict[str, Any]


def snapshot(env: Any) -> Snapshot:
    """The whole state of a simulator."""
    mujoco, whole = package().mujoco, package().mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(env.model, whole))
    mujoco.mj_getState(env.model, env.data, physics, whole)
    return Snapshot(physics, env.model.body_pos.copy(), env.model.site_pos.copy(), python_state(env))


def restore(env: Any, held: Snapshot) -> None:
    """Back to a snapshot of a simulator of the same name."""
    mujoco, whole = package().mujoco, package().mujoco.mjtState.mjSTATE_INTEGRATION
    env.model.body_pos[:], env.model.site_pos[:] = held.bodies, held.sites
    mujoco.mj_setState(env.model, env.data, held.physics, whole)
    mujoco.mj_forward(env.model, env.data)
    mujoco.mj_setState(env.model, env.data, held.physics, whole)  # `mj_forward` has moved where the solver starts from
    vars(env).update({name: copied(value) for name, value in held.python.items()})
