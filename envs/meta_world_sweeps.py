"""What needs no adapting in Meta-World's reach: to go to the middle of where goals can be, and to sweep through all of it blindly.

Both are open loops: positions are commanded, nothing seen or paid is listened to. A sweep in four columns comes within reach of
nearly every goal, so success at any step says little by itself; success at the last step, and a return that rises, say more.
Legend: N trials, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from envs.meta_world import LONGEST, MetaWorld
from envs.trials import Array, Trials

STRIDE = 0.01  # metres that an action of 1 moves the hand by
COLUMNS = (-0.075, -0.025, 0.025, 0.075)
DEPTH, LOW, HIGH = 0.85, 0.05, 0.3  # goals of reach are .8 to .9 deep and so high, and .1 to both sides


def open_loop(env: Trials, seed: int) -> dict[str, tuple[Array, Array]]:
    """Rewards and successes [N, T] of one episode for each goal, at the length of `env` and at the longest."""
    if not isinstance(env, MetaWorld) or env.names != ["reach-v3"] or env.revisits:
        return {}
    middle = [(0.0, DEPTH, (LOW + HIGH) / 2)]
    sweep = [(x, DEPTH, z) for i, x in enumerate(COLUMNS) for z in ((LOW, HIGH) if i % 2 == 0 else (HIGH, LOW))]
    found = {}
    for horizon in sorted({env.horizon, LONGEST}):
        for name, places in (("the middle", middle), ("a blind sweep", sweep)):
            sizes = {"episodes": 1, "horizon": horizon, "goals": env.goals, "seed": env.goal_seed, "split": env.split}
            found[f"{name}, {horizon} steps"] = play(MetaWorld(env.num_envs, **sizes), seed, places)
    return found


def play(env: MetaWorld, seed: int, places: list[tuple[float, float, float]]) -> tuple[Array, Array]:
    env.reset(seed=seed)
    sim = env.sims[0]
    hand = sim.data.mocap_pos[0]
    rewards, success = [], []
    for action in commands(hand, [np.array(place) - (sim.tcp_center - hand) for place in places], env.steps):
        _, reward, *_ = env.step(np.tile(action, (env.num_envs, 1)))
        rewards.append(reward)
        success.append(env.success.astype(np.float32))
    return np.stack(rewards, 1), np.stack(success, 1)


def commands(start: Array, places: list[Array], steps: int) -> Iterator[Array]:
    """Actions [4] that lead from place to place on straight ways along each axis, and rest at the last one; fingers open."""
    at, left = start.copy(), list(places)
    for _ in range(steps):
        if len(left) > 1 and np.allclose(at, left[0], atol=1e-6):
            left.pop(0)
        move = np.clip((left[0] - at) / STRIDE, -1, 1)
        at = at + move * STRIDE
        yield np.append(move, -1.0)
