"""Point-Robot: a point in the plane walks to a goal that it cannot see.

Observation: position (2). Action: displacement (2), clipped to ±0.1 per coordinate. Start at the origin. Reward after each step:
minus the Euclidean distance to the goal. 20 steps, never terminates. A task is a goal in [-1, 1]².
Source: the Point-Robot of Meta-DT (Wang et al., NeurIPS 2024).
"""

import gymnasium as gym
import numpy as np

from envs.base import TaskBatch, TaskEnv
from envs.settings import family_settings

MAX_STEP = 0.1  # per coordinate and step


class PointRobotBatch(TaskBatch):
    """Rows of point robots. tasks: "goal" (B, 2). Deterministic, and computed in float64: only observations are rounded."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-MAX_STEP, MAX_STEP, (2,), np.float32)

    def reset(self, seeds=None):
        self.positions = np.zeros((self.size, 2))
        return self.positions.astype(np.float32)

    def step(self, actions):
        self.positions = self.positions + np.clip(np.asarray(actions, dtype=np.float64), -MAX_STEP, MAX_STEP)
        rewards = -np.linalg.norm(self.positions - self.tasks["goal"], axis=-1)
        return self.positions.astype(np.float32), rewards.astype(np.float32)


class PointRobotEnv(TaskEnv):
    """One robot under the gymnasium interface."""

    env_type, batch_class = "point_robot", PointRobotBatch

    @staticmethod
    def compute_rewards(observations, actions, next_observations, tasks, infos=None):
        """Rewards that other tasks would give for the same transitions (reward relabelling); arrays broadcast.

        next_observations (..., 2), tasks["goal"] (..., 2) -> (...,) float32; the other arguments serve other families.
        """
        return -np.linalg.norm(next_observations - tasks["goal"], axis=-1).astype(np.float32)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """The reference levels of this family: name -> function (observations (B, 2), task ids (B,)) -> actions (B, 2).

        trivial stays put; task_blind walks to the one point that costs least on the training tasks; best_known knows the goal
        and closes each coordinate as fast as it may, which is optimal for this reward.
        """
        target = blind_target(env_tasks["goal"][np.asarray(train_ids)])
        return {
            "trivial": lambda observations, task_ids: np.zeros_like(observations),
            "task_blind": lambda observations, task_ids: target - observations,
            "best_known": lambda observations, task_ids: env_tasks["goal"][task_ids] - observations,
        }

    @staticmethod
    def reference_levels(env_tasks, train_ids):
        """Returns known by a formula: name -> (num_tasks,). explicit_inference needs no learning, see `infer_and_walk`."""
        steps = family_settings("point_robot")["max_episode_steps"]
        return {"explicit_inference": infer_and_walk(env_tasks["goal"], steps)}


def infer_and_walk(goals, steps):
    """Returns (N,) of one episode by trilateration: no learning, no task knowledge but that goals lie in [-1, 1]².

    Two probing steps at right angles, whose rewards are the goal's distances: two mirrored points have these. Walk to one of them
    (the one inside the square; of two to the left one), and to the other where the third reward says so.
    """
    probes = MAX_STEP * np.array([[1.0, 0.0], [1.0, 1.0]])  # the two places, first along x, then along y
    near, far = (np.linalg.norm(place - goals, axis=-1) for place in probes)
    along = MAX_STEP / 2 + (near**2 - far**2) / (2 * MAX_STEP)  # the goal's y coordinate
    across = np.sqrt(np.maximum(near**2 - along**2, 0))
    left, right = (np.stack([MAX_STEP + side * across, along], -1) for side in (-1, 1))
    target = np.where((left < -1 - 1e-9).any(-1, keepdims=True), right, left)
    position, total = np.tile(probes[1], (len(goals), 1)), -near - far
    for step in range(2, steps):
        position = position + np.clip(target - position, -MAX_STEP, MAX_STEP)
        distance = np.linalg.norm(position - goals, axis=-1)
        if step == 2:
            wrong = np.abs(np.linalg.norm(position - target, axis=-1) - distance) > 1e-6
            target = np.where(wrong[:, None], left + right - target, target)
        total = total - distance
    return total


def blind_target(goals):
    """The fixed point that is best to walk to, by mean return over `goals` (N, 2), on a grid of step 0.01."""
    axis = np.arange(-100, 101) / 100  # (A,)
    reach = MAX_STEP * np.arange(1, family_settings("point_robot")["max_episode_steps"] + 1)
    walks = np.sign(axis)[:, None] * np.minimum(np.abs(axis)[:, None], reach)  # (A, T): the coordinates move independently
    squares = (walks[:, :, None] - goals.T[:, None, None]) ** 2  # (2, A, T, N)
    costs = np.stack([np.sqrt(horizontal + squares[1]).sum((1, 2)) for horizontal in squares[0]])  # (A, A)
    return axis[[*np.unravel_index(costs.argmin(), costs.shape)]]
