"""A small decoder: tokens through layers of memory to the distribution of the next token, with the state carried for ever.

    h = E[token];   for each layer:  h <- h + memory(norm(h)),  h <- h + W2 gelu(W1 norm(h));   logits = norm(h) U
Where a memory sits beside a window of attention (Behrouz et al. 2025):
    layer    a memory, then, with window > 0, attention over the last `window` tokens; any memory alone with window = 0
    gate     attention over the last `window` tokens, which the memory opens and closes
    context  attention within segments of `window` tokens, over what the memory recalls for them
    segments the layers see segments of `window` tokens, and a queue of segment embeddings is the memory (HMT, nestmem.segments)
Legend: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestmem import Context, Gated, SegmentWrapper, Window
from nestmem.compose import Compound, Scale
from nestmem.errors import UserError
from nestmem.memory.base import Aux, Memory, State, where_rows
from nestmem.memory.leaky import track

PLACES = ("layer", "gate", "context", "segments")


class Layers(Compound):
    """Memories one after another, each followed by a network of its own for every token."""

    def __init__(self, parts: list[Memory], hidden: int):
        super().__init__(parts, None)
        width = self.d_model
        self.norms = nn.ModuleList(Scale(width) for _ in parts)
        self.feeds = nn.ModuleList(
            nn.Sequential(Scale(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            if hidden
            else Zero()
            for _ in parts
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "step")

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State, Aux]:
        return self._advance(x, state, "run")

    def read(self, query: Tensor, state: State) -> tuple[Tensor, Aux]:
        for part, norm, feed, held in zip(self.parts, self.norms, self.feeds, state, strict=True):
            query = query + part.read(norm(query), held)[0]
            query = query + feed(query)
        return self.said(query)

    def _advance(self, x: Tensor, state: State, how: str) -> tuple[Tensor, State, Aux]:
        states = []
        for part, norm, feed, held in zip(self.parts, self.norms, self.feeds, state, strict=True):
            y, held, _ = getattr(part, how)(norm(x), held)
            x = x + y
            x = x + feed(x)
            states.append(held)
        y, aux = self.said(x)
        return y, tuple(states), aux


class Zero(nn.Module):
    """No network."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Segments(nn.Module):
    """HMT around layers that see one segment at a time, beginning each from their initial state."""

    def __init__(self, layers: Layers, segment: int):
        super().__init__()
        self.d_model, self.segment = layers.d_model, segment
        self.layers = layers
        self.wrapper = SegmentWrapper(self._hidden, layers.d_model, segment=segment, sensory=min(16, segment))

    def _hidden(self, x: Tensor) -> Tensor:
        return self.layers(x)[0]

    def initial_state(self, batch_size: int) -> State:
        return self.wrapper.initial_state(batch_size)

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State, None]:
        y, state = self.wrapper(x, state)
        return y, state, None

    def reset(self, state: State, done: Tensor, *, until: str = "life") -> State:
        return where_rows(done, self.initial_state(len(done)), state)


def layers(memory: Callable[[], Memory], width: int, algo: Any) -> Layers | Segments:
    """The path of a decoder as `algo` asks for it. memory: makes the memory of one layer."""
    place, window = algo.place, algo.window
    if place not in PLACES:
        raise UserError(f"algo.place: expected one of {', '.join(PLACES)}, got {place!r}")
    if algo.layers < 1 or window < 0 or algo.hidden < 0:
        raise UserError(
            f"algo.layers, algo.window, algo.hidden: expected at least 1, 0 and 0, got {algo.layers}, {window}, {algo.hidden}"
        )
    if place != "layer" and window < 1:
        raise UserError(f"algo.window: algo.place={place} needs at least 1 token, got {window}")
    parts: list[Memory] = []
    for _ in range(algo.layers):
        match place:
            case "gate":
                parts.append(Gated(Window(width, window=window, heads=algo.heads), memory()))
            case "context":
                parts.append(Context(memory(), segment=window, heads=algo.heads))
            case _:
                parts.append(memory())
                if window and place == "layer":
                    parts.append(Window(width, window=window, heads=algo.heads))
    made = Layers(parts, algo.hidden)
    return Segments(made, window) if place == "segments" else made


class DecoderState(NamedTuple):
    memory: State
    episodes: State  # of what followed what in the document, () without them
    head: State  # of the readout that adapts to it, () without one


class Decoder(nn.Module):
    """Embedding, layers, readout. head: a readout that learns while it reads (`algos.adapt`), or None. episodes: an exact memory of
    what followed what (`algos.episodes`), or None. tied: the readout is the embedding, so that a token never seen as an answer can
    be given as one."""

    def __init__(
        self, vocabulary: int, layers: Layers | Segments, head: Any = None, episodes: Any = None, tied: bool = False
    ):
        super().__init__()
        self.vocabulary, self.d_model = vocabulary, layers.d_model
        self.embedding = nn.Embedding(vocabulary + 1, self.d_model)  # and the token before a document
        nn.init.normal_(self.embedding.weight, std=self.d_model**-0.5)
        self.layers, self.norm = layers, Scale(self.d_model)
        self.scale = nn.Parameter(torch.tensor(10 * self.d_model**-0.5)) if tied else None
        self.readout = nn.Identity() if tied else nn.Linear(self.d_model, vocabulary)
        self.head, self.episodes = head, episodes

    def initial_state(self, batch_size: int) -> DecoderState:
        extra = (() if part is None else part.initial_state(batch_size) for part in (self.episodes, self.head))
        return DecoderState(self.layers.initial_state(batch_size), *extra)

    def reset(self, state: DecoderState, done: Tensor) -> DecoderState:
        """A document begins in the rows `done` [B]: nothing is left of the last one."""
        if not bool(done.any()):
            return state
        memory = self.layers.reset(state.memory, done, until="life")
        extra = ((self.episodes, state.episodes), (self.head, state.head))
        return DecoderState(memory, *(() if part is None else part.reset(held, done) for part, held in extra))

    def hidden(self, tokens: Tensor, memory: State) -> tuple[Tensor, State]:
        """Tokens [B, T] to what the readout sees of each [B, T, D], and the state of the memory after them."""
        hidden, memory, _ = self.layers.run(self.embedding(tokens), memory)
        return self.norm(hidden), memory

    def answer(self, hidden: Tensor) -> Tensor:
        """What the readout sees [..., D] to logits [..., V]."""
        if self.scale is not None:
            return self.scale * hidden @ self.embedding.weight[: self.vocabulary].T
        logits: Tensor = self.readout(hidden)
        return logits

    def forward(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Tokens [B, T] to logits of what follows each [B, T, V], and the state after them."""
        hidden, memory = self.hidden(tokens, state.memory)
        return self.together(tokens, hidden, self.answer(hidden), state._replace(memory=memory))

    def together(
        self, tokens: Tensor, hidden: Tensor, logits: Tensor, state: DecoderState
    ) -> tuple[Tensor, DecoderState]:
        """What the layers say [B, T, V] with what episodes and the learning head add to it, and the state after them."""
        episodes, head = state.episodes, state.head
        if self.episodes is not None:
            said, episodes = self.episodes(hidden, tokens, episodes)
            logits = logits + said
        if self.head is not None:
            logits, head = self.head(hidden, tokens, logits, head)
        return logits, DecoderState(state.memory, episodes, head)

    @torch.no_grad()
    def track(self, state: DecoderState) -> None:
        """Once an update: leaky averages follow where they rest (`nestmem.memory.leaky`)."""
        track(self.layers, state.memory)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target: logits [B, T, V], targets [B, T] to [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
