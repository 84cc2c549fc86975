"""Meta-World as trials (Yu et al. 2020; Farama's release 3): a robot arm, a task nobody names, several episodes to find out.

ML1 is one task with goals of its own in training, validation and test; ML10 and ML45 train on ten and forty-five tasks and test on
five others. Goals are drawn here and not by the package: its registered `Meta-World/ML1-train` hands out the goals of the test
(release 3.1.1), and it draws from the global generator. A task is drawn by the simulator's own rule from a generator of (seed,
split, name), so the goals of two splits never meet. Validation goals of ML10 and ML45 are new ones of the training tasks.

A trial holds `tasks` hidden tasks, each visited `visits` times, in rounds of random order; a visit is `episodes` episodes, and 1, 1
and 10 is plain ML1. Several names are dealt to the tasks in turn: a sequence of ML1 tasks that recurs. drift moves a task a little
before it returns. bits: a barcode names the task of a visit (envs/returning.py). Rewards are 0 to 10. Goals are not observed.
Legend: N trials, 39 numbers of an observation, 4 of an action.
"""

from __future__ import annotations

import json
import pickle
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from envs.film import Film
from envs.meta_world_simulator import Snapshot, package, restore, simulator, snapshot
from envs.returning import barcodes, check_barcodes, rounds, spelled
from envs.simulated import Simulated
from envs.trials import Array
from nestmem.errors import UserError

SPLITS = ("train", "val", "test")
OBSERVED, LONGEST = 39, 500


class Task(NamedTuple):
    """name: of the simulator. vector: where its objects and its goal are, as the simulator orders them."""

    name: str
    vector: Array


class MetaWorld(Simulated):
    """trials: N. benchmark: ML1, ML10 or ML45. task: of ML1; several are joined by +. split: train, val or test; outside
    training, trials go through the goals in order. goals: of each task and split. mixed: training pairs where things lie with the
    goal of another of its tasks, anew in every trial, so that what is seen does not give the goal away. seed: of the goals.
    film: take a picture of the first trial every so many steps, 0: none."""

    unit = 10.0
    hidden_size = 3

    def __init__(
        self,
        trials: int,
        benchmark: str = "ML1",
        task: str = "reach-v3",
        tasks: int = 1,
        visits: int = 1,
        episodes: int = 10,
        horizon: int = 150,
        goals: int = 50,
        mixed: bool = False,
        drift: float = 0.0,
        bits: int = 0,
        seed: int = 0,
        split: str = "train",
        patience: float = 60.0,
        film: int = 0,
    ):
        for name, value, least in (
            ("tasks", tasks, 1),
            ("visits", visits, 1),
            ("episodes", episodes, 1),
            ("goals", goals, 1),
        ):
            if value < least:
                raise UserError(f"env.{name}: expected at least {least}, got {value}")
        if not 1 <= horizon <= LONGEST:
            raise UserError(f"env.horizon: expected 1 to {LONGEST} steps, got {horizon}")
        if not 0 <= drift < np.inf:
            raise UserError(f"env.drift: expected metres of at least 0, got {drift}")
        if drift and visits < 2:
            raise UserError(
                f"env.drift: tasks move before they return; expected env.visits of at least 2, got {visits}"
            )
        if bits:
            check_barcodes("env.bits", bits, tasks)
        self.names = names(benchmark, task, split)
        self.tasks, self.visits, self.drift, self.cue, self.split = tasks, visits, drift, bits, split
        self.stay = episodes  # episodes of a visit
        self.revisits = tasks * visits > 1
        self.goals, self.mixed, self.goal_seed, self.every, self.film = goals, mixed, seed, film, Film()
        low, high = np.full(OBSERVED + bits, -np.inf, np.float32), np.full(OBSERVED + bits, np.inf, np.float32)
        actions = Box(-1.0, 1.0, (4,), np.float32)
        super().__init__(
            trials, tasks * visits * episodes, horizon, Box(low, high, dtype=np.float32), actions, patience
        )
        self.seen = np.zeros((trials, OBSERVED), np.float32)
        self.success = np.zeros(trials, bool)
        self.built: list[dict[str, Any]] = [{} for _ in range(trials)]  # simulators of a row by name

    def sample(self) -> None:
        rng, n = self.np_random, self.num_envs
        pool = {name: draw(name, self.split, self.goals, self.goal_seed) for name in self.names}
        self.tasks_of: list[list[Task]] = []
        for row in range(n):
            # Names go round over rows and over the tasks of a trial, so that a batch has as much of each as can be.
            mine = [self.names[(row * self.tasks + i) % len(self.names)] for i in range(self.tasks)]
            if self.split == "train":
                picked = [pool[name][rng.integers(self.goals)] for name in mine]
                if self.mixed:
                    picked = [mix(task, pool[task.name], rng) for task in picked]
            else:
                turn = [(row * self.tasks + i) // len(self.names) for i in range(self.tasks)]
                picked = [pool[name][k % self.goals] for name, k in zip(mine, turn, strict=True)]
            self.tasks_of.append(picked)
        self.order = rounds(rng, n, self.tasks, self.visits)  # [N, visits of a trial]
        if self.cue:
            self.codes = barcodes(rng, n, self.tasks, self.cue)
        self.walks = [np.random.default_rng(seed) for seed in rng.integers(2**63, size=n)]
        self.visit = -1

    def begin(self) -> None:
        """An episode starts; with it perhaps a visit, in which another simulator may have its turn."""
        visit = self.episode // self.stay
        if visit != self.visit:
            self.visit = visit
            for row in range(self.num_envs):
                i = self.order[row, visit]
                if self.drift and i in self.order[row, :visit]:
                    self.tasks_of[row][i] = moved(self.tasks_of[row][i], self.drift, self.walks[row])
                self.sims[row] = self.built[row].get(self.tasks_of[row][i].name)
        super().begin()

    def act(self, actions: Array) -> Array:
        if self.every and self.time % self.every == 0:
            self.film.take(self.sims[0])
        return super().act(actions)

    def task(self, row: int) -> Task:
        """What a row is in now."""
        return self.tasks_of[row][self.order[row, self.visit]]

    def observe(self) -> Array:
        if not self.cue:
            return self.seen.copy()
        code = spelled(self.codes[self.rows, self.order[:, self.visit]], self.cue)
        return np.concatenate([self.seen, 2 * code.astype(np.float32) - 1], 1)

    def hidden(self) -> Array:
        """Where the goal is, from the middle of where it can be."""
        spaces = [scratch(self.task(row).name)._random_reset_space for row in range(self.num_envs)]  # noqa: SLF001
        ends = np.array([[space.low[-3:], space.high[-3:]] for space in spaces])
        goals = np.array([self.task(row).vector[-3:] for row in range(self.num_envs)])
        return 2 * (goals - ends.mean(1)) / np.maximum(ends[:, 1] - ends[:, 0], 1e-3)

    def title(self, row: int) -> str:
        return f"{self.task(row).name}, goal {np.round(self.task(row).vector[-3:], 3).tolist()}"

    def key(self, row: int) -> Any:
        return self.task(row).name, self.task(row).vector.tobytes()

    def build(self, row: int) -> Any:
        name = self.task(row).name
        self.built[row][name] = simulator(name)
        return self.built[row][name]

    def place(self, row: int) -> Array:
        settle(self.sims[row], self.task(row))
        observation: Array = self.sims[row].reset()[0]
        return observation

    def snapshot(self, row: int) -> Snapshot:
        return snapshot(self.sims[row])

    def restore(self, row: int, snapshot: Snapshot) -> None:
        restore(self.sims[row], snapshot)

    def state_dict(self) -> dict[str, Tensor]:
        """Halfway through a trial also where it stands and the state of every simulator."""
        state = super().state_dict()
        if 0 < self.time < self.steps:
            trial = {
                "time": self.time, "visit": self.visit, "order": self.order, "codes": self.codes,
                "tasks": [[[task.name, task.vector] for task in mine] for mine in self.tasks_of],
                "walks": [walk.bit_generator.state for walk in self.walks],
                "seen": self.seen, "success": self.success, "failed": self.failed,
                "simulators": [self.snapshot(row)._asdict() for row in range(self.num_envs)],
            }  # fmt: skip
            state["trial"] = as_bytes(trial)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        if "trial" not in state:
            self.time = self.steps
            return
        trial = from_bytes(state["trial"])
        self.time, self.visit, self.order, self.codes = (trial[k] for k in ("time", "visit", "order", "codes"))
        self.tasks_of = [[Task(*task) for task in mine] for mine in trial["tasks"]]
        self.walks = [np.random.default_rng() for _ in trial["walks"]]
        for walk, where in zip(self.walks, trial["walks"], strict=True):
            walk.bit_generator.state = where
        for row, held in enumerate(trial["simulators"]):
            self.sims[row] = self.built[row].get(self.task(row).name)
            self._sure(row)
            self.restore(row, Snapshot(**held))
        self.seen, self.success, self.failed = (trial[k] for k in ("seen", "success", "failed"))


def names(benchmark: str, task: str, split: str) -> list[str]:
    """Names of the simulators of a split."""
    if split not in SPLITS:
        raise UserError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    match benchmark:
        case "ML1":
            found = [name.strip() for name in task.split("+")]
            for name in found:
                if name not in package().ALL_V3_ENVIRONMENTS:
                    known = ", ".join(package().ALL_V3_ENVIRONMENTS)
                    raise UserError(f"env.task: Meta-World has no {name!r}; known: {known}")
            return found
        case "ML10" | "ML45":
            classes = getattr(package(), f"{benchmark}_V3")
            return list(classes["test" if split == "test" else "train"])
    raise UserError(f"env.benchmark: expected ML1, ML10 or ML45, got {benchmark!r}")


@cache
def draw(name: str, split: str, goals: int, seed: int) -> tuple[Task, ...]:
    """Tasks of a split, by the simulator's own rule of where things may be."""
    env = scratch(name)
    letters = [ord(letter) for letter in name]
    free(env, np.random.default_rng([seed, SPLITS.index(split), *letters]))
    vectors = []
    for _ in range(goals):
        env.reset_model()
        vectors.append(np.array(env._last_rand_vec))  # noqa: SLF001  (the package has no public name for it)
    if len(np.unique(vectors, axis=0)) < goals:
        raise UserError(f"env.goals: {name} has fewer than {goals} different ones")
    return tuple(Task(name, vector) for vector in vectors)


def moved(task: Task, metres: float, rng: np.random.Generator) -> Task:
    """A task near by: the simulator's own rule, in a box of `metres` to every side of where things were."""
    env = scratch(task.name)
    free(env, rng)
    space = env._random_reset_space  # noqa: SLF001
    low, high = np.maximum(space.low, task.vector - metres), np.minimum(space.high, task.vector + metres)
    env._random_reset_space = Box(low, high, dtype=np.float64)  # noqa: SLF001
    try:
        env.reset_model()
    finally:
        env._random_reset_space = space  # noqa: SLF001
    return Task(task.name, np.array(env._last_rand_vec))  # noqa: SLF001


def mix(task: Task, pool: tuple[Task, ...], rng: np.random.Generator) -> Task:
    """The same goal, with things where they lie in another task of the pool. Not nearer to the goal than things are anywhere
    in the pool: simulators refuse what is too near, each with a bound of its own."""
    vectors = np.stack([other.vector for other in pool])
    if vectors.shape[1] < 6:  # where things lie is the task
        return task
    bound = np.linalg.norm(vectors[:, :2] - vectors[:, -3:-1], axis=1).min()
    far = np.linalg.norm(vectors[:, :2] - task.vector[-3:-1], axis=1) >= bound
    return Task(task.name, np.append(vectors[rng.choice(np.flatnonzero(far))][:-3], task.vector[-3:]))


@cache
def scratch(name: str) -> Any:
    """The simulator tasks are drawn with; what one was drawn before makes no difference."""
    return simulator(name)


def free(env: Any, rng: np.random.Generator) -> None:
    """Let resets draw tasks from `rng`."""
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True  # noqa: SLF001
    env.np_random = rng


def settle(env: Any, task: Task) -> None:
    """Give a simulator its task, the goal hidden; the package wants it pickled."""
    data = {
        "rand_vec": task.vector.copy(),
        "env_cls": package().ALL_V3_ENVIRONMENTS[task.name],
        "partially_observable": True,
    }
    env.set_task(package().Task(task.name, pickle.dumps(data)))


def as_bytes(value: Any) -> Tensor:
    """JSON, arrays included: its numbers are exact."""
    return torch.frombuffer(bytearray(json.dumps(value, default=_plain).encode()), dtype=torch.uint8)


def from_bytes(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()), object_hook=_array)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": value.dtype.name}
    return value.item()


def _array(value: dict[str, Any]) -> Any:
    return np.array(value["array"], value["dtype"]) if value.keys() == {"array", "dtype"} else value
