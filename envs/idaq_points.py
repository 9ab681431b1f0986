"""The point robots of IDAQ: goals at equal angles on a half circle, told by a dense or a sparse reward; and a wind.

| class | task | reward on the position reached, d = distance to the goal | steps |
|---|---|---|---|
| PointRobotSemicircleEnv | goal on the upper unit semi-circle | −d | 20 |
| PointRobotSemicircleSparseEnv | the same | 1 − d/0.2 within 0.2 of the goal, else 0 | 20 |
| PointRobotWindDenseEnv | wind in ±0.05, added to every step; the goal is (1, 0) | −d | 25 |

Observation: position (2). Action: displacement (2), clipped to ±0.1 per coordinate. Start at the origin. Never terminates.
Sources: IDAQ (Wang et al., ICML 2023), FOCAL (Li et al., ICLR 2021).
"""

import numpy as np

from envs.borel_points import PointRobotWindBatch, PointRobotWindEnv, directions
from envs.point_robot import MAX_STEP, PointRobotBatch, PointRobotEnv
from envs.settings import family_settings

RADIUS = 0.2  # of the rewarded disc
WIND_GOAL = np.array([1.0, 0.0])


class PointRobotSemicircleEnv(PointRobotEnv):
    """Point-Robot with its goals on the half circle. The reference levels are those of Point-Robot."""

    env_type = "point_robot_semicircle"


class PointRobotSemicircleSparseBatch(PointRobotBatch):
    """Rows of point robots that are paid near the goal alone. `infos`: success (B,), within the rewarded disc."""

    def step(self, actions):
        observations, rewards = super().step(actions)
        rewards = sparse(rewards)
        self.infos = {"success": rewards > 0}
        return observations, rewards


def sparse(rewards):
    """Dense rewards −d -> sparse ones."""
    return np.maximum(1 + rewards / RADIUS, 0).astype(np.float32)


class PointRobotSemicircleSparseEnv(PointRobotEnv):
    """A goal on the half circle, rewarded only near it."""

    env_type, batch_class = "point_robot_semicircle_sparse", PointRobotSemicircleSparseBatch
    compute_dense_rewards = staticmethod(PointRobotEnv.compute_rewards)

    @staticmethod
    def compute_rewards(observations, actions, next_observations, tasks, infos=None):
        """As of Point-Robot: next_observations (..., 2), tasks["goal"] (..., 2) -> (...,) float32."""
        return sparse(PointRobotEnv.compute_rewards(observations, actions, next_observations, tasks))

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial stays put; task_blind walks to the point of the circle (steps of a degree) that the training tasks pay best;
        best_known closes each coordinate as fast as it may, which is optimal for this reward, too."""
        target = blind_target(env_tasks["goal"][np.asarray(train_ids)])
        known = PointRobotEnv.reference_policies(env_tasks, train_ids)
        return known | {"task_blind": lambda observations, task_ids: target - observations}

    @staticmethod
    def reference_levels(env_tasks, train_ids):
        """None that a formula tells: two distances do not give the goal where the reward is 0."""
        return {}


def blind_target(goals):
    """The point of the half circle that is best to walk to, by mean sparse return over `goals` (N, 2)."""
    targets = directions(np.linspace(0, np.pi, 181))
    steps = np.arange(1, family_settings("point_robot_semicircle_sparse")["max_episode_steps"] + 1)
    walks = np.clip(targets, *(side * MAX_STEP * steps[:, None, None] for side in (-1, 1)))  # (T, 181, 2)
    distances = np.linalg.norm(walks[:, :, None] - goals, axis=-1)
    return targets[sparse(-distances).sum(0).mean(1).argmax()]


class PointRobotWindDenseBatch(PointRobotWindBatch):
    """Rows of point robots in the wind. tasks: "wind" (B, 2). Success, which the source lacks: within 0.2 of the goal."""

    @staticmethod
    def distances(next_observations, tasks):
        return np.linalg.norm(np.asarray(next_observations, dtype=np.float64)[..., :2] - WIND_GOAL, axis=-1)

    @classmethod
    def compute_rewards(cls, observations, actions, next_observations, tasks, infos=None):
        return cls.compute_dense_rewards(observations, actions, next_observations, tasks)


class PointRobotWindDenseEnv(PointRobotWindEnv):
    """The same goal for all tasks, paid by its nearness, and a constant wind that differs."""

    env_type = "point_robot_wind_dense"
    batch_class = PointRobotWindDenseBatch
    compute_rewards = staticmethod(PointRobotWindDenseBatch.compute_rewards)
    compute_success = staticmethod(PointRobotWindDenseBatch.compute_success)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial drifts; task_blind walks to the goal and ignores the wind; best_known corrects for it, each coordinate as fast
        as it may."""
        return {
            "trivial": lambda observations, task_ids: np.zeros_like(observations[:, :2]),
            "task_blind": lambda observations, task_ids: WIND_GOAL - observations[:, :2],
            "best_known": lambda observations, task_ids: WIND_GOAL - observations[:, :2] - env_tasks["wind"][task_ids],
        }
