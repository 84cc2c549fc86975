"""Judging trials with a goal, as Meta-World's tasks have one: what was reached after adapting, and whether it was adapting.

Every goal is played alike: `adapt` episodes to adapt in, then `scored` ones that count (10 and 3: Yu et al. 2020), none ends early
and none is left out. An episode succeeds if the goal is met at any of its steps, which is what is usually reported, or at its
last one, which sweeping through the room does not give. Beside it, in the same tasks: rewards not told, and every episode begun
as the first was. If the return rises over the episodes of a trial, but not with such resets, something was kept from one to the
next. All at the episode length of training, and once more at `test_horizon` steps.
Trials whose tasks come back are judged by visit instead: what the first episode of a task brings, and how much sooner the goal
is met in later ones.
Legend: N trials, E episodes, H steps of one, T = E H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from algos import figures
from algos.problem import Judged
from envs.returning import nth_visit
from envs.trials import Array, Trials
from nestmem.probes import bootstrap_interval, mean_interval, ratio_interval

if TYPE_CHECKING:
    from algos.rl2 import RL2Problem

Line = dict[str, Any]


class Played(NamedTuple):
    """returns [N, E]; any, last [N, E]: success, 0 or 1."""

    returns: Array
    any: Array
    last: Array


def played(rewards: Array, success: Array, episodes: int) -> Played:
    """From rewards and successes [N, T]."""
    r, s = (x.reshape(len(x), episodes, -1) for x in (rewards, success))
    return Played(r.sum(2), s.max(2), s[:, :, -1])


def steps_to_goal(success: Array, episodes: int) -> Array:
    """Steps of every episode until the goal is met, all of them if it never is; successes [N, T] to [N, E]."""
    met = success.reshape(len(success), episodes, -1) > 0
    return np.where(met.any(2), met.argmax(2) + 1.0, met.shape[2])


def judge(problem: RL2Problem, split: str, trials: int, thorough: bool) -> Judged:
    """Validation plays trials as in training; the test adds the protocol, the controls and the longer episodes."""
    if problem.env.revisits:
        return judge_visits(problem, split, trials)
    adapt, scored, horizon = problem.protocol
    changes = {"episodes": adapt + scored} if thorough else {}
    count = scored if thorough else max(problem.env.episodes // 2, 1)
    env, found = play(problem, split, trials, **changes)
    numbers, lines = table(found, count), curves(found)
    if thorough:
        for name, control in (("rewards not told", {"blind": True}), ("reset in every episode", {"clear": "all"})):
            _, other = play(problem, split, trials, **control, **changes)
            numbers |= {f"{key}, {name}": value for key, value in table(other, count).items()}
            lines |= {f"{key}_{name.split()[0]}": _called(line, name) for key, line in curves(other).items()}
        _, greedy = play(problem, split, trials, greedy=True, **changes)
        numbers |= {f"{key}, likeliest actions": value for key, value in table(greedy, count).items()}
        if horizon != env.horizon:
            _, long = play(problem, split, trials, horizon=horizon, **changes)
            numbers |= {f"{key}, {horizon} steps": value for key, value in table(long, count).items()}
        numbers |= by_name(env, found, count)
        for name, (rewards, success) in problem.others(env, problem.seeds[split]).items():
            known = table(played(rewards, success, 1), 1)
            numbers |= {f"{key}, {name}": value for key, value in known.items() if "over first" not in key}
        if env.restarts:
            numbers["simulators started anew"] = env.restarts
    score = mean_interval(100 * found.any[:, -count:].mean(1))
    scalars = {"return_of_episode": float(found.returns[:, -count:].mean())}
    scalars["last_step"] = 100 * float(found.last[:, -count:].mean())
    drawn = {key: figures.lines({"this run": line["points"]}, line["x"], line["y"]) for key, line in lines.items()}
    videos = film(problem, split) if thorough else {}
    return Judged(score, scalars, drawn, {"lines": lines, "numbers": numbers}, videos)


def film(problem: RL2Problem, split: str) -> dict[str, list[Array]]:
    """One trial of the length of training, a picture every tenth step; nothing where rendering does not work."""
    if not hasattr(problem.env, "film"):
        return {}
    env, _ = problem.play(split, 1, film=10)
    frames = list(env.film.frames)  # type: ignore[attr-defined]
    env.film.close()  # type: ignore[attr-defined]
    return {"trial": frames} if frames else {}


def play(problem: RL2Problem, split: str, trials: int, **options: Any) -> tuple[Trials, Played]:
    env, rollout = problem.play(split, trials, **options)
    return env, played(rollout.rewards.cpu().numpy(), rollout.success.cpu().numpy(), env.episodes)


def table(found: Played, scored: int) -> dict[str, Any]:
    """Numbers of the last `scored` episodes; intervals are over trials, each of them being a goal."""
    last, first = found.returns[:, -scored:].mean(1), found.returns[:, 0]
    return successes(found, scored) | {
        "return of an episode": mean_interval(last),
        "return of an episode, interquartile mean": bootstrap_interval(last),
        "return, scored over first episode": ratio_interval(last, first, paired=True),
    }


def successes(found: Played, scored: int) -> dict[str, Any]:
    return {
        "success at any step, %": mean_interval(100 * found.any[:, -scored:].mean(1)),
        "success at the last step, %": mean_interval(100 * found.last[:, -scored:].mean(1)),
    }


def by_name(env: Any, found: Played, scored: int) -> dict[str, Any]:
    """Successes of each of the tasks alone, if an env deals several to its trials, one to each."""
    if len(getattr(env, "names", ())) < 2:
        return {}
    names, numbers = np.array([name for ((name, _),) in env.tasks_of]), {}
    for one in np.unique(names):
        alone = successes(Played(*(values[names == one] for values in found)), scored)
        numbers |= {f"{key}, {one}": value for key, value in alone.items()}
    return numbers


def protocol(problem: RL2Problem, split: str, trials: int) -> dict[str, Any]:
    """Numbers of the scored episodes, after those to adapt in."""
    adapt, scored, _ = problem.protocol
    env, found = play(problem, split, trials, episodes=adapt + scored)
    restarts = {"simulators started anew": env.restarts} if env.restarts else {}
    return table(found, scored) | by_name(env, found, scored) | restarts


def curves(found: Played) -> dict[str, Line]:
    """Lines (see `algos.report`) by episode of a trial, with 95 % bands over trials."""
    what = {
        "adaptation_in_trial": ("Return by episode of a trial", "return of an episode", found.returns),
        "success_in_trial": ("Success at any step by episode of a trial", "success, %", 100 * found.any),
        "last_step_in_trial": ("Success at the last step by episode of a trial", "success, %", 100 * found.last),
    }
    return {key: _line(caption, "episode", y, values) for key, (caption, y, values) in what.items()}


def judge_visits(problem: RL2Problem, split: str, trials: int) -> Judged:
    """Tasks that come back. Adaptation: return of the first visit to a task; retention: steps to the goal that the second visit
    saves. Returns say less of it: most of the way to a goal pays nearly as much as being there."""
    env, rollout = problem.play(split, trials)
    rewards, success = rollout.rewards.cpu().numpy(), rollout.success.cpu().numpy()
    found = played(rewards, success, env.episodes)
    returns, steps = (visits(env, values) for values in (found.returns, steps_to_goal(success, env.episodes)))
    saved = steps[:, 0] - steps[:, 1]
    score = mean_interval(100 * found.any.mean(1))
    lines = {
        "visits": _line("Return by visit to a task", "visit", "return of an episode", returns),
        "visits_steps": _line("Steps to the goal by visit to a task", "visit", f"steps, of {env.horizon}", steps),
    }
    axes = {
        "adaptation": {"value": float(returns[:, 0].mean()), "what": "return of the first visit to a task"},
        "retention": {"value": float(saved.mean()), "what": "steps to the goal that the second visit to a task saves"},
    }
    numbers = {
        "success at any step, %": score,
        "success at the last step, %": mean_interval(100 * found.last.mean(1)),
        "return of the first visit": mean_interval(returns[:, 0]),
        "return of the second visit less that of the first": mean_interval(returns[:, 1] - returns[:, 0]),
        "steps to the goal on the first visit": mean_interval(steps[:, 0]),
        "steps to the goal on the second visit": mean_interval(steps[:, 1]),
        "steps to the goal saved by the second visit": mean_interval(saved),
        "return of the best visit less that of the last": float(returns.mean(0).max() - returns.mean(0)[-1]),
    }
    drawn = {key: figures.lines({"this run": line["points"]}, line["x"], line["y"]) for key, line in lines.items()}
    scalars = {"return_of_episode": float(found.returns.mean()), "steps_saved": float(saved.mean())}
    return Judged(score, scalars, drawn, {"lines": lines, "numbers": numbers, "axes": axes})


def visits(env: Any, returns: Array) -> Array:
    """Mean return of an episode [N, E] by how often its task was visited before: [N, visits]."""
    nth = np.repeat(nth_visit(env.order), env.stay, 1)
    return np.stack([(returns * (nth == i)).sum(1) / (nth == i).sum(1) for i in range(env.visits)], 1)


def _line(caption: str, x: str, y: str, values: Array) -> Line:
    """Means over trials of values [N, points], numbered from 1."""
    points = [[float(i + 1), *mean_interval(values[:, i])[:3]] for i in range(values.shape[1])]
    return {"caption": f"{caption} (new goals, 95 % band over trials)", "x": x, "y": y, "points": points}


def _called(line: Line, name: str) -> Line:
    return line | {"caption": f"{line['caption']}: {name}"}
