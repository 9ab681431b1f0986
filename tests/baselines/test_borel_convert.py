"""BOReL: the converter of the original layout and of datasets.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import numpy as np
import torch
from gymnasium.spaces import Box
from helpers import assert_refused, problem_of

from baselines.borel import convert
from baselines.borel.data import load_rollouts
from baselines.borel.problem import play, random_actions
from envs.multi_episode import scale_actions, unscale_actions
from src.data import trajectories
from src.run.files import read_json

torch.set_num_threads(1)


def write_original(folder, problem, task, rollouts=3, name=None, **changes):
    """A folder as the original writes it: flat arrays, roll-outs in sequence, one-hot actions, stale starts."""
    played = play(problem, np.full(rollouts, task), random_actions(problem, np.random.default_rng(task)), (task, "original"))
    obs = played["obs"].copy()
    obs[:, 15::15] = played["next_obs"][:, 14:-1:15]
    goal = problem.tasks["goal"][task]
    path = folder / (name or f"seed_{task + 40}_goal_{goal[0]:.3f}_{goal[1]:.3f}")
    path.mkdir(parents=True)
    arrays = {"obs": obs, "next_obs": played["next_obs"], "actions": np.eye(5)[played["actions"]], "rewards": played["rewards"]}
    for key, values in {**arrays, **changes}.items():
        values = values if values.ndim == 1 or key in changes else values.reshape(rollouts * problem.steps, -1)
        np.save(path / f"{key}.npy", values)
    return played


def test_converter(tmp_path):
    problem = problem_of("gridworld", 4)
    played = write_original(tmp_path / "original", problem, 3)
    write_original(tmp_path / "original", problem, 12)
    flags = ["--env-type", "gridworld", "--output_dir", str(tmp_path), "--source", str(tmp_path / "original")]
    convert.main(flags)
    rollouts = load_rollouts(tmp_path / "datasets/gridworld/log", problem, [3, 12], "")
    assert not rollouts.starts_recorded
    for key in ("actions", "rewards", "next_obs"):
        np.testing.assert_array_equal(rollouts.arrays()[key][0], played[key])
    assert read_json(tmp_path / "datasets/gridworld/log/task_003/task.json")["seed"] == 43


def test_datasets_become_logs(tmp_path, capsys):
    """K successive episodes of a dataset are one roll-out, flags and starts included, as if BOReL had collected them itself."""
    problem, single_episodes = problem_of("cheetah_vel", 2), problem_of("cheetah_vel", 1)
    tasks = np.repeat([3, 7], 5)
    played = play(single_episodes, tasks, random_actions(problem, np.random.default_rng(0)), (0, "dataset"))
    observations = np.concatenate([played["obs"], played["next_obs"][:, -1:]], 1)
    lengths, known = np.full(10, 200), trajectories.task_parameters(problem.environment, [3, 7])
    episodes = trajectories.Trajectories(observations, played["actions"], played["rewards"], lengths, tasks, known)
    trajectories.save(episodes, tmp_path / "datasets", problem.env, "replay", {})
    flags = ["--env-type", "cheetah_vel", "--output_dir", str(tmp_path)]
    agent = tmp_path / "datasets/cheetah_vel/log/task_003/agent.safetensors"
    agent.parent.mkdir(parents=True)
    agent.write_bytes(b"of a log that is replaced")
    convert.main([*flags, "--dataset", "replay"])
    assert not agent.exists()
    document = read_json(tmp_path / "datasets/cheetah_vel/log/task_003/task.json")
    assert document["dataset_sha256"] == trajectories.load(tmp_path / "datasets", "cheetah_vel", "replay").metadata["sha256"]
    rollouts = load_rollouts(tmp_path / "datasets/cheetah_vel/log", problem, [3, 7], "")
    assert rollouts.obs.shape == (2, 2, 400, 21) and rollouts.starts_recorded
    flagged = rollouts.next_obs[..., -1] == 1
    assert flagged.sum() == 8 and flagged[..., [199, 399]].all() and not rollouts.obs[..., -1].any()
    np.testing.assert_array_equal(rollouts.obs[1, 1, 200:, :-1], observations[8, :200])  # task 7's fourth episode
    np.testing.assert_array_equal(rollouts.next_obs[1, 1, 200:, :-1], observations[8, 1:])
    np.testing.assert_allclose(rollouts.actions[1, 1, 200:], played["actions"][8], atol=1e-6)
    own = problem.rewards(7, *(rollouts.arrays()[key][1] for key in ("obs", "actions", "next_obs")))
    np.testing.assert_allclose(own, rollouts.rewards[1], atol=1e-3)
    assert read_json(tmp_path / "datasets/cheetah_vel/log/task_007/task.json")["source"] == "replay dataset"
    assert_refused(capsys, convert, [*flags, "--dataset", "medium"], f"--data_type medium --output_dir {tmp_path}")
    assert_refused(capsys, convert, [*flags, "--dataset", "replay", "--max-rollouts-per-task", "6"], "fewer than 6 episodes")
    assert_refused(capsys, convert, [*flags, "--dataset", "replay", "--source", "here"], "give either --source or --dataset")
    assert_refused(capsys, convert, flags, "give either --source or --dataset")


def test_dataset_of_a_sibling(tmp_path, capsys):
    """The dense ant's episodes become logs of the sparse one, whose rewards are computed anew."""
    problem, dense = problem_of("ant_semicircle_sparse", 2), problem_of("ant_semicircle", 1)
    tasks = np.repeat([2, 5], 2)
    played = play(dense, tasks, random_actions(dense, np.random.default_rng(0)), (0, "dataset"))
    observations = np.concatenate([played["obs"], played["next_obs"][:, -1:]], 1)
    observations[0, 90, :2] = problem.tasks["goal"][2]  # a visit to the goal
    known = trajectories.task_parameters(dense.environment, [2, 5])
    episodes = trajectories.Trajectories(
        observations, played["actions"], played["rewards"], np.full(4, 200), tasks, known
    )  # fmt: skip
    trajectories.save(episodes, tmp_path / "datasets", dense.env, "replay", {})
    flags = ["--output_dir", str(tmp_path), "--dataset-of", "ant_semicircle"]
    convert.main(["--env-type", "ant_semicircle_sparse", "--dataset", "replay", *flags])
    rollouts = load_rollouts(tmp_path / "datasets/ant_semicircle_sparse/log", problem, [2, 5], "")
    assert rollouts.rewards.shape == (2, 1, 400) and played["rewards"].max() < -0.1
    cost = 0.1 * (rollouts.actions.astype(float) ** 2).sum(-1)
    np.testing.assert_allclose(rollouts.rewards[0, 0, 89], 1 - cost[0, 0, 89], atol=1e-6)
    assert rollouts.rewards[1].max() <= 0
    document = read_json(tmp_path / "datasets/ant_semicircle_sparse/log/task_005/task.json")
    assert document["source"] == "replay dataset of ant_semicircle"
    for env_type, extra, message in (
        ("cheetah_vel", ["--dataset", "replay"], "has other observations, actions or tasks than cheetah_vel"),
        ("ant_semicircle_sparse", ["--source", "here"], "has no effect without --dataset"),
        ("ant_semicircle_sparse", ["--dataset", "medium"], f"medium --output_dir {tmp_path}"),
    ):
        assert_refused(capsys, convert, ["--env-type", env_type, *extra, *flags], message)
    wrong = ["--env-type", "ant_semicircle_sparse", "--dataset", "replay", "--dataset-of", "ant_semicircel"]
    assert_refused(capsys, convert, wrong, "unknown --dataset-of ant_semicircel (did you mean ant_semicircle")


def test_unscaled_actions_are_those_of_the_policy():
    space = Box(np.float32([-2, 0]), np.float32([2, 0.5]))
    actions = np.random.default_rng(0).uniform(-1, 1, (9, 2)).astype(np.float32)
    np.testing.assert_allclose(unscale_actions(scale_actions(actions, space), space), actions, atol=1e-6)


def test_rewards_that_are_not_stored_are_computed(tmp_path, capsys):
    """Where they read s, which the original does not record at later starts, they cannot be."""
    problem = problem_of("gridworld", 4)
    played = write_original(tmp_path / "original", problem, 3)
    next((tmp_path / "original").glob("*/rewards.npy")).unlink()
    convert.main(["--env-type", "gridworld", "--output_dir", str(tmp_path), "--source", str(tmp_path / "original")])
    rollouts = load_rollouts(tmp_path / "datasets/gridworld/log", problem, [3], "")
    np.testing.assert_array_equal(rollouts.rewards[0], played["rewards"])
    run = problem_of("cheetah_vel", 2)
    path = tmp_path / "cheetah" / f"goal_{run.tasks['velocity'][3]:.3f}"
    path.mkdir(parents=True)
    for key, values in play(run, [3], random_actions(run, np.random.default_rng(0)), (0, "original")).items():
        np.save(path / f"{key}.npy", values[0])
    flags = ["--env-type", "cheetah_vel", "--output_dir", str(tmp_path), "--source", str(tmp_path / "cheetah")]
    convert.main(flags)
    (path / "rewards.npy").unlink()
    assert_refused(capsys, convert, flags, "rewards.npy is missing, and the other arrays do not tell all of the rewards")


def test_converter_refuses_what_it_cannot_trust(tmp_path, capsys):
    problem = problem_of("gridworld", 4)
    flags = ["--env-type", "gridworld", "--output_dir", str(tmp_path)]
    cases = {
        "not a plain numpy array": {"rewards": np.array([{"code": 1}], dtype=object)},
        "whole number of roll-outs": {"rewards": np.zeros((17, 1))},
        "finite": {"next_obs": np.full((180, 3), np.nan)},
        "numbers per step": {"obs": np.zeros((180, 5))},
        "actions.npy has 5 numbers per step": {"actions": np.full((180, 5), 0.2)},  # not one-hot
        "has shape (), which": {"obs": np.array(1.0)},
        "obs.npy holds no roll-out": {"obs": np.zeros((0, 3))},
        "next_obs.npy holds no roll-out": {"next_obs": np.zeros((60, 0, 3))},
        "next_obs.npy holds observations that gridworld": {"next_obs": np.full((180, 3), 5)},
        "/obs.npy holds observations that gridworld": {"obs": np.full((180, 3), 0.5)},
        "are not those of task 3": {"rewards": np.ones((180, 1))},
    }
    cases |= {f"they are 0 to 4{' ' * number}": {"actions": np.full(180, action)} for number, action in enumerate((9, -1, 1.5))}
    for number, (message, changes) in enumerate(cases.items()):
        source = tmp_path / f"case_{number}"
        write_original(source, problem, 3, **changes)
        assert_refused(capsys, convert, [*flags, "--source", str(source)], message.rstrip())
    write_original(tmp_path / "packed", problem, 3)
    (path,) = (tmp_path / "packed").glob("*/rewards.npy")
    np.savez(path.with_suffix(".npz"), rewards=np.zeros(180))
    for content in (path.with_suffix(".npz").read_bytes(), b"PK\x03\x04 and no more", b""):
        path.write_bytes(content)
        assert_refused(capsys, convert, [*flags, "--source", str(tmp_path / "packed")], "rewards.npy is not a plain numpy array")
    write_original(tmp_path / "elsewhere", problem, 3, name="seed_1_goal_0.500_0.500")
    assert_refused(capsys, convert, [*flags, "--source", str(tmp_path / "elsewhere")], "0 tasks of")
    assert_refused(capsys, convert, [*flags, "--source", str(tmp_path / "nowhere")], "no folder called")
    assert not (tmp_path / "datasets").exists()
