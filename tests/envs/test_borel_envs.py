"""The BOReL environments, episodes in sequence and the reference returns, against values computed by hand.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import dataclasses
import json
import random
import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from baselines.borel import references
from baselines.borel.gridworld_tours import optimal_tours
from baselines.borel.problem import Problem, play
from baselines.borel.references import DOMAINS, play_levels, play_repeated
from envs.ant_semicircle import AntSemicircleDenseEnv, AntSemicircleSparseEnv
from envs.borel_points import (
    PointRobotDenseEnv,
    PointRobotSparseEnv,
    PointRobotWindEnv,
    PointRobotWindNarrowEnv,
    directions,
    greedy_steps,
)
from envs.escape_room import EscapeRoomEnv, wall_contact
from envs.gridworld import GoalBelief, GridworldEnv, cell_index, moves_towards
from envs.mujoco_env import load_model
from envs.multi_episode import scale_actions
from envs.tasks import RULES, load_tasks
from src.evaluation.agent import PolicyAgent
from src.run.config import load_env

ENVS = [
    GridworldEnv,
    PointRobotSparseEnv,
    PointRobotDenseEnv,
    PointRobotWindEnv,
    PointRobotWindNarrowEnv,
    EscapeRoomEnv,
    AntSemicircleSparseEnv,
]
every_env = pytest.mark.parametrize("env_class", ENVS, ids=lambda env_class: env_class.env_type)
REPOSITORY = Path(__file__).resolve().parents[2]


def make_batch(env_class, task_ids, **options):
    tasks = {key: values[task_ids] for key, values in load_tasks(env_class.env_type).items()}
    return env_class.batch_class(tasks, **options)


def widest_start(env_class):
    starts = env_class.batch_class.starts
    return "uniform" if "uniform" in starts else "fixed"


def random_actions(env_class, shape, seed=0):
    """Random actions; of the discrete ones `shape`, of the others (*shape, d)."""
    space = env_class().action_space
    generator = np.random.default_rng(seed)
    if isinstance(space, gym.spaces.Discrete):
        return generator.integers(space.n, size=shape)
    return generator.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32)


def at(env_class, tasks, state):
    """A batch of one row, placed at `state`."""
    batch = env_class.batch_class(tasks)
    batch.reset([0])
    batch.states = np.array([state], dtype=np.float32)
    return batch


# -------------------------------------------------------------------------------------------------- gymnasium and tasks


@every_env
def test_gymnasium_checker(env_class):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unbounded observations are meant
        check_env(env_class(), skip_render_check=True)


@every_env
def test_horizon_and_task_choice(env_class):
    env = env_class()
    env.reset(seed=0, options={"task": 3})
    actions = random_actions(env_class, (env.max_episode_steps,))
    ends = [env.step(action)[2:4] for action in actions]
    assert ends == [(False, False)] * (env.max_episode_steps - 1) + [(False, True)]
    env.reset()
    assert env.task == 3
    with pytest.raises(ValueError, match="does not exist"):
        env.reset(options={"task": 10_000})
    with pytest.raises(ValueError, match="knows no start"):
        env_class(start="everywhere")


@every_env
def test_entry_point_is_a_string(env_class):
    entry_point = f"{env_class.__module__}:{env_class.__name__}"
    env = gym.make(EnvSpec(f"{env_class.__name__}-v0", entry_point=entry_point), start=widest_start(env_class))
    assert env.unwrapped.tasks.keys() == load_tasks(env_class.env_type).keys()


@pytest.mark.parametrize("env_type", [env_class.env_type for env_class in ENVS])
def test_task_lists_follow_their_rules(env_type):
    """Defects 10 and 19: no task twice, and tasks are kept in full precision."""
    stored = json.loads((REPOSITORY / "configs/tasks" / f"{env_type}.json").read_text())["tasks"]
    assert stored == RULES[env_type]()
    assert len({json.dumps(task) for task in stored}) == len(stored)


def test_task_distributions():
    """Defect 13: wind and escape room exist."""
    sizes = {env_class.env_type: len(next(iter(load_tasks(env_class.env_type).values()))) for env_class in ENVS}
    assert sizes == {
        "gridworld": 21,
        "point_robot_sparse": 100,
        "point_robot_dense": 25,
        "point_robot_wind": 50,
        "point_robot_wind_narrow": 50,
        "escape_room": 65,
        "ant_semicircle_sparse": 100,
    }
    cells = {tuple(goal) for goal in load_tasks("gridworld")["goal"].astype(int)}
    assert cells == {(x, y) for x in range(5) for y in range(5)} - {(0, 0), (0, 1), (1, 0), (1, 1)}
    for env_type in ("point_robot_sparse", "ant_semicircle_sparse"):
        goals = load_tasks(env_type)["goal"]
        assert np.allclose(np.linalg.norm(goals, axis=-1), 1) and (goals[:, 1] > 0).all()
    assert np.abs(load_tasks("point_robot_wind")["wind"]).max() <= 0.05
    assert 0.05 < np.abs(load_tasks("point_robot_wind_narrow")["wind"]).max() <= 0.08
    assert (load_tasks("escape_room")["angle"] > 0).all() and (load_tasks("escape_room")["angle"] < np.pi).all()


# ----------------------------------------------------------------------------------------- single, batched, determinism


@every_env
def test_single_equals_batched(env_class):
    task_ids, seeds, steps = np.array([0, 7, 13]), [11, 12, 13], 20
    start = widest_start(env_class)
    actions = random_actions(env_class, (steps, 3))
    batch = make_batch(env_class, task_ids, start=start)
    batch_observations, batch_rewards = [batch.reset(seeds)], []
    for row in actions:
        observations, rewards = batch.step(row)
        batch_observations.append(observations)
        batch_rewards.append(rewards)
    assert batch_observations[0].dtype == batch_rewards[0].dtype == np.float32
    env = env_class(start=start)
    for row in range(3):
        observation, _ = env.reset(seed=seeds[row], options={"task": int(task_ids[row])})
        assert np.array_equal(observation, batch_observations[0][row])
        for t in range(steps):
            observation, reward, *_ = env.step(actions[t, row])
            assert np.array_equal(observation, batch_observations[t + 1][row])
            assert reward == batch_rewards[t][row]


@every_env
def test_global_generators_are_left_alone(env_class):
    """Defect 20: nothing is drawn from global generators, and nothing depends on them."""

    def rollout():
        batch = make_batch(env_class, [0, 1], start=widest_start(env_class))
        observations = [batch.reset([5, 6])]
        observations += [batch.step(actions)[0] for actions in random_actions(env_class, (6, 2))]
        return np.array(observations)

    first = rollout()
    np.random.seed(1)  # noqa: NPY002 (the point of the test)
    random.seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    second = rollout()
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002
    assert np.array_equal(first, second)


@every_env
def test_evaluation_starts_are_fixed(env_class):
    """Defect 17: only a start distribution that is asked for is random. The dense robot has no other."""
    starts = make_batch(env_class, [0, 1, 2]).reset([1, 2, 3])
    assert (np.ptp(starts, axis=0) > 0).any() == (env_class is PointRobotDenseEnv)


def test_start_distributions():
    tasks = {"goal": np.tile([1.0, 0.0], (4000, 1))}
    uniform = PointRobotSparseEnv.batch_class(tasks, start="uniform").reset(range(4000))
    assert (uniform.min(0) >= [-1.5, -0.5]).all() and (uniform.max(0) <= [1.5, 1.5]).all()
    assert np.allclose(uniform.mean(0), [0, 0.5], atol=0.06)
    off_circle = PointRobotSparseEnv.batch_class(tasks, start="off_circle").reset(range(1000 * 4))
    assert (np.abs(np.linalg.norm(uniform, axis=-1) - 1) < 0.2).any()
    assert (np.abs(np.linalg.norm(off_circle, axis=-1) - 1) > 0.2).all()
    radii = np.linalg.norm(EscapeRoomEnv.batch_class({"angle": np.ones(4000)}, "uniform").reset(range(4000)), axis=-1)
    assert radii.max() < 1 and abs(radii.mean() - 0.5) < 0.02
    cells = cell_index(GridworldEnv.batch_class({"goal": np.tile([2, 0], (4000, 1))}, "uniform").reset(range(4000)))
    counts = np.bincount(cells, minlength=25)
    assert counts[2] == 0 and (np.delete(counts, 2) > 100).all()


# ------------------------------------------------------------------------------------------------- dynamics and rewards


def test_gridworld_by_hand():
    env = GridworldEnv()
    task = int(np.flatnonzero((env.tasks["goal"] == [2, 1]).all(-1))[0])
    observation, _ = env.reset(options={"task": task})
    assert observation.tolist() == [0, 0]
    steps = [(3, [0, 0], -0.1), (4, [0, 0], -0.1), (2, [1, 0], -0.1), (2, [2, 0], -0.1), (1, [2, 1], 1), (0, [2, 1], 1)]
    for action, cell, expected in [*steps, (2, [3, 1], -0.1), (2, [4, 1], -0.1), (2, [4, 1], -0.1)]:
        observation, reward, _, _, info = env.step(action)
        assert observation.tolist() == cell
        assert reward == pytest.approx(expected)
        assert info["success"] == (expected == 1)
    assert cell_index(np.array([3, 1, 0.0])) == 8


def test_goal_belief_by_hand():
    belief = GoalBelief(2)
    assert belief.reward() == pytest.approx([(1 - 0.1 * 20) / 21] * 2)
    belief.update(np.array([[1, 0], [4, 4]]), np.array([-0.1, -0.1]))
    assert belief.possible.sum(-1).tolist() == [21, 20]
    belief.update(np.array([[2, 0], [3, 4]]), np.array([1, -0.1], dtype=np.float32))
    assert belief.possible.sum(-1).tolist() == [1, 19]
    assert belief.goals[belief.draw(np.random.default_rng(0))[0]].tolist() == [2, 0]
    assert belief.reward()[0] == 1


def test_point_robots_by_hand():
    sparse = at(PointRobotSparseEnv, {"goal": [[0, 1]]}, [0, 0.75])
    observations, rewards = sparse.step([[0.0, 0.5]])  # clipped to 0.1
    assert observations[0] == pytest.approx([0, 0.85]) and rewards[0] == 1
    assert sparse.step([[-0.1, -0.1]])[1][0] == 0
    dense = at(PointRobotDenseEnv, {"goal": [[0.3, 0.5]]}, [0, 0])
    assert dense.step([[0.0, 0.1]])[1][0] == pytest.approx(-0.5)
    wind = at(PointRobotWindEnv, {"wind": [[0.04, -0.03]]}, [0, 0.8])
    observations, rewards = wind.step([[-0.2, 0.1]])  # the wind is added after clipping
    assert observations[0] == pytest.approx([-0.06, 0.87]) and rewards[0] == 1
    assert PointRobotDenseEnv.batch_class({"goal": np.zeros((1, 2))}, dense=True).starts == ("uniform",)  # is dense already
    trained = PointRobotWindEnv.batch_class({"wind": np.array([[0.04, -0.03]])}, dense=True)  # to train agents on
    trained.reset()
    observations, rewards = trained.step([[0.0, 0.1]])
    assert rewards[0] == pytest.approx(-np.hypot(0.04, 0.93)) and not trained.infos["success"][0]
    assert PointRobotWindEnv.compute_rewards(None, None, observations, trained.tasks)[0] == 0
    narrow = at(PointRobotWindNarrowEnv, {"wind": [[0.04, -0.03]]}, [-0.04, 0.95])
    assert narrow.step([[0.0, 0.06]])[1][0] == 1
    assert narrow.step([[0.0, 0.03]])[1][0] == 0
    assert greedy_steps(np.array([[0.4, -0.2], [0.05, 0.01]])) == pytest.approx(np.array([[0.1, -0.05], [0.05, 0.01]]))


@pytest.mark.parametrize(
    ("door", "state", "action", "expected", "reward"),
    [
        (np.pi / 2, [0.95, 0], [0.1, 0], [0.99, 0], 0),  # the wall
        (0.19, [0.95, 0], [0.1, 0], [1.05, 0], 1),  # the door reaches π/16 = 0.196 to either side
        (0.20, [0.95, 0], [0.1, 0], [0.99, 0], 0),
        (np.pi / 2, [1.05, 0], [-0.1, 0], [0.99, 0], 0),  # from outside, too, the wall puts the robot at radius 0.99
        (0.0, [1.05, 0], [-0.1, 0], [0.95, 0], 0),
        (np.pi / 2, [0.98, 0], [0, 0.1], [0.98, 0.1], 0),  # along the wall without touching
        (np.pi / 2, [1.05, 0], [0.1, 0.1], [1.15, 0.1], 1),  # outside, away from the wall
        (3.1, [-0.95, -0.05], [-0.1, 0], [-1.05, -0.05], 1),  # the door's angle is wrapped: −3.09 is 0.09 from 3.1
        (np.pi / 2, [0.9995, 0], [0, 0], [0.99, 0], 0),  # inside the wall
    ],
)
def test_escape_room_by_hand(door, state, action, expected, reward):
    batch = at(EscapeRoomEnv, {"angle": [door]}, state)
    observations, rewards = batch.step([action])
    assert observations[0] == pytest.approx(expected, abs=1e-6)
    assert rewards[0] == reward


def test_wall_contact_against_fine_sampling():
    """The first touching point of random segments is the first of 20 000 points on them that lies in the wall."""
    generator = np.random.default_rng(0)
    positions = directions(generator.uniform(-np.pi, np.pi, 300)) * generator.uniform(0.88, 1.12, (300, 1))
    displacements = generator.uniform(-0.1, 0.1, (300, 2))
    touched, fractions = wall_contact(positions, displacements)
    grid = np.linspace(0, 1, 20_001)
    radii = np.linalg.norm(positions[:, None] + grid[:, None] * displacements[:, None], axis=-1)
    in_wall = (radii >= 0.999) & (radii <= 1)
    assert np.array_equal(touched, in_wall.any(-1))
    assert 50 < touched.sum() < 250
    assert np.abs(fractions - grid[in_wall.argmax(-1)])[touched].max() < 1e-3
    assert (fractions[~touched] == 0).all()


def test_ant_by_hand():
    """Defect 4: rewards use the state reached and the row's own goal, and the default pose is never overwritten."""
    goals = {"goal": [[1.0, 0.0], [0.0, 1.0]]}
    batch = AntSemicircleSparseEnv.batch_class(goals)
    start = batch.reset()
    assert start.shape == (2, 29) and start[0, :2].tolist() == [0, 0] and not start[0, 15:].any()
    actions = np.full((2, 8), 0.5, dtype=np.float32)
    observations, rewards = batch.step(actions)
    assert batch.simulations[0].time == pytest.approx(0.05)  # 5 simulator steps of 0.01 s
    assert rewards == pytest.approx(-0.1 * 8 * 0.25)
    batch.states[:] = start
    for data in batch.simulations:
        data.qpos[:2] = [0.9, 0.1]
    _, rewards = batch.step(np.zeros((2, 8)))
    assert rewards.tolist() == [1, 0] and batch.infos["success"].tolist() == [True, False]
    dense = AntSemicircleSparseEnv.batch_class(goals, dense=True)
    dense.reset()
    observations, rewards = dense.step(2 * actions + 1)  # clipped to 1
    x, y = observations[:, 0], observations[:, 1]
    assert rewards == pytest.approx([-abs(x[0] - 1) - abs(y[0]) - 0.8, -abs(x[1]) - abs(y[1] - 1) - 0.8], abs=1e-6)
    other = AntSemicircleDenseEnv.batch_class(goals)  # the dense variant: the same rewards, from starts outside the goals' ring
    starts = np.concatenate([other.reset([seed, seed + 1]) for seed in range(0, 40, 2)])
    assert (np.abs(np.linalg.norm(starts[:, :2], axis=-1) - 1) > 0.2).all() and len(np.unique(starts[:, 0])) == 40
    for values, state in zip(other.simulations, start, strict=True):
        values.qpos[:], values.qvel[:] = np.split(state, [15])
    assert np.array_equal(other.step(2 * actions + 1)[1], rewards)
    assert AntSemicircleDenseEnv.batch_class(goals, dense=True).start == "off_circle"  # is dense already
    env = AntSemicircleDenseEnv()
    check_env(env, skip_render_check=True)
    stored = env.compute_rewards(None, 2 * actions + 1, observations, {"goal": np.array(goals["goal"])})
    np.testing.assert_allclose(stored, rewards, atol=1e-6)
    uniform = AntSemicircleSparseEnv.batch_class(goals, start="uniform").reset([1, 2])
    assert not np.allclose(uniform[0, :2], uniform[1, :2])
    assert np.array_equal(uniform[:, 2:], start[:, 2:])  # no joint noise
    assert load_model("ant.xml").qpos0[:3].tolist() == [0, 0, 0.75]
    assert np.array_equal(batch.reset(), start)


@every_env
def test_setting_a_task_reaches_rewards_and_dynamics(env_class):
    """Defects 3 and 18: the task that was set is the one that acts, whatever task the environment had before."""
    options = {"dense": True} if env_class is AntSemicircleSparseEnv else {}
    actions = random_actions(env_class, (10,))

    def trace(env, task):
        env.reset(seed=3, options={"task": task})
        return np.array([[*observation, reward] for observation, reward, *_ in map(env.step, actions)])

    used, fresh = env_class(**options), env_class(**options)
    first = trace(used, 0)
    assert np.array_equal(trace(used, 5), trace(fresh, 5))
    if env_class in (AntSemicircleSparseEnv, PointRobotDenseEnv, PointRobotWindEnv, PointRobotWindNarrowEnv):
        assert not np.array_equal(first, trace(used, 5))
        return
    oracle = env_class.reference_policies(used.tasks, [0])["best_known"]  # rewards elsewhere are too sparse for random actions
    observation, _ = used.reset(options={"task": 5})
    total = 0
    for _ in range(used.max_episode_steps):
        observation, reward, *_ = used.step(oracle(observation[None], np.array([5]))[0])
        total += reward
    assert total > 5


# -------------------------------------------------------------------------------------------------------- relabelling


def stored_rollouts(env_class, size=8, steps=40):
    """Random roll-outs of tasks 0 to 7 as they would be stored, with the flag of the multi-episode wrapper behind."""
    batch = make_batch(env_class, np.arange(size), start=widest_start(env_class))
    observations, rewards, success = [batch.reset(range(size))], [], []
    actions = random_actions(env_class, (steps, size))
    for row in actions:
        observation, reward = batch.step(row)
        observations.append(observation)
        rewards.append(reward)
        success.append(batch.infos["success"])
    flagged = np.concatenate([observations, np.ones((steps + 1, size, 1), np.float32)], -1)
    return batch.tasks, flagged[:-1], actions, flagged[1:], np.array(rewards), np.array(success)


@every_env
def test_relabelling_with_the_own_task_changes_nothing(env_class):
    """Defects 1, 2 and 4: bit for bit, and whatever the order of the stored transitions."""
    tasks, observations, actions, next_observations, rewards, success = stored_rollouts(env_class)
    order = np.random.default_rng(0).permutation(len(rewards))
    relabelled = env_class.compute_rewards(observations[order], actions[order], next_observations[order], tasks)
    assert relabelled.dtype == np.float32
    assert np.array_equal(relabelled, rewards[order])
    assert np.array_equal(env_class.compute_success(next_observations, tasks), success)


@every_env
def test_relabelling_with_other_tasks_broadcasts(env_class):
    """Defect 15: rewards and success of every stored transition under every task; one's own stands on the diagonal."""
    tasks, *transitions, rewards, success = stored_rollouts(env_class)
    transitions = [values[:, None] for values in transitions]  # (T, 1, B, ...)
    others = {key: values[:, None] for key, values in tasks.items()}  # (tasks, 1, ...)
    relabelled = env_class.compute_rewards(*transitions, others)
    successes = env_class.compute_success(transitions[2], others)
    assert relabelled.shape == successes.shape == (len(rewards), 8, 8)
    diagonal = np.arange(8)
    assert np.array_equal(relabelled[:, diagonal, diagonal], rewards)
    assert np.array_equal(successes[:, diagonal, diagonal], success)


def test_relabelling_inside_the_goal_pays_one():
    """Defect 1: inside the radius the original's relabelling function returned minus the distance."""
    inside = np.array([[0.0, 0.9, 0.0]], dtype=np.float32)
    assert PointRobotSparseEnv.compute_rewards(inside, np.zeros((1, 2)), inside, {"goal": [[0, 1]]}).tolist() == [1]


# ------------------------------------------------------------------------------------------------ episodes in sequence


def test_boundary_of_episodes():
    """Defects 5, 6 and 7: the true start is shown; flags and success describe the state before the reset.

    The goal (2, 0) is two steps from the start; H = 3, K = 2.
    """
    problem = Problem(dataclasses.replace(load_env("gridworld"), max_episode_steps=3), 2)
    (task,) = np.flatnonzero((problem.tasks["goal"] == [2, 0]).all(1))
    actions = iter((2, 2, 0, 1, 1, 1))
    played = play(problem, [task], PolicyAgent(lambda observations: np.array([next(actions)])), (0, "test"))
    assert played["obs"][0].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 0], [0, 1, 0], [0, 2, 0]]
    assert played["next_obs"][0].tolist() == [[1, 0, 0], [2, 0, 0], [2, 0, 1], [0, 1, 0], [0, 2, 0], [0, 3, 1]]
    assert played["success"][0].tolist() == [False, True, True, False, False, False]


def test_one_episode_has_no_flag():
    assert [Problem(load_env("point_robot"), episodes).observation_size for episodes in (1, 3)] == [2, 3]
    zeros = PolicyAgent(lambda observations: np.zeros((len(observations), 2)))
    assert play(Problem(load_env("point_robot"), 1), [0], zeros, (0, "test"))["next_obs"].shape == (1, 20, 2)


def test_random_actions_fill_the_inner_box():
    """Defect 8: the policy's range [-1, 1] reaches the whole of the box of ±0.1, not a tenth of it."""
    space = PointRobotSparseEnv().action_space
    inner = scale_actions(np.random.default_rng(0).uniform(-1, 1, (500, 2)), space)
    assert inner.min() < -0.095 and inner.max() > 0.095 and abs(inner.mean()) < 0.01
    assert scale_actions(np.array([-1.0, 0.0]), space) == pytest.approx([-0.1, 0])
    assert scale_actions(np.array([3.0, -3.0]), space) == pytest.approx([0.1, -0.1])
    assert scale_actions(4, gym.spaces.Discrete(5)) == 4


# ---------------------------------------------------------------------------------------------------- reference returns


def mean_per_episode(returns):
    """Returns (N, repetitions, K) -> (K,)."""
    return returns.mean((0, 1))


def test_gridworld_optimum_is_exact():
    value, tours = optimal_tours()
    assert value == 781.5 / 21
    tasks = load_tasks("gridworld")
    played = play_repeated(GridworldEnv, tasks, lambda rows, ids: references.TourPolicy(tours, rows["goal"]), 4)
    assert played.sum(-1).mean() == pytest.approx(value, abs=1e-4)
    assert mean_per_episode(played) == pytest.approx([4.0, 11.0714, 11.0714, 11.0714], abs=1e-3)
    assert (played[:, 0, 0] > -1.4).sum() == 14  # goals found in the first episode


def test_gridworld_levels():
    levels = play_levels(GridworldEnv, load_tasks("gridworld"), np.arange(21), 4)
    assert levels["trivial"].sum(-1).mean() == pytest.approx(-6)
    assert levels["best_known"].sum(-1).mean() == pytest.approx(44.2857, abs=1e-3)
    assert levels["task_blind"].sum(-1).mean() == pytest.approx(4 * (-0.1 + 14 / 21 - 14 * 0.1 * 20 / 21), abs=1e-3)


@pytest.mark.parametrize(
    ("policy", "expected", "tolerance"),
    [(references.ThompsonPolicy, 7.8, 1.0), (references.WalkAndRedrawPolicy, 32.35, 0.7)],
)
def test_gridworld_sampling(policy, expected, tolerance):
    generator = np.random.default_rng(0)
    steer = partial(moves_towards, generator=generator)
    played = play_repeated(
        GridworldEnv, load_tasks("gridworld"), lambda rows, ids: policy(GoalBelief(len(ids)), steer, generator), 4, 100
    )
    assert played.sum(-1).mean() == pytest.approx(expected, abs=tolerance)


def test_semicircle_oracle_and_sweep():
    tasks = DOMAINS["point_robot_sparse"].population(0)
    oracle = play_levels(PointRobotSparseEnv, tasks, np.arange(181), 2)["best_known"]
    assert oracle.sum(-1).mean() == pytest.approx(106.9, abs=0.05)
    sweep = play_repeated(PointRobotSparseEnv, tasks, lambda rows, ids: references.ArcSweepPolicy(rows["goal"]), 2)
    assert mean_per_episode(sweep) == pytest.approx([39.92, 53.44], abs=0.02)
    assert np.array_equal(sweep[..., 1], oracle[..., 1])


@pytest.mark.parametrize(
    ("policy", "expected", "tolerance"),
    [(references.ThompsonPolicy, 19.1, 3), (references.WalkAndRedrawPolicy, 75.6, 2)],
)
def test_semicircle_sampling(policy, expected, tolerance):
    tasks = DOMAINS["point_robot_sparse"].population(0)
    played = play_repeated(
        PointRobotSparseEnv,
        tasks,
        lambda rows, ids: policy(references.SemicircleBelief(rows["goal"]), references.steps_towards, np.random.default_rng(0)),
        2,
        4,
    )
    assert played.sum(-1).mean() == pytest.approx(expected, abs=tolerance)


def test_wind_levels():
    levels = play_levels(PointRobotWindEnv, DOMAINS["point_robot_wind"].population(0), np.arange(2000), 2)
    assert mean_per_episode(levels["best_known"]) == pytest.approx([16.55, 16.55], abs=0.005)
    assert mean_per_episode(levels["task_blind"]) == pytest.approx([16.45, 16.45], abs=0.005)
    assert (levels["best_known"].min(), levels["best_known"].max()) == (9, 20)
    narrow = play_levels(PointRobotWindNarrowEnv, load_tasks("point_robot_wind_narrow"), np.arange(40), 1)
    assert narrow["best_known"].mean() > 5 * narrow["task_blind"].mean()  # here the wind has to be known


def test_escape_room_levels():
    """The probe's returns by sector: the first probe is reached in 10 steps, so step 11 is the first one outside."""
    tasks = DOMAINS["escape_room"].population(0)
    oracle = play_levels(EscapeRoomEnv, tasks, np.arange(2000), 1)["best_known"]
    assert oracle.mean() == pytest.approx(51.6, abs=0.05)
    probe = play_repeated(EscapeRoomEnv, tasks, lambda rows, ids: references.DoorProbePolicy(rows["angle"]), 2)
    by_sector = probe[:, 0, 0].reshape(8, 250)
    assert (by_sector == by_sector[:, :1]).all()
    assert by_sector[:, 0].tolist() == [50, 45, 41, 36, 31, 26, 22, 17]
    assert np.array_equal(probe[..., 1], oracle[..., 0])


def test_dense_levels():
    levels = play_levels(PointRobotDenseEnv, load_tasks("point_robot_dense"), np.arange(20), 1, repetitions=5)
    means = {name: returns.mean() for name, returns in levels.items()}
    assert means["trivial"] < means["task_blind"] < means["best_known"] < 0


@pytest.mark.parametrize("name", DOMAINS)
def test_stored_references(name):
    document = json.loads((REPOSITORY / "configs/references" / f"{name}.json").read_text())
    num_tasks = len(next(iter(load_tasks(name).values())))
    assert document["references"].keys() == document["per_task"].keys()
    for returns in document["per_task"].values():
        assert np.shape(returns) == (num_tasks, DOMAINS[name].episodes)
    assert document["command"] == f"python -m baselines.borel.references --domain {name}"


def test_references_command(tmp_path, capsys):
    references.main(["--domain", "point_robot_wind", "--output_dir", str(tmp_path)])
    made = json.loads((tmp_path / "point_robot_wind.json").read_text())
    stored = json.loads((REPOSITORY / "configs/references/point_robot_wind.json").read_text())
    assert made["references"] == stored["references"] and made["per_task"] == stored["per_task"]
    assert "best_known" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        references.main(["--domain", "two_rooms", "--output_dir", str(tmp_path)])
    assert refused.value.code == 2
