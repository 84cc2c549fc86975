"""A memory between the layers of a Hugging Face language model, for what lies outside its context window.

Texts are pairs of a key and its value, cut into segments of one window. A key comes once a segment, so its value can only be
known from earlier segments, and nothing goes from segment to segment but the memory's state. Run it:

    uv run python examples/inside_transformers.py
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from nestmem import build, detach

KEYS, SEGMENTS, ROWS, WIDTH = 8, 4, 32, 64
WINDOW = 2 * KEYS


class WithMemory(nn.Module):
    """A transformer block with a memory added to its output [B, T, WIDTH]; `state` is kept for the next segment."""

    def __init__(self, block, memory):
        super().__init__()
        self.block, self.norm, self.memory, self.state = block, nn.LayerNorm(WIDTH), memory, None

    def forward(self, *args, **kwargs):
        hidden = self.block(*args, **kwargs)
        remembered, self.state = self.memory(self.norm(hidden), self.state)
        return hidden + remembered


def texts(generator):
    """Tokens [ROWS, SEGMENTS, WINDOW]: keys 0..7 in a new order each segment, each followed by its value, 8..15."""
    values = torch.randint(KEYS, (ROWS, 1, KEYS), generator=generator).expand(-1, SEGMENTS, -1)
    keys = torch.rand(ROWS, SEGMENTS, KEYS, generator=generator).argsort(-1)
    return torch.stack([keys, KEYS + values.gather(2, keys)], -1).flatten(2)


def run(model, layer, tokens, carry: bool = True, optimizer=None) -> float:
    """Feed the segments in turn, training if there is an optimizer. Returns the accuracy of values after segment 0."""
    layer.state, right, losses = None, [], []
    for segment, x in enumerate(tokens.unbind(1)):
        logits, values = model(x, use_cache=False).logits[:, ::2], x[:, 1::2]  # what it says at the keys
        right.append((logits.argmax(-1) == values).float().mean().item())
        losses.append(F.cross_entropy(logits.flatten(0, 1), values.flatten()))
        # Truncated backpropagation: each update reaches one segment back. With a cut at every segment no gradient would
        # reach the writes, and reading drifts away from them.
        if optimizer and segment % 2:
            optimizer.zero_grad()
            sum(losses[-2:]).backward()
            optimizer.step()
            layer.state = detach(layer.state)
        if not carry:
            layer.state = None
    return sum(right[1:]) / len(right[1:])


def main(memory: str = "gated_deltanet", seen: int = 60) -> tuple[float, float]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    sizes = {"vocab_size": 2 * KEYS, "hidden_size": WIDTH, "intermediate_size": 128, "max_position_embeddings": WINDOW}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_attention_heads=2, **sizes))
    layer = model.model.layers[0] = WithMemory(model.model.layers[0], build(memory, WIDTH))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(seen):
        run(model, layer, texts(generator), optimizer=optimizer)
    with torch.no_grad():
        carried, cleared = (run(model, layer, texts(generator), carry) for carry in (True, False))
    print(f"values recalled: {100 * carried:.0f} % with the state carried, {100 * cleared:.0f} % with it cleared")
    return carried, cleared


if __name__ == "__main__":
    main()
