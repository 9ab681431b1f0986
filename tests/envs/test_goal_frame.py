"""Ant-Dir seen from the goal: the simulator has the symmetries that the frame stands on."""

import mujoco
import numpy as np
import pytest
import torch

from envs.ant import AntDirBatch, AntDirEnv, GoalFrame, _about_z, _multiply, _turn
from src.behaviour.store import Source, committed_directory, load_behaviour
from src.run.config import load_env

LEFT = 0.3  # radians: how far the goal lies to the left of where the body looks
# directions that look the same from the goal: quarter turns of the body, and with the mirror (goal to the right)
ANGLES = LEFT * np.array([1, 1, 1, 1, -1, -1, -1]) + np.pi / 2 * np.array([0, 1, 2, -1, 0, 1, 2])


def place(batch, row, state):
    """Put a simulation into the state (29,) = qpos and qvel without the root's x and y."""
    data = batch.datas[row]
    data.qpos[:2], data.qpos[2:], data.qvel[:] = 0, state[:13], state[13:]
    mujoco.mj_forward(batch.models[row], data)
    batch.qpos[row], batch.qvel[row] = data.qpos, data.qvel


def seen_as(angle, seen):
    """The state (27,) that the frame of a direction shows as `seen`: the frame's steps, each undone."""
    frame = GoalFrame({"angle": np.array([angle])})
    height, root, joints, linear, up, angular, speeds = np.split(seen[None], np.cumsum([1, 4, 8, 2, 1, 3]), -1)
    if frame.mirrored[0]:
        root, linear, angular = root * [1, -1, 1, -1], linear * [1, -1], angular * [-1, 1, -1]
    root = _multiply(_multiply(_about_z(frame.angle), root), _about_z(-frame.quarter))
    linear = _turn(linear, frame.angle)
    angular = np.concatenate([_turn(angular[:, :2], frame.quarter), angular[:, 2:]], -1)
    joints, speeds = ((frame.joints.mT @ values[..., None])[..., 0] for values in (joints, speeds))
    return np.concatenate([height, root, joints, linear, up, angular, speeds], -1)[0]


def test_all_directions_look_alike_and_are_paid_alike():
    batch = AntDirBatch({"angle": ANGLES}, threads=1)
    batch.reset(list(range(len(ANGLES))))
    frame = GoalFrame({"angle": ANGLES})
    seen = frame.observe(batch.observe())[0].astype(np.float64)
    seen[1:5] /= np.linalg.norm(seen[1:5])
    for row, angle in enumerate(ANGLES):
        place(batch, row, seen_as(angle, seen))
    np.testing.assert_allclose(frame.observe(batch.observe()), np.tile(seen, (len(ANGLES), 1)), atol=1e-6)
    generator = np.random.default_rng(0)
    for _ in range(20):
        torques = np.repeat(generator.uniform(-1, 1, (1, 8)), len(ANGLES), 0)
        observations, rewards = batch.step(frame.act(torques))
        shown = frame.observe(observations)
        np.testing.assert_allclose(shown, np.tile(shown[:1], (len(ANGLES), 1)), atol=1e-4)
        np.testing.assert_allclose(rewards, rewards[0], atol=1e-4)


def test_the_goal_lies_ahead_or_to_the_left():
    """A torso that moves towards its goal moves along +x in the frame, whatever the direction; y is to the left."""
    angles = np.linspace(0, 2 * np.pi, 9)[:-1] + 0.1
    frame = GoalFrame({"angle": angles})
    observations = np.zeros((8, 27))
    observations[:, 1], observations[:, 13], observations[:, 14] = 1, np.cos(angles), np.sin(angles)
    seen = frame.observe(observations)
    np.testing.assert_allclose(seen[:, 13:15], np.tile([1, 0], (8, 1)), atol=1e-6)
    yaw = 2 * np.arctan2(seen[:, 4], seen[:, 1])  # of the body that plays, seen from the goal
    assert (yaw <= 1e-6).all() and (yaw >= -np.pi / 4 - 1e-6).all()


@pytest.mark.parametrize("angle", ANGLES)
def test_torques_go_back_the_way_joints_came(angle):
    """A torque on the joint that the frame shows as joint j is what the frame's torque j becomes."""
    frame = GoalFrame({"angle": np.array([angle])})
    model = AntDirBatch.base_model()
    for actuator in range(8):
        seen = np.zeros((1, 8))
        seen[0, actuator] = 1
        played = frame.act(seen)[0]
        (used,) = np.flatnonzero(played)
        observation = np.zeros((1, 27))
        observation[0, 5 + model.actuator_trnid[used, 0] - 1] = played[used]
        shown = frame.observe(observation)[0, 5:13]
        assert shown[model.actuator_trnid[actuator, 0] - 1] == 1 and np.abs(shown).sum() == 1


def test_the_committed_agent_serves_directions_that_it_was_not_trained_on():
    env = load_env("ant_dir")
    source = Source(committed_directory("ant_dir"), "committed")
    assert AntDirEnv.task_frame is GoalFrame and source.tasks(env, env.make()) == (0, 50)
    known, weights = load_behaviour(source, env, 3, "")
    curve, others = load_behaviour(source, env, 47, "")
    assert all(torch.equal(weights[name].float(), values.float()) for name, values in others.items())
    assert np.shape(curve["stochastic_returns"]) == (len(known["steps"]), 45 * np.shape(known["stochastic_returns"])[1])
