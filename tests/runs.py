"""What tests of training share: a run, the same run cut short and gone on with, and updates without the trainer."""

import json
import shutil

import torch
from safetensors.torch import load_file

from algos import build
from algos.config import configure
from algos.trainer import Trainer


def fitted(run, options):
    """Train what the options say into `run`, on from its newest checkpoint if there is one; the result."""
    config = configure([*options, f"run={run}"])
    return Trainer(config, build.problem(config), resume=(run / "checkpoints").is_dir()).fit()


def cut(whole, part, step):
    """A copy of a run as an interruption soon after checkpoint `step` would have left it."""
    shutil.copytree(whole, part)
    (part / "result.json").unlink()
    for folder in (part / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    return part


def left(run):
    """All that a run leaves behind, except times: its scalars, the tensors of its last checkpoint as bytes, its result."""
    rows = [line for line in (run / "scalars.jsonl").read_text().splitlines() if '"time/' not in line]
    tensors = load_file(max((run / "checkpoints").glob("step-*")) / "tensors.safetensors")
    result = json.loads((run / "result.json").read_text())
    result.pop("seconds")
    return rows, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, result


class Updates:
    """A problem and an optimizer."""

    def __init__(self, problem):
        self.problem, self.learner = problem, problem.learner
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=1e-2)

    def update(self):
        return self.problem.update(self._optimize)

    def _optimize(self, parts):
        self.optimizer.zero_grad()
        (part,) = parts
        part.loss.backward()
        self.optimizer.step()
        return {"loss": float(part.loss.detach())} | {name: float(v) for name, v in part.metrics.items()}

    def take_over(self, other):
        """Everything that a checkpoint of the other holds."""
        self.learner.load_state_dict(other.learner.state_dict())
        self.optimizer.load_state_dict(other.optimizer.state_dict())
        self.problem.load_state_dict({k: v.clone() for k, v in other.problem.state_dict().items()})


def saved_and_loaded(make, updates, after):
    """Two times so many updates of what `make` returns: in one go, and gone on with by another one after some of them.

    What was said of each update, in both, and the two at the end.
    """
    whole, half, rest = make(), make(), make()
    want = [whole.update() for _ in range(updates)]
    got = [half.update() for _ in range(after)]
    rest.take_over(half)
    return want, got + [rest.update() for _ in range(updates - after)], whole, rest
