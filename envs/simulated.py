"""Trials whose rows are simulators of their own: Python environments of gymnasium, stepped one after the other in this process.

Beside what `Trials` asks for, three things. A snapshot holds a simulator's whole state, so that an episode can start from where
another one of the same task started, which is cheaper than the simulator's own reset, and a trial can be saved halfway. A simulator
that raises, takes too long or gives numbers that are not finite is named in the log, built anew in the same task, and the step
pays nothing; `restarts` counts it. One that fails PATIENCE times in a row ends the run with its name.
A process of its own for every simulator would survive a crash in native code as well; on two cores it is slower.
Legend: N trials, O numbers of an observation.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box
from torch import Tensor

from envs.trials import Array, Trials
from nestmem.errors import UserError

log = logging.getLogger(__name__)
PATIENCE = 10  # failures of one simulator without a good step in between
KEPT = 2000  # starts of tasks that are kept


class Hung(Exception):
    """A simulator took longer than it may."""


class Simulated(Trials):
    """trials: N. A subclass gives `sample`, `build`, `place`, `title`, the spaces, and perhaps snapshots with `key`.

    patience: seconds that one reset, or one step of all, may take. Watched by a timer of the main thread; native code that never
    returns to Python is beyond it.
    """

    def __init__(
        self,
        trials: int,
        episodes: int,
        horizon: int,
        observation: Space[Any],
        action: Space[Any],
        patience: float = 60.0,
    ):
        super().__init__(trials, episodes, horizon, observation, action)
        self.patience, self.restarts = patience, 0
        self.sims: list[Any] = [None] * trials
        self.seen = np.zeros((trials, *observation.shape), np.float32)
        self.over = np.zeros(trials, bool)  # the episode of a row has ended by itself: it rests and is paid nothing
        self.failed = np.zeros(trials, np.int64)  # in a row
        self.starts: dict[Any, Any] = {}  # what tasks start from, once they have been started

    def build(self, row: int) -> Any:
        """A simulator for the task of a row."""
        raise NotImplementedError

    def place(self, row: int) -> Array:
        """Give the simulator of a row its task and reset it as it wants; the first observation."""
        raise NotImplementedError

    def title(self, row: int) -> str:
        """What the simulator of a row is called in the log."""
        raise NotImplementedError

    def key(self, row: int) -> Any:
        """What the task of a row is known by: rows with the same key start alike. None: starts differ, so none is kept."""
        return None

    def snapshot(self, row: int) -> Any:
        """All that the next steps of a row's simulator depend on."""
        raise NotImplementedError

    def restore(self, row: int, snapshot: Any) -> None:
        raise NotImplementedError

    def paid(self, row: int, action: Array, reward: float, info: dict[str, Any]) -> float:
        """What a step pays, from what the simulator said of it."""
        if self.success is not None:
            self.success[row] = bool(info["success"])
        return float(reward)

    def begin(self) -> None:
        self.over[:] = False
        for row in range(self.num_envs):
            start = self.starts.get(self.key(row)) if self.sims[row] is not None else None
            if start is None:
                self.seen[row] = self._sure(row)
            else:
                snapshot, self.seen[row] = start
                self.restore(row, snapshot)

    def observe(self) -> Array:
        return self.seen.copy()

    def act(self, actions: Array) -> Array:
        rewards = np.zeros(self.num_envs, np.float32)
        if isinstance(space := self.single_action_space, Box):
            actions = np.clip(actions, space.low, space.high)
        row = 0
        while row < self.num_envs:
            try:
                with deadline(self.patience):  # one timer for all rows: it costs as much as a tenth of a step
                    for row in range(row, self.num_envs):  # noqa: B020  (where it stopped is where it goes on)
                        if not self.over[row]:
                            rewards[row] = self._step(row, actions[row])
            except Exception as error:  # whatever a simulator may raise
                self._fail(row, error)
                self.seen[row] = self._sure(row)
                if self.success is not None:
                    self.success[row] = False
            row += 1
        return rewards

    def _step(self, row: int, action: Array) -> float:
        """One step of one simulator; what it pays."""
        observation, reward, over, _, info = self.sims[row].step(action)
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise FloatingPointError("numbers that are not finite")
        self.failed[row] = 0
        self.seen[row], self.over[row] = observation, over
        return self.paid(row, action, reward, info)

    def _sure(self, row: int) -> Array:
        """Start an episode as the simulator itself would, again and again if that fails; the start is kept."""
        while True:
            try:
                with deadline(self.patience):
                    if self.sims[row] is None:
                        self.sims[row] = self.build(row)
                    observation = np.asarray(self.place(row), np.float32)
                    if not np.isfinite(observation).all():
                        raise FloatingPointError("a first observation that is not finite")
            except UserError:
                raise
            except Exception as error:
                self._fail(row, error)
                continue
            if (key := self.key(row)) is not None:
                if len(self.starts) >= KEPT:
                    self.starts.clear()
                self.starts[key] = self.snapshot(row), observation
            return observation

    def _fail(self, row: int, error: Exception) -> None:
        self.restarts += 1
        self.failed[row] += 1
        what = f"{self.title(row)} (trial {row}, step {self.time}): {type(error).__name__}: {error}"
        if self.failed[row] >= PATIENCE:
            raise UserError(f"env: {what}; failed {PATIENCE} times in a row") from error
        log.warning("%s; started anew", what)
        self.sims[row] = None

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"restarts": torch.tensor(self.restarts)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.restarts = int(state["restarts"])


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise Hung within, once so much time has passed. Does nothing outside the main thread, where timers do not go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _late(number: int, frame: FrameType | None) -> NoReturn:
    raise Hung("no answer in time")


def python_state(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """Numbers, flags and arrays a simulator keeps as attributes, copied. Arrays that are windows into native memory follow it by
    themselves, and are left out."""
    return {k: copied(v) for k, v in vars(env).items() if isinstance(v, PLAIN) and not _window(v)}


PLAIN = (bool, int, float, str, np.ndarray, np.generic, type(None), list, tuple)


def copied(value: Any) -> Any:
    """Arrays and lists anew, so that who changes them in place changes nobody else's."""
    return value.copy() if isinstance(value, np.ndarray | list) else value


def _window(value: Any) -> bool:
    while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
        value = value.base
    return isinstance(value, np.ndarray) and value.base is not None
