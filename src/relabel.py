"""Reward relabelling: what the same transitions would have earned on another training task (BOReL's idea).

It needs the reward function of the training tasks, `compute_rewards` of the environment; nothing of a test task is read.
"""

import dataclasses
import math

import numpy as np

from src.checkpoint import UserError


def relabeller(environment, episodes):
    """Function (observations, actions, next_observations, infos, task ids) -> rewards of those tasks.

    Raises UserError where the environment cannot tell them, or not from what the dataset (Trajectories) recorded.
    """
    environment = environment.unwrapped
    if not hasattr(environment, "compute_rewards"):
        raise UserError(f"--relabel needs {type(environment).__name__}.compute_rewards, which it lacks: pass --no-relabel")

    def relabel(observations, actions, following, infos, tasks):
        parameters = {key: values[tasks] for key, values in environment.tasks.items()}
        return environment.compute_rewards(observations, actions, following, parameters, *([infos] if infos else []))

    first = [values[:1, 0] for values in (episodes.observations, episodes.actions, episodes.observations[:, 1:])]
    try:
        relabel(*first, {key: values[:1, 0] for key, values in episodes.infos.items()}, episodes.task_ids[:1])
    except (KeyError, ValueError) as error:
        raise UserError(f"--relabel: {error}; make the dataset again so that it holds them, or pass --no-relabel") from None
    return relabel


def with_best_of_other_tasks(episodes, environment, share):
    """Trajectories with, for every task, the episodes of the other tasks that it would have paid best, rewards relabelled.

    share: how many join, as a share of the task's own episodes. Raises UserError as `relabeller`.
    """
    relabel = relabeller(environment, episodes)
    inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
    parts = []
    for task in np.unique(episodes.task_ids):
        own = episodes.task_ids == task
        others = np.flatnonzero(~own)
        arrays = episodes.observations[others, :-1], episodes.actions[others], episodes.observations[others, 1:]
        infos = {key: values[others] for key, values in episodes.infos.items()}
        rewards = relabel(*arrays, infos, np.full(episodes.actions[others].shape[:2], task)) * inside[others]
        best = np.argsort(-rewards.sum(1, dtype=np.float64), kind="stable")[: math.ceil(share * own.sum())]
        moved = episodes.take(others[best])
        parts.append(dataclasses.replace(moved, rewards=rewards[best].astype(np.float32), task_ids=np.full(len(best), task)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in (episodes, *parts)])
        for name in ("observations", "actions", "rewards", "lengths", "task_ids")
    }
    infos = {key: np.concatenate([part.infos[key] for part in (episodes, *parts)]) for key in episodes.infos}
    return dataclasses.replace(episodes, **joined, infos=infos)
