"""The MuJoCo families against numbers worked out from the simulator's state, and against the published task lists and floors."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_allclose, assert_array_equal

from envs.half_cheetah import HalfCheetahVelEnv
from envs.mujoco_env import MODEL_DIR
from envs.rand_params import HopperRandParamsBatch, WalkerRandParamsBatch
from envs.render import record
from envs.tasks import RULES, TASK_DIR, load_tasks, write_tasks
from src.run.config import load_env

ROOT = Path(__file__).resolve().parents[2]
SIZES = {  # id: observation, action, simulator's steps per second
    "HalfCheetahVel-v0": (20, 6, 100),
    "HalfCheetahDir-v0": (20, 6, 100),
    "AntDir-v0": (27, 8, 100),
    "HopperRandParams-v0": (11, 3, 250),
    "WalkerRandParams-v0": (17, 6, 250),
}
every_family = pytest.mark.parametrize("env_id", SIZES)


def make(env_id, task=0, seed=0):
    """An environment at the first step of an episode, with a generator for actions."""
    env = gym.make(env_id).unwrapped
    env.reset(seed=seed, options={"task": task})
    return env, np.random.default_rng(seed)


def random_action(env, generator):
    return generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ task lists


def test_published_task_lists():
    velocities = load_tasks("cheetah_vel")["velocity"]
    assert_allclose(velocities[:3], [0.3809, 2.9002, 0.7814], atol=5e-5)
    assert_allclose(velocities[45:50], [2.1066, 1.2421, 1.0270, 1.7878, 0.5996], atol=5e-5)
    angles = load_tasks("ant_dir")["angle"]
    assert_allclose(angles[:3], [1.6366, 5.6375, 2.3672], atol=5e-5)
    assert_allclose(angles[45:50], [2.1510, 3.7443, 1.2558, 0.6267, 4.6156], atol=5e-5)
    assert_array_equal(load_tasks("cheetah_dir")["direction"], [1, -1, 1, -1])
    one_direction_keeps = np.abs(np.exp(1j * angles[45:50]).mean())  # of the forward reward, summed over the test tasks
    assert_allclose(one_direction_keeps, 0.177, atol=5e-4)


def test_published_parameter_exponents():
    first = [-1.8509, 0.7327, -0.3736, 1.7122, 1.6799]  # the world body's draw comes first
    hopper, walker = load_tasks("hopper_rand_params"), load_tasks("walker_rand_params")
    assert_allclose(hopper["mass_exponent"][0], first, atol=5e-5)
    test_masses = [
        [-2.5159, 0.4411, 2.1991, -1.5216],
        [-2.0329, 0.8446, -0.6736, 1.8992],
        [0.8751, -0.4039, 1.3836, 1.1937],
        [-0.4748, -1.5608, -2.2348, 2.3736],
        [1.5514, -0.3530, 2.3313, 0.1759],
    ]
    assert_allclose(hopper["mass_exponent"][45:50, 1:], test_masses, atol=5e-5)
    assert_allclose(walker["mass_exponent"][0, :5], first, atol=5e-5)
    masses_45 = [-2.1855, -1.5299, 2.4899, -1.1083, -0.7096, -2.0832, -0.2844]
    assert_allclose(walker["mass_exponent"][45, 1:], masses_45, atol=5e-5)
    for tasks, draws in ((hopper, 41), (walker, 65)):
        assert sum(values[0].size for values in tasks.values()) == draws
        assert all(len(values) == 100 and np.abs(values).max() <= 3 for values in tasks.values())


@pytest.mark.parametrize("env_type", ["point_robot", "cheetah_vel", "ant_dir", "hopper_rand_params", "walker_rand_params"])
def test_fresh_tasks_are_new_draws_of_the_same_distribution(env_type):
    assert load_env(env_type).fresh_tasks == (50, 100)
    for name, values in load_tasks(env_type).items():
        flat = values.reshape(100, -1)
        assert len(np.unique(flat, axis=0)) == 100, name
        low, high = {"goal": (-1, 1), "velocity": (0, 3), "angle": (0, 2 * np.pi)}.get(name, (-3, 3))
        assert low <= flat.min() and flat.max() <= high
        for half in (flat[:50], flat[50:]):  # uniform: standard errors of a mean of 50 are width / 24
            assert np.abs(half.mean(0) - (low + high) / 2).max() < (high - low) / 6, name


@pytest.mark.parametrize("env_type", RULES)
def test_the_rule_writes_the_committed_file(env_type, tmp_path):
    write_tasks(env_type, tmp_path / "tasks.json")
    assert (tmp_path / "tasks.json").read_text() == (TASK_DIR / f"{env_type}.json").read_text()


# -------------------------------------------------------------------------------------------- rewards and observations


@pytest.mark.parametrize("env_id", ["HalfCheetahVel-v0", "HalfCheetahDir-v0"])
def test_cheetah_by_hand(env_id):
    env, generator = make(env_id, task=1)
    for _ in range(50):
        before = env.data.qpos.copy()
        action = random_action(env, generator)
        observation, reward, _, _, info = env.step(action)
        velocity = (env.data.qpos[0] - before[0]) / 0.05
        cost = 0.05 * float((action.astype(float) ** 2).sum())
        goal_reward = -abs(velocity - 2.9001535) if env_id == "HalfCheetahVel-v0" else -velocity
        assert_allclose(reward, goal_reward - cost, rtol=1e-5)
        assert info == {"x_velocity": velocity}
        mujoco.mj_kinematics(env.model, env.data)
        torso = env.data.body("torso").xpos
        assert_allclose(observation, np.concatenate([env.data.qpos[1:], env.data.qvel, torso]), rtol=1e-6, atol=1e-6)


def test_ant_by_hand():
    env, generator = make("AntDir-v0", task=3)
    contact_costs = []
    for _ in range(100):
        before = env.data.qpos.copy()
        action = random_action(env, generator)
        observation, reward, _, _, info = env.step(action)
        velocity = (env.data.qpos[:2] - before[:2]) / 0.05
        angle = env.tasks["angle"][3]
        contact_costs.append(0.5e-3 * sum(np.clip(force, -1, 1) ** 2 for force in env.data.cfrc_ext.ravel()))
        forward = velocity[0] * np.cos(angle) + velocity[1] * np.sin(angle)
        cost = 0.5 * float((action.astype(float) ** 2).sum())
        assert_allclose(reward, forward - cost - contact_costs[-1] + 1, rtol=1e-5, atol=1e-6)
        assert_allclose([info[key] for key in env.info_keys], [*velocity, contact_costs[-1]])
        assert_array_equal(observation, np.concatenate([env.data.qpos[2:], env.data.qvel]).astype(np.float32))
    assert 0 < max(contact_costs) <= 0.042


@pytest.mark.parametrize("env_id", ["HopperRandParams-v0", "WalkerRandParams-v0"])
def test_rand_params_by_hand(env_id):
    env, generator = make(env_id, task=46)
    fastest = 0
    for _ in range(100):
        before = env.data.qpos.copy()
        action = random_action(env, generator)
        observation, reward, _, _, info = env.step(action)
        velocity = (env.data.qpos[0] - before[0]) / 0.016
        assert_allclose(reward, velocity + 1 - 1e-3 * float((action.astype(float) ** 2).sum()), rtol=1e-5, atol=1e-6)
        assert info == {"x_velocity": velocity}
        expected = np.concatenate([env.data.qpos[1:], np.clip(env.data.qvel, -10, 10)])
        assert_array_equal(observation, expected.astype(np.float32))
        fastest = max(fastest, np.abs(env.data.qvel).max())
    assert fastest > 10  # the clipping was seen at work


@every_family
def test_start_states(env_id):
    env, _ = make(env_id)
    starts = []
    for seed in range(100):
        env.reset(seed=seed)
        starts.append(np.concatenate([env.data.qpos - env.model.qpos0, env.data.qvel]))
    positions, velocities = np.split(np.array(starts), [env.model.nq], axis=1)
    bound = 0.005 if "RandParams" in env_id else 0.1
    assert 0.95 * bound < np.abs(positions).max() <= bound
    if "RandParams" in env_id:
        assert 0.95 * bound < np.abs(velocities).max() <= bound
    else:
        assert_allclose(velocities.std(), 0.1, rtol=0.1)


@pytest.mark.parametrize("env_id", ["HalfCheetahVel-v0", "HalfCheetahDir-v0", "AntDir-v0"])
def test_relabelled_rewards(env_id):
    """The recorded steps under their own task give the recorded rewards, and under another task what that task gives."""
    env, generator = make(env_id, task=0)
    actions = [random_action(env, generator) for _ in range(30)]
    rewards = {}
    for task in (0, 1):
        observations = [env.reset(seed=5, options={"task": task})[0]]
        infos = {key: [] for key in env.info_keys}
        rewards[task] = []
        for action in actions:
            observation, reward, _, _, info = env.step(action)
            observations.append(observation)
            rewards[task].append(reward)
            for key in env.info_keys:
                infos[key].append(info[key])
    observations, actions = np.array(observations), np.array(actions)
    infos = {key: np.array(values) for key, values in infos.items()}
    tasks = {key: values[:2, None] for key, values in env.tasks.items()}  # (2, 1) against (30,)
    relabelled = env.compute_rewards(observations[:-1], actions, observations[1:], tasks, infos)
    assert relabelled.shape == (2, 30) and relabelled.dtype == np.float32
    assert_allclose(relabelled, [rewards[0], rewards[1]], atol=1e-4)


def test_ant_relabelling_without_infos_is_refused():
    env, _ = make("AntDir-v0")
    with pytest.raises(ValueError, match="x_velocity, y_velocity and contact_cost"):
        env.compute_rewards(np.zeros((1, 27)), np.zeros((1, 8)), np.zeros((1, 27)), {"angle": np.zeros(1)})


# ------------------------------------------------------------------------------------------------------------- physics


def test_default_masses_and_inertias():
    """Masses as published; inertias those of the cylinder for which old MuJoCo took a capsule."""
    hopper, walker = HopperRandParamsBatch.base_model(), WalkerRandParamsBatch.base_model()
    assert_allclose(hopper.body_mass, [0, 3.53429174, 3.92699082, 2.71433605, 5.08938010], atol=1e-8)
    leg = [3.92699082, 2.71433605, 2.94053072]
    assert_allclose(walker.body_mass, [0, 3.53429174, *leg, *leg], atol=1e-8)
    foot_length, foot_radius = 0.39 + 0.06, 0.06
    across = 5.08938010 * (3 * foot_radius**2 + foot_length**2) / 12
    assert_allclose(hopper.body_inertia[4], [across, across, 5.08938010 * foot_radius**2 / 2], rtol=1e-8)


def test_default_friction_and_time():
    hopper, walker = HopperRandParamsBatch.base_model(), WalkerRandParamsBatch.base_model()
    assert_array_equal(hopper.geom_friction[:, 0], [1, 0.9, 0.9, 0.9, 2])
    assert_array_equal(walker.geom_friction[:, 0], [0.7, *[0.9] * 6, 1.9])
    for model in (hopper, walker):
        assert model.opt.timestep == 0.004 and model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4


@pytest.mark.parametrize("batch_class", [HopperRandParamsBatch, WalkerRandParamsBatch])
def test_parameters_reach_the_model(batch_class):
    env_type = "hopper_rand_params" if batch_class is HopperRandParamsBatch else "walker_rand_params"
    rows = [0, 46]
    tasks = {key: values[rows] for key, values in load_tasks(env_type).items()}
    base = batch_class.base_model()
    for row, model in enumerate(batch_class(tasks).models):
        scale = {key: (1.3 if "damping" in key else 1.5) ** values[row] for key, values in tasks.items()}
        assert_allclose(model.body_mass, base.body_mass * scale["mass_exponent"])
        assert_allclose(model.body_inertia, base.body_inertia * scale["inertia_exponent"])
        assert_allclose(model.dof_damping, base.dof_damping * scale["damping_exponent"])
        assert_allclose(model.geom_friction, base.geom_friction * scale["friction_exponent"])
        assert_allclose(model.body_subtreemass[0], model.body_mass.sum())
    assert base.body_mass[1] == pytest.approx(3.53429174)  # the shared model was left alone


@pytest.mark.parametrize("env_id", ["HopperRandParams-v0", "WalkerRandParams-v0"])
def test_parameters_change_the_motion(env_id):
    ends = []
    for task in (45, 46):
        env, generator = make(env_id, task)
        for _ in range(20):
            observation = env.step(random_action(env, generator))[0]
        ends.append(observation)
    assert np.abs(ends[0] - ends[1]).max() > 0.1


def test_ant_model_constants():
    model = make("AntDir-v0")[0].model
    assert model.nbody == 14 and model.opt.timestep == 0.01  # 13 bodies and the world
    assert_array_equal(model.actuator_gear[:, 0], [150] * 8)
    assert_array_equal(model.dof_armature[6:], [1] * 8)
    assert_array_equal(model.dof_damping[6:], [1] * 8)
    assert model.geom("torso_geom").size[0] == 0.25
    assert_allclose(model.body("torso").mass[0], 5 * 4 / 3 * np.pi * 0.25**3)  # density 5


@pytest.mark.parametrize(("env_id", "file_name"), [("HalfCheetahVel-v0", "half_cheetah.xml"), ("AntDir-v0", "ant.xml")])
def test_step_is_five_steps_of_the_untouched_simulator(env_id, file_name):
    env, generator = make(env_id)
    model = mujoco.MjModel.from_xml_path(str(MODEL_DIR / file_name))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = env.data.qpos, env.data.qvel
    mujoco.mj_forward(model, data)
    for _ in range(10):
        action = random_action(env, generator)
        env.step(action)
        data.ctrl[:] = action
        for _ in range(5):
            mujoco.mj_step(model, data)
        assert_array_equal(env.data.qpos, data.qpos)


# ----------------------------------------------------------------------------------------------- gymnasium and batches


@every_family
def test_spaces_and_horizon(env_id):
    observation_size, action_size, rate = SIZES[env_id]
    env = gym.make(env_id)
    assert env.observation_space.shape == (observation_size,) and env.observation_space.dtype == np.float32
    assert env.action_space == gym.spaces.Box(-1, 1, (action_size,), np.float32)
    assert env.unwrapped.model.opt.timestep == 1 / rate
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    for step in range(1, 201):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated and truncated == (step == 200)
    assert observation in env.observation_space


@every_family
def test_env_checker(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*A Box observation space m.*infinity")  # positions have no bound
        check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@every_family
def test_same_seed_same_episode(env_id):
    def episode(seed):
        env, generator = make(env_id, task=1, seed=seed)
        first = env.reset(seed=seed)[0]
        return np.array([first, *(env.step(random_action(env, generator))[0] for _ in range(20))])

    assert_array_equal(episode(3), episode(3))
    assert np.abs(episode(3) - episode(4)).max() > 1e-3


@every_family
def test_reset_keeps_the_task(env_id):
    env, _ = make(env_id, task=3)
    env.reset()
    assert env.task == 3
    for task in (-1, len(next(iter(env.tasks.values())))):
        with pytest.raises(ValueError, match="does not exist"):
            env.reset(options={"task": task})


@every_family
def test_batch_equals_single_bit_for_bit(env_id):
    """Five episodes of different tasks on two threads, through two episodes each, against one at a time."""
    env, generator = make(env_id)
    task_ids, seeds = [2, 0, 1, 3, 0], [7, 8, 9, 10, 11]
    batch = env.batch_class({key: values[task_ids] for key, values in env.tasks.items()}, threads=2)
    actions = generator.uniform(-1.2, 1.2, (25, 5, *env.action_space.shape)).astype(np.float32)
    for offset in (0, 100):
        recorded = [(batch.reset(np.add(seeds, offset)), None, {})]
        recorded += [(*batch.step(row), batch.infos) for row in actions]
        for row, (task, seed) in enumerate(zip(task_ids, seeds, strict=True)):
            observation, _ = env.reset(seed=seed + offset, options={"task": task})
            assert_array_equal(observation, recorded[0][0][row])
            for action, (observations, rewards, infos) in zip(actions[:, row], recorded[1:], strict=True):
                observation, reward, _, _, info = env.step(action)
                assert_array_equal(observation, observations[row])
                assert reward == rewards[row]
                assert info == {key: values[row] for key, values in infos.items()}
    assert observations.dtype == rewards.dtype == np.float32


def test_batch_refuses_wrong_actions():
    env, _ = make("AntDir-v0")
    batch = env.batch_class({"angle": np.zeros(3)})
    batch.reset(range(3))
    with pytest.raises(ValueError, match=r"\(2, 8\), expected \(3, 8\)"):
        batch.step(np.zeros((2, 8)))


def test_point_robot_does_not_import_mujoco():
    code = "import sys, envs, gymnasium; gymnasium.make('PointRobot-v0').reset(); sys.exit('mujoco' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@every_family
def test_settings_name_the_registered_environment(env_id):
    documents = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs").glob("*.yaml"))]
    (document,) = [document for document in documents if document["env_name"] == env_id]
    spec = gym.spec(env_id)
    assert (document["entry_point"], document["max_episode_steps"]) == (spec.entry_point, spec.max_episode_steps)
    tasks = gym.make(env_id).unwrapped.tasks
    assert document["test_tasks"][1] == len(next(iter(tasks.values())))


# ---------------------------------------------------------------------------------------------------- reference levels


@pytest.mark.parametrize(
    ("env_id", "test_ids", "episodes", "floor", "tolerance"),
    [
        ("HalfCheetahVel-v0", range(45, 50), 2, -270.8, 1),
        ("HalfCheetahDir-v0", range(2, 4), 3, 0, 1.5),
        ("AntDir-v0", range(45, 50), 2, 199, 5),
        ("HopperRandParams-v0", range(45, 50), 4, 217, 35),  # one episode deviates by 50
        ("WalkerRandParams-v0", range(45, 50), 4, 199, 20),  # one episode deviates by 20
    ],
)
def test_trivial_floor(env_id, test_ids, episodes, floor, tolerance):
    """Returns without any torque; the published floors rest on 10 to 20 episodes per task."""
    env_class = type(gym.make(env_id).unwrapped)
    tasks = load_tasks(env_class.env_type)
    task_ids = np.repeat(test_ids, episodes)
    policy = env_class.reference_policies(tasks, range(45))["trivial"]
    batch = env_class.batch_class({key: values[task_ids] for key, values in tasks.items()}, threads=1)
    observations, returns = batch.reset(range(len(task_ids))), 0
    for _ in range(200):
        observations, rewards = batch.step(policy(observations, task_ids))
        returns += rewards
    assert_allclose(returns.mean(), floor, atol=tolerance)


def test_one_reward_names_the_speed():
    tasks = {"velocity": load_tasks("cheetah_vel")["velocity"][40:60]}
    batch, generator = HalfCheetahVelEnv.batch_class(tasks, threads=1), np.random.default_rng(0)
    seen, acted, paid = [batch.reset(range(20))], [], []
    for _ in range(10):
        acted.append(generator.uniform(-1, 1, (20, 6)).astype(np.float32))
        following, rewards = batch.step(acted[-1])
        seen.append(following)
        paid.append(rewards)
    observations, actions, rewards = (np.stack(values, 1) for values in (seen, acted, paid))
    first = HalfCheetahVelEnv.infer_tasks(observations[:, :2], actions[:, :1], rewards[:, :1])["velocity"]
    assert np.isclose(first, tasks["velocity"], atol=1e-3).mean() > 0.7  # wrong only where it is faster than it should be
    later = HalfCheetahVelEnv.infer_tasks(observations, actions, rewards)["velocity"]
    assert_allclose(later, tasks["velocity"], atol=1e-3)


# ------------------------------------------------------------------------------------------------------------- pictures


def render_or_skip(env):
    try:
        return env.render()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_record_writes_a_film(tmp_path):
    from PIL import Image

    env = gym.make("HopperRandParams-v0", render_mode="rgb_array", width=64, height=48)
    env.reset()
    picture = render_or_skip(env)
    assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8 and picture.std() > 10
    total = record(env, lambda observation: np.zeros(3), tmp_path / "hopper.gif", task=46, seed=0)
    assert total > 100
    with Image.open(tmp_path / "hopper.gif") as film:
        assert film.size == (64, 48) and 30 <= film.n_frames <= 35  # 3.2 s at 10 frames per second
    env.close()


def test_record_needs_pictures(tmp_path):
    with pytest.raises(ValueError, match="rgb_array"):
        record(gym.make("PointRobot-v0"), lambda observation: np.zeros(2), tmp_path / "point.gif")
    assert gym.make("AntDir-v0").unwrapped.render() is None
