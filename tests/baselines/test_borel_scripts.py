"""BOReL: the scripts end to end, through the shell or in this process.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from borel_helpers import copy_of, finished_data, parsed, shell
from helpers import ROOT, assert_refused

from baselines.borel import convert, hindsight_data_collection, online_training
from baselines.borel import evaluate as evaluation
from baselines.borel import train_offline_agent as offline
from baselines.borel import train_single_agent as single
from baselines.borel import train_vae_offline as vae_script
from baselines.borel.agents import DQN
from baselines.borel.beliefs import belief_rewards, hyper_states, load_belief_model
from baselines.borel.data import load_rollouts
from baselines.borel.evaluate import BeliefAgent, evaluate
from baselines.borel.mixing import relabel_rewards
from baselines.borel.problem import play
from baselines.borel.saved import HyperPolicy
from src.evaluation.results import read_pictures, read_result
from src.report.results import read_results
from src.run import loop
from src.run.files import load_tensors, read_json
from src.run.seeding import numpy_generator
from tools import report


def test_pipeline_by_shell(grid):
    folder, _ = grid
    ((result,), _) = read_results(folder / "results")
    assert (result["label"], result["quality"], result["regime"]) == ("borel+debug", "log", "bamdp")
    assert result["privileges"] == "reward function"
    assert np.shape(result["returns"]) == np.shape(result["success"]) == (21, 4)
    levels = {"trivial", "best_known", "thompson", "walk_and_redraw", "bayes_optimal", "single_task_agents"}
    assert set(result["reference"]) >= levels
    assert sum(np.mean(result["reference_episodes"]["bayes_optimal"], axis=0)) == pytest.approx(37.214, abs=1e-3)
    drawn = read_pictures(folder, result)
    assert len(drawn["belief"]["spread"]) == 61 and result["curve"]["gradient_steps"] == [6, 12]
    paths = drawn["trajectories"]["0"]
    assert np.shape(paths) == (4, 16, 2) and paths[0][0] == [0, 0]  # defect 17: evaluations start at the origin
    done = shell("tools.report", "--results", str(folder / "results"), "--output", str(folder / "report"))
    assert "borel+debug" in done.stdout and "bayes_optimal" in (folder / "report/tables.md").read_text()
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
            assert_refused(capsys, script, [*base, flag, value], f"{flag}: {value!r} is not a name: give up to 100")
    assert not list(tmp_path.iterdir())
    run, *_, output = parsed(vae_script, [*base, "--save-dir", "./trained_vae", "--main-data-dir", "./batch_data"])
    assert (output.save_dir, run.folders["main"]) == ("./trained_vae", "./batch_data")


def test_settings_of_the_stages_do_not_mix(grid):
    """Defect 11: each stage keeps its own seed and settings; the belief model's do not override the policy's."""
    folder, flags = grid
    offline.main([*flags, "--seed", "5", "--transform-data-bamdp", "True", "--vae-model-name", "relabel+debug__seed_0"])
    result = read_result(folder / "results/gridworld/log/borel+debug/bamdp-strict/seed_5.json")
    assert result["seed"] == 5 and result["config"]["seed"] == 5 and result["env_type"] == "gridworld"
    assert read_json(folder / "saves/gridworld/log/borel/vae/relabel+debug__seed_0/config.json")["seed"] == 0
    (folder / "results/gridworld/log/borel+debug/bamdp-strict/seed_5.json").unlink()


def test_rewards_are_relabelled_before_the_encoder_reads_them(grid):
    """Defect 16: the stored beliefs are those of the stored rewards, and terminals in the goal follow the new task."""
    folder, flags = grid
    extra = ["--hindsight-relabelling", "True", "--terminate-in-goal", "True", "--relabelled-data-dir", "mixed"]
    run, hyper, mixing, *_ = parsed(offline, [*flags, *extra, "--transform-data-bamdp", "True"])
    name, path = offline.find_model(run, hyper)
    model = load_belief_model(path, run.problem, "")
    data = offline.load_hyper_states(run, hyper, mixing, model, name)
    plain = load_rollouts(folder / "datasets/gridworld/log+debug", run.problem, range(21), "")
    assert (data["rewards"].numpy() != plain.rewards).any()
    assert torch.equal(data["terminated"], data["rewards"] == 1)
    states = data["states"]
    mixed = relabel_rewards(plain, run.problem, numpy_generator(0, "relabelling for the policy"))
    task = 4
    arrays = {key: values[task] for key, values in mixed.arrays().items()}
    np.testing.assert_array_equal(arrays["rewards"], data["rewards"][task])
    torch.testing.assert_close(hyper_states(model, run.problem, **arrays), states[task])


@pytest.mark.long
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
    ((result,), _) = read_results(tmp_path / "results")
    assert (result["label"], result["privileges"]) == ("borel+debug-no_relabelling", "none")
    assert result["config"]["hindsight_relabelling"] is False


def test_hyper_states(grid):
    """Prior first; the flag cleared in the last row; beliefs equal those of an agent that acts step by step."""
    _, flags = grid
    run, hyper, *_ = parsed(offline, flags)
    model = load_belief_model(offline.find_model(run, hyper)[1], run.problem, "")
    agent = DQN(1, 13, 5, [8], torch.Generator().manual_seed(0), 0.9, 0.1, 1e-3)
    actor = BeliefAgent(model, agent)
    played = play(run.problem, np.array([2, 9]), actor, (0, "test"))
    arrays = {key: played[key] for key in ("obs", "actions", "rewards", "next_obs")}
    states = hyper_states(model, run.problem, **arrays)
    assert states.shape == (2, 61, 13) and (states[:, :, 2] == 0).all()
    torch.testing.assert_close(states[:, :, 3:], torch.stack(actor.beliefs, 1))
    torch.testing.assert_close(states[:, 0, 3:], torch.cat(model.encoder.heads(model.encoder.empty(2)), -1))
    first, second = (evaluate(run.problem, model, agent, np.arange(21), 1, seed=3, pictures=True) for _ in range(2))
    assert first == second and len(first["returns"]) == 21
    expected = belief_rewards(model, states[:, :-1, 3:], offline.model_inputs(run.problem, model, arrays), 3, torch.Generator())
    assert expected.shape == (2, 60) and (expected >= -0.1 - 1e-6).all() and (expected <= 1).all()


@pytest.mark.long
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


FEW_GOALS = """
env_name: FewGoals-v0
entry_point: envs.point_robot:PointRobotEnv
max_episode_steps: 20
train_tasks: [0, 3]
test_tasks: [3, 5]
baselines:
  borel:
    train_single_agent: {num_iters: 1, num_init_rollouts_pool: 3, num_rollouts_per_iter: 1, rl_updates_per_iter: 2,
                         batch_size: 8, hidden_layers: [8], log_interval: 1}
    train_vae_offline: {num_iters: 1, aggregator_hidden_size: 8, hindsight_relabelling: true}
    train_offline_agent: {num_iters: 2, rl_updates_per_iter: 2, batch_size: 8, hidden_layers: [8], log_interval: 1,
                          hindsight_relabelling: true}
"""


def test_the_result_is_that_of_the_test_tasks(tmp_path):
    """Three training and two test tasks: what is written is what the saved policy earns on the latter; the curve knows both."""
    (tmp_path / "few_goals.yaml").write_text(FEW_GOALS)
    flags = ["--config", str(tmp_path / "few_goals.yaml"), "--output_dir", str(tmp_path), "--tensorboard", "False"]
    single.main([*flags, "--task-id-start", "0", "--task-id-end", "3"])
    vae_script.main(flags)
    offline.main([*flags, "--transform-data-bamdp", "True"])
    result = read_result(tmp_path / "results/few_goals/log/borel/bamdp-strict/seed_0.json")
    run, hyper, _, settings, *_ = parsed(offline, flags)
    model = load_belief_model(offline.find_model(run, hyper)[1], run.problem, "")
    agent = settings.make(1, run.problem, run.problem.observation_size + 10, torch.Generator(), "cpu")
    policy = tmp_path / "saves/few_goals/log/borel/offline/borel/seed_0/model.safetensors"
    HyperPolicy(model, agent.policy_network()).load_state_dict(load_tensors(policy))
    earned = {tasks: evaluate(run.problem, model, agent, np.array(tasks), 1, 0)["returns"] for tasks in ((0, 1, 2), (3, 4))}
    assert result["task_ids"] == [3, 4] and result["returns"] == earned[3, 4]
    assert result["curve"]["test_return"][-1] == pytest.approx(np.mean(earned[3, 4]))
    assert result["curve"]["train_return"][-1] == pytest.approx(np.mean(earned[0, 1, 2]))
    assert np.ptp([*np.ravel(earned[0, 1, 2]), *np.ravel(earned[3, 4])]) > 0.1  # the tasks pay differently


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

    real = loop.save_state
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", save_state)
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
        online = tmp_path / name / "saves/gridworld/log/borel/online/borel-online+debug/seed_0/model.safetensors"
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


def test_two_agents_at_once_share_their_data(grid, tmp_path, monkeypatch):
    """The second agent comes while the first is filling the cache: it waits, fills nothing, and both end as one alone would."""
    expected = finished_data(grid[0])
    folder, flags = copy_of(grid, tmp_path)
    flags = [*flags, "--transform-data-bamdp", "True"]
    cache = folder / "datasets/gridworld/log+debug/data_bamdp"
    shutil.rmtree(cache)
    shutil.rmtree(folder / "saves/gridworld/log/borel/offline")
    transform, seen = offline.transform, []

    def watched(run, hyper, model, task, arrays):
        if len(seen) == 3:
            command = [sys.executable, "-m", "baselines.borel.train_offline_agent", *flags, "--method", "second"]
            second = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            seen.append(second)
            while second.poll() is None and not any("lock" in name for name in open_files(second.pid)):
                time.sleep(0.05)
            assert second.poll() is None  # it stands at the lock
        seen.append(task)
        return transform(run, hyper, model, task, arrays)

    monkeypatch.setattr(offline, "transform", watched)
    offline.main(flags)
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert seen[3].wait() == 0 and len(made) == len(seen) - 1 == 21
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == made
    assert finished_data(folder) == finished_data(folder, "second+debug") == expected


def open_files(pid):
    """Names of the files in the data's folder that a process has open."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").glob("*") if link.is_symlink()]
    return [name for name in links if "data_bamdp" in name]


def test_best_policy_is_kept(grid, monkeypatch):
    """--keep-best ends with the policy of the best evaluation on the training tasks, which are the test tasks here."""
    folder, flags = grid
    keeping = [*flags, "--keep-best", "True", "--num-iters", "4", "--critic-lr", "0.3", "--method", "best"]
    keeping += ["--log-interval", "1", "--save-interval", "1"]
    offline.main(keeping)
    policy = finished_data(folder, "best+debug")[0]
    result = read_result(folder / "results/gridworld/log/best+debug/bamdp-strict/seed_0.json")
    curve = result["curve"]["train_return"]
    assert max(curve) > curve[-1] and np.argmax(curve) < 3 and np.mean(result["returns"]) == pytest.approx(max(curve), abs=1e-4)
    interrupted(monkeypatch, offline, [*keeping, "--no-resume"], 3)
    offline.main(keeping)
    assert finished_data(folder, "best+debug")[0] == policy
    shutil.rmtree(folder / "results/gridworld/log/best+debug")


def test_the_best_policy_is_that_of_the_training_tasks(grid, monkeypatch):
    """Returns of the test tasks, which are best when those of the training tasks are worst, choose nothing."""
    folder, flags = grid
    policies, scores = [], iter([(1.0, 2.0), (3.0, 0.0), (2.0, 9.0), (0.0, 5.0)])

    def noted(run, settings, model, agent, groups):
        policies.append({name: value.clone() for name, value in agent.policy_network().state_dict().items()})
        return dict(zip(("train_return", "test_return"), next(scores), strict=True))

    monkeypatch.setattr(offline, "measure", noted)
    monkeypatch.setattr(evaluation, "returns_curve", lambda loop, updates: {})
    offline.main([*flags, "--keep-best", "True", "--num-iters", "4", "--log-interval", "1", "--method", "chosen"])
    (path,) = (folder / "saves").rglob("chosen+debug/**/model.safetensors")
    kept = {name.removeprefix("policy."): value for name, value in load_tensors(path).items() if name.startswith("policy.")}
    same = [all(torch.equal(kept[name], policy[name]) for name in kept) for policy in policies]
    assert same == [False, True, False, False]
    shutil.rmtree(folder / "results/gridworld/log/chosen+debug")


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
    ((result,), _) = read_results(tmp_path / "results")
    assert result["task_ids"] == split["eval"] and result["quality"] == "online"


def test_online_seeds_share_their_tasks_and_stand_beside_other_tasks(tmp_path, capsys):
    """The split does not depend on the seed; a method that was scored on all tasks does not keep the report from being made."""
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--tensorboard", "False"]
    flags += ["--num-iters", "1"]
    for seed in ("0", "1"):
        online_training.main([*flags, "--seed", seed])
    all_tasks = ["--num-train-tasks", "21", "--num-eval-tasks", "21", "--method", "all"]
    online_training.main([*flags, *all_tasks])
    first, second, other = (result["task_ids"] for result in sorted(read_results(tmp_path / "results")[0], key=lambda result: (
        len(result["task_ids"]), result["seed"])))  # fmt: skip
    assert first == second and len(first) == 5 and other == list(range(21))
    report.main(["--results", str(tmp_path / "results"), "--output", str(tmp_path / "report")])
    with (tmp_path / "report" / "results.csv").open() as file:
        found = {(row["tasks"], row["seeds"]) for row in csv.DictReader(file) if row["env_type"] == "gridworld"}
    assert len(found) == 2 and ("0–20", "1") in found and "2" in {seeds for _, seeds in found}
    path = tmp_path / "saves/gridworld/log/borel/online/borel-online+debug/seed_1/split.json"
    path.write_text(json.dumps({"train": list(range(16)), "eval": list(range(16, 21))}))  # as its seed once said
    assert_refused(capsys, online_training, [*flags, "--seed", "1"], "holds a run with other tasks: pass --no-resume")
    online_training.main([*flags, "--seed", "1", "--no-resume"])


def test_online_training_refreshes_its_hyper_states(tmp_path):
    """With --refresh-interval what is stored is what the present encoder says; all tasks may serve for both."""
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--num-train-tasks", "21"]
    sizes = ["--policy-buffer-size", "180", "--vae-buffer-size", "180", "--num-tasks-sample", "21"]
    base, split, *chosen, _ = parsed(online_training, [*flags, "--num-eval-tasks", "21", *sizes])
    tasks = online_training.split_tasks(base, split)
    assert tasks["train"].tolist() == tasks["eval"].tolist() == list(range(21))
    run = online_training.Online(base, *chosen, tasks, tmp_path)
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
    run.schedule = dataclasses.replace(run.schedule, refresh_interval=1)
    run.iterate(3)
    stored = run.policy_buffer.arrays["states"].clone()
    run.refresh()
    assert torch.equal(run.policy_buffer.arrays["states"], stored)
