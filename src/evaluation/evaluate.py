"""The strict evaluation protocol, in which Meta-DT and every compared method are measured.

zero-shot: the running episode only. few-shot(N): N warm-up episodes lived on the task by the same frozen agent, in sequence (each
may already use those before), then the evaluated episode. Tasks x episodes step together as one array, and every row adapts on
its own, so that M evaluation episodes are M independent adaptations.
"""

import numpy as np

from src.evaluation.batch import make_batch
from src.evaluation.rollout import returns, rollout
from src.run import distributed
from src.run.seeding import derive

DIGITS = 7  # significant ones of a return: those that rewards of float32 carry, and files of half the size


def evaluate(agent, env, task_ids, episodes, warmup=0, seed=0, later=0, keep=0, watch=None):
    """Returns of an Agent on `task_ids`; several processes (src/run/distributed.py) take a part of the tasks each.

    Args:
        env: EnvConfig. episodes: M evaluated episodes per task. warmup: N warm-up episodes, 0 for zero-shot.
        seed: of the resets; the agent's own generators come with it.
        later: episodes that go on after the evaluated one, which is adapted to as well; they show the adaptation.
        keep: store the paths of the first `keep` evaluated episodes of every task.
        watch: called with the rows' task ids, reset seeds and the Episode that is evaluated; of several processes by the one
            that has the first task.
    Returns: JSON-able dict: returns (tasks, M), rounded to DIGITS; alike warmup_returns (tasks, M, N) and later_returns
    (tasks, M, later) where there are such episodes; accepted (tasks, M, N), 1 for each warm-up episode that was adapted to, where
    the agent chooses; lengths (tasks, M) where episodes can end on their own; success (tasks, M) where the environment tells it,
    1 where any step of the episode was one; trajectories where `keep`.
    """
    task_ids = list(task_ids)
    own = distributed.share(task_ids)
    options = {"warmup": warmup, "seed": seed, "later": later, "keep": keep}
    options["watch"] = watch if own[:1] == task_ids[:1] else None  # of several processes who has the first task
    parts = distributed.collected(_evaluate(agent, env, own, episodes, **options) if own else {})
    result = {}
    for part in parts:
        for key, values in part.items():
            former = result.get(key, type(values)())
            result[key] = former | values if isinstance(values, dict) else former + values
    return result


def _evaluate(agent, env, task_ids, episodes, warmup, seed, later, keep, watch):
    lived = []
    for number, (rows, seeds, episode) in enumerate(live(agent, env, task_ids, episodes, warmup + 1 + later, seed)):
        lived.append(episode)
        if number == warmup:
            accepted = getattr(agent, "accepted_episodes", None)
        if number == warmup and watch:
            watch(rows, seeds, episode)
    table = significant(np.stack([returns(episode) for episode in lived], 1).reshape(len(task_ids), episodes, -1))
    result = {"returns": table[:, :, warmup].tolist()}
    if warmup:
        result["warmup_returns"] = table[:, :, :warmup].tolist()
    if warmup and accepted is not None:
        result["accepted"] = accepted.astype(int).reshape(len(task_ids), episodes, -1).tolist()
    if later:
        result["later_returns"] = table[:, :, warmup + 1 :].tolist()
    if env.terminates:
        result["lengths"] = lived[warmup]["lengths"].reshape(len(task_ids), episodes).tolist()
    if "success" in lived[warmup]["infos"]:
        result["success"] = successes(lived[warmup]).reshape(len(task_ids), episodes).tolist()
    if keep:
        result["trajectories"] = _paths(lived[: warmup + 1], task_ids, episodes, keep)
    return result


def significant(table):
    """An array of numbers, rounded to DIGITS."""
    return np.array([float(f"{value:.{DIGITS}g}") for value in table.ravel()]).reshape(table.shape)


def live(agent, env, task_ids, episodes, count, seed=0):
    """`count` episodes in sequence, before each of which the agent adapts to those before; `episodes` rows for every task.

    Yields (task ids of the rows (B,), seeds of their resets, Episode).
    """
    rows = np.repeat(np.asarray(task_ids), episodes)
    batch = make_batch(env, rows)
    lived = []
    for number in range(count):
        seeds = [derive(seed, "reset", int(task), row % episodes, number) % 2**31 for row, task in enumerate(rows)]
        agent.adapt(lived)
        lived = [*lived, rollout(agent, batch, seeds, env.max_episode_steps)]
        yield rows, seeds, lived[-1]


def successes(episode):
    """(B,) 1.0 where any step of an Episode's row was a success, up to its end."""
    inside = np.arange(episode["rewards"].shape[1]) < episode["lengths"][:, None]
    return (np.asarray(episode["infos"]["success"]).astype(bool) & inside).any(1).astype(float)


def _paths(lived, task_ids, episodes, keep):
    """Observed paths of a few rows per task: {"45": {"warmup": [N paths of row 0], "evaluation": [up to `keep` paths]}}."""
    paths = {}
    for index, task in enumerate(task_ids):
        first = index * episodes
        last = lived[-1]["observations"]
        paths[str(int(task))] = {
            "warmup": [_rounded(episode["observations"][first]) for episode in lived[:-1]],
            "evaluation": [_rounded(last[first + row]) for row in range(min(keep, episodes))],
        }
    return paths


def _rounded(path):
    """To four decimals, as a list; numbers so large that this overflows have none."""
    with np.errstate(over="ignore"):
        rounded = path.round(4)
    return np.where(np.isfinite(rounded), rounded, path).tolist()
