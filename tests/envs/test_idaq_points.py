"""IDAQ's own point robots against figures that do not come from this code, and its families as a user runs them."""

import numpy as np
import pytest

from envs.borel_points import greedy_steps
from envs.idaq_points import PointRobotSemicircleSparseBatch, PointRobotWindDenseBatch
from src.evaluation.agent import PolicyAgent
from src.evaluation.evaluate import evaluate
from src.run.config import load_env


def mean_return(env, policy, tasks):
    agent = PolicyAgent(lambda observations: policy(observations, tasks).astype(np.float32))
    return np.mean(evaluate(agent, env, tasks, 1)["returns"])


@pytest.mark.parametrize(("env_type", "walk", "blind"), [
    ("point_robot_semicircle", -4.015, -15.05), ("point_robot_semicircle_sparse", 12.386, 0.88),
])  # fmt: skip
def test_levels_of_the_half_circle(env_type, walk, blind):
    """Straight walks to all goals earn −4.015 and 12.386, which was computed apart from this code; who closes each coordinate as
    fast as it may is a little better."""
    env = load_env(env_type)
    environment, tasks = env.make(), np.arange(100)
    goals = environment.tasks["goal"]
    assert mean_return(env, lambda o, ids: greedy_steps(goals[ids] - o), tasks) == pytest.approx(walk, abs=1e-3)
    policies = environment.reference_policies(environment.tasks, range(*env.train_tasks))
    assert walk < mean_return(env, policies["best_known"], tasks) < walk + 0.2
    assert mean_return(env, policies["task_blind"], tasks) == pytest.approx(blind, abs=0.02)
    assert mean_return(env, policies["trivial"], tasks) == pytest.approx(-20 if blind < 0 else 0, abs=1e-5)


def test_goals_are_at_equal_angles_and_the_test_tasks_are_spread():
    env = load_env("point_robot_semicircle")
    angles = np.arctan2(*env.make().tasks["goal"].T[::-1])
    assert np.allclose(np.diff(np.sort(angles)), np.pi / 99)
    test = np.sort(angles[slice(*env.test_tasks)])
    assert np.diff([0, *test, np.pi]).max() < np.pi / 4  # none is far from the training goals
    sparse = load_env("point_robot_semicircle_sparse").make().tasks["goal"]
    assert np.array_equal(sparse, env.make().tasks["goal"])


def test_the_sparse_reward_by_hand():
    batch = PointRobotSemicircleSparseBatch({"goal": [[0.1, 0.1], [0.2, 0.0], [0.5, 0.0]]})
    batch.reset()
    _, rewards = batch.step(np.full((3, 2), [0.1, 0.0], np.float32))  # distances 0.1, 0.1 and 0.4
    assert rewards == pytest.approx([0.5, 0.5, 0], abs=1e-6) and batch.infos["success"].tolist() == [True, True, False]


def test_the_wind_by_hand():
    batch = PointRobotWindDenseBatch({"wind": [[0.05, -0.02]]})
    batch.reset()
    observations, rewards = batch.step(np.array([[0.2, 0.0]], np.float32))  # clipped to 0.1
    assert observations[0] == pytest.approx([0.15, -0.02]) and rewards[0] == pytest.approx(-np.hypot(0.85, 0.02))


def test_speeds_and_winds_are_those_of_the_legacy_generator():
    generator = np.random.RandomState(1337)
    assert np.array_equal(load_env("cheetah_vel_100").make().unwrapped.tasks["velocity"], generator.uniform(0, 3, 100))
    generator = np.random.RandomState(1337)
    first, second = generator.uniform(-0.05, 0.05, 50), generator.uniform(-0.05, 0.05, 50)  # all x before all y
    assert np.array_equal(load_env("point_robot_wind_dense").make().tasks["wind"], np.stack([first, second], 1))
