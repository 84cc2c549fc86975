"""Claims maml-vs-learn2learn-*: training steps per second beside learn2learn, same model, same tasks, interleaved in one run.

    python -m benchmarks.learn2learn [rounds=8]

Every round runs each method once on a fresh batch of 32 tasks; a ratio is the median over rounds of ours over theirs, its
interval from a bootstrap over rounds. End to end means sampling, inner loop, meta-gradient and Adam step.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learn2learn as l2l
import numpy as np
import torch
import torch.multiprocessing as mp
from learn2learn.data import MetaDataset, TaskDataset
from learn2learn.data.transforms import ConsecutiveLabels, FusedNWaysKShots, LoadData, RemapLabels
from learn2learn.vision.transforms import RandomClassRotation
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from algos.maml import MAML, Classifier
from algos.trainer import keep_freed_memory
from benchmarks.results import row, save
from envs import archives, omniglot
from envs.fewshot import Episodes, FewShot
from nestmem.nets import MLP, Conv

TASKS, WAYS = 32, 5
Step = Callable[[], Any]


class Pngs(torch.utils.data.Dataset):
    """Omniglot as torchvision reads it: one PNG file opened for every image."""

    def __init__(self, folder: Path, names: list[str], transform: Any):
        self.files = [(p, i) for i, name in enumerate(names) for p in sorted((folder / name).glob("*.png"))]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path, mode="r").convert("L")), label


class InMemory(torch.utils.data.Dataset):
    """The same images decoded once."""

    def __init__(self, images: Tensor):
        self.images = images.flatten(0, 1).float().div(255).unsqueeze(1)
        self.drawings = images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index // self.drawings


def tasks_of(dataset: Any, ways: int, rotation: bool) -> TaskDataset:
    """learn2learn's own recipe for Omniglot tasks: one shot and one query of each class."""
    meta = MetaDataset(dataset)
    steps = [FusedNWaysKShots(meta, n=ways, k=2), LoadData(meta), RemapLabels(meta), ConsecutiveLabels(meta)]
    if rotation:
        steps.append(RandomClassRotation(meta, [0.0, 90.0, 180.0, 270.0]))
    return TaskDataset(meta, task_transforms=steps, num_tasks=-1)


def unpack(folder: Path, names: set[str]) -> Path:
    """The PNG files of the named characters, written under `folder` by their checked names."""
    for archive in omniglot.ARCHIVES:
        path = archives.fetch(archive)
        archives.check(archive, path)
        with zipfile.ZipFile(path) as source:
            for info in source.infolist():
                match = omniglot.MEMBER.fullmatch(info.filename)
                if match and match[1] in names:
                    target = folder / match[1] / f"{match[2]}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(io.BytesIO(source.read(info)).getvalue())
    return folder


def model(filters: int) -> Classifier:
    encoder = Conv([filters] * 4, norm="batch")
    return Classifier(encoder, encoder.features, WAYS)


def theirs(
    net: nn.Module, source: Callable[[], tuple[Tensor, Tensor]], tasks: int, criterion: Any, rate: float
) -> Step:
    """The training step of learn2learn's MAML example: clone, adapt, evaluate, one task after the other."""
    maml = l2l.algorithms.MAML(net, lr=rate, first_order=False)
    optimizer = torch.optim.Adam(maml.parameters(), 3e-3)

    def step() -> None:
        optimizer.zero_grad()
        accumulate(maml, source, tasks, criterion)
        for p in maml.parameters():
            p.grad.mul_(1 / tasks)
        optimizer.step()

    return step


def accumulate(maml: Any, source: Callable[[], tuple[Tensor, Tensor]], tasks: int, criterion: Any) -> None:
    for _ in range(tasks):
        learner = maml.clone()
        data, labels = source()
        learner.adapt(criterion(learner(data[::2]), labels[::2]))
        criterion(learner(data[1::2]), labels[1::2]).backward()


def ours(net: nn.Module, source: Callable[[int], Episodes], criterion: Any, rate: float, chunk: int = 32) -> Step:
    learner = MAML(net, rate=rate, criterion=criterion)
    optimizer = torch.optim.Adam(learner.parameters(), 3e-3)

    def step() -> None:
        optimizer.zero_grad()
        batch = source(TASKS)
        for start in range(0, TASKS, chunk):
            part = Episodes(*(t[start : start + chunk] for t in batch))
            (learner.loss(part)[0] * len(part.support_y) / TASKS).backward()
        optimizer.step()

    return step


def _worker(pipe: Any, images: Tensor, filters: int, seed: int, rotation: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source = tasks_of(InMemory(images), WAYS, rotation)
    net = model(filters)
    maml = l2l.algorithms.MAML(net, lr=0.4, first_order=False)
    while (weights := pipe.recv()) is not None:
        for p, w in zip(maml.parameters(), weights):
            p.data.copy_(w)
            p.grad = None
        accumulate(maml, source.sample, TASKS // 2, F.cross_entropy)
        pipe.send([p.grad for p in maml.parameters()])


class TwoProcesses:
    """A tuned learn2learn user: images in memory, two processes with half of the batch each."""

    def __init__(self, images: Tensor, filters: int, rotation: bool):
        context = mp.get_context("spawn")
        self.net = model(filters)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 3e-3)
        pairs = [context.Pipe() for _ in range(2)]
        self.pipes = [here for here, _ in pairs]
        self.workers = [
            context.Process(target=_worker, args=(there, images, filters, i, rotation), daemon=True)
            for i, (_, there) in enumerate(pairs)
        ]
        for worker in self.workers:
            worker.start()

    def __call__(self) -> None:
        weights = [p.detach() for p in self.net.parameters()]
        for pipe in self.pipes:
            pipe.send(weights)
        halves = [pipe.recv() for pipe in self.pipes]
        for p, *grads in zip(self.net.parameters(), *halves):
            p.grad = sum(grads) / TASKS
        self.optimizer.step()

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for worker in self.workers:
            worker.join()


def interleaved(methods: dict[str, Step], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each method in each round, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 2):
        for name, step in methods.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(claim: str, method: str, mine: np.ndarray, other: np.ndarray, note: str = "") -> dict[str, Any]:
    ratios = other / mine
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    speed = f"{TASKS / np.median(mine):.0f} against {TASKS / np.median(other):.0f} tasks/s"
    low, high = np.quantile(draws, [0.025, 0.975])
    return row(claim, method, float(np.median(ratios)), low=float(low), high=float(high), n=len(ratios), unit="x",
               note=f"{speed}{'; ' + note if note else ''}")  # fmt: skip


def sinusoids(tasks: int) -> Episodes:
    amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), 3.1416 * torch.rand(tasks, 1, 1)
    x = 10 * torch.rand(tasks, 20, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return Episodes(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])


def one_sinusoid() -> tuple[Tensor, Tensor]:
    batch = sinusoids(1)
    x, y = (torch.stack(pair, 2).view(20, 1) for pair in ((batch[0], batch[2]), (batch[1], batch[3])))
    return x, y


class Regression(MLP):
    """An MLP that takes the support set as MAML passes it, and needs none of it."""

    def forward(self, x: Tensor, support: Any = None) -> Tensor:
        return super().forward(x)


def main(rounds: int = 8) -> None:
    torch.manual_seed(0)
    keep_freed_memory()
    data = omniglot.subset(omniglot.load(), "trainval")
    sampler = FewShot(data.rotated(), ways=WAYS, shots=1, queries=1, seed=0)
    in_memory = tasks_of(InMemory(data.images), WAYS, rotation=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        picture = transforms.Compose(
            [
                transforms.Resize(28, interpolation=transforms.InterpolationMode.LANCZOS),
                transforms.ToTensor(),
                lambda x: 1 - x,
            ]
        )
        pngs = tasks_of(Pngs(unpack(Path(temporary), set(data.names)), data.names, picture), WAYS, rotation=True)
        pairs = {rotation: TwoProcesses(data.images, 64, rotation) for rotation in (True, False)}
        ce = F.cross_entropy
        big = {
            "ours": ours(model(64), sampler.sample, ce, 0.4),
            "default": theirs(model(64), pngs.sample, TASKS, ce, 0.4),
            "tuned": pairs[True],
            "tuned, no rotation": pairs[False],
        }
        seconds = interleaved(big, rounds)
        setting = "strided conv-4 of 64 filters, 5-way 1-shot 1-query, 1 inner step, second order, 32 tasks, 2 threads"
        rows.append(
            ratio(
                "maml-vs-learn2learn-cpu",
                "learn2learn defaults (PNG files)",
                seconds["ours"],
                seconds["default"],
                setting,
            )
        )
        rows.append(
            ratio(
                "maml-vs-learn2learn-tuned-cpu",
                "learn2learn in memory, 2 processes",
                seconds["ours"],
                seconds["tuned"],
                setting,
            )
        )
        note = f"{setting}; theirs draws from 4 times fewer classes"
        rows.append(
            ratio(
                "maml-vs-learn2learn-tuned-cpu",
                "the same without rotations",
                seconds["ours"],
                seconds["tuned, no rotation"],
                note,
            )
        )
        for pair in pairs.values():
            pair.close()

        def many(sample: Callable[[], Any]) -> Step:
            return lambda: [sample() for _ in range(TASKS)]

        seconds = interleaved(
            {"ours": lambda: sampler.sample(TASKS), "png": many(pngs.sample), "memory": many(in_memory.sample)}, rounds
        )
        rows.append(
            ratio("sampling-vs-learn2learn", "learn2learn defaults (PNG files)", seconds["ours"], seconds["png"])
        )
        rows.append(ratio("sampling-vs-learn2learn", "learn2learn in memory", seconds["ours"], seconds["memory"]))

    for filters in (8, 16, 32):
        pair = {
            "ours": ours(model(filters), sampler.sample, F.cross_entropy, 0.4),
            "theirs": theirs(model(filters), in_memory.sample, TASKS, F.cross_entropy, 0.4),
        }
        seconds = interleaved(pair, rounds)
        claim = "maml-vs-learn2learn-small-cpu" if filters < 32 else "maml-vs-learn2learn-32-filters-cpu"
        rows.append(
            ratio(claim, f"conv-4 of {filters} filters", seconds["ours"], seconds["theirs"], "theirs in memory")
        )
    pair = {
        "ours": ours(Regression([1, 40, 40, 1]), sinusoids, F.mse_loss, 0.01),
        "theirs": theirs(MLP([1, 40, 40, 1]), one_sinusoid, TASKS, F.mse_loss, 0.01),
    }
    seconds = interleaved(pair, 5 * rounds)
    rows.append(
        ratio("maml-vs-learn2learn-small-cpu", "sinusoid MLP 1-40-40-1", seconds["ours"], seconds["theirs"], "10 shots")
    )

    pooled = {
        "ours": ours(pooled_model(), sampler.sample, F.cross_entropy, 0.4, chunk=8),
        "theirs": theirs(pooled_model(), in_memory.sample, TASKS, F.cross_entropy, 0.4),
    }
    seconds = interleaved(pooled, max(rounds // 2, 3))
    rows.append(ratio("maml-vs-learn2learn-pooled-cpu", "pooled conv-4 of 64 filters", seconds["ours"], seconds["theirs"],
                      "bound by the convolutions; theirs in memory, 1 process"))  # fmt: skip
    save("learn2learn", rows)


def pooled_model() -> Classifier:
    encoder = Conv([64] * 4, downsample="pool", norm="batch")
    return Classifier(encoder, encoder.features, WAYS)


if __name__ == "__main__":
    main(*(int(a.removeprefix("rounds=")) for a in sys.argv[1:]))
