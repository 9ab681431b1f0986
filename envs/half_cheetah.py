"""Half-Cheetah families: run at a speed (Cheetah-Vel) or in a direction (Cheetah-Dir) that is not told.

Gymnasium's `half_cheetah.xml`, frame skip 5, control step 0.05 s. Observation (20): qpos without the root x (8), qvel (9),
position of the torso (x, y, z), so that the distance run is observed. Action: 6 torques in [-1, 1].
Start: qpos + U(-0.1, 0.1), qvel + 0.1 N(0, 1). Reward with v = Δx / 0.05: Cheetah-Vel −|v − v*| − 0.05‖a‖²,
Cheetah-Dir d v − 0.05‖a‖². 200 steps, never terminates.
Source: PEARL (Rakelly et al., 2019) and the families of Meta-DT.
"""

import numpy as np

from envs.mujoco_env import MujocoBatch, MujocoEnv, load_model

CONTROL_COST = 0.05
CONTROL_STEP = 0.05  # seconds
TORSO_X = -3  # index into the observation
TORSO_HEIGHT = 0.7  # of the torso above the ground at qpos = 0, in metres


class HalfCheetahBatch(MujocoBatch):
    @staticmethod
    def base_model():
        return load_model("half_cheetah.xml")

    def sample_start(self, generator, model):
        qpos = model.qpos0 + generator.uniform(-0.1, 0.1, model.nq)
        return qpos, 0.1 * generator.standard_normal(model.nv)

    def observe(self):
        # The torso's position follows from the root joints. The simulator's `xpos` is one substep old after a step, and the
        # reward could then not be computed from two observations.
        x, z = self.qpos[:, 0], self.qpos[:, 1] + TORSO_HEIGHT
        return np.concatenate([self.qpos[:, 1:], self.qvel, np.stack([x, np.zeros_like(x), z], -1)], -1)


class HalfCheetahVelBatch(HalfCheetahBatch):
    @staticmethod
    def rewards(actions, tasks, infos):
        return -np.abs(infos["x_velocity"] - tasks["velocity"]) - CONTROL_COST * (actions**2).sum(-1)


class HalfCheetahDirBatch(HalfCheetahBatch):
    @staticmethod
    def rewards(actions, tasks, infos):
        return infos["x_velocity"] * tasks["direction"] - CONTROL_COST * (actions**2).sum(-1)


class HalfCheetahEnv(MujocoEnv):
    @classmethod
    def compute_rewards(cls, observations, actions, next_observations, tasks, infos=None):
        """Rewards that other tasks would give for the same transitions (reward relabelling); arrays broadcast.

        The velocity is read from the torso's x in observations and next_observations (..., 20), so `infos` is not used.
        actions (..., 6), tasks["velocity"] or tasks["direction"] (...) -> (...,) float32, exact to about 1e-4 where
        the observations are float32.
        """
        displacement = np.asarray(next_observations, np.float64)[..., TORSO_X] - observations[..., TORSO_X]
        actions = np.asarray(actions, np.float64)
        rewards = cls.batch_class.rewards(actions, tasks, {"x_velocity": displacement / CONTROL_STEP})
        return rewards.astype(np.float32)


class HalfCheetahVelEnv(HalfCheetahEnv):
    """Run at the task's "velocity" v* in m/s."""

    env_type = "cheetah_vel"
    batch_class = HalfCheetahVelBatch

    @staticmethod
    def infer_tasks(observations, actions, rewards):
        """The speeds that explain the rewards of episodes that began as these: {"velocity": (B,)}.

        The reward of a step is -|v - v*| but for the known cost of the action, so the first one leaves two speeds; the one
        that explains the later rewards better is taken, the larger one while they are even.
        observations (B, t + 1, 20), actions (B, t, 6), rewards (B, t), t >= 1.
        """
        velocity = np.diff(np.asarray(observations, np.float64)[..., TORSO_X], axis=1) / CONTROL_STEP  # (B, t)
        off = -rewards - CONTROL_COST * (np.asarray(actions, np.float64) ** 2).sum(-1)
        faster, slower = velocity[:, 0] + off[:, 0], velocity[:, 0] - off[:, 0]
        misfits = (np.abs(np.abs(velocity - guess[:, None]) - off).mean(1) for guess in (faster, slower))
        return {"velocity": np.where(next(misfits) <= next(misfits) + 1e-3, faster, slower)}


class HalfCheetahVel100Env(HalfCheetahVelEnv):
    """The same with the 100 speeds of IDAQ."""

    env_type = "cheetah_vel_100"


class HalfCheetahDirEnv(HalfCheetahEnv):
    """Run in the task's "direction": forwards (+1) or backwards (-1). The test tasks are the training tasks."""

    env_type = "cheetah_dir"
    batch_class = HalfCheetahDirBatch
