"""A state leaves with one process and goes on in another, bit for bit, as if it had never stopped.

The first process sees half a sequence and saves what it knows; the second, a new Python, goes on with the rest. Run it:

    uv run python examples/state_across_processes.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nestmem import build, state_bytes, state_from_dict, state_to_dict

ROWS, STEPS, WIDTH = 3, 24, 32


def model():
    return build("nested", WIDTH, period=8)


def second(folder: Path) -> None:
    """All the second process knows is in files: parameters, state, and what is still to come."""
    memory = model()
    memory.load_state_dict(load_file(folder / "memory.safetensors"))
    state = state_from_dict(load_file(folder / "state.safetensors"), memory.initial_state(1))
    y, state = memory(load_file(folder / "rest.safetensors")["x"].clone(), state)
    save_file({"y": y.detach().contiguous()} | state_to_dict(state, "state"), folder / "answer.safetensors")


def main() -> tuple[bool, bool, float]:
    torch.manual_seed(0)
    memory, x = model(), torch.randn(ROWS, 2 * STEPS, WIDTH)
    _, state = memory(x[:, :STEPS])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(memory.state_dict(), folder / "memory.safetensors")
        save_file(state_to_dict(state), folder / "state.safetensors")
        save_file({"x": x[:, STEPS:].contiguous()}, folder / "rest.safetensors")
        subprocess.run([sys.executable, __file__, name], check=True)
        answer = load_file(folder / "answer.safetensors")

    y, after = memory(x[:, STEPS:], state)  # the same in this process
    outputs = torch.equal(y, answer.pop("y"))
    states = all(torch.equal(answer[name], held) for name, held in state_to_dict(after, "state").items())
    without = (y - memory(x[:, STEPS:])[0]).abs().max().item()
    print(f"{state_bytes(state)} bytes a row went across: outputs equal {outputs}, states equal {states}")
    print(f"from an empty state an output would be off by up to {without:.2f}")
    return outputs, states, without


if __name__ == "__main__":
    if len(sys.argv) > 1:
        second(Path(sys.argv[1]))
    else:
        main()
