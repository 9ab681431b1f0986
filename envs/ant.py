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


class GoalFrame:
    """The ant as seen from its goal: every direction becomes "walk along +x", so one policy serves all of them.

    The world is turned so that the goal lies along +x. The body has the symmetries of a square, so its quarter turn that
    faces the goal best stands in for it, mirrored (y → −y) where the goal would lie to its right: what is left of the task is
    that the goal lies 0 to 45 degrees to the left of where the body looks at the start. The simulator shares these symmetries
    to the last bits (a test holds it). `observe` and `act` translate for an agent; recorded data keep the published observation.

    Args:
        tasks: dict with "angle" (B,) in radians, one row per episode.
    """

    def __init__(self, tasks):
        angle = np.asarray(tasks["angle"], np.float64)
        turns = np.round(angle / (np.pi / 2)).astype(int)
        self.mirrored = angle < turns * (np.pi / 2)  # (B,)
        self.angle, self.quarter = angle, turns * (np.pi / 2)
        self.joints = JOINT_SYMMETRIES[turns % 4, self.mirrored.astype(int)]  # (B, 8, 8) signed permutations

    def observe(self, observations):
        """Observations (B, 27) -> the same states as seen from the goal, (B, 27) float32."""
        height, root, joints, linear, up, angular, speeds = np.split(
            np.asarray(observations, np.float64), np.cumsum([1, 4, 8, 2, 1, 3]), -1
        )
        root = _multiply(_multiply(_about_z(-self.angle), root), _about_z(self.quarter))
        linear = _turn(linear, -self.angle)
        angular = np.concatenate([_turn(angular[:, :2], -self.quarter), angular[:, 2:]], -1)
        flip = np.where(self.mirrored, -1.0, 1.0)[:, None]  # what y -> -y changes the sign of
        kept = np.ones_like(flip)
        root = root * np.concatenate([kept, flip, kept, flip], -1)
        root = root * np.where(root[:, :1] < 0, -1.0, 1.0)  # q and -q are the same attitude
        linear = linear * np.concatenate([kept, flip], -1)
        angular = angular * np.concatenate([flip, kept, flip], -1)
        joints, speeds = ((self.joints @ values[..., None])[..., 0] for values in (joints, speeds))
        return np.concatenate([height, root, joints, linear, up, angular, speeds], -1).astype(np.float32)

    def act(self, actions):
        """Torques (B, 8) as chosen from the goal -> torques of the actuators, (B, 8)."""
        torques = np.empty_like(actions)
        by_joint = np.asarray(actions)[:, ACTUATOR_OF_JOINT]
        torques[:, ACTUATOR_OF_JOINT] = (self.joints.mT @ by_joint[..., None])[..., 0]
        return torques


def _joint_symmetries():
    """(4 quarter turns, mirrored or not, 8, 8): signed permutations of the joints (hip 1, ankle 1, hip 2, ...).

    After k turns leg n + k stands where leg n stood; ankles of legs 2 and 3 bend the other way. The mirror exchanges legs 1
    and 4, 2 and 3, and the sense of the hips.
    """
    bends, mirror = (1, -1, -1, 1), np.zeros((8, 8))
    for leg in range(4):
        mirror[2 * leg, 2 * (3 - leg)], mirror[2 * leg + 1, 2 * (3 - leg) + 1] = -1, 1
    result = np.zeros((4, 2, 8, 8))
    for turns in range(4):
        for leg in range(4):
            other = (leg + turns) % 4
            result[turns, 0, 2 * leg, 2 * other] = 1
            result[turns, 0, 2 * leg + 1, 2 * other + 1] = bends[leg] * bends[other]
        result[turns, 1] = mirror @ result[turns, 0]
    return result


def _multiply(first, second):
    """Products of quaternions (B, 4)."""
    w, x, y, z = np.moveaxis(first, -1, 0)
    a, b, c, d = np.moveaxis(second, -1, 0)
    return np.stack(
        (
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ),
        -1,
    )


def _about_z(angle):
    """Quaternions (B, 4) of turns about z."""
    return np.stack((np.cos(angle / 2), 0 * angle, 0 * angle, np.sin(angle / 2)), -1)


def _turn(plane, angle):
    """Vectors (B, 2) turned by angles (B,)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack((cosine * plane[:, 0] - sine * plane[:, 1], sine * plane[:, 0] + cosine * plane[:, 1]), -1)


JOINT_SYMMETRIES = _joint_symmetries()
ACTUATOR_OF_JOINT = np.array([2, 3, 4, 5, 6, 7, 0, 1])


class AntDirEnv(MujocoEnv):
    """Walk towards the task's "angle" θ, in radians from the x axis."""

    task_frame = GoalFrame

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
