"""Reward relabelling: what the same transitions would have earned on another training task (BOReL's idea).

Who says what a task pays is a Rewards: a model that has learned it from the recorded rewards (src/models/reward_model.py), or the
environment's own function (EnvironmentRewards), which is a privilege. Nothing of a test task is read.
"""

import dataclasses
import math
import sys
from typing import Protocol

import numpy as np

from src.run.errors import UserError
from src.run.stepping import blamed

COMPARED_EPISODES = 5  # of each task, whose rewards are computed again
TOLERANCE, SHARE = 0.01, 0.02  # of a reward and of the mean one; of the steps that may differ by more, at a threshold say


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


class EnvironmentRewards:
    """Rewards by the environment's `compute_rewards`.

    Args: episodes: Trajectories of the training tasks.
    Raises UserError where the environment cannot tell the rewards, not from what the dataset recorded, or not those that it
    recorded.
    """

    privileges, facts, made_from = "reward function", {}, {}

    def __init__(self, environment, episodes):
        if not hasattr(environment, "compute_rewards"):
            raise UserError(
                f"relabelling by true rewards needs {type(environment).__name__}.compute_rewards, which it lacks: leave "
                "--true_rewards out"
            )
        self.environment = environment
        try:
            self._compare(_some_of_each_task(episodes))
        except UserError as error:
            raise UserError(
                f"relabelling by true rewards: {error}; make the dataset again if it lacks what that needs, or leave "
                "--true_rewards out"
            ) from None

    def _compare(self, episodes):
        paid = rewards_on(self, episodes, episodes.task_ids)
        inside = episodes.inside
        if "terminated" in episodes.infos:  # an end may be paid by itself
            inside &= episodes.infos["terminated"] == 0
        check_paid(self.environment, paid[inside], episodes.rewards[inside])

    def __call__(self, observations, actions, next_observations, infos, tasks):
        return pay(self.environment, observations, actions, next_observations, infos, tasks)

    def on(self, episodes):
        return lambda task: rewards_on(self, episodes, np.full(len(episodes), task))


def pay(environment, observations, actions, next_observations, infos, tasks):
    """What an environment's compute_rewards gives, as Rewards do. Raises UserError where it fails, or gives no finite number for
    each transition."""
    name = f"{type(environment).__name__}.compute_rewards"
    parameters = {key: values[tasks] for key, values in environment.unwrapped.tasks.items()}
    arrays = [_locked(values) for values in (observations, actions, next_observations)]
    infos = [{key: _locked(values) for key, values in infos.items()}] if infos else []
    with blamed(f"{name} fails"):
        rewards = np.asarray(environment.compute_rewards(*arrays, parameters, *infos))
        with np.errstate(over="ignore"):
            rewards = np.asarray(rewards, np.float32)
    if rewards.shape != np.shape(tasks):
        raise UserError(f"{name} gives shape {rewards.shape} for {np.shape(tasks)} transitions: mend it")
    if not np.isfinite(rewards).all():
        raise UserError(f"{name} gives numbers that are not finite: mend it")
    return rewards


def check_paid(environment, paid, recorded):
    """Raises UserError where compute_rewards gives others (N,) than those that were recorded (N,)."""
    if not len(recorded):
        return
    scale = np.abs(recorded).mean(dtype=np.float64)
    wrong = np.abs(paid.astype(np.float64) - recorded) > TOLERANCE * (np.abs(recorded) + scale)
    if wrong.mean() > SHARE:
        first = wrong.argmax()
        raise UserError(
            f"{type(environment).__name__}.compute_rewards gives {paid[first]:.6g} for a step that was paid "
            f"{recorded[first]:.6g} ({wrong.mean():.0%} of {len(wrong)} steps differ): mend it"
        )


def _some_of_each_task(episodes):
    """A few episodes of every task, from its first to its last: what is wrong is so everywhere, and data are large."""
    rows = (np.flatnonzero(episodes.task_ids == task) for task in np.unique(episodes.task_ids))
    places = [own[np.linspace(0, len(own) - 1, min(len(own), COMPARED_EPISODES)).astype(int)] for own in rows]
    return episodes.take(np.concatenate(places))


def _locked(values):
    """A view that nobody can write into: the arrays are those of the dataset."""
    view = values.view()
    view.flags.writeable = False
    return view


def true_rewards(environment, episodes):
    """EnvironmentRewards for a comparison, or None where the environment cannot tell them; a note says so where it should."""
    if not hasattr(environment, "compute_rewards"):
        return None
    try:
        return EnvironmentRewards(environment, episodes)
    except UserError as error:
        print(f"note: learned rewards are not compared with true ones: {error}", file=sys.stderr)
        return None


def rewards_on(rewards, episodes, tasks):
    """What `tasks` (E,) would have paid for Trajectories, by a Rewards: (E, T) float32, 0 beyond an episode's end."""
    arrays = episodes.observations[:, :-1], episodes.actions, episodes.observations[:, 1:]
    inside = episodes.inside
    paid = rewards(*arrays, episodes.infos, np.broadcast_to(tasks[:, None], inside.shape))
    return np.where(inside, paid, 0).astype(np.float32)


def paid_by(rewards, episodes, tasks, generator):
    """Trajectories with each episode moved to one of `tasks`, drawn by a NumPy generator, paid by a Rewards."""
    drawn = generator.choice(np.asarray(tasks), len(episodes))
    return dataclasses.replace(episodes, rewards=rewards_on(rewards, episodes, drawn), task_ids=drawn)


def with_best_of_other_tasks(episodes, rewards, share, best_steps=False):
    """Trajectories with, for every task, the episodes of the other tasks that it would have paid best, rewards relabelled.

    rewards: Rewards. share: how many join, as a share of the task's own episodes. best_steps: so many for each time step, by
    what would have been paid from there on; an episode joins whole.
    """
    paid_on, inside = rewards.on(episodes), episodes.inside
    parts = []
    for task in np.unique(episodes.task_ids):
        others = np.flatnonzero(episodes.task_ids != task)
        relabelled = paid_on(task)[others]
        paid = relabelled[:, ::-1].cumsum(1, dtype=np.float64)[:, ::-1]  # from each step to the end
        paid[~inside[others]] = -np.inf
        paid = paid if best_steps else paid[:, :1]
        order = np.argsort(-paid, axis=0, kind="stable")
        best = order[: math.ceil(share * (len(episodes) - len(others)))]
        reached = np.take_along_axis(paid, best, 0) > -np.inf  # a step that no episode reaches has no best one
        chosen = np.unique(best[reached]) if best_steps else best[:, 0]
        moved = episodes.take(others[chosen])
        parts.append(dataclasses.replace(moved, rewards=relabelled[chosen], task_ids=np.full(len(chosen), task)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in (episodes, *parts)])
        for name in ("observations", "actions", "rewards", "lengths", "task_ids")
    }
    infos = {key: np.concatenate([part.infos[key] for part in (episodes, *parts)]) for key in episodes.infos}
    return dataclasses.replace(episodes, **joined, infos=infos)
