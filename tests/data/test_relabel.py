"""Reward relabelling across tasks: rewards are those of the environment, and the best episodes of other tasks are found."""

import dataclasses
import importlib
import inspect

import numpy as np
import pytest
from helpers import point_robot

from benchmarks.imitation_ceiling import ceiling
from src.data import trajectories
from src.data.relabel import EnvironmentRewards, true_rewards
from src.data.relabel import with_best_of_other_tasks as best_of_others
from src.run.config import known_env_types, load_env
from src.run.errors import UserError

STEPS, TASKS = 4, (2, 11, 30)


@pytest.fixture
def episodes():
    """Three tasks of Point-Robot, four episodes each; episode e stands still near the goal of task number e % 3."""
    environment = point_robot().make()
    goals = environment.unwrapped.tasks["goal"][list(TASKS)]
    count = 12
    observations = np.zeros((count, STEPS + 1, 2), np.float32)
    for episode in range(count):
        observations[episode] = goals[episode % 3] + 0.01 * episode
    task_ids = np.repeat(TASKS, 4)
    rewards = -np.linalg.norm(observations[:, 1:] - environment.unwrapped.tasks["goal"][task_ids][:, None], axis=-1)
    return trajectories.Trajectories(
        observations, np.zeros((count, STEPS, 2), np.float32), rewards.astype(np.float32), np.full(count, STEPS), task_ids,
        trajectories.task_parameters(environment, TASKS),
    )  # fmt: skip


def with_best_of_other_tasks(episodes, environment, *rest, **more):
    return best_of_others(episodes, EnvironmentRewards(environment, episodes), *rest, **more)


def test_the_best_episodes_of_other_tasks_join(episodes):
    environment = point_robot().make()
    joined = with_best_of_other_tasks(episodes, environment, 0.5)
    assert len(joined) == 12 + 3 * 2  # half of each task's four
    for name in ("observations", "actions", "rewards", "lengths", "task_ids"):
        assert np.array_equal(getattr(joined, name)[:12], getattr(episodes, name))  # the task's own come first, untouched
    added = joined.take(np.arange(12, 18))
    assert added.task_ids.tolist() == [2, 2, 11, 11, 30, 30]
    # nearest to the goal of task number n are episodes n, n + 3, ...; those among 4 n ... 4 n + 3 are the task's own
    expected = [6, 9, 1, 10, 2, 5]
    assert np.array_equal(added.observations, episodes.observations[expected])
    goals = environment.unwrapped.tasks["goal"][added.task_ids]
    distance = np.linalg.norm(added.observations[:, 1:] - goals[:, None], axis=-1)
    assert np.allclose(added.rewards, -distance, atol=1e-6) and added.rewards.dtype == np.float32


def test_at_least_one_episode_joins_each_task_and_never_its_own(episodes):
    joined = with_best_of_other_tasks(episodes, point_robot().make(), 0.01)
    assert joined.task_ids[12:].tolist() == list(TASKS)
    own = {task: episodes.observations[episodes.task_ids == task] for task in TASKS}
    for task, observations in zip(joined.task_ids[12:], joined.observations[12:], strict=True):
        assert not any(np.array_equal(observations, mine) for mine in own[task])


def test_steps_beyond_an_episode_earn_nothing(episodes):
    short = dataclasses.replace(episodes, lengths=np.full(12, 2))
    joined = with_best_of_other_tasks(short, point_robot().make(), 0.5)
    assert (joined.rewards[12:, 2:] == 0).all() and (joined.rewards[12:, :2] < 0).any()


def test_best_steps_joins_episodes_that_are_best_from_some_step_on(episodes):
    """Episode 6, of task 11, begins far away and ends nearer to the goal of task 2 than any other episode of another task."""
    environment = point_robot().make()
    goal = environment.unwrapped.tasks["goal"][2]
    episodes.observations[6] = np.array([[9, 9], [9, 9], [9, 9], goal, goal])
    episodes.rewards[6] = -np.linalg.norm(episodes.observations[6, 1:] - environment.unwrapped.tasks["goal"][11], axis=-1)
    moved = [
        with_best_of_other_tasks(episodes, environment, 0.1, best_steps=best_steps).take(np.array(rows))
        for best_steps, rows in ((False, [12]), (True, [12, 13]))
    ]
    assert np.array_equal(moved[0].observations, episodes.observations[[9]])  # stands 0.09 from the goal all the time
    assert np.array_equal(moved[1].observations, episodes.observations[[6, 9]]) and moved[1].task_ids.tolist() == [2, 2]
    short = dataclasses.replace(episodes, lengths=np.where(np.arange(12) == 9, 4, 2))
    joined = with_best_of_other_tasks(short, environment, 0.1, best_steps=True)
    assert joined.lengths[joined.task_ids == 2].tolist() == [2] * 4 + [4]  # steps beyond an end, which cost nothing, do not count
    short = dataclasses.replace(episodes, lengths=np.full(12, 2))
    joined = with_best_of_other_tasks(short, environment, 0.1, best_steps=True)
    assert np.array_equal(
        joined.observations[12:][joined.task_ids[12:] == 2], episodes.observations[[9]]
    )  # nobody for steps 2 and 3


def test_the_ceiling_of_imitation_is_what_a_task_would_have_paid(episodes):
    environment = point_robot().make()
    goals = environment.unwrapped.tasks["goal"]
    best, best_ones = ceiling(EnvironmentRewards(environment, episodes), episodes, [TASKS[1], 47], 0.5)  # 47: in no data
    for index, task in enumerate((TASKS[1], 47)):
        distances = np.linalg.norm(episodes.observations[:, 1:] - goals[task], axis=-1).sum(1)
        assert best[index] == pytest.approx(-distances.min(), abs=1e-5)
        assert best_ones[index] == pytest.approx(-np.sort(distances)[:2].mean(), abs=1e-5)  # half of a task's four


def test_an_environment_that_cannot_tell_is_named(episodes):
    class Silent:
        tasks: dict = {}  # noqa: RUF012

    environment = Silent()
    environment.unwrapped = environment
    with pytest.raises(UserError, match=r"needs Silent\.compute_rewards.*leave --true_rewards out"):
        EnvironmentRewards(environment, episodes)
    assert true_rewards(environment, episodes) is None


@pytest.mark.parametrize("env_type", known_env_types())
def test_rewards_of_every_family_take_what_its_steps_report(env_type):
    module, name = load_env(env_type).entry_point.split(":")
    if module == "envs.meta_world":
        pytest.importorskip("metaworld")
    compute_rewards = getattr(getattr(importlib.import_module(module), name), "compute_rewards", None)
    if compute_rewards is None:
        pytest.skip("its rewards cannot be computed")
    assert "infos" in inspect.signature(compute_rewards).parameters
