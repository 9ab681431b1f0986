"""Ant semi-circle: a MuJoCo ant looks for a goal on the upper unit semi-circle that it cannot see.

Observation: joint positions (15, the first two are the torso's x and y) and velocities (14). Action: torques (8) in
[−1, 1]; 5 simulator steps of 0.01 s each. Reward on the state reached: 1 within 0.2 of the goal, minus 0.1·‖action‖²;
the dense variant replaces the 1 by minus the L1 distance to the goal. No contact cost. 200 steps, never terminates. A task is
a goal. Start: default pose at rest at the origin; of the dense variant, and while data are collected, at a random place.
Source: the ant of BOReL (Dorfman et al., NeurIPS 2021), played for 2 episodes per task, on gymnasium's ant model.
"""

import gymnasium as gym
import mujoco
import numpy as np

from envs.base import TaskBatch, TaskEnv
from envs.borel_points import RADIUS, draw_semicircle_start
from envs.mujoco_env import load_model

FRAME_SKIP = 5
CONTROL_COST = 0.1


class AntSemicircleBatch(TaskBatch):
    """Rows of ants. tasks: "goal" (B, 2). start: "fixed" at the origin, "uniform", or "off_circle".

    Args:
        dense: give the dense reward, as when data are collected; `compute_rewards` stays the sparse reward of the task.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (29,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (8,), np.float32)
    starts = ("fixed", "uniform", "off_circle")

    def __init__(self, tasks, start=None, dense=False):
        super().__init__(tasks, start)
        self.model = load_model("ant.xml")
        if dense:
            self.compute_rewards = self.compute_dense_rewards
        self.fixed_start = np.concatenate([self.model.qpos0, np.zeros(self.model.nv)])

    def draw_start(self, generator, row):
        state = self.fixed_start.copy()
        state[:2] = draw_semicircle_start(generator, self.start)
        return state

    def reset(self, seeds=None):
        observations = super().reset(seeds)
        self.simulations = [mujoco.MjData(self.model) for _ in range(self.size)]
        for data, state in zip(self.simulations, observations, strict=True):
            data.qpos[:], data.qvel[:] = np.split(state, [self.model.nq])
        return observations

    def transition(self, actions):
        for data, action in zip(self.simulations, np.clip(actions, -1, 1), strict=True):
            data.ctrl[:] = action
            mujoco.mj_step(self.model, data, nstep=FRAME_SKIP)
        return np.array([np.concatenate([data.qpos, data.qvel]) for data in self.simulations])

    @staticmethod
    def control_cost(actions):
        return CONTROL_COST * (np.clip(np.asarray(actions, dtype=np.float64), -1, 1) ** 2).sum(-1)

    @staticmethod
    def compute_success(next_observations, tasks):
        offsets = np.asarray(next_observations, dtype=np.float64)[..., :2] - tasks["goal"]
        return np.linalg.norm(offsets, axis=-1) <= RADIUS

    @staticmethod
    def compute_rewards(observations, actions, next_observations, tasks, infos=None):
        success = AntSemicircleBatch.compute_success(next_observations, tasks)
        return (success - AntSemicircleBatch.control_cost(actions)).astype(np.float32)

    @staticmethod
    def compute_dense_rewards(observations, actions, next_observations, tasks, infos=None):
        """The reward of data collection, with the arguments of `compute_rewards`."""
        offsets = np.asarray(next_observations, dtype=np.float64)[..., :2] - tasks["goal"]
        return (-np.abs(offsets).sum(-1) - AntSemicircleBatch.control_cost(actions)).astype(np.float32)


class AntSemicircleSparseEnv(TaskEnv):
    """The ant under the gymnasium interface."""

    env_type = "ant_semicircle_sparse"
    batch_class = AntSemicircleBatch
    compute_rewards = staticmethod(AntSemicircleBatch.compute_rewards)
    compute_success = staticmethod(AntSemicircleBatch.compute_success)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial applies no torque. There is no walking policy in closed form, so the other levels are missing."""
        return {"trivial": lambda observations, task_ids: np.zeros((len(observations), 8))}


class AntSemicircleDenseBatch(AntSemicircleBatch):
    """Rows of ants that are paid the dense reward, from random starts outside the ring of the goals."""

    starts = ("off_circle", "uniform", "fixed")
    compute_rewards = staticmethod(AntSemicircleBatch.compute_dense_rewards)

    def __init__(self, tasks, start=None, dense=True):  # is dense already
        super().__init__(tasks, start)


class AntSemicircleDenseEnv(AntSemicircleSparseEnv):
    """The dense variant; its tasks are those of the sparse one."""

    batch_class = AntSemicircleDenseBatch
    compute_rewards = staticmethod(AntSemicircleBatch.compute_dense_rewards)
