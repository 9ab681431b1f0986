"""Reward relabelling: what the same transitions would have earned on another task, of training or imagined (BOReL's idea).

Who says what a task pays is a Rewards: a model that has learned it from the recorded rewards (src/models/reward_model.py), or the
environment's own function (EnvironmentRewards), which is a privilege. Nothing of a test task is read.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

from src.run.environment import blamed
from src.run.errors import UserError

SPREAD = 0.3  # of imagined tasks


class Rewards(Protocol):
    """What tasks pay.

    privileges: of results that were made with it, see `write_result`. facts: for these, what is known of its errors.
    made_from: {name: hash} of the model behind it.
    """

    privileges: str
    facts: dict
    made_from: dict

    def __call__(self, observations, actions, next_observations, infos, tasks):
        """(..., d_s), (..., d_a), (..., d_s), {key: (..., ...)} and task ids (...) -> rewards (...,) float32; NumPy."""

    def on(self, episodes):
        """Function task id -> rewards (E, T) that this task would pay for Trajectories, 0 beyond an episode's end."""

    def imagined(self, number, generator):
        """Rewards that know `number` more tasks, drawn by a NumPy generator, and the range of their ids, behind all others."""


class EnvironmentRewards:
    """Rewards by the environment's `compute_rewards`.

    Args: episodes: Trajectories of the training tasks. table: task parameters by task id (default: the environment's own).
    Raises UserError where the environment cannot tell the rewards, or not from what the dataset recorded.
    """

    privileges, facts, made_from = "reward function", {}, {}

    def __init__(self, environment, episodes, table=None):
        if not hasattr(environment, "compute_rewards"):
            raise UserError(
                f"relabelling by true rewards needs {type(environment).__name__}.compute_rewards, which it lacks: leave "
                "--true_rewards out"
            )
        self.environment, self.episodes = environment, episodes
        self.table = environment.unwrapped.tasks if table is None else table
        first = [values[:1, 0] for values in (episodes.observations, episodes.actions, episodes.observations[:, 1:])]
        try:
            with blamed(f"{type(environment).__name__}.compute_rewards fails"):
                paid = self(*first, {key: values[:1, 0] for key, values in episodes.infos.items()}, episodes.task_ids[:1])
        except UserError as error:
            raise UserError(
                f"relabelling by true rewards: {error}; make the dataset again if it lacks what that needs, or leave "
                "--true_rewards out"
            ) from None
        if paid.shape != (1,):
            raise UserError(
                f"relabelling by true rewards: compute_rewards gives shape {paid.shape} for one transition, not (1,): mend it"
            )

    def __call__(self, observations, actions, next_observations, infos, tasks):
        parameters = {key: values[tasks] for key, values in self.table.items()}
        infos = [infos] if infos else []
        rewards = self.environment.compute_rewards(observations, actions, next_observations, parameters, *infos)
        return np.asarray(rewards, np.float32)

    def on(self, episodes):
        return lambda task: rewards_on(self, episodes, np.full(len(episodes), task))

    def imagined(self, number, generator):
        """A smoothed bootstrap of the training tasks: an imagined one has the parameters of a training task, drawn uniformly,
        moved by Gaussian noise of SPREAD times the standard deviation of each parameter over the training tasks."""
        trained = np.unique(self.episodes.task_ids)
        centres = generator.choice(trained, number)

        def extended(values):
            spread = SPREAD * values[trained].std(0)
            return np.concatenate([values, values[centres] + spread * generator.standard_normal((number, *values.shape[1:]))])

        known = len(next(iter(self.table.values())))
        table = {key: extended(values) for key, values in self.table.items()}
        return EnvironmentRewards(self.environment, self.episodes, table), range(known, known + number)


def true_rewards(environment, episodes):
    """EnvironmentRewards for a comparison, or None where the environment cannot tell them."""
    try:
        return EnvironmentRewards(environment, episodes)
    except UserError:
        return None


def rewards_on(rewards, episodes, tasks):
    """What `tasks` (E,) would have paid for Trajectories, by a Rewards: (E, T) float32, 0 beyond an episode's end."""
    arrays = episodes.observations[:, :-1], episodes.actions, episodes.observations[:, 1:]
    inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
    paid = rewards(*arrays, episodes.infos, np.broadcast_to(tasks[:, None], inside.shape))
    return (paid * inside).astype(np.float32)


def paid_by(rewards, episodes, tasks, generator):
    """Trajectories with each episode moved to one of `tasks`, drawn by a NumPy generator, paid by a Rewards."""
    drawn = generator.choice(np.asarray(tasks), len(episodes))
    return dataclasses.replace(episodes, rewards=rewards_on(rewards, episodes, drawn), task_ids=drawn)


def with_best_of_other_tasks(episodes, rewards, share, imagined=0, generator=None, best_steps=False):
    """Trajectories with, for every task, the episodes of the other tasks that it would have paid best, rewards relabelled.

    rewards: Rewards. share: how many join, as a share of the task's own episodes. best_steps: so many for each time step, by
    what would have been paid from there on; an episode joins whole. imagined: as many imagined tasks join too, each with as many
    random episodes as a training task has on average, for prompts, and with its best ones. They get task ids behind the
    environment's.
    """
    tasks, new = np.unique(episodes.task_ids), ()
    if imagined:
        rewards, new = rewards.imagined(imagined, generator)
    paid_on = rewards.on(episodes)
    inside, count = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None], round(len(episodes) / len(tasks))
    parts = []
    for task in [*tasks, *new]:
        others = np.flatnonzero(episodes.task_ids != task)
        relabelled = paid_on(task)[others]
        paid = relabelled[:, ::-1].cumsum(1, dtype=np.float64)[:, ::-1]  # from each step to the end
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
        parts.append(dataclasses.replace(moved, rewards=relabelled[chosen], task_ids=np.full(len(chosen), task)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in (episodes, *parts)])
        for name in ("observations", "actions", "rewards", "lengths", "task_ids")
    }
    infos = {key: np.concatenate([part.infos[key] for part in (episodes, *parts)]) for key in episodes.infos}
    return dataclasses.replace(episodes, **joined, infos=infos)
