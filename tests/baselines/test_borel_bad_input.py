"""BOReL: bad input, inputs made anew, files that are broken, and what the scripts say then.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import dataclasses
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from borel_helpers import ALL_TASKS, SCRIPTS, TINY_WIND, copy_of, parsed
from helpers import ROOT, assert_refused, problem_of

from baselines.borel import convert, hindsight_data_collection, online_training
from baselines.borel import train_offline_agent as offline
from baselines.borel import train_single_agent as single
from baselines.borel import train_vae_offline as vae_script
from baselines.borel.evaluate import reference_episodes
from baselines.borel.vae import BeliefSettings, LossSettings
from src.run.config import known_env_types, read_yaml
from src.run.errors import UserError
from src.run.files import read_json


def test_mistakes_are_named_in_one_line(tmp_path, capsys, grid):
    flags = ["--env-type", "gridworld", "--output_dir", str(tmp_path)]
    for script, extra, message in [
        (vae_script, [], "train_single_agent --env_type gridworld --task-id-start 0 --task-id-end 21"),
        (offline, [], "holds 0 belief models: make one"),
        (offline, ["--vae-model-name", "absent"], "no finished belief model"),
        (hindsight_data_collection, [], "no agent of task 0"),
        (single, ["--soft-target-tau", "0"], "'0' is not a number above 0, at most 1"),
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
        (online_training, ["--state-loss-coeff", "2"], "has no effect without --decode-state True: leave it 1"),
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
    assert_refused(capsys, vae_script, [*flags, *extra], "has no effect without --decode-state")
    extra = ["--vae-model-name", "other", "--state-loss-coeff", "2"]
    assert_refused(capsys, vae_script, [*flags, *extra], "has no effect without --decode-state True: leave it 1")
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
    assert command[0] == "tools.report" and len(list((tmp_path / "batch data/tiny_wind/own").glob("task_*"))) == 3


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
        (single, ["--critic-lr", "1e15", "--seed", "4"], "the critic's loss became nan: lower --critic-lr, or"),
        (vae_script, ["--vae-lr", "1e15", "--vae-model-name", "x"], "the belief model became nan: lower --vae-lr, or"),
        (offline, ["--critic-lr", "1e15", "--method", "x"], "the critic's loss became nan: lower --critic-lr, or"),
        (online_training, ["--critic-lr", "1e15"], "a loss became nan: lower --vae-lr, --critic-lr, or"),
    ):
        with pytest.raises(SystemExit):
            script.main([*flags, *extra])
        assert re.search(mend, capsys.readouterr().err.strip().splitlines()[-1])


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
    content = read_json(model)
    wrongs = {"reward_values": ["high", [1]], "flagged": [[1], 2], "stochastic": ["no"], "decode_state": [None]}
    wrongs |= {"num_heads": ["x"], "rew_pred_type": ["none"], "layers_before_aggregator": ["ab"], "task_embedding_size": [2.5]}
    for key, wrong in ((key, wrong) for key, values in wrongs.items() for wrong in values):
        model.write_text(json.dumps(content | {key: wrong}))
        assert_refused(capsys, offline, fresh, "model.json")
    model.write_text(json.dumps(content))
    states = {single: "single_agents/log+debug/tasks_3-3", vae_script: "vae/other",
              offline: "offline/other+debug/seed_0", online_training: "online/borel-online+debug/seed_0"}  # fmt: skip
    names = {single: ["--seed", "3"], vae_script: ["--vae-model-name", "other"], offline: ["--method", "other"]}
    for script, name in states.items():
        (runs / name).mkdir(parents=True, exist_ok=True)
        torch.save({}, runs / name / "state.pt")
        assert_refused(capsys, script, [*flags, *names.get(script, [])], "holds files of a run without its settings")
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
    if env_type.startswith("metaworld"):
        pytest.importorskip("metaworld", reason="Meta-World is an optional install")
    document = read_yaml(ROOT / "configs" / f"{env_type}.yaml")
    sections = (document.get("baselines") or {}).get("borel") or {}
    for recipe in ("paper", *[name for name, entry in (document.get("recipes") or {}).items() if "baselines" in entry]):
        for name in sections:
            run, *_ = parsed(SCRIPTS[name], ["--env-type", env_type, "--recipe", recipe])
            assert run.env_type == env_type


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
    assert not {field.name for field in dataclasses.fields(online_training.Published)} & set(config)
    for recipe, interval in (("paper", 1), ("reduced", 10)):
        *_, schedule, _ = parsed(offline, ["--env-type", "point_robot_wind", "--recipe", recipe])
        assert schedule.log_interval == interval


def test_unknown_baselines_in_a_settings_file(tmp_path, capsys):
    for section, message in (
        ("baselines: {boral: {}}", "did you mean borel"),
        ("baselines: {borel: {train_vae: {}}}", "unknown"),
    ):
        (tmp_path / "own.yaml").write_text(TINY_WIND.split("baselines:")[0] + section + "\n")
        assert_refused(capsys, vae_script, ["--config", str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path)], message)


def test_decoding_only_the_past_tells_what_it_overrides(capsys):
    vae_script.check_loss(BeliefSettings(), LossSettings(decode_only_past=True, num_decoded_transitions=5))
    assert "whatever --num-decoded-transitions says" in capsys.readouterr().err
    vae_script.check_loss(BeliefSettings(), LossSettings(decode_only_past=True))
    assert not capsys.readouterr().err


def test_families_of_meta_dt_have_its_reference_levels():
    """The stored levels of one episode stand for each of the K; the sparse robots' are played with memory instead."""
    levels = reference_episodes(problem_of("cheetah_vel", 2), [45, 49])
    known = read_json(ROOT / "configs/references/cheetah_vel.json")["per_task"]
    for level in ("task_blind", "best_known"):
        assert levels[level] == [[known[level][task]] * 2 for task in (45, 49)]
    assert np.shape(levels["trivial"]) == (2, 2) and np.mean(levels["trivial"]) < np.mean(levels["best_known"])


def test_problem_needs_rewards_for_relabelling(wind):
    _, flags = wind
    problem = parsed(vae_script, flags)[0].problem
    problem.environment = object()
    with pytest.raises(UserError, match="no compute_rewards"):
        problem.rewards(0, np.zeros(3), np.zeros(2), np.zeros(3))
