"""Tasks as one stream that drifts: abruptly, gradually, and back again; with boundaries that are told or not.

A stream is a sequence of visits of `steps` images each; the order of visits is

    once:      every task one time (class-incremental, domain-incremental and coarse-to-fine streams);
    cycle:     A, B, ..., A, B, ...: each task returns after all the others;
    returning: a new task, or with probability `returns` one of the earlier ones; with `stay` > 0 a visit goes on with that
               probability, so that tasks last for geometric times (OSAKA, Caccia et al. 2020, whose switching rate is 1 - stay).

`mixing` > 0 makes boundaries gradual: over a window of so many steps around each, the share of the next task rises linearly.
The whole order is drawn from the seed at the start, so a place in a stream is a number and `manifest` can list it.
Legend: B rows, T steps, V visits, C classes, E drawings, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.tasks import Task
from envs.visits import schedule
from nestmem.errors import UserError

ORDERS = ("once", "cycle", "returning")
BOUNDARIES = ("known", "hidden")


class Drift:
    """B rows of T steps over `tasks`; all records are int64 [B, T].

    task, visit: where a step comes from (for probes; in a mixing window the visit of the image, not of the clock).
    shown: the task if boundaries are known, else -1: all that a learner may look at.
    classes, drawings, labels: the image, within its task, and its label.
    A visit shows the learning images of its task in random order without repeats, and starts over when it has shown all.
    The last `held_out` of each class's drawings are never shown: `test` gives them.
    visits: how many (default: one per task for "once"); shuffle: tasks come in an order of each row's own.
    """

    def __init__(
        self,
        tasks: list[Task],
        *,
        seed: int,
        rows: int = 1,
        order: str = "once",
        visits: int | None = None,
        steps: int = 100,
        mixing: int = 0,
        returns: float = 0.5,
        stay: float = 0.0,
        shuffle: bool = False,
        boundaries: str = "known",
        held_out: float = 0.25,
    ):
        for name, value, known in (("order", order, ORDERS), ("boundaries", boundaries, BOUNDARIES)):
            if value not in known:
                raise UserError(f"drift.{name}: expected one of {', '.join(known)}, got {value!r}")
        if len({t.data.images.shape[2:] for t in tasks}) != 1:
            raise UserError("drift.tasks: expected at least one task, and all images of one size")
        if rows < 1 or steps < 1 or not 0 <= mixing <= steps or not 0 <= stay < 1 or not 0 < held_out < 1:
            raise UserError(
                f"drift: expected rows and steps >= 1, mixing in 0..steps, stay in [0, 1) and held_out in (0, 1), got "
                f"rows {rows}, steps {steps}, mixing {mixing}, stay {stay}, held_out {held_out}"
            )
        self.tasks, self.steps = tasks, steps
        self.learning = [_learning(task, held_out) for task in tasks]
        self.outputs = 1 + max(int(task.labels.max()) for task in tasks)
        self.generator = torch.Generator().manual_seed(seed)
        count = len(tasks) if visits is None else visits
        if order == "once" and count > len(tasks):
            raise UserError(f"drift.visits: expected at most {len(tasks)} for order 'once', got {count}")
        at = self._order(order, rows, count, returns, stay, shuffle)  # [B, V]
        self.visit = self._clock(rows, count, mixing)
        self.task = at.gather(1, self.visit)
        self.shown = self.task if boundaries == "known" else torch.full_like(self.task, -1)
        self.classes, self.drawings = self._images(at)
        labels = torch.nn.utils.rnn.pad_sequence([t.labels for t in tasks], batch_first=True)
        self.labels = labels[self.task, self.classes]

    def images(self, start: int, stop: int) -> Tensor:
        """Steps `start` to `stop` as seen: float [B, stop - start, 1, H, W] in 0..1."""
        task, classes, drawings = (r[:, start:stop] for r in (self.task, self.classes, self.drawings))
        size = self.tasks[0].data.images.shape[2:]
        seen = torch.zeros(*task.shape, 1, *size)
        for i in task.unique().tolist():
            here = task == i
            seen[here] = _seen(self.tasks[i], classes[here], drawings[here])
        return seen

    def test(self, task: int) -> tuple[Tensor, Tensor]:
        """All held-out images of a task, float [n, 1, H, W], and their labels [n]."""
        t, first = self.tasks[task], self.learning[task]
        classes, drawings = t.data.images.shape[:2]
        grid = torch.cartesian_prod(torch.arange(classes), torch.arange(first, drawings))
        return _seen(t, grid[:, 0], grid[:, 1]), t.labels[grid[:, 0]]

    def listing(self) -> dict[str, list[str] | Tensor]:
        """What `envs.manifest` lists: each task's classes, labels, learning drawings and view, and the order of images."""
        tables: dict[str, list[str] | Tensor] = {
            name: getattr(self, name) for name in ("task", "visit", "classes", "drawings", "labels", "shown")
        }
        for i, (task, learning) in enumerate(zip(self.tasks, self.learning)):
            tables[f"task{i:03d}/name"] = [task.name, f"turned by {task.view.degrees:g} degrees"]
            tables[f"task{i:03d}/classes"] = task.data.names
            tables[f"task{i:03d}/labels"] = task.labels
            tables[f"task{i:03d}/drawings learned and held out"] = torch.tensor([learning, task.data.images.shape[1]])
            if task.view.pixels is not None:
                tables[f"task{i:03d}/pixels"] = task.view.pixels
        return tables

    def _order(self, order: str, rows: int, visits: int, returns: float, stay: float, shuffle: bool) -> Tensor:
        """The task of each visit: [B, V]."""
        tasks, g = len(self.tasks), self.generator
        if order == "returning":
            # At least one other task lies between a visit and its return.
            plan = schedule(rows, visits, g, first=1, returns=returns, gaps=(2, max(visits, 2)), contexts=tasks)
            switch = torch.rand(rows, visits, generator=g) >= stay
            switch[:, 0] = False
            index = plan.context.gather(1, switch.long().cumsum(1))
        else:
            index = (torch.arange(visits) % tasks).expand(rows, -1)
        if shuffle:
            return torch.rand(rows, tasks, generator=g).argsort(dim=-1, stable=True).gather(1, index)
        return index

    def _clock(self, rows: int, visits: int, mixing: int) -> Tensor:
        """The visit each step's image belongs to: [B, T]."""
        step = torch.arange(visits * self.steps)
        visit, offset = step // self.steps, step % self.steps
        if not mixing:
            return visit.expand(rows, -1)
        coin = torch.rand(rows, len(step), generator=self.generator)
        # Middles of steps, measured from the nearest boundary in windows: -1/2 to 1/2 across the window.
        before = (offset + 0.5 - self.steps) / mixing
        after = (offset + 0.5) / mixing
        forward = (before > -0.5) & (visit < visits - 1) & (coin < before + 0.5)
        backward = (after < 0.5) & (visit > 0) & (coin >= after + 0.5)
        return visit + forward.long() - backward.long()

    def _images(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Class and drawing of every step, from a shuffled deck of learning images for each row and visit."""
        sizes = torch.tensor([len(t.labels) * n for t, n in zip(self.tasks, self.learning)])
        learning = torch.tensor(self.learning)
        classes, drawings = torch.zeros_like(self.task), torch.zeros_like(self.task)
        for v in range(at.shape[1]):
            here = self.visit == v
            size = sizes[at[:, v]][:, None]
            deck = torch.rand(len(at), int(size.max()), generator=self.generator)
            deck = deck.masked_fill(torch.arange(deck.shape[1]) >= size, 2.0).argsort(dim=-1, stable=True)
            card = deck.gather(1, (here.long().cumsum(1) - 1).clamp(min=0) % size)
            each = learning[at[:, v]][:, None]
            classes = torch.where(here, card // each, classes)
            drawings = torch.where(here, card % each, drawings)
        return classes, drawings


def _learning(task: Task, held_out: float) -> int:
    """Drawings of each class that may be shown: the first ones."""
    drawings = task.data.images.shape[1]
    learning = drawings - round(held_out * drawings)
    if not 1 <= learning < drawings:
        raise UserError(
            f"drift.held_out: {held_out} of {drawings} drawings of task {task.name!r} leaves none of a kind"
        )
    return learning


def _seen(task: Task, classes: Tensor, drawings: Tensor) -> Tensor:
    """Images [n] of a task as it shows them: float [n, 1, H, W]."""
    return task.view(task.data.images[classes, drawings].unsqueeze(1).float() / 255)
