"""What a strategy is: the losses of an update, and what is kept beside the weights.

One network with one output for every label learns a stream batch by batch; a strategy says what else counts. The plainest
ones are here: finetune follows the gradient of the batch at hand and nothing else, the lower bound; joint does the same on the
stream's images in random order, as if there were no tasks, the upper bound that a learner in sequence can hope for.
Legend: n images of a batch, C outputs, F features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algos.problem import Part


class Encoding(nn.Module):
    """A network with an encoder; a frozen one stays in evaluation mode, so that its statistics are frozen too."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def train(self, mode: bool = True) -> Encoding:
        super().train(mode)
        if not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        return self


class Classifier(Encoding):
    """An encoder, images [n, 1, H, W] to features [n, F], and a linear layer of C outputs."""

    def __init__(self, encoder: nn.Module, features: int, outputs: int):
        super().__init__(encoder)
        self.head = nn.Linear(features, outputs)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


class Strategy:
    """Base of all strategies: those of the gradient override `parts`, those with boundaries `begin` and `end`.

    told: has to be told where tasks begin and end. kept: all that it holds beside the weights, as tensors by name; this is
    what a checkpoint saves and what `state_bytes` counts. strength: the weight of a penalty, by default the class's own.
    buffer: images kept, where images are kept.
    """

    told = False
    shuffled = False  # sees the stream in random order
    default_strength = 0.0

    def __init__(self, learner: nn.Module, *, strength: float | None = None, buffer: int = 200, seed: int = 0):
        self.learner, self.buffer = learner, buffer
        self.strength = self.default_strength if strength is None else strength
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: dict[str, Tensor] = {}

    @staticmethod
    def network(encoder: nn.Module, features: int, outputs: int, tasks: int) -> nn.Module:
        """What is trained."""
        return Classifier(encoder, features, outputs)

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[Part]:
        """The losses of one update on images [n, 1, H, W] with labels [n].

        The loop takes a part, adds its gradient to `.grad`, and asks for the next; it makes its step when there is none. So what
        stands after a `yield` sees the gradient so far, and may change it.
        """
        logits = self.learner(images)
        yield Part(F.cross_entropy(logits, labels), {"accuracy": right(logits, labels)})

    def stepped(self, images: Tensor, labels: Tensor) -> None:
        """After the step."""

    def begin(self, task: int) -> None:
        """A task begins; called only where boundaries are known."""

    def end(self, task: int, images: Tensor, labels: Tensor) -> None:
        """A task ends, after these images of its visit; called only where boundaries are known."""

    def logits(self, images: Tensor) -> Tensor:
        """What is answered: [n, C]."""
        answer: Tensor = self.learner(images)
        return answer

    @property
    def state_bytes(self) -> int:
        """Bytes kept beside the weights of one network."""
        return sum(t.numel() * t.element_size() for t in self.kept.values())

    def state_dict(self) -> dict[str, Tensor]:
        return self.kept | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        rest = dict(state)
        self.generator.set_state(rest.pop("generator"))
        device = next(self.learner.parameters()).device
        self.kept = {name: tensor.to(device) for name, tensor in rest.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.learner.named_parameters() if p.requires_grad}


class Finetune(Strategy):
    """The gradient of the batch at hand."""


class Joint(Strategy):
    """The same on the images of the whole stream in random order."""

    shuffled = True


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the images that are answered right."""
    return (logits.argmax(-1) == labels).float().mean()
