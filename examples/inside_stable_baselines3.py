"""A memory inside Stable-Baselines3's PPO: it runs over a window of the last steps, and its last output is the feature.

A cue is shown at the first step of an episode and must be named after six steps of noise. Run it:

    uv run python examples/inside_stable_baselines3.py
"""

import gymnasium
import numpy as np
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from nestmem import build

CUES, DELAY = 4, 6


class DelayedCue(gymnasium.Env):
    """Observations [cue, go, noise]; naming the cue at "go" is rewarded with 1."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (CUES + 2,), np.float32)
    action_space = gymnasium.spaces.Discrete(CUES)

    def observe(self):
        cue = np.eye(CUES)[self.cue] * (self.time == 0)
        return np.array([*cue, self.time == DELAY, self.np_random.uniform(-1.0, 1.0)], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.cue = 0, self.np_random.integers(CUES)
        return self.observe(), {}

    def step(self, action):
        over, right = self.time == DELAY, action == self.cue
        self.time += 1
        return self.observe(), float(over and right), over, False, {}


class OverWindow(BaseFeaturesExtractor):
    """Windows [B, n, D] to features [B, width]: a memory's last output or, without a memory, the last observation."""

    def __init__(self, observation_space, memory: str | None, width: int = 32):
        super().__init__(observation_space, width)
        self.encode = nn.Linear(observation_space.shape[-1], width)
        self.memory = build(memory, width) if memory else None

    def forward(self, window):
        tokens = self.encode(window)
        return (self.memory(tokens)[0] if self.memory else tokens)[:, -1]


def success(memory: str | None, steps: int, seed: int) -> float:
    # One step longer than the episode: an associative memory binds the cue to the padding before it.
    envs = make_vec_env(lambda: FrameStackObservation(DelayedCue(), DELAY + 2, padding_type="zero"), 16, seed)
    extractor = {"features_extractor_class": OverWindow, "features_extractor_kwargs": {"memory": memory}}
    ppo = PPO("MlpPolicy", envs, 1e-3, n_steps=64, batch_size=256, seed=seed, policy_kwargs=extractor, device="cpu")
    return float(evaluate_policy(ppo.learn(steps), envs, n_eval_episodes=200)[0])


def main(memory: str = "lstm", steps: int = 12288, seed: int = 0) -> tuple[float, float]:
    right, blind = success(memory, steps, seed), success(None, steps, seed)
    print(f"cues named: {100 * right:.0f} % with {memory}, {100 * blind:.0f} % from the last observation alone")
    return right, blind


if __name__ == "__main__":
    main()
