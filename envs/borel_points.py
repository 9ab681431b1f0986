"""The point robots of BOReL: a point in the plane, displaced by its action, which is clipped to ±0.1 per coordinate.

| class | task | reward on the position reached | steps, episodes per task | start |
|---|---|---|---|---|
| PointRobotSparseEnv | goal on the upper unit semi-circle | 1 within 0.2 of the goal, else 0 | 60, 2 | origin |
| PointRobotDenseEnv | goal in [−1, 1]² | −distance to the goal | 60, 3 | random in [−1, 1]² |
| PointRobotWindEnv | wind in ±0.05, added to every step | 1 within 0.2 of (0, 1), else 0 | 25, 2 | origin |
| PointRobotWindNarrowEnv | wind in ±0.08 | 1 within 0.03 of (0, 1), else 0 | 75, 2 | origin |

While data are collected the sparse robot starts at random in [−1.5, 1.5]×[−0.5, 1.5]. Observation: position (2). Never
terminates. Sources: BOReL (Dorfman et al., NeurIPS 2021), the dense robot from its online variant; the narrow wind from
Ni et al., ICML 2022, because at radius 0.2 a policy that ignores the wind loses almost nothing.
"""

import gymnasium as gym
import numpy as np

from envs.base import TaskBatch, TaskEnv

MAX_STEP = 0.1  # per coordinate and step
RADIUS = 0.2  # of the rewarded disc
WIND_GOAL = np.array([0.0, 1.0])


def greedy_steps(displacements):
    """Steps (..., 2) towards targets at `displacements` (..., 2): straight, the larger component at most 0.1."""
    return displacements * (MAX_STEP / np.maximum(np.abs(displacements).max(-1, keepdims=True), MAX_STEP))


def directions(angles):
    """Angles (...) in radians -> unit vectors (..., 2)."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def draw_semicircle_start(generator, start):
    """A start (2,) in [−1.5, 1.5]×[−0.5, 1.5]; "off_circle" rejects radii in [0.8, 1.2], where the goals are."""
    while True:
        position = generator.uniform([-1.5, -0.5], [1.5, 1.5])
        if start == "uniform" or abs(np.linalg.norm(position) - 1) > RADIUS:
            return position


class PointRobotSparseBatch(TaskBatch):
    """Rows of sparse point robots. tasks: "goal" (B, 2). start: "fixed" at the origin, "uniform", or "off_circle".

    Args:
        dense: pay minus the distance to the goal, to train agents on; `compute_rewards` of the class stays the task's own.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-MAX_STEP, MAX_STEP, (2,), np.float32)
    starts = ("fixed", "uniform", "off_circle")
    radius = RADIUS

    def __init__(self, tasks, start=None, dense=False):
        super().__init__(tasks, start)
        if dense:
            self.compute_rewards = self.compute_dense_rewards

    def draw_start(self, generator, row):
        return draw_semicircle_start(generator, self.start)

    def transition(self, actions):
        return self.states + np.clip(actions.astype(np.float64), -MAX_STEP, MAX_STEP)

    @staticmethod
    def distances(next_observations, tasks):
        """Distance to the goal, (...,) float64."""
        return np.linalg.norm(np.asarray(next_observations, dtype=np.float64)[..., :2] - tasks["goal"], axis=-1)

    @classmethod
    def compute_success(cls, next_observations, tasks):
        return cls.distances(next_observations, tasks) <= cls.radius

    @classmethod
    def compute_rewards(cls, observations, actions, next_observations, tasks, infos=None):
        return cls.compute_success(next_observations, tasks).astype(np.float32)

    @classmethod
    def compute_dense_rewards(cls, observations, actions, next_observations, tasks, infos=None):
        """Minus the distance to the goal, with the arguments of `compute_rewards`."""
        return -cls.distances(next_observations, tasks).astype(np.float32)


class PointRobotDenseBatch(PointRobotSparseBatch):
    """Rows of dense point robots. tasks: "goal" (B, 2). Success, which the source lacks: within 0.2 of the goal."""

    starts = ("uniform",)

    def __init__(self, tasks, start=None, dense=True):  # always dense: `dense` is what all point robots take
        super().__init__(tasks, start)

    def draw_start(self, generator, row):
        return generator.uniform(-1, 1, 2)

    compute_rewards = PointRobotSparseBatch.compute_dense_rewards


class PointRobotWindBatch(PointRobotSparseBatch):
    """Rows of point robots in the wind. tasks: "wind" (B, 2)."""

    starts = ("fixed",)

    def transition(self, actions):
        return super().transition(actions) + self.tasks["wind"]

    @staticmethod
    def distances(next_observations, tasks):
        goal = np.broadcast_to(WIND_GOAL, np.shape(tasks["wind"]))
        return PointRobotSparseBatch.distances(next_observations, {"goal": goal})


class PointRobotWindNarrowBatch(PointRobotWindBatch):
    """The wind with a goal that only a policy which knows the wind can hold."""

    radius = 0.03


class PointRobotSparseEnv(TaskEnv):
    """A goal on the semi-circle, rewarded only near it."""

    env_type = "point_robot_sparse"
    batch_class = PointRobotSparseBatch
    compute_rewards = staticmethod(PointRobotSparseBatch.compute_rewards)
    compute_success = staticmethod(PointRobotSparseBatch.compute_success)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial stays put; task_blind walks to the point of the circle with the most training goals in reach."""
        candidates = directions(np.linspace(0, np.pi, 181))
        train_tasks = {"goal": env_tasks["goal"][np.asarray(train_ids)]}
        in_reach = PointRobotSparseBatch.compute_success(candidates[:, None], train_tasks)
        target = candidates[in_reach.sum(-1).argmax()]
        return {
            "trivial": lambda observations, task_ids: np.zeros_like(observations[:, :2]),
            "task_blind": lambda observations, task_ids: greedy_steps(target - observations[:, :2]),
            "best_known": lambda observations, task_ids: greedy_steps(env_tasks["goal"][task_ids] - observations[:, :2]),
        }


class PointRobotDenseEnv(TaskEnv):
    """A goal in the square, rewarded by its nearness; the start is always random."""

    env_type = "point_robot_dense"
    batch_class = PointRobotDenseBatch
    compute_rewards = staticmethod(PointRobotDenseBatch.compute_rewards)
    compute_success = staticmethod(PointRobotDenseBatch.compute_success)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial stays put; task_blind walks to the point (grid of 0.01) with the least mean distance to the training
        goals; best_known closes each coordinate as fast as it may, which is optimal for this reward.
        """
        axis = np.arange(-100, 101) / 100
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        goals = env_tasks["goal"][np.asarray(train_ids)]
        target = grid[np.mean([np.linalg.norm(grid - goal, axis=-1) for goal in goals], axis=0).argmin()]
        return {
            "trivial": lambda observations, task_ids: np.zeros_like(observations[:, :2]),
            "task_blind": lambda observations, task_ids: target - observations[:, :2],
            "best_known": lambda observations, task_ids: env_tasks["goal"][task_ids] - observations[:, :2],
        }


class PointRobotWindEnv(TaskEnv):
    """The same goal for all tasks, and a constant wind that differs."""

    env_type = "point_robot_wind"
    batch_class = PointRobotWindBatch
    compute_rewards = staticmethod(PointRobotWindBatch.compute_rewards)
    compute_success = staticmethod(PointRobotWindBatch.compute_success)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial drifts; task_blind walks to the goal and ignores the wind; best_known corrects for it."""
        return {
            "trivial": lambda observations, task_ids: np.zeros_like(observations[:, :2]),
            "task_blind": lambda observations, task_ids: greedy_steps(WIND_GOAL - observations[:, :2]),
            "best_known": lambda observations, task_ids: greedy_steps(
                WIND_GOAL - observations[:, :2] - env_tasks["wind"][task_ids]
            ),
        }


class PointRobotWindNarrowEnv(PointRobotWindEnv):
    """The wind of later work: stronger, with a smaller goal and a longer episode."""

    env_type = "point_robot_wind_narrow"
    batch_class = PointRobotWindNarrowBatch
    compute_rewards = staticmethod(PointRobotWindNarrowBatch.compute_rewards)
    compute_success = staticmethod(PointRobotWindNarrowBatch.compute_success)
