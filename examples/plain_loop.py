"""A nested memory in your own training loop: truncated backpropagation, and a state that outlives the process.

The stream shows a symbol and, one step later, the symbol's partner; partners change now and then. Run it:

    uv run python examples/plain_loop.py
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from nestmem import LSTM, Episodic, Fields, NestedMemory, SlowMLP, detach, state_from_dict, state_to_dict

SYMBOLS, ROWS, WINDOW = 8, 16, 20
fields = Fields(content=SYMBOLS, outcome=SYMBOLS)


def stream(windows: int, seed: int):
    """Windows [ROWS, WINDOW, 2 * SYMBOLS] of (symbol, partner of the symbol before), with the partners to predict."""
    g = torch.Generator().manual_seed(seed)
    partner = torch.rand(ROWS, SYMBOLS, generator=g).argsort(-1)
    owed = torch.zeros(ROWS, 1, SYMBOLS)
    for window in range(windows):
        if window % 8 == 0:
            partner = torch.rand(ROWS, SYMBOLS, generator=g).argsort(-1)
        symbols = torch.randint(SYMBOLS, (ROWS, WINDOW), generator=g)
        answers = partner.gather(1, symbols)
        outcomes = F.one_hot(answers, SYMBOLS).float()
        yield torch.cat([F.one_hot(symbols, SYMBOLS), torch.cat([owed, outcomes[:, :-1]], 1)], -1), answers
        owed = outcomes[:, -1:]


def main(windows: int = 60) -> float:
    torch.manual_seed(0)
    levels = [
        LSTM(fields.width, fields, hidden=32),
        Episodic(fields.width, fields, slots=16),
        SlowMLP(fields.width, fields),
    ]
    memory: nn.Module = NestedMemory(levels, fields)
    optimizer = torch.optim.Adam(memory.parameters(), lr=1e-2)
    state = None
    for x, answers in stream(windows, seed=0):
        y, state = memory(x, state)
        logits = fields.split(y)[2]
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = detach(state)  # the cut of truncated backpropagation
    accuracy = (logits.argmax(-1) == answers).float().mean().item()

    with tempfile.TemporaryDirectory() as folder:  # another process could read this
        save_file(state_to_dict(state), Path(folder) / "state.safetensors")
        back = state_from_dict(load_file(Path(folder) / "state.safetensors"), memory.initial_state(1))
    assert torch.equal(memory(x, back)[0], memory(x, state)[0])
    print(f"accuracy in the last window: {100 * accuracy:.0f} %, chance {100 / SYMBOLS:.0f} %")
    return accuracy


if __name__ == "__main__":
    main()
