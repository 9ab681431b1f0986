"""Ant-Dir: a four-legged robot walks in a direction that it is not told.

Gymnasium's `ant.xml` (13 bodies, timestep 0.01 s), frame skip 5, control step 0.05 s. Observation (27): qpos without the
root's x and y (13), qvel (14); no contact forces. Action: 8 torques in [-1, 1]. Start: qpos + U(-0.1, 0.1), qvel + 0.1 N(0, 1).
Reward: v·(cos θ, sin θ) − 0.5‖a‖² − contact + 1, where v is the displacement of the torso per 0.05 s and
contact = 0.0005 Σ clip(contact forces, −1, 1)². A robot that only lies there gets the 1: 200 per episode.
200 steps, never terminates. Source: PEARL (Rakelly et al., 2019), with the uniform angles of Meta-DT.
"""

import numpy as np

from envs.mujoco_env import MujocoBatch, MujocoEnv, load_model

CONTROL_COST = 0.5
CONTACT_COST = 0.5e-3
SURVIVE_REWARD = 1.0


class AntDirBatch(MujocoBatch):
    contact_forces = True

    @staticmethod
    def base_model():
        return load_model("ant.xml")

    def sample_start(self, generator, model):
        qpos = model.qpos0 + generator.uniform(-0.1, 0.1, model.nq)
        return qpos, 0.1 * generator.standard_normal(model.nv)

    def observe(self):
        return np.concatenate([self.qpos[:, 2:], self.qvel], -1)

    def measure(self, before):
        velocity = (self.qpos[:, :2] - before[:, :2]) / self.control_step
        forces = np.stack([data.cfrc_ext for data in self.datas])  # (B, bodies, 6)
        contact_cost = CONTACT_COST * (np.clip(forces, -1, 1) ** 2).sum((1, 2))
        return {"x_velocity": velocity[:, 0], "y_velocity": velocity[:, 1], "contact_cost": contact_cost}

    @staticmethod
    def rewards(actions, tasks, infos):
        forward = infos["x_velocity"] * np.cos(tasks["angle"]) + infos["y_velocity"] * np.sin(tasks["angle"])
        return forward - CONTROL_COST * (actions**2).sum(-1) - infos["contact_cost"] + SURVIVE_REWARD


class AntDirEnv(MujocoEnv):
    """Walk towards the task's "angle" θ, in radians from the x axis."""

    env_type = "ant_dir"
    batch_class = AntDirBatch
    info_keys = ("x_velocity", "y_velocity", "contact_cost")

    @staticmethod
    def task_features(tasks):
        """What an agent that may know its task is told: cosine and sine, for which 0 and 2π are one. -> (num_tasks, 2)."""
        return np.stack([np.cos(tasks["angle"]), np.sin(tasks["angle"])], -1)

    @staticmethod
    def compute_rewards(observations, actions, next_observations, tasks, infos=None):
        """Rewards that other tasks would give for the same transitions (reward relabelling); arrays broadcast.

        Neither the position nor the contacts are observed, so `infos` must hold "x_velocity", "y_velocity" and
        "contact_cost", each (...). actions (..., 8), tasks["angle"] (...) -> (...,) float32. ValueError without infos.
        """
        if infos is None:
            raise ValueError("Ant-Dir rewards need the recorded infos x_velocity, y_velocity and contact_cost")
        return AntDirBatch.rewards(np.asarray(actions, np.float64), tasks, infos).astype(np.float32)
