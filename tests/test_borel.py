"""BOReL: transformations of the data, the scripts end to end, bad input.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import ROOT, assert_refused, problem_of

from baselines.borel import convert, hindsight_data_collection, online_training
from baselines.borel import train_offline_agent as offline
from baselines.borel import train_single_agent as single
from baselines.borel import train_vae_offline as vae_script
from baselines.borel.agents import DQN
from baselines.borel.beliefs import belief_rewards, hyper_states, load_belief_model
from baselines.borel.data import Rollouts, load_rollouts
from baselines.borel.evaluate import BeliefAgent, evaluate, reference_episodes
from baselines.borel.mixing import load_logs, load_replays, mix, relabel_rewards, replay_policies
from baselines.borel.problem import play, random_actions
from baselines.borel.settings import parse
from baselines.borel.vae import LossSettings
from src import report
from src.checkpoint import UserError, load_tensors, read_json
from src.config import known_env_types, read_yaml
from src.results import read_results
from src.seeding import numpy_generator

SCRIPTS = {"train_single_agent": single, "hindsight_data_collection": hindsight_data_collection, "convert": convert,
           "train_vae_offline": vae_script, "train_offline_agent": offline, "online_training": online_training}  # fmt: skip


torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------- transformations of data


def random_rollouts(problem, tasks, count, seed=0):
    rows = np.repeat(tasks, count)
    played = play(problem, rows, random_actions(problem, np.random.default_rng(seed)), (seed, "test"))
    arrays = {key: values.reshape(len(tasks), count, *values.shape[1:]) for key, values in played.items() if key != "success"}
    return Rollouts(np.asarray(tasks), **arrays)


@pytest.mark.parametrize("env_type", ["gridworld", "point_robot_sparse", "cheetah_vel"])
def test_relabelling_with_the_own_task_changes_nothing(env_type):
    problem = problem_of(env_type, 2)
    rollouts = random_rollouts(problem, [3, 5], 2)
    for row, task in enumerate(rollouts.task_ids):
        recomputed = problem.rewards(task, rollouts.obs[row], rollouts.actions[row], rollouts.next_obs[row])
        np.testing.assert_allclose(recomputed, rollouts.rewards[row], atol=2e-3 if env_type == "cheetah_vel" else 0)


def test_reward_relabelling():
    """Defects 10 and 15: the first half of the episodes of each chosen roll-out comes, once, from another task's data as
    they were; its rewards are the receiving task's; the other episodes and roll-outs stay.
    """
    problem = problem_of("gridworld", 4)
    rollouts = random_rollouts(problem, [0, 7, 20], 6)
    mixed = relabel_rewards(rollouts, problem, 0.5, np.random.default_rng(0))
    assert rollouts.fingerprint() == random_rollouts(problem, [0, 7, 20], 6).fingerprint()  # the source is untouched
    for key, values in mixed.arrays().items():
        np.testing.assert_array_equal(values[:, :, 30:], rollouts.arrays()[key][:, :, 30:])
    moved = (mixed.next_obs != rollouts.next_obs).any((2, 3))
    assert moved.sum(1).tolist() == [3, 3, 3]
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
    mixed = relabel_rewards(rollouts, problem, 1.0, np.random.default_rng(0), "any")
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
    mixed = relabel_rewards(rollouts, problem, 1.0, np.random.default_rng(0), "any")
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
    args = parse(vae_script.make_parser(), "train_vae_offline", [*flags, "--hindsight-relabelling", "True"])
    logs = load_logs(args)
    once, first, again, second = (mix(args, *logs, "", *epoch).rewards for epoch in ((), (0,), (0,), (1,)))
    assert (first == again).all() and (first != second).any() and (first != once).any()
    plain = parse(vae_script.make_parser(), "train_vae_offline", [*flags, "--hindsight-relabelling", "False"])
    assert mix(plain, *logs, "", 0) is logs[0]


TINY_WIND = """
env_name: TinyWind-v0
entry_point: envs.borel_points:PointRobotWindEnv
max_episode_steps: 25
train_tasks: [0, 3]
test_tasks: [3, 5]
baselines:
  borel:
    train_single_agent: {num_iters: 1, num_init_rollouts_pool: 3, num_rollouts_per_iter: 1, rl_updates_per_iter: 2,
                         batch_size: 8, hidden_layers: [8], log_interval: 1}
    hindsight_data_collection: {num_rollouts: 2}
    train_vae_offline: {num_iters: 1, aggregator_hidden_size: 8, decode_state: true, input_action: true,
                        num_decoded_transitions: 5, vae_batch_num_elbo_terms: 5}
    train_offline_agent: {num_iters: 2, rl_updates_per_iter: 2, batch_size: 8, hidden_layers: [8], log_interval: 1}
"""


@pytest.fixture(scope="module")
def wind(tmp_path_factory):
    """Flags of a tiny wind problem with logs and replays, whose tasks differ in their dynamics."""
    folder = tmp_path_factory.mktemp("wind")
    (folder / "tiny_wind.yaml").write_text(TINY_WIND)
    flags = ["--config", str(folder / "tiny_wind.yaml"), "--output_dir", str(folder), "--tensorboard", "False"]
    single.main([*flags, "--task-id-start", "0", "--task-id-end", "3"])
    hindsight_data_collection.main(flags)
    return folder, flags


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
    problem = parse(vae_script.make_parser(), "train_vae_offline", flags).problem
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
    problem = parse(vae_script.make_parser(), "train_vae_offline", flags).problem
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
    args = parse(offline.make_parser(), "train_offline_agent", [*common, "--vae-model-name", "replay__seed_3"])
    name, path = offline.find_model(args)
    model = load_belief_model(path, args.problem, "")
    plain = offline.load_hyper_states(args, model, name)
    args.policy_replaying = True
    mixed = offline.load_hyper_states(args, model, name)
    assert (plain["states"][:, :, :25, :2] != mixed["states"][:, :, :25, :2]).any()
    assert torch.equal(plain["actions"][:, :, 25:], mixed["actions"][:, :, 25:])
    steps = mixed["states"][:, :, 1:25, :2] - mixed["states"][:, :, :24, :2] - 0.1 * mixed["actions"][:, :, :24]
    wind = torch.from_numpy(args.problem.tasks["wind"][:3]).float()[:, None, None].expand_as(steps)
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


# ----------------------------------------------------------------------------------------------------- the scripts, by shell


def shell(*words, check=True, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Flags of a gridworld run whose three stages went through the shell, hyphens as published."""
    folder = tmp_path_factory.mktemp("grid")
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(folder), "--tensorboard", "False"]
    shell("baselines.borel.train_single_agent", *flags, "--task-id-start", "0", "--task-id-end", "21")
    done = shell("baselines.borel.train_vae_offline", *flags, "--hindsight-relabelling", "True")
    follow = done.stdout.split("next: python -m ")[1].split()  # the printed command is the next stage
    assert follow[0] == "baselines.borel.train_offline_agent"
    shell(*follow, "--tensorboard", "False")
    return folder, flags


def test_pipeline_by_shell(grid):
    folder, _ = grid
    (result,) = read_results(folder / "results")
    assert (result["method"], result["quality"], result["regime"]) == ("borel+debug", "log", "bamdp")
    assert np.shape(result["returns"]) == np.shape(result["success"]) == (21, 4)
    levels = {"trivial", "oracle", "thompson", "walk_and_redraw", "bayes_optimal", "single_task_agents"}
    assert set(result["reference"]) >= levels
    assert sum(np.mean(result["reference_episodes"]["bayes_optimal"], axis=0)) == pytest.approx(37.214, abs=1e-3)
    assert len(result["belief"]["spread"]) == 61 and result["curve"]["gradient_steps"] == [6, 12]
    paths = result["trajectories"]["0"]
    assert np.shape(paths) == (4, 16, 2) and paths[0][0] == [0, 0]  # defect 17: evaluations start at the origin
    done = shell("src.report", "--results", str(folder / "results"), "--output", str(folder / "report"))
    assert "bayes_optimal" in done.stdout
    assert len(list((folder / "report").glob("*.png"))) >= 4


def test_log_of_a_task(grid):
    folder, _ = grid
    document = read_json(folder / "datasets/gridworld/log+debug/task_007/task.json")
    assert document["parameters"] == {"goal": [1, 2]} and document["num_rollouts"] == 7
    tensors = load_tensors(folder / "datasets/gridworld/log+debug/task_007/rollouts.safetensors")
    assert tensors["obs"].shape == (7, 60, 3) and tensors["actions"].shape == (7, 60)
    assert not tensors["terminated"].any()
    assert torch.equal(tensors["truncated"][0].nonzero()[:, 0], torch.tensor([14, 29, 44, 59]))
    assert torch.equal(tensors["next_obs"][0, :, 2].nonzero()[:, 0], torch.tensor([14, 29, 44, 59]))
    inside = torch.arange(59)[torch.arange(59) % 15 != 14]
    assert torch.equal(tensors["obs"][:, inside + 1], tensors["next_obs"][:, inside])


def finished_data(folder, method="borel+debug"):
    """(policy, relabelled data) of a finished run, as bytes."""
    policy = folder / "saves/gridworld/log/borel/offline" / method / "seed_0/policy.safetensors"
    cache = sorted((folder / "datasets/gridworld/log+debug/data_bamdp").rglob("*.safetensors"))
    return policy.read_bytes(), [path.read_bytes() for path in cache]


def test_relabelled_data_are_read_back(grid, capsys):
    """Defect 11: False after True, and True a second time, give the same data and the same policy."""
    folder, flags = grid
    first = finished_data(folder)
    for transform in ("False", "1", "yes"):
        offline.main([*flags, "--no-resume", "--transform-data-bamdp", transform])
        assert finished_data(folder) == first
    with pytest.raises(SystemExit):
        offline.main([*flags, "--no-resume", "--hindsight-relabelling", "True"])
    assert "run once with --transform-data-bamdp True" in capsys.readouterr().err
    assert finished_data(folder) == first  # a command that is refused leaves everything as it was


@pytest.mark.parametrize("value", ["../../../q", "q/r", "..", ".", "", "a\\b"])
def test_names_lie_where_they_are_looked_for(tmp_path, capsys, value):
    """A name with a separator would be read and written elsewhere; main folders may have any."""
    base = ["--env-type", "gridworld", "--output_dir", str(tmp_path / "out")]
    names = {
        single: ["--save-dir"],
        convert: ["--save-dir"],
        hindsight_data_collection: ["--data-dir", "--replaying-data-dir"],
        vae_script: ["--vae-model-name", "--save-dir-prefix", "--data-dir", "--replaying-data-dir"],
        offline: ["--method", "--vae-model-name", "--data-dir", "--replaying-data-dir", "--relabelled-data-dir"],
        online_training: ["--method"],
    }
    for script, flags in names.items():
        for flag in flags:
            assert_refused(capsys, script, [*base, flag, value], f"{flag}: {value!r} is not a name: leave out slashes")
    assert not list(tmp_path.iterdir())
    args = parse(
        vae_script.make_parser(), "train_vae_offline", [*base, "--save-dir", "./trained_vae", "--main-data-dir", "./batch_data"]
    )
    assert (args.save_dir, args.main_data_dir) == ("./trained_vae", "./batch_data")


def test_settings_of_the_stages_do_not_mix(grid):
    """Defect 11: each stage keeps its own seed and settings; the belief model's do not override the policy's."""
    folder, flags = grid
    offline.main([*flags, "--seed", "5", "--transform-data-bamdp", "True", "--vae-model-name", "relabel+debug__seed_0"])
    result = read_json(folder / "results/gridworld/log/borel+debug/bamdp-strict/seed_5.json")
    assert result["seed"] == 5 and result["config"]["seed"] == 5 and result["env_type"] == "gridworld"
    assert read_json(folder / "saves/gridworld/log/borel/vae/relabel+debug__seed_0/config.json")["seed"] == 0
    (folder / "results/gridworld/log/borel+debug/bamdp-strict/seed_5.json").unlink()


def test_rewards_are_relabelled_before_the_encoder_reads_them(grid):
    """Defect 16: the stored beliefs are those of the stored rewards, and terminals in the goal follow the new task."""
    folder, flags = grid
    extra = ["--hindsight-relabelling", "True", "--terminate-in-goal", "True", "--relabelled-data-dir", "mixed"]
    args = parse(offline.make_parser(), "train_offline_agent", [*flags, *extra, "--transform-data-bamdp", "True"])
    name, path = offline.find_model(args)
    model = load_belief_model(path, args.problem, "")
    data = offline.load_hyper_states(args, model, name)
    plain = load_rollouts(folder / "datasets/gridworld/log+debug", args.problem, range(21), "")
    assert (data["rewards"].numpy() != plain.rewards).any()
    assert torch.equal(data["terminated"], data["rewards"] == 1)
    states = data["states"]
    mixed = relabel_rewards(plain, args.problem, 1.0, numpy_generator(0, "relabelling for the policy"))
    task = 4
    arrays = {key: values[task] for key, values in mixed.arrays().items()}
    np.testing.assert_array_equal(arrays["rewards"], data["rewards"][task])
    torch.testing.assert_close(hyper_states(model, args.problem, **arrays), states[task])


def test_relabelling_is_on_or_off_in_both_stages(grid, tmp_path):
    """The command that a plain belief model prints leaves the policy's data plain; relabelled ones are refused."""
    folder, flags = grid
    plain = [word if word != str(folder) else str(tmp_path) for word in flags]
    shutil.copytree(folder / "datasets", tmp_path / "datasets")
    done = shell("baselines.borel.train_vae_offline", *plain, "--hindsight-relabelling", "False")
    follow = done.stdout.split("next: python -m ")[1].split()
    assert " ".join(follow).count("--hindsight-relabelling False") == 1
    with pytest.raises(SystemExit):
        offline.main([*plain, "--transform-data-bamdp", "True", "--hindsight-relabelling", "True"])
    shell(*follow, "--tensorboard", "False")
    (result,) = read_results(tmp_path / "results")
    assert result["method"] == "borel-no_relabelling+debug" and result["config"]["hindsight_relabelling"] is False


def test_hyper_states(grid):
    """Prior first; the flag cleared in the last row; beliefs equal those of an agent that acts step by step."""
    _, flags = grid
    args = parse(offline.make_parser(), "train_offline_agent", flags)
    model = load_belief_model(offline.find_model(args)[1], args.problem, "")
    agent = DQN(1, 13, 5, [8], torch.Generator().manual_seed(0), 0.9, 0.1, 1e-3)
    actor = BeliefAgent(model, agent)
    played = play(args.problem, np.array([2, 9]), actor, (0, "test"))
    arrays = {key: played[key] for key in ("obs", "actions", "rewards", "next_obs")}
    states = hyper_states(model, args.problem, **arrays)
    assert states.shape == (2, 61, 13) and (states[:, :, 2] == 0).all()
    torch.testing.assert_close(states[:, :, 3:], torch.stack(actor.beliefs, 1))
    torch.testing.assert_close(states[:, 0, 3:], torch.cat(model.encoder.heads(model.encoder.empty(2)), -1))
    first, second = (evaluate(args.problem, model, agent, np.arange(21), 1, seed=3, pictures=True) for _ in range(2))
    assert first == second and len(first["returns"]) == 21
    expected = belief_rewards(model, states[:, :-1, 3:], offline.model_inputs(args.problem, model, arrays), 3, torch.Generator())
    assert expected.shape == (2, 60) and (expected >= -0.1 - 1e-6).all() and (expected <= 1).all()


def test_killed_runs_resume_to_the_same_weights(grid, tmp_path):
    """SIGKILL after the first checkpoint, then the same command: the belief model's weights are those of a whole run."""
    folder, flags = grid
    flags = [*flags, "--num-iters", "60", "--save-interval", "2"]
    flags += ["--hindsight-relabelling", "True", "--fresh-relabelling", "True"]
    whole = ["--vae-model-name", "whole"]
    vae_script.main([*flags, *whole])
    command = [sys.executable, "-m", "baselines.borel.train_vae_offline", *flags, "--vae-model-name", "killed"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    models = folder / "saves/gridworld/log/borel/vae"
    deadline = time.monotonic() + 60
    while not (models / "killed/state.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (models / "killed/finished.json").exists()
    vae_script.main([*flags, "--vae-model-name", "killed"])
    assert (models / "killed/model.safetensors").read_bytes() == (models / "whole/model.safetensors").read_bytes()
    for name in ("killed", "whole"):  # other tests rely on there being one model
        for path in (models / name).iterdir():
            path.unlink()
        (models / name).rmdir()


class Stop(Exception):
    pass


def interrupted(monkeypatch, script, argv, after):
    """Run `script` and let it die right after its `after`-th checkpoint."""
    saved = []

    def save_state(path, state):
        real(path, state)
        saved.append(path)
        if len(saved) == after:
            raise Stop

    real = script.save_state
    with monkeypatch.context() as patch:
        patch.setattr(script, "save_state", save_state)
        with pytest.raises(Stop):
            script.main(argv)


def test_every_training_script_resumes(grid, tmp_path, monkeypatch):
    """Dying after a checkpoint changes nothing of what single-task, offline and online training produce."""
    folder, flags = grid
    tiny = ["--env-type", "gridworld", "--recipe", "debug", "--tensorboard", "False"]
    found = {}
    for name in ("whole", "killed"):
        own = [*tiny, "--output_dir", str(tmp_path / name)]
        sizes = ["--policy-buffer-size", "240", "--vae-buffer-size", "240"]
        refreshing = [*sizes, "--refresh-interval", "2", "--decay-lr", "True"]
        runs = {single: [*own, "--seed", "24"], online_training: [*own, *refreshing]}
        for script, argv in runs.items():
            if name == "killed":
                interrupted(monkeypatch, script, argv, 1)
            script.main(argv)
        log = load_tensors(tmp_path / name / "datasets/gridworld/log+debug/task_003/rollouts.safetensors")  # 24 modulo 21
        online = tmp_path / name / "saves/gridworld/log/borel/online/borel-online+debug/seed_0/policy.safetensors"
        found[name] = {key: values.tolist() for key, values in log.items()}, online.read_bytes()
    assert found["whole"] == found["killed"]
    before = finished_data(folder)[0]
    interrupted(monkeypatch, offline, [*flags, "--no-resume"], 2)
    offline.main(flags)
    assert finished_data(folder)[0] == before
    decaying = [*flags, "--decay-lr", "True", "--method", "decaying"]
    offline.main(decaying)
    whole = finished_data(folder, "decaying+debug")[0]
    interrupted(monkeypatch, offline, [*decaying, "--no-resume"], 2)
    offline.main(decaying)
    assert finished_data(folder, "decaying+debug")[0] == whole != before
    shutil.rmtree(folder / "results/gridworld/log/decaying+debug")  # other tests rely on there being one result


def test_best_policy_is_kept(grid, monkeypatch):
    """--keep-best ends with the policy of the best evaluation on the training tasks, which are the test tasks here."""
    folder, flags = grid
    keeping = [*flags, "--keep-best", "True", "--num-iters", "7", "--critic-lr", "0.3", "--method", "best"]
    keeping += ["--log-interval", "1", "--save-interval", "1"]
    offline.main(keeping)
    policy = finished_data(folder, "best+debug")[0]
    result = read_json(folder / "results/gridworld/log/best+debug/bamdp-strict/seed_0.json")
    curve = result["curve"]["train_return"]
    assert max(curve) > curve[-1] and np.argmax(curve) < 5 and np.mean(result["returns"]) == pytest.approx(max(curve), abs=1e-4)
    interrupted(monkeypatch, offline, [*keeping, "--no-resume"], 5)
    offline.main(keeping)
    assert finished_data(folder, "best+debug")[0] == policy
    shutil.rmtree(folder / "results/gridworld/log/best+debug")


def test_online_training_with_sac_and_tensorboard(tmp_path):
    """Defect 14: what the updates return is what is logged; evaluations are on tasks that are not trained on."""
    flags = ["--env-type", "point_robot_dense", "--recipe", "debug", "--output_dir", str(tmp_path), "--decode-state", "True"]
    flags += ["--action-embedding-size", "4", "--num-train-tasks", "6", "--num-eval-tasks", "2", "--switch-to-belief-reward", "1"]
    online_training.main([*flags, "--automatic-entropy-tuning", "True", "--num-belief-samples", "2", "--eval-rollouts", "1"])
    run = tmp_path / "saves/point_robot_dense/log/borel/online/borel-online+debug/seed_0"
    split = read_json(run / "split.json")
    assert len(split["train"]) == 6 and len(split["eval"]) == 2 and not set(split["train"]) & set(split["eval"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/alpha_loss", "belief/state_loss", "test_return/sum", "train_return/sum"} <= records[-1].keys()
    assert list((run / "tensorboard").iterdir())
    (result,) = read_results(tmp_path / "results")
    assert result["task_ids"] == split["eval"] and result["quality"] == "online"


def test_online_seeds_share_their_tasks_and_stand_beside_other_tasks(tmp_path, capsys):
    """The split does not depend on the seed; a method that was scored on all tasks does not keep the report from being made."""
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--tensorboard", "False"]
    flags += ["--num-iters", "1"]
    for seed in ("0", "1"):
        online_training.main([*flags, "--seed", seed])
    all_tasks = ["--num-train-tasks", "21", "--num-eval-tasks", "21", "--method", "all"]
    online_training.main([*flags, *all_tasks])
    first, second, other = (result["task_ids"] for result in sorted(read_results(tmp_path / "results"), key=lambda result: (
        len(result["task_ids"]), result["seed"])))  # fmt: skip
    assert first == second and len(first) == 5 and other == list(range(21))
    report.main(["--results", str(tmp_path / "results"), "--table_only"])
    shown = capsys.readouterr().out
    assert "Test tasks (1) 0–20; (2) " in shown and "bamdp, strict protocol, tasks (2)" in shown
    path = tmp_path / "saves/gridworld/log/borel/online/borel-online+debug/seed_1/split.json"
    path.write_text(json.dumps({"train": list(range(16)), "eval": list(range(16, 21))}))  # as its seed once said
    assert_refused(capsys, online_training, [*flags, "--seed", "1"], "holds a run with other tasks: pass --no-resume")
    online_training.main([*flags, "--seed", "1", "--no-resume"])


def test_online_training_refreshes_its_hyper_states(tmp_path):
    """With --refresh-interval what is stored is what the present encoder says; all tasks may serve for both."""
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--num-train-tasks", "21"]
    sizes = ["--policy-buffer-size", "180", "--vae-buffer-size", "180", "--num-tasks-sample", "21"]
    args = parse(online_training.make_parser(), "online_training", [*flags, "--num-eval-tasks", "21", *sizes])
    tasks = online_training.split_tasks(args)
    assert tasks["train"].tolist() == tasks["eval"].tolist() == list(range(21))
    run = online_training.Online(args, tasks, tmp_path)
    for iteration in range(3):
        run.iterate(iteration)
    assert (run.vae_buffer.counts > run.vae_buffer.capacity).all()  # the oldest are overwritten
    stale = run.policy_buffer.arrays["states"].clone()
    run.refresh()
    fresh = run.policy_buffer.arrays["states"]
    assert not torch.allclose(fresh, stale) and torch.equal(fresh[..., :3], stale[..., :3])
    raw = {key: values[4].numpy() for key, values in run.vae_buffer.arrays.items()}
    raw = {key: raw[key][: run.vae_buffer.filled[4]] for key in ("obs", "actions", "rewards", "next_obs")}
    torch.testing.assert_close(fresh[4, : len(raw["obs"])], hyper_states(run.model, run.problem, **raw))
    args.refresh_interval = 1
    run.iterate(3)
    stored = run.policy_buffer.arrays["states"].clone()
    run.refresh()
    assert torch.equal(run.policy_buffer.arrays["states"], stored)


# ------------------------------------------------------------------------------------------------------------- bad input


def test_mistakes_are_named_in_one_line(tmp_path, capsys, grid):
    flags = ["--env-type", "gridworld", "--output_dir", str(tmp_path)]
    for script, extra, message in [
        (vae_script, [], "train_single_agent --env_type gridworld --task-id-start 0 --task-id-end 21"),
        (offline, [], "holds 0 belief models: make one"),
        (offline, ["--vae-model-name", "absent"], "no finished belief model"),
        (hindsight_data_collection, [], "no agent of task 0"),
        (single, ["--policy", "sac"], "does not fit the discrete actions"),
        (single, ["--task-id-start", "5", "--task-id-end", "99"], "must satisfy"),
        (vae_script, ["--hindsight-relabelling", "maybe"], "is not True or False"),
        (vae_script, ["--decode-state", "True"], "use --policy-replaying True"),
        (vae_script, ["--hindsigth-relabelling", "True"], "did you mean --hindsight-relabelling"),
        (offline, ["--use-cql", "True"], "needs --policy sac"),
        (online_training, ["--num-train-tasks", "20", "--num-eval-tasks", "9"], "not exceed 21 tasks"),
        (online_training, ["--env-type", "point_robot_dense", "--oracle-belief-reward", "True"], "exact belief"),
        (online_training, ["--refresh-interval", "5", "--vae-buffer-size", "60"], "buffer-size equal"),
        (online_training, ["--condition-policy-on-state", "False"], "--condition-policy-on-state False is not offered"),
        (online_training, ["--sample-embeddings", "yes"], "--sample-embeddings True is not offered"),
        (online_training, ["--state-loss-coeff", "2"], "says nothing without --decode-state True: leave it 1"),
        (online_training, ["--num-tasks-sample", "17"], "--num-tasks-sample 17 is more than the 16 training tasks: lower it"),
        (single, ["--on-circle-init-state", "False"], "--on-circle-init-state False: gridworld has no such start; give True"),
        (
            single,
            ["--env-type", "ant_semicircle_sparse", "--modify-init-state-dist", "False"],
            "ant_semicircle_sparse has no such start without --modify-init-state-dist True; give True",
        ),
        (hindsight_data_collection, ["--on-circle-init-state", "False"], "gridworld has no such start"),
        (single, ["--env-type", "escape_room", "--entropy-alpha", "0", "--automatic-entropy-tuning", "True"], "give one above 0"),
        (single, ["--dense-train-sparse-test", "True"], "gridworld has no dense reward"),
        (online_training, ["--num-train-tasks", "21"], "must be given"),
        (online_training, ["--disable-decoder", "True", "--oracle-belief-reward", "False"], "leave --disable-decoder True out"),
        (online_training, ["--env-type", "point_robot"], "the point_robot of the original is point_robot_dense"),
        (online_training, ["--env-type", "cheetah_dir"], "cheetah_dir has no settings of BOReL's online_training: choose"),
        (online_training, ["--env-type", "point_robot_wind", "--recipe", "reduced"], "wind has no settings of BOReL's online_tr"),
        (online_training, ["--env-type", "escape_room", "--recipe", "debug"], "escape_room has no settings of BOReL's online_tr"),
        (
            single,
            ["--env-type", "point_robot"],
            "point_robot has no settings of BOReL's train_single_agent: choose from ant_semi",
        ),
        (single, ["--env-type", "hopper_rand_params"], "hopper_rand_params has no settings of BOReL's train_single_agent"),
        (single, ["--env-type", "gym_hopper"], "the episodes of gym_hopper may end on their own"),
        (vae_script, ["--env-type", "ant_semicircle"], "ant_semicircle has no settings of BOReL's train_vae_offline"),
        (convert, ["--env-type", "point_robot", "--source", "here"], "point_robot has no settings of BOReL's convert"),
        (hindsight_data_collection, ["--env-type", "cheetah_dir"], "cheetah_dir has no settings of BOReL's hindsight"),
    ]:
        assert_refused(capsys, script, [*flags, *extra], message)
    assert not any((tmp_path / name).exists() for name in ("datasets", "results", "saves"))
    _, flags = grid
    extra = ["--vae-model-name", "other", "--predict-change", "True"]
    assert_refused(capsys, vae_script, [*flags, *extra], "says nothing without --decode-state")
    extra = ["--vae-model-name", "other", "--state-loss-coeff", "2"]
    assert_refused(capsys, vae_script, [*flags, *extra], "says nothing without --decode-state True: leave it 1")
    extra = ["--vae-model-name", "other", "--hindsight-relabelling", "True", "--relabelling-fraction"]
    for few in ("0", "0.05"):
        assert_refused(capsys, vae_script, [*flags, *extra, few], f"--relabelling-fraction {few} rewrites none of 7 roll-outs")
    extra = ["--hindsight-relabelling", "True", "--relabelling-fraction", "0", "--transform-data-bamdp", "True", "--method", "q"]
    assert_refused(capsys, offline, [*flags, *extra], "rewrites none of 7 roll-outs")
    extra = ["--vae-model-name", "other", "--max-rollouts-per-task", "3"]
    assert_refused(capsys, vae_script, [*flags, *extra], "change --max-rollouts-per-task")
    extra = ["--vae-model-name", "other", "--state-embedding-size", "0", "--multihead-for-reward", "False"]
    assert_refused(capsys, vae_script, [*flags, *extra], "--state-embedding-size above 0")
    extra = ["--vae-model-name", "other", "--state-embedding-size", "0", "--reward-embedding-size", "0"]
    assert_refused(capsys, vae_script, [*flags, *extra, "--action-embedding-size", "0"], "--reward-embedding-size or another")
    extra = ["--max-rollouts-per-task", "1", "--no-resume"]
    assert_refused(capsys, hindsight_data_collection, [*flags, *extra], "an agent of 4 episodes, this command says 1")


def test_printed_commands_lead_to_a_result(tmp_path, capsys):
    """From one task's agent to the report, folders of one's own included: what a script prints is what has to be done next."""
    settings = TINY_WIND.replace("train_vae_offline: {", "train_vae_offline: {policy_replaying: true, ")
    (tmp_path / "tiny_wind.yaml").write_text(settings)
    command = ["train_single_agent", "--config", str(tmp_path / "tiny_wind.yaml"), "--output_dir", str(tmp_path), "--seed", "1"]
    command += ["--save-dir", "own", "--main-save-dir", "batch data"]
    scripts = []
    while command[0] in SCRIPTS:
        scripts.append(command[0])
        SCRIPTS[command[0]].main([*command[1:], "--tensorboard", "False"])
        module, *words = shlex.split(capsys.readouterr().out.split("next: python -m ")[1])
        command = [module.removeprefix("baselines.borel."), *words]
    collect = ["train_single_agent"] * 3
    assert scripts == [*collect, "hindsight_data_collection", "train_vae_offline", "train_offline_agent"]
    assert command[0] == "src.report" and len(list((tmp_path / "batch data/tiny_wind/own").glob("task_*"))) == 3


def test_errors_name_commands_that_mend_them(grid, tmp_path, capsys):
    _, flags = copy_of(grid, tmp_path)
    for script, extra, mend in (
        (vae_script, ["--data-dir", "nosuch"], "train_single_agent .*--task-id-end 21 --save-dir nosuch "),
        (vae_script, ["--policy-replaying", "True", "--replaying-data-dir", "none"], "hindsight_.* --replaying-data-dir none "),
        (offline, ["--vae-dir", "my models"], "train_vae_offline .*--save-dir 'my models' "),
        (
            offline,
            ["--vae-dir", "nowhere", "--vae-model-name", "x", "--data-dir", "d"],
            "train_vae_.* --data-dir d --save-dir nowhere ",
        ),
        (hindsight_data_collection, ["--data-dir", "nosuch"], "train_single_agent .*--save-dir nosuch "),
        (single, ["--critic-lr", "1e30", "--seed", "4"], "the critic's loss became nan: lower --critic-lr, or"),
        (vae_script, ["--vae-lr", "1e30", "--vae-model-name", "x"], "the belief model became nan: lower --vae-lr, or"),
        (offline, ["--critic-lr", "1e30", "--method", "x"], "the critic's loss became nan: lower --critic-lr, or"),
        (online_training, ["--critic-lr", "1e30"], "a loss became nan: lower --vae-lr, --critic-lr, or"),
    ):
        with pytest.raises(SystemExit):
            script.main([*flags, *extra])
        assert re.search(mend, capsys.readouterr().err.strip().splitlines()[-1])


def copy_of(grid, target):
    """The same finished run in a folder of its own: (folder, flags)."""
    folder, flags = grid
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target, [word if word != str(folder) else str(target) for word in flags]


ALL_TASKS = ["--task-id-start", "0", "--task-id-end", "21"]


def test_redone_inputs_are_noticed(grid, tmp_path, capsys):
    """A finished run whose data, agents or belief model were made anew is not passed off as finished."""
    _, flags = copy_of(grid, tmp_path)
    relabelled = [*flags, "--hindsight-relabelling", "True"]
    hindsight_data_collection.main([*flags, "--num-rollouts", "1"])
    offline.main(flags)
    single.main([*flags, *ALL_TASKS, "--no-resume"])  # the same once more
    for script, argv in (
        (hindsight_data_collection, [*flags, "--num-rollouts", "1"]),
        (vae_script, relabelled),
        (offline, flags),
    ):
        script.main(argv)
    vae_script.main([*relabelled, "--no-resume", "--vae-lr", "0.01"])
    assert_refused(capsys, offline, flags, "holds a run with vae_model_sha256")
    single.main([*flags, *ALL_TASKS, "--no-resume", "--critic-lr", "0.01"])
    assert_refused(capsys, vae_script, [*relabelled, "--vae-lr", "0.01"], "holds a run with data_sha256")
    assert_refused(capsys, offline, flags, "pass --no-resume to replace it")
    assert_refused(capsys, hindsight_data_collection, [*flags, "--num-rollouts", "1"], "holds a run with agents_sha256")


def test_redone_replays_are_noticed(wind, capsys):
    _, flags = wind
    replaying = [*flags, "--seed", "7", "--policy-replaying", "True"]
    vae_script.main(replaying)
    hindsight_data_collection.main([*flags, "--seed", "7", "--no-resume"])
    assert_refused(capsys, vae_script, replaying, "holds a run with replays_sha256")
    hindsight_data_collection.main([*flags, "--no-resume"])
    vae_script.main(replaying)


def test_runs_from_before_digests_are_taken_as_they_are(grid, tmp_path, capsys):
    """Their data and settings lack the digests: they are read and finished, with a note."""
    folder, flags = copy_of(grid, tmp_path)
    runs = [folder / "saves/gridworld/log/borel" / name for name in ("vae/relabel+debug__seed_0", "offline/borel+debug/seed_0")]
    for path in [*(run / "config.json" for run in runs), *folder.glob("datasets/gridworld/log+debug/task_*/task.json")]:
        document = {key: value for key, value in read_json(path).items() if not key.endswith("sha256")}
        path.write_text(json.dumps(document))
    policy = (runs[1] / "policy.safetensors").read_bytes()
    for script, argv in ((vae_script, [*flags, "--hindsight-relabelling", "True"]), (offline, flags)):
        capsys.readouterr()
        script.main(argv)
        assert "was made before its inputs were recorded" in capsys.readouterr().err
    assert (runs[1] / "policy.safetensors").read_bytes() == policy


def test_deleted_logs_are_made_again(grid, tmp_path, capsys):
    """A finished run does not hide that its files are gone; the command that the next stage names makes them again."""
    folder, flags = copy_of(grid, tmp_path)
    data = folder / "datasets/gridworld/log+debug"
    before = [read_json(data / f"task_{task:03d}/task.json")["sha256"] for task in range(21)]
    shutil.rmtree(data)
    assert_refused(capsys, vae_script, [*flags, "--hindsight-relabelling", "True"], "no data of task 0")
    single.main([*flags, *ALL_TASKS])
    assert [read_json(data / f"task_{task:03d}/task.json")["sha256"] for task in range(21)] == before
    (data / "task_004/agent.safetensors").unlink()
    single.main([*flags, *ALL_TASKS])
    assert (data / "task_004/agent.safetensors").exists()


def test_other_episodes_than_the_data_have_are_refused_before_training(grid, tmp_path, capsys, monkeypatch):
    """K and H of data, belief model and agents are looked at first; a finished cache of other ones is not read."""
    folder, flags = copy_of(grid, tmp_path)
    monkeypatch.setattr(offline, "train", None)  # whatever comes so far is too late
    other = [*flags, "--method", "q", "--max-rollouts-per-task", "2"]
    model = folder / "saves/gridworld/log/borel/vae/relabel+debug__seed_0/config.json"
    told = "of 4 episodes of 15 steps, this command says 2 of 15: change --max-rollouts-per-task"
    assert_refused(capsys, offline, other, f"holds a belief model {told}")
    settings = read_json(model)
    model.write_text(json.dumps(settings | {"max_rollouts_per_task": 2}))
    assert_refused(capsys, offline, other, "holds an agent of 4 episodes")
    model.write_text(json.dumps(settings))
    own = [*flags, "--method", "q"]
    task = folder / "datasets/gridworld/log+debug/task_005/task.json"
    document = read_json(task)
    task.write_text(json.dumps(document | {"settings": document["settings"] | {"hidden_layers": [3]}}))
    assert_refused(capsys, offline, own, "have different hidden layers")
    task.write_text(json.dumps(document))
    (task.parent / "agent.safetensors").write_bytes(b"half")
    assert_refused(capsys, offline, own, "agent.safetensors is damaged")
    (task.parent / "agent.safetensors").unlink()  # as with --save-models False
    model.write_text(json.dumps(settings | {"max_rollouts_per_task": 2}))
    assert_refused(capsys, offline, other, f"holds roll-outs {told}")
    assert not (folder / "results/gridworld/log/q+debug").exists() and not list(folder.rglob("offline/q+debug"))


def test_a_belief_without_decoder_expects_no_rewards(grid, tmp_path, capsys):
    _, flags = copy_of(grid, tmp_path)
    vae_script.main([*flags, "--vae-model-name", "blind", "--disable-decoder", "True", "--hindsight-relabelling", "True"])
    extra = ["--vae-model-name", "blind", "--transform-data-bamdp", "True", "--belief-rewards", "True", "--method", "own"]
    assert_refused(capsys, offline, [*flags, *extra], "was trained with --disable-decoder True")


def test_broken_files_are_named(grid, tmp_path, capsys):
    folder, flags = copy_of(grid, tmp_path)
    runs = folder / "saves/gridworld/log/borel"
    caches = folder.glob("datasets/gridworld/log+debug/data_bamdp/relabel+debug__seed_0/*/cache.json")
    task, model = folder / "datasets/gridworld/log+debug/task_000/task.json", runs / "vae/relabel+debug__seed_0/model.json"
    fresh = [*flags, "--no-resume"]
    for path, script, argv in (
        (model, offline, fresh),
        (task, offline, fresh),
        (task, hindsight_data_collection, fresh),
        (task, vae_script, [*flags, "--vae-model-name", "other"]),
    ):
        content = path.read_text()
        for broken in ("{}", "[]"):
            path.write_text(broken)
            assert_refused(capsys, script, argv, f"{path} lacks ")
        path.write_text(content)
    states = {single: "single_agents/log+debug/tasks_3-3", vae_script: "vae/other",
              offline: "offline/other+debug/seed_0", online_training: "online/borel-online+debug/seed_0"}  # fmt: skip
    names = {single: ["--seed", "3"], vae_script: ["--vae-model-name", "other"], offline: ["--method", "other"]}
    for script, name in states.items():
        (runs / name).mkdir(parents=True, exist_ok=True)
        torch.save({}, runs / name / "state.pt")
        assert_refused(capsys, script, [*flags, *names.get(script, [])], "is not the state of such a run")
    for path in caches:
        path.write_text("{}")
    assert_refused(capsys, offline, fresh, "cache.json lacks done")


def test_collapse_is_reported(grid, capsys, monkeypatch):
    """Defect 21: a belief that hardly depends on the task is not passed over in silence."""
    _, flags = grid
    monkeypatch.setattr(vae_script, "COLLAPSED", 1.1)
    vae_script.main([*flags, "--hindsight-relabelling", "True"])
    assert "warning: the belief hardly depends on the task" in capsys.readouterr().out


@pytest.mark.parametrize("env_type", known_env_types())
def test_settings_files_fit_the_scripts(env_type):
    """Every YAML with BOReL sections is accepted by every script it names, in every recipe."""
    document = read_yaml(ROOT / "configs" / f"{env_type}.yaml")
    sections = (document.get("baselines") or {}).get("borel") or {}
    for recipe in ("paper", *[name for name, entry in (document.get("recipes") or {}).items() if "baselines" in entry]):
        for name in sections:
            extra = ["--source", "x"] if name == "convert" else []
            args = parse(SCRIPTS[name].make_parser(), name, ["--env-type", env_type, "--recipe", recipe, *extra])
            assert args.env_type == env_type


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_published_flags(name, capsys):
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[name].main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--max-rollouts-per-task" in text


def test_published_flags_are_taken(tmp_path, capsys):
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--num-iters", "1"]
    single.main([*flags, "--log-tensorboard", "False"])
    run = tmp_path / "saves/gridworld/log/borel/single_agents/log+debug/tasks_0-0"
    assert not (run / "tensorboard").exists() and capsys.readouterr().err.count("note") == 0
    single.main([*flags, "--seed", "1", "--log-tensorboard", "True", "--results-log-dir", "logs"])
    assert (run.parent / "tasks_1-1/tensorboard").exists() and "results_log_dir" not in read_json(
        run.parent / "tasks_1-1/config.json"
    )
    assert "note: nothing is written to --results-log-dir" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
    published = ["--condition-policy-on-state", "True", "--sample-embeddings", "False", "--fixed-latent-params", "0"]
    online_training.main([*flags, *published, "--tensorboard", "False"])
    config = read_json(tmp_path / "saves/gridworld/log/borel/online/borel-online+debug/seed_0/config.json")
    assert not set(online_training.PUBLISHED) & set(config)  # runs from before these flags continue
    for recipe, interval in (("paper", 1), ("reduced", 10)):
        args = parse(offline.make_parser(), "train_offline_agent", ["--env-type", "point_robot_wind", "--recipe", recipe])
        assert args.log_interval == interval


def test_unknown_baselines_in_a_settings_file(tmp_path, capsys):
    for section, message in (
        ("baselines: {boral: {}}", "did you mean borel"),
        ("baselines: {borel: {train_vae: {}}}", "unknown"),
    ):
        (tmp_path / "own.yaml").write_text(TINY_WIND.split("baselines:")[0] + section + "\n")
        assert_refused(capsys, vae_script, ["--config", str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path)], message)


def test_decoding_only_the_past_tells_what_it_overrides(capsys):
    flags = ["--env-type", "gridworld", "--decode-only-past", "True", "--num-decoded-transitions"]
    vae_script.loss_settings(parse(vae_script.make_parser(), "train_vae_offline", [*flags, "5"]))
    assert "whatever --num-decoded-transitions says" in capsys.readouterr().err
    vae_script.loss_settings(parse(vae_script.make_parser(), "train_vae_offline", flags[:-1]))
    assert not capsys.readouterr().err


def test_loss_settings_name_flags():
    """Every field of LossSettings is a flag of both scripts that train a belief."""
    for script in (vae_script, online_training):
        flags = {action.dest for action in script.make_parser()._actions}
        assert {field.name for field in dataclasses.fields(LossSettings)} <= flags


def test_families_of_meta_dt_have_its_reference_levels():
    """The stored levels of one episode stand for each of the K; the sparse robots' are played with memory instead."""
    levels = reference_episodes(problem_of("cheetah_vel", 2), [45, 49])
    known = read_json(ROOT / "configs/references/cheetah_vel.json")["per_task"]
    for level in ("task_blind", "oracle"):
        assert levels[level] == [[known[level][task]] * 2 for task in (45, 49)]
    assert np.shape(levels["trivial"]) == (2, 2) and np.mean(levels["trivial"]) < np.mean(levels["oracle"])


def test_problem_needs_rewards_for_relabelling(wind):
    _, flags = wind
    problem = parse(vae_script.make_parser(), "train_vae_offline", flags).problem
    problem.environment = object()
    with pytest.raises(UserError, match="no compute_rewards"):
        problem.rewards(0, np.zeros(3), np.zeros(2), np.zeros(3))
