"""Gymnasium's Hopper-v5, HalfCheetah-v5 and Walker2d-v5 as families of one task, single and batched, with their true ends.

Same models, constants, draws and arithmetic as gymnasium's own classes (a test compares them step by step), stepped many at a
time. Observation: qpos without the root x, then qvel (clipped to ±10 in Hopper and Walker2d): 11, 17, 17 numbers. Action: 3, 6, 6
torques in [-1, 1]. Reward with v = Δx / control step, s = 1 while the robot is healthy: Hopper and Walker2d w v + s − 0.001‖a‖²,
HalfCheetah w v − 0.1‖a‖², where w is the task's "forward_reward_weight", 1. Hopper and Walker2d end when they are not healthy;
every episode is cut after 1000 steps.
Source: gymnasium 1.x, the v5 documentation; D4RL's data come from the v2 of the same robots.
"""

import numpy as np

from envs.mujoco_env import MujocoBatch, MujocoEnv, load_model


class HalfCheetahBatch(MujocoBatch):
    @staticmethod
    def base_model():
        return load_model("half_cheetah.xml")

    def sample_start(self, generator, model):
        qpos = model.qpos0 + generator.uniform(-0.1, 0.1, model.nq)
        return qpos, 0.1 * generator.standard_normal(model.nv)

    def observe(self):
        return np.concatenate([self.qpos[:, 1:], self.qvel], -1)

    @staticmethod
    def rewards(actions, tasks, infos):
        return tasks["forward_reward_weight"] * infos["x_velocity"] - 0.1 * (actions**2).sum(-1)


class TerminatingBatch(MujocoBatch):
    """Rows that end on their own. From its end on a row rests: its observation stays, its reward is 0.

    `infos["terminated"]` (B,) is True from the step that ends the episode on.
    """

    frame_skip = 4

    def healthy(self):
        """(B,) bool: may the episode go on from qpos, qvel?"""
        raise NotImplementedError

    def sample_start(self, generator, model):
        qpos = model.qpos0 + generator.uniform(-0.005, 0.005, model.nq)
        return qpos, generator.uniform(-0.005, 0.005, model.nv)

    def observe(self):
        return np.concatenate([self.qpos[:, 1:], np.clip(self.qvel, -10, 10)], -1)

    def reset(self, seeds=None):
        self.ended = np.zeros(self.size, bool)
        return super().reset(seeds)

    def step(self, actions):
        resting = self.ended
        observations, rewards = super().step(actions)
        self.ended = resting | ~self.healthy()
        self.infos["terminated"] = self.ended
        return observations, np.where(resting, np.float32(0), rewards)

    def _simulate(self, rows, actions):
        super()._simulate(rows[~self.ended[rows]], actions)

    def rewards(self, actions, tasks, infos):
        return tasks["forward_reward_weight"] * infos["x_velocity"] + self.healthy() - 1e-3 * (actions**2).sum(-1)


class HopperBatch(TerminatingBatch):
    @staticmethod
    def base_model():
        return load_model("hopper.xml")

    def healthy(self):
        state = np.concatenate([self.qpos[:, 2:], self.qvel], -1)
        height, angle = self.qpos[:, 1], self.qpos[:, 2]
        return (np.abs(state) < 100).all(-1) & (height > 0.7) & (np.abs(angle) < 0.2)


class Walker2dBatch(TerminatingBatch):
    @staticmethod
    def base_model():
        return load_model("walker2d_v5.xml")

    def healthy(self):
        height, angle = self.qpos[:, 1], self.qpos[:, 2]
        return (height > 0.8) & (height < 2) & (np.abs(angle) < 1)


class HopperEnv(MujocoEnv):
    """Gymnasium's Hopper-v5."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 125}  # noqa: RUF012 (gymnasium's name)
    env_type, batch_class = "gym_hopper", HopperBatch


class HalfCheetahEnv(MujocoEnv):
    """Gymnasium's HalfCheetah-v5."""

    env_type, batch_class = "gym_halfcheetah", HalfCheetahBatch


class Walker2dEnv(MujocoEnv):
    """Gymnasium's Walker2d-v5."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 125}  # noqa: RUF012 (gymnasium's name)
    env_type, batch_class = "gym_walker2d", Walker2dBatch
