"""BOReL: transformations of the data, and replayed agents.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import dataclasses

import numpy as np
import pytest
import torch
from borel_helpers import parsed, random_rollouts
from helpers import problem_of

from baselines.borel import hindsight_data_collection, online_training
from baselines.borel import train_offline_agent as offline
from baselines.borel import train_single_agent as single
from baselines.borel import train_vae_offline as vae_script
from baselines.borel.beliefs import load_belief_model
from baselines.borel.data import load_rollouts
from baselines.borel.mixing import load_logs, load_replays, mix, relabel_rewards, replay_policies
from src.run.files import load_tensors, read_json


@pytest.mark.parametrize("env_type", ["gridworld", "point_robot_sparse", "cheetah_vel"])
def test_relabelling_with_the_own_task_changes_nothing(env_type):
    problem = problem_of(env_type, 2)
    rollouts = random_rollouts(problem, [3, 5], 2)
    for row, task in enumerate(rollouts.task_ids):
        recomputed = problem.rewards(task, rollouts.obs[row], rollouts.actions[row], rollouts.next_obs[row])
        np.testing.assert_allclose(recomputed, rollouts.rewards[row], atol=2e-3 if env_type == "cheetah_vel" else 0)


def test_reward_relabelling():
    """Defects 10 and 15: the first half of the episodes of each roll-out comes, once, from another task's data as they
    were; its rewards are the receiving task's; the other episodes stay.
    """
    problem = problem_of("gridworld", 4)
    rollouts = random_rollouts(problem, [0, 7, 20], 6)
    mixed = relabel_rewards(rollouts, problem, np.random.default_rng(0))
    assert rollouts.fingerprint() == random_rollouts(problem, [0, 7, 20], 6).fingerprint()  # the source is untouched
    for key, values in mixed.arrays().items():
        np.testing.assert_array_equal(values[:, :, 30:], rollouts.arrays()[key][:, :, 30:])
    moved = (mixed.next_obs != rollouts.next_obs).any((2, 3))
    assert moved.sum(1).tolist() == [6, 6, 6]
    for row, task in enumerate(rollouts.task_ids):
        expected = problem.rewards(task, mixed.obs[row], mixed.actions[row], mixed.next_obs[row])
        np.testing.assert_array_equal(mixed.rewards[row], expected)
        for number in np.flatnonzero(moved[row]):
            for episode in (slice(0, 15), slice(15, 30)):
                same = (rollouts.next_obs[:, :, episode] == mixed.next_obs[row, number, episode]).all((2, 3))
                assert same.any(1)[np.arange(3) != row].any() and not same[row].any()


def test_any_number_of_episodes_may_be_relabelled():
    """Each roll-out gets its first u episodes from other tasks, u uniform in 1..4; the rewards are the receiving task's."""
    problem = problem_of("gridworld", 4)
    rollouts = random_rollouts(problem, [0, 7, 20], 40)
    mixed = relabel_rewards(rollouts, problem, np.random.default_rng(0), "any")
    moved = (mixed.next_obs != rollouts.next_obs).any(3).reshape(3, 40, 4, 15).any(3)
    many = moved.sum(2)
    assert (moved == (np.arange(4) < many[..., None])).all()  # the first ones
    assert np.bincount(many.ravel(), minlength=5).tolist()[0] == 0 and (np.bincount(many.ravel(), minlength=5)[1:] > 15).all()
    for row, task in enumerate(rollouts.task_ids):
        expected = problem.rewards(task, mixed.obs[row], mixed.actions[row], mixed.next_obs[row])
        np.testing.assert_array_equal(mixed.rewards[row], expected)


def test_relabelling_reads_no_reward_across_a_reset():
    """Converted logs hold the last observation of an episode in place of the next start: Cheetah's speed there is nonsense."""
    problem = problem_of("cheetah_vel", 2)
    rollouts = random_rollouts(problem, [3, 5], 6)
    rollouts.next_obs[:, :, 199, -4] = 5  # as of a robot that has run
    rollouts.obs[:, :, 200] = rollouts.next_obs[:, :, 199]
    stale = problem.rewards(3, rollouts.obs[0], rollouts.actions[0], rollouts.next_obs[0])
    assert stale[:, 200].max() < -30
    rollouts = dataclasses.replace(rollouts, starts_recorded=False)
    mixed = relabel_rewards(rollouts, problem, np.random.default_rng(0), "any")
    moved = (mixed.next_obs[:, :, 200:-1] != rollouts.next_obs[:, :, 200:-1]).any((2, 3))
    assert moved.any() and mixed.rewards[:, :, 200].min() > -10
    for row, number in np.argwhere(moved):
        given = (rollouts.next_obs[:, :, :199] == mixed.next_obs[row, number, 200:399]).all((2, 3))
        assert given.sum() == 1 and not given[row].any()
        own = problem.rewards(
            rollouts.task_ids[row], *(mixed.arrays()[key][row, number, 200:] for key in ("obs", "actions", "next_obs"))
        )
        np.testing.assert_array_equal(own, mixed.rewards[row, number, 200:])


def test_fresh_relabelling_differs_by_epoch(grid):
    """Every epoch draws its own mixture; the same epoch draws the same again; the published way knows one draw."""
    _, flags = grid
    run, mixing, *_ = parsed(vae_script, [*flags, "--hindsight-relabelling", "True"])
    logs = load_logs(run, mixing)
    once, first, again, second = (mix(run, mixing, *logs, "", *epoch).rewards for epoch in ((), (0,), (0,), (1,)))
    assert (first == again).all() and (first != second).any() and (first != once).any()
    plain = dataclasses.replace(mixing, hindsight_relabelling=False)
    assert mix(run, plain, *logs, "", 0) is logs[0]


def test_dqn_agents_are_replayed(grid, tmp_path):
    """The gridworld's agents too can play in each other's tasks, with the share of random actions that is asked for."""
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--tensorboard", "False"]
    single.main([*flags, "--task-id-start", "0", "--task-id-end", "21"])
    hindsight_data_collection.main([*flags, "--num-rollouts", "1"])
    document = read_json(tmp_path / "datasets/gridworld/replay+debug/task_020/task.json")
    assert document["policies"] == list(range(21))


def test_policy_replaying(wind):
    """Defect 18: replays obey the wind of the task they are filed under, and come from all of the agents; the first episode
    of every roll-out is one of them.
    """
    folder, flags = wind
    problem = parsed(vae_script, flags)[0].problem
    rollouts = load_rollouts(folder / "datasets/tiny_wind/log", problem, range(3), "")
    replays = load_replays(folder / "datasets/tiny_wind/replay", problem, range(3), "")
    assert replays[1]["policies"].tolist() == [0, 0, 1, 1, 2, 2]
    mixed = replay_policies(rollouts, problem, replays, 2, np.random.default_rng(0))
    longer = replay_policies(rollouts, problem, replays, 2, np.random.default_rng(0), "any")
    second = (longer.next_obs[:, :, 25:] != rollouts.next_obs[:, :, 25:]).any((2, 3))
    assert second.any() and not second.all()
    for row in range(3):
        displacement = mixed.next_obs[row, ..., :2] - mixed.obs[row, ..., :2] - 0.1 * mixed.actions[row]
        np.testing.assert_allclose(displacement, np.broadcast_to(problem.tasks["wind"][row], displacement.shape), atol=1e-5)
    for key, values in mixed.arrays().items():
        np.testing.assert_array_equal(values[:, :, 25:], rollouts.arrays()[key][:, :, 25:])
    assert not np.array_equal(mixed.obs[:, :, 1:25], rollouts.obs[:, :, 1:25])


def test_state_decoder_is_loaded(wind):
    """Defect 12: a belief model read back from disk has its state decoder, and the method's name tells what is missing."""
    folder, flags = wind
    vae_script.main([*flags, "--policy-replaying", "True"])
    vae_script.main(flags)
    problem = parsed(vae_script, flags)[0].problem
    saved = folder / "saves/tiny_wind/log/borel/vae"
    model = load_belief_model(saved / "replay__seed_0", problem, "")
    weights = load_tensors(saved / "replay__seed_0" / "model.safetensors")
    assert torch.equal(model.state_dict()["state_decoder.of_latent.weight"], weights["state_decoder.of_latent.weight"])
    for name, method in (("replay__seed_0", "borel"), ("plain__seed_0", "borel-no_replaying")):
        offline.main([*flags, "--vae-model-name", name, "--transform-data-bamdp", "True"])
        assert (folder / f"results/tiny_wind/log/{method}/bamdp-strict/seed_0.json").exists()


def test_replaying_reaches_the_policy(wind, capsys):
    """The policy's data hold the other agents' first episodes, under the wind of the task; a plain belief model refuses."""
    _, flags = wind
    for extra in (["--policy-replaying", "True"], []):
        vae_script.main([*flags, "--seed", "3", *extra])
    common = [*flags, "--seed", "3", "--transform-data-bamdp", "True"]
    run, hyper, mixing, *_ = parsed(offline, [*common, "--vae-model-name", "replay__seed_3"])
    name, path = offline.find_model(run, hyper)
    model = load_belief_model(path, run.problem, "")
    plain = offline.load_hyper_states(run, hyper, mixing, model, name)
    mixed = offline.load_hyper_states(run, hyper, dataclasses.replace(mixing, policy_replaying=True), model, name)
    assert (plain["states"][:, :, :25, :2] != mixed["states"][:, :, :25, :2]).any()
    assert torch.equal(plain["actions"][:, :, 25:], mixed["actions"][:, :, 25:])
    steps = mixed["states"][:, :, 1:25, :2] - mixed["states"][:, :, :24, :2] - 0.1 * mixed["actions"][:, :, :24]
    wind = torch.from_numpy(run.problem.tasks["wind"][:3]).float()[:, None, None].expand_as(steps)
    torch.testing.assert_close(steps, wind, atol=1e-4, rtol=0)
    with pytest.raises(SystemExit):
        offline.main([*common, "--vae-model-name", "plain__seed_3", "--policy-replaying", "True"])
    assert "--policy-replaying False" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        offline.main([*common, "--vae-model-name", "replay__seed_3", "--hindsight-relabelling", "True"])
    assert "use --policy-replaying True" in capsys.readouterr().err


def test_rewards_expected_under_the_oracle_belief():
    """Gridworld: 21 goals are possible at first; the start is none of them; a goal that was entered is certain."""
    next_obs = np.array([[[0, 0, 0], [2, 0, 0], [3, 0, 0], [2, 0, 0], [2, 1, 0]]], dtype=np.float32)
    rewards = np.array([[-0.1, -0.1, 1, -0.1, -0.1]], dtype=np.float32)
    expected = online_training.oracle_rewards(next_obs, rewards)[0]
    np.testing.assert_allclose(expected, [-0.1, (1 - 0.1 * 20) / 21, (1 - 0.1 * 19) / 20, -0.1, -0.1], rtol=1e-6)
