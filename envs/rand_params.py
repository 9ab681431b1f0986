"""Hopper-Param and Walker-Param: run with a body whose masses, inertias, joint damping and friction are not told.

Gymnasium's `hopper.xml` and `walker2d.xml` with timestep 0.004 s and frame skip 4 in both, control step 0.016 s, and masses
as MuJoCo before 2.1.2 computed them. Observation (11 and 17): qpos without the root x, qvel clipped to ±10. Action: 3 and 6
torques in [-1, 1]. Start: qpos and qvel + U(-0.005, 0.005). Reward: v + 1 − 0.001‖a‖² with v = Δx / 0.016. 200 steps, never
terminates: a robot that has fallen still gets the 1. Tasks differ in the dynamics and not in the reward, so there is no
`compute_rewards`: relabelling would be wrong.
Source: the benchmark rand_param_envs, which PEARL (Rakelly et al., 2019) and Meta-DT use.
"""

import copy
from functools import lru_cache

import mujoco
import numpy as np

from envs.mujoco_env import MujocoBatch, MujocoEnv, load_model

CONTROL_COST = 1e-3
ALIVE_REWARD = 1.0
TIMESTEP = 0.004  # seconds
DENSITY = 1000.0  # kg/m³
MASS_BASE, DAMPING_BASE = 1.5, 1.3  # a parameter is multiplied by base ** exponent


class RandParamsBatch(MujocoBatch):
    frame_skip = 4

    @classmethod
    def base_model(cls):
        return load_old_model(cls.model_file)

    def make_models(self, rows):
        exponents = [{key: values[row] for key, values in self.tasks.items()} for row in range(rows)]
        return [randomised(self.base_model(), row) for row in exponents]

    def sample_start(self, generator, model):
        qpos = model.qpos0 + generator.uniform(-0.005, 0.005, model.nq)
        return qpos, generator.uniform(-0.005, 0.005, model.nv)

    def observe(self):
        return np.concatenate([self.qpos[:, 1:], np.clip(self.qvel, -10, 10)], -1)

    @staticmethod
    def rewards(actions, tasks, infos):
        return infos["x_velocity"] + ALIVE_REWARD - CONTROL_COST * (actions**2).sum(-1)


class HopperRandParamsBatch(RandParamsBatch):
    model_file = "hopper.xml"


class WalkerRandParamsBatch(RandParamsBatch):
    model_file = "walker2d.xml"


class RandParamsEnv(MujocoEnv):
    upright = None  # (lowest, highest) height of the torso, and its largest angle in radians, of a robot that stands

    @classmethod
    def fallen(cls, observations):
        """(B,) whether the robots of observations (B, d_s) have fallen, by the limits of gymnasium's Hopper and Walker2d.

        It ends no episode; stage 1 may end those of its training there (`--end_at_falls`).
        """
        lowest, highest, angle = cls.upright
        height = observations[:, 0]
        return ~((height > lowest) & (height < highest) & (np.abs(observations[:, 1]) < angle))

    @staticmethod
    def task_features(tasks):
        """What an agent that may know its task is told: the exponents that act. -> (num_tasks, 24) and (num_tasks, 42).

        The world body has no mass, the three joints of the root no damping, and of the frictions only sliding counts.
        """
        exponents = (tasks["mass_exponent"][:, 1:], tasks["inertia_exponent"][:, 1:], tasks["damping_exponent"][:, 3:],
                     tasks["friction_exponent"][:, :, 0])  # fmt: skip
        return np.concatenate([values.reshape(len(values), -1) for values in exponents], 1)


class HopperRandParamsEnv(RandParamsEnv):
    """One leg. A task is the exponents of `randomised`: mass (5), inertia (5, 3), damping (6), friction (5, 3)."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 62}  # noqa: RUF012 (gymnasium's name)
    env_type = "hopper_rand_params"
    upright = 0.7, np.inf, 1.0  # the angle is ours, gymnasium has 0.2
    batch_class = HopperRandParamsBatch


class WalkerRandParamsEnv(RandParamsEnv):
    """Two legs. A task is the exponents of `randomised`: mass (8), inertia (8, 3), damping (9), friction (8, 3)."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 62}  # noqa: RUF012 (gymnasium's name)
    env_type = "walker_rand_params"
    upright = 0.8, 2.0, 1.0
    batch_class = WalkerRandParamsBatch


@lru_cache
def load_old_model(file_name):
    """A model whose bodies (one capsule each) weigh what they weighed in the benchmark's MuJoCo.

    Before 2.1.2 MuJoCo took a capsule of radius r and cylinder length L for a cylinder of radius r and length L + r
    (changelog of 2.1.2, "computed capsule inertias are now exact").
    """
    model = copy.copy(load_model(file_name))
    model.opt.timestep = TIMESTEP
    for geom in range(1, model.ngeom):
        radius, length = model.geom_size[geom, 0], 2 * model.geom_size[geom, 1] + model.geom_size[geom, 0]
        mass = DENSITY * np.pi * radius**2 * length
        body = model.geom_bodyid[geom]
        model.body_mass[body] = mass
        across = mass * (3 * radius**2 + length**2) / 12
        model.body_inertia[body] = across, across, mass * radius**2 / 2  # the capsule's axis is z of the inertial frame
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def randomised(model, exponents):
    """A copy of `model` with masses, inertias and frictions times 1.5 ** exponent and dampings times 1.3 ** exponent.

    exponents: "mass_exponent" (nbody,), "inertia_exponent" (nbody, 3), "damping_exponent" (nv,), "friction_exponent"
    (ngeom, 3). As in the benchmark, the compiler's estimates of the inverse inertia at contacts and joint limits keep
    their default values.
    """
    model = copy.copy(model)
    model.body_mass[:] *= MASS_BASE ** exponents["mass_exponent"]
    model.body_inertia[:] *= MASS_BASE ** exponents["inertia_exponent"]
    model.geom_friction[:] *= MASS_BASE ** exponents["friction_exponent"]
    model.dof_damping[:] *= DAMPING_BASE ** exponents["damping_exponent"]
    model.body_subtreemass[:] = model.body_mass  # locates the centre of mass, which the camera follows
    for body in range(model.nbody - 1, 0, -1):
        model.body_subtreemass[model.body_parentid[body]] += model.body_subtreemass[body]
    return model
