"""Reward relabelling: what the same transitions would have earned on another task, of training or imagined (BOReL's idea).

It needs the reward function of the training tasks, `compute_rewards` of the environment; nothing of a test task is read.
"""

import dataclasses
import math

import numpy as np

from src.run.environment import blamed
from src.run.errors import UserError

SPREAD = 0.3  # of imagined tasks


def imagined_tasks(environment, task_ids, number, generator):
    """The environment's task table with `number` imagined tasks behind it: a smoothed bootstrap of the tasks `task_ids`.

    An imagined task has the parameters of a training task, drawn uniformly, moved by Gaussian noise (NumPy generator) of SPREAD
    times the standard deviation of each parameter over the training tasks. The reward function being known, goals between
    and around the training goals can be paid too, so that z and the policy meet more than the few dozen tasks of the data. Tasks
    in between, by mixed beliefs and decoded rewards: latent dynamics mixture (Lee and Chung, NeurIPS 2021).
    Returns: dict parameter -> (tasks + number, ...).
    """
    centres = generator.choice(np.asarray(task_ids), number)

    def extended(values):
        spread = SPREAD * values[np.asarray(task_ids)].std(0)
        return np.concatenate([values, values[centres] + spread * generator.standard_normal((number, *values.shape[1:]))])

    return {key: extended(values) for key, values in environment.unwrapped.tasks.items()}


def relabeller(environment, episodes, table=None):
    """Function (observations, actions, next_observations, infos, task ids) -> rewards of those tasks.

    table: task parameters by task id (default: the environment's own; see `imagined_tasks`). Raises UserError where the
    environment cannot tell the rewards, or not from what the dataset (Trajectories) recorded.
    """
    if not hasattr(environment, "compute_rewards"):
        raise UserError(
            f"relabelling needs {type(environment).__name__}.compute_rewards, which it lacks: choose another --decode "
            "in stage 3, --other_tasks none in stage 4"
        )

    table = environment.unwrapped.tasks if table is None else table

    def relabel(observations, actions, following, infos, tasks):
        parameters = {key: values[tasks] for key, values in table.items()}
        return environment.compute_rewards(observations, actions, following, parameters, *([infos] if infos else []))

    first = [values[:1, 0] for values in (episodes.observations, episodes.actions, episodes.observations[:, 1:])]
    try:
        with blamed(f"{type(environment).__name__}.compute_rewards fails"):
            paid = relabel(*first, {key: values[:1, 0] for key, values in episodes.infos.items()}, episodes.task_ids[:1])
    except UserError as error:
        raise UserError(
            f"relabelling: {error}; make the dataset again if it lacks what that needs, or choose another --decode in stage 3, "
            "--other_tasks none in stage 4"
        ) from None
    if np.shape(paid) != (1,):
        raise UserError(f"relabelling: compute_rewards gives shape {np.shape(paid)} for one transition, not (1,): mend it")
    return relabel


def rewards_on(relabel, episodes, tasks):
    """Rewards (E, T) float32 that `tasks` (E,) would have paid for Trajectories, by a `relabeller`; 0 beyond an episode's end."""
    arrays = episodes.observations[:, :-1], episodes.actions, episodes.observations[:, 1:]
    inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
    rewards = relabel(*arrays, episodes.infos, np.broadcast_to(tasks[:, None], inside.shape))
    return (rewards * inside).astype(np.float32)


def paid_by(environment, episodes, tasks, generator):
    """Trajectories with each episode moved to one of `tasks`, drawn by a NumPy generator, rewards relabelled."""
    drawn = generator.choice(np.asarray(tasks), len(episodes))
    return dataclasses.replace(episodes, rewards=rewards_on(relabeller(environment, episodes), episodes, drawn), task_ids=drawn)


def with_best_of_other_tasks(episodes, environment, share, imagined=0, generator=None, best_steps=False):
    """Trajectories with, for every task, the episodes of the other tasks that it would have paid best, rewards relabelled.

    share: how many join, as a share of the task's own episodes. best_steps: so many for each time step, by what would have been
    paid from there on; an episode joins whole. imagined: as many imagined tasks (see `imagined_tasks`) join
    too, each with as many random episodes as a training task has on average, for prompts, and with its best ones. They get task
    ids behind the environment's. Raises UserError as `relabeller`.
    """
    tasks = np.unique(episodes.task_ids)
    table = imagined_tasks(environment, tasks, imagined, generator) if imagined else environment.unwrapped.tasks
    relabel = relabeller(environment, episodes, table)
    inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
    number, count = len(next(iter(table.values()))), round(len(episodes) / len(tasks))
    parts = []
    for task in [*tasks, *range(number - imagined, number)]:
        others = np.flatnonzero(episodes.task_ids != task)
        rewards = rewards_on(relabel, episodes.take(others), np.full(len(others), task))
        paid = rewards[:, ::-1].cumsum(1, dtype=np.float64)[:, ::-1]  # from each step to the end
        paid[~inside[others]] = -np.inf
        paid = paid if best_steps else paid[:, :1]
        order = np.argsort(-paid, axis=0, kind="stable")
        own = len(episodes) - len(others)
        best = order[: math.ceil(share * (own or count))]
        reached = np.take_along_axis(paid, best, 0) > -np.inf  # a step that no episode reaches has no best one
        chosen = np.unique(best[reached]) if best_steps else best[:, 0]
        if not own:
            chosen = np.concatenate([chosen, generator.choice(len(others), count, replace=False)])
        moved = episodes.take(others[chosen])
        parts.append(dataclasses.replace(moved, rewards=rewards[chosen], task_ids=np.full(len(chosen), task)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in (episodes, *parts)])
        for name in ("observations", "actions", "rewards", "lengths", "task_ids")
    }
    infos = {key: np.concatenate([part.infos[key] for part in (episodes, *parts)]) for key in episodes.infos}
    return dataclasses.replace(episodes, **joined, infos=infos)
