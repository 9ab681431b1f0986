"""The product: four scripts in sequence, killed and continued, twice with one seed, on an environment of a user's own."""

import dataclasses
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONTEXT, KILL, POLICY, RESULTS, ROOT, SAVES, listing, point_robot, run_stage, shell, words

import get_datasets
import train_context
import train_meta_dt
from src.data import trajectories
from src.data.relabel import with_best_of_other_tasks
from src.evaluation import method
from src.evaluation.results import read_pictures, read_result
from src.models import meta_dt_training
from src.models.load import load_agent
from src.models.meta_dt import masked_mean
from src.models.meta_dt_agent import LEFT_OUT
from src.report.results import read_results
from src.run.files import load_state, load_tensors, read_json, write_json
from src.run.logger import Logger, read_metrics
from tools import report
from tools.sweep import changes_of

PROVENANCE = ("command", "commit", "hardware", "versions", "config")


@pytest.fixture
def data(tmp_path, data_root):
    """A copy of the dataset in a folder of its own."""
    return _copy(data_root, tmp_path, "datasets")


@pytest.fixture
def models(tmp_path, model_root):
    """A copy of the dataset and the world model in a folder of its own."""
    return _copy(model_root, tmp_path, "datasets", str(CONTEXT))


def _copy(root, tmp_path, *parts):
    for part in parts:
        shutil.copytree(root / part, tmp_path / "root" / part)
    return tmp_path / "root"


def same_weights(a, b, *names):
    return all(same_tensors(load_tensors(a / f"{name}.safetensors"), load_tensors(b / f"{name}.safetensors")) for name in names)


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def result(root, name, seed=0, quality="random"):
    """A result file without what tells where and when it was made."""
    document = read_result(root / "results/point_robot" / quality / name / f"seed_{seed}.json")
    assert set(PROVENANCE) <= document.keys() and document["training"].pop("wall_clock_s") > 0
    document["pictures"] = read_pictures(root, document)
    return {key: value for key, value in document.items() if key not in PROVENANCE}


# ------------------------------------------------------------------------------------------------------- the way through


@pytest.mark.long
def test_each_script_prints_the_command_that_comes_next(tmp_path):
    """From behaviour policies to the report, following the printed commands word for word."""
    root = tmp_path / "a folder"
    first = ["--env_type", "point_robot", "--recipe", "debug", "--save_freq", "40", "--task_id_start", "0", "--task_id_end", "3"]
    done = shell("train_data_collection", *first, "--num_steps", "120", "--workers", "1", "--output_dir", root)
    followed = []
    while "next: " in done.stdout:
        assert done.returncode == 0, done.stderr
        words = shlex.split(done.stdout.splitlines()[-1].split("next: ")[1])
        assert words[0] == "python"
        followed.append(words[1])
        extra = ["--output", root / "report"] if "tools.report" in words else []
        done = subprocess.run([sys.executable, *words[1:], *extra], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert followed == ["get_datasets.py", "train_context.py", "train_meta_dt.py", "-m"]
    assert (root / "report" / "index.html").stat().st_size > 10_000
    assert "meta_dt+debug" in done.stdout
    page = (root / "report" / "index.html").read_text()
    for text in ("meta_dt+debug", "trivial", "task_blind", "best_known", "few_shot"):
        assert text in page
    found = {(r["label"], r["regime"]): r for r in read_results(root / "results")[0]}
    assert found.keys() == {
        ("context+debug", "diagnostics"), ("meta_dt+debug", "few_shot")
    }  # fmt: skip
    policy = found["meta_dt+debug", "few_shot"]
    assert policy["task_ids"] == [45, 46, 47, 48, 49] and np.shape(policy["returns"]) == (5, 2)
    assert np.shape(policy["warmup_returns"]) == (5, 2, 3) and policy["protocol"] == "strict"
    assert policy["command"].startswith("python train_meta_dt.py --env_type point_robot")
    assert policy["curve"]["gradient_steps"] == [6, 12] and None not in policy["curve"]["test_return"]
    assert np.mean(policy["reference"]["trivial"]) == pytest.approx(-17.5, abs=0.01)

    # the commands as the paper's authors print them are the same run
    published = ["--env_name", "PointRobot-v0", "--data_quality", "medium", "--recipe", "debug", "--output_dir", str(root)]
    folder = root / "saves/point_robot/medium/meta_dt+debug"
    before = listing(folder)
    train_meta_dt.main([*published, "--zero_shot", "False"])
    assert listing(folder) == before
    train_meta_dt.main([*published, "--zero_shot", "True"])
    zero_shot = result(root, "meta_dt+debug/zero_shot-strict", quality="medium")
    assert "warmup_returns" not in zero_shot and np.shape(zero_shot["returns"]) == (5, 2)
    assert not same_weights(folder / "few_shot/seed_0", folder / "zero_shot/seed_0", "model")


@pytest.mark.long
def test_an_environment_is_one_yaml_and_one_class(tmp_path, capsys):
    common = ["--config", str(ROOT / "tests/toy/slide.yaml"), "--output_dir", str(tmp_path), "--no-tensorboard"]
    for script, flags in (
        ("train_data_collection", ["--workers", "1"]),
        ("get_datasets", ["--workers", "1"]),
        ("train_context", []),
        ("train_meta_dt", []),
    ):
        importlib.import_module(script).main([*common, *flags])
        assert "--config" in capsys.readouterr().out.splitlines()[-1] or script == "train_meta_dt"
    found = {(r["env_type"], r["quality"], r["label"], r["regime"]): r for r in read_results(tmp_path / "results")[0]}
    policy = found["slide", "medium", "meta_dt", "few_shot"]
    assert policy["task_ids"] == [6, 7] and len(policy["reference"]["trivial"]) == 2 and "best_known" not in policy["reference"]
    assert len(policy["reference"]["dataset_mean"]) == 2
    report.main(["--results", str(tmp_path / "results"), "--output", str(tmp_path / "report")])
    assert "slide" in (tmp_path / "report/index.html").read_text()
    # a class that does not say what other tasks would pay: it is learned from the data, or asked for in vain
    model = tmp_path / "saves/slide/medium/context-decode_relabelled/seed_1"
    for script, flags in (
        ("train_context", ["--decode", "relabelled"]),
        ("train_meta_dt", ["--other_tasks", "training", "--world_model", str(model)]),
    ):
        importlib.import_module(script).main([*common, "--seed", "1", *flags])
    (policy,) = (r for r in read_results(tmp_path / "results")[0] if (r["seed"], r["regime"]) == (1, "few_shot"))
    (made,) = (r for r in read_results(tmp_path / "results")[0] if (r["seed"], r["method"]) == (1, "context"))
    assert policy["privileges"] == made["privileges"] == "none"
    assert policy["learned_reward"] == made["learned_reward"] and made["learned_reward"].keys() == {
        "held_out_r2",
        "wrong_task_r2",
    }
    with pytest.raises(SystemExit):
        train_context.main([*common, "--decode", "relabelled", "--true_rewards", "--seed", "2"])
    assert "needs SlideEnv.compute_rewards" in capsys.readouterr().err
    assert not list((tmp_path / "saves/slide/medium").glob("context*/seed_2"))


# ------------------------------------------------------------------------------------------------------ killed and stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_root):
    """Stages 3 and 4 that nobody disturbs."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(data_root / "datasets", root / "datasets")
    run_stage("train_context", root, *STEPS["train_context"])
    run_stage("train_meta_dt", root, *STEPS["train_meta_dt"])
    best, last = (load_tensors(root / CONTEXT / f"{name}.safetensors") for name in ("best", "last"))
    assert not same_tensors(best, last)  # so that a continued run which forgets the best one shows
    return root


STEPS = {
    "train_context": ["--steps", "20", "--eval_every", "5", "--learning_rate", "0.08"],
    "train_meta_dt": [
        "--steps",
        "10",
        "--eval_every",
        "3",
        "--warmup_episodes",
        "1",
        "--precision",
        "float32",
        "--other_tasks",
        "training",
    ],
}
CHANGED = "meta_dt+debug-other_tasks_training"  # not the recipe's, as STEPS say
TRAINED = SAVES / CHANGED / "few_shot" / "seed_0"
WEIGHTS = {"train_context": (CONTEXT, ("best", "last")), "train_meta_dt": (TRAINED, ("model",))}
VARIANT = f"{CHANGED}-warmup_episodes_1"  # STEPS have fewer than the recipe
FILES = {
    "train_context": ("context+debug/diagnostics",),
    "train_meta_dt": (f"{VARIANT}/few_shot-strict",),
}
OF_RECIPE = ("meta_dt+debug/few_shot-strict",)
both_stages = pytest.mark.parametrize("script", STEPS)


def prepare(script, whole, tmp_path):
    """A folder in which the script can run, without a run of it."""
    parts = ["datasets", *([str(CONTEXT)] if script == "train_meta_dt" else [])]
    return _copy(whole, tmp_path, *parts)


def stop_at(monkeypatch, step, number):
    """This process gets the signal `number` during a training step."""
    advance = Logger.advance

    def advance_and_stop(self, steps=1):
        advance(self, steps)
        if self._bar.n == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Logger, "advance", advance_and_stop)


def assert_same(script, root, whole):
    directory, names = WEIGHTS[script]
    assert same_weights(root / directory, whole / directory, *names)
    assert read_metrics(root / directory) == read_metrics(whole / directory)
    for name in FILES[script]:
        assert result(root, name) == result(whole, name)
    ends = [load_state(folder / directory / "state.pt") for folder in (root, whole)]
    assert ends[0]["step"] == ends[1]["step"] and torch.equal(ends[0]["generator"], ends[1]["generator"])


@pytest.mark.long
@both_stages
def test_killed_at_several_points_it_ends_with_the_same_weights(script, whole, tmp_path):
    """Two kills fall between the writing of an artifact and its renaming: of the first state, of later weights; one anywhere."""
    root = prepare(script, whole, tmp_path)
    argv = words(root, *STEPS[script])
    directory = root / WEIGHTS[script][0]
    seen = []
    # in a fresh run the reward model, the settings, what the agent acts with and the log come first; then the log only
    for count in {"train_context": (6, 5), "train_meta_dt": (7, 4)}[script]:
        killed = subprocess.run(
            [sys.executable, "-c", KILL, str(count), f"{script}.py", *argv], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        state = directory / "state.pt"
        seen.append(load_state(state)["step"] if state.exists() else 0)
        assert len(list(directory.glob(".*.tmp"))) == 1
    assert seen == [0, int(STEPS[script][3])]  # the first attempt saved nothing, the second got further
    process = subprocess.Popen(
        [sys.executable, f"{script}.py", *argv], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 60
    while load_state(directory / "state.pt")["step"] == seen[-1] and time.time() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    run_stage(script, root, *STEPS[script])
    assert not list(directory.glob(".*.tmp"))
    assert_same(script, root, whole)


@pytest.mark.long
@both_stages
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_at_any_step_it_saves_and_ends_with_the_same_weights(script, number, whole, tmp_path, monkeypatch, capsys):
    root = prepare(script, whole, tmp_path)
    for step in (1, 4, int(STEPS[script][1]) - 1) if number == signal.SIGTERM else (2,):
        stop_at(monkeypatch, step, number)
        with pytest.raises(SystemExit) as end:
            run_stage(script, root, *STEPS[script])
        assert end.value.code == 128 + number
        assert f"stopped at step {step}, saved; the same command continues" in capsys.readouterr().err
        assert load_state(root / WEIGHTS[script][0] / "state.pt")["step"] == step
        monkeypatch.undo()
    run_stage(script, root, *STEPS[script])
    assert_same(script, root, whole)


def test_terminated_from_outside(models):
    argv = words(models, "--steps", "100000", "--eval_every", "3")
    process = subprocess.Popen(
        [sys.executable, "train_meta_dt.py", *argv], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 60
    while not (models / POLICY / "state.pt").exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    step = load_state(models / POLICY / "state.pt")["step"]
    assert error.splitlines()[-1] in (
        f"stopped at step {step}, saved; the same command continues",
        "stopped during an evaluation; the same command continues from the last checkpoint",
    )


@both_stages
def test_a_finished_command_changes_nothing(script, whole, tmp_path):
    root = _copy(whole, tmp_path, *(path.name for path in whole.iterdir()))
    before = listing(root)
    run_stage(script, root, *STEPS[script])
    after = listing(root)
    assert after.keys() == before.keys()
    assert all(name.startswith("results") for name in before if before[name] != after[name])
    assert_same(script, root, whole)


# ------------------------------------------------------------------------------------------------------------ determinism


@pytest.mark.long
def test_the_seed_decides(whole, tmp_path):
    """The same seed again, in the same folder: the same weights and numbers. Another seed: others."""
    root = _copy(whole, tmp_path, *(path.name for path in whole.iterdir()))
    for script, (directory, names) in WEIGHTS.items():
        time_stamp = (root / directory / "state.pt").stat().st_mtime_ns
        run_stage(script, root, *STEPS[script], "--no-resume")
        assert (root / directory / "state.pt").stat().st_mtime_ns > time_stamp
        assert_same(script, root, whole)
        run_stage(script, root, *STEPS[script], "--seed", "1")
        for name in names:
            assert not same_weights(root / directory, root / directory.with_name("seed_1"), name)
    assert result(root, FILES["train_meta_dt"][0], 1)["returns"] != result(root, FILES["train_meta_dt"][0])["returns"]
    run_stage("train_context", root, *STEPS["train_context"], "--no-resume", "--learning_rate", "0.01")
    assert not same_weights(root / CONTEXT, whole / CONTEXT, "last")


@pytest.mark.long
@pytest.mark.parametrize("validation", [False, True])
def test_no_array_of_an_unseen_task_influences_training(validation, data_root, whole, tmp_path):
    """Other episodes of the test tasks (or, for tuning runs, of the validation tasks too): same weights, same returns."""
    dataset = trajectories.load(data_root / "datasets", "point_robot", "random")
    held_out = list(range(*point_robot().validation_tasks))
    unseen = (dataset.task_ids >= 45) | (np.isin(dataset.task_ids, held_out) & validation)
    generator = np.random.default_rng(0)

    def other(values, scale):
        noise = generator.uniform(-scale, scale, values.shape).astype(np.float32)
        return np.where(unseen.reshape(-1, *[1] * (values.ndim - 1)), noise, values)

    altered = dataclasses.replace(
        dataset,
        observations=other(dataset.observations, 50),
        actions=other(dataset.actions, 0.1),
        rewards=other(dataset.rewards, 100),
    )
    weights, found = [], []
    suffix = "+debug-validation" if validation else "+debug"
    for name, episodes in (("as made", dataset), ("altered", altered)):
        root = whole if episodes is dataset and not validation else tmp_path / name
        if root is not whole:
            trajectories.save(episodes, root / "datasets", point_robot(), "random", {})
            for script in STEPS:
                run_stage(script, root, *STEPS[script], *(["--validation"] if validation else []))
        folders = [(Path(str(d).replace("+debug", suffix)), names) for d, names in WEIGHTS.values()]
        weights.append([load_tensors(root / d / f"{name}.safetensors") for d, names in folders for name in names])
        found.append(result(root, f"{VARIANT}/few_shot-strict" + "-validation" * validation))
    assert all(same_tensors(a, b) for a, b in zip(*weights, strict=True))
    assert found[0]["task_ids"] == (held_out if validation else list(range(45, 50)))
    same = ("returns", "warmup_returns", "target_return", "curve", "pictures")
    assert {key: found[0][key] for key in same} == {key: found[1][key] for key in same}
    assert found[0]["reference"]["dataset_mean"] != found[1]["reference"]["dataset_mean"]
    seen = found[0]["curve"]["validation_return" if validation else "test_return"]
    assert None not in seen and len(seen) == 4


# ------------------------------------------------------------------------------------------------- variants of stage 4


def test_measuring_again_trains_nothing(policy_root, tmp_path):
    root = _copy(policy_root, tmp_path, "datasets", "saves", "results")
    before, first = listing(root / "saves"), result(root, OF_RECIPE[0])
    (path,) = [p for p in run_stage("train_meta_dt", root, "--eval_only", "--eval_episodes", "3") if "few_shot-" in str(p)]
    assert path == root / "results/point_robot/random/meta_dt+debug/few_shot-strict/seed_0.json"
    again = result(root, OF_RECIPE[0])
    assert np.shape(again["returns"]) == (5, 3)  # the same episodes and one more; another batch has other last bits
    np.testing.assert_allclose([row[:2] for row in again["returns"]], first["returns"], atol=0.02)
    run_stage("train_meta_dt", root, "--eval_only")
    assert result(root, OF_RECIPE[0]) == first
    changed = ["--warmup_episodes", "1", "--target_return", "-3"]
    (path,) = [p for p in run_stage("train_meta_dt", root, "--eval_only", *changed) if "few_shot-" in str(p)]
    assert result(root, OF_RECIPE[0]) == first  # other settings, another name
    assert path.parts[-3] == "meta_dt+debug-warmup_episodes_1-target_return_-3.0"
    again = read_result(path)
    assert np.shape(again["warmup_returns"]) == (5, 2, 1) and again["target_return"] == -3
    assert again["variant"] == {"warmup_episodes": 1, "target_return": -3}
    read_results(root / "results")  # and the report can read it
    after = listing(root / "saves")
    assert all(after[name] == content for name, content in before.items() if "pictures" not in name)
    config = root / POLICY / "config.json"
    explored = ["--explore", "noise", "--explore_steps", "2"]
    (path,) = [p for p in run_stage("train_meta_dt", root, "--eval_only", *explored) if "few_shot-" in str(p)]
    assert path.parts[-3] == "meta_dt+debug-explore_noise-explore_steps_2"
    write_json(config, {**read_json(config), "warmup_episodes": 5})  # begun otherwise, but measured as the recipe says
    (path,) = [p for p in run_stage("train_meta_dt", root, "--eval_only") if "few_shot-" in str(p)]
    assert result(root, OF_RECIPE[0]) == first and path.parts[-3] == "meta_dt+debug"


@pytest.mark.parametrize(
    ("script", "module", "name"),
    [("train_context", train_context, FILES["train_context"][0]), ("train_meta_dt", method, OF_RECIPE[0])],
)
def test_results_are_written_before_anything_is_said_of_them(models, monkeypatch, script, module, name):
    """Whoever listens may be gone by then."""

    def report(*_):
        raise ValueError("nobody listens")

    monkeypatch.setattr(module, "report", report)
    shutil.rmtree(models / "results", ignore_errors=True)
    with pytest.raises(ValueError, match="nobody listens"):
        run_stage(script, models, "--no-resume")
    assert result(models, name)["recipe"] == "debug"


def test_the_target_is_the_mean_of_the_best_training_returns(policy_root):
    dataset = trajectories.load(policy_root / "datasets", "point_robot", "random")
    best = [dataset.returns[dataset.task_ids == task].max() for task in range(45)]
    found = result(policy_root, OF_RECIPE[0])
    assert found["target_return"] == pytest.approx(np.mean(best))


def test_the_papers_protocol(models, tmp_path, monkeypatch):
    """Targets from the test tasks' own data, and a pool that grows over checkpoints and outlives an interruption."""
    argv = ["--protocol", "paper", "--eval_every", "3", "--warmup_episodes", "1", "--precision", "float32"]
    folder, name = POLICY.parent.with_name("few_shot-paper") / "seed_0", "meta_dt+debug/few_shot-paper"
    twin = shutil.copytree(models, tmp_path / "twin")
    run_stage("train_meta_dt", models, *argv)
    found = result(models, name)
    dataset = trajectories.load(models / "datasets", "point_robot", "random")
    best = [dataset.returns[dataset.task_ids == task].max() for task in range(45, 50)]
    assert found["target_return"] == pytest.approx(best) and found["protocol"] == "paper"
    assert np.shape(found["returns"]) == (5, 2) and "warmup_returns" not in found
    pool = load_state(models / folder / "state.pt")["pool"]["rewards"].sum(-1)
    assert pool.shape == (5, 3) and torch.equal(pool, pool.sort(1, descending=True).values)  # the best three of four rounds

    stop_at(monkeypatch, 10, signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_stage("train_meta_dt", twin, *argv)
    monkeypatch.undo()
    run_stage("train_meta_dt", twin, *argv)
    assert result(twin, name) == found and same_weights(twin / folder, models / folder, "model")

    run_stage("train_meta_dt", models, *argv, "--zero_shot")
    assert result(models, "meta_dt+debug/zero_shot-paper")["target_return"] == pytest.approx(best)
    run_stage("train_meta_dt", models, *argv, "--zero_shot", "--eval_only", "--protocol", "strict")
    strict = result(models, "meta_dt+debug/zero_shot-strict")
    best = [dataset.returns[dataset.task_ids == task].max() for task in range(45)]
    assert strict["target_return"] == pytest.approx(np.mean(best))


@pytest.mark.long
@pytest.mark.parametrize(
    ("ablation", "flags", "regimes"),
    [
        ("no_context", ["--context", "none"], ["few_shot"]),
        ("no_context", ["--context", "none", "--zero_shot"], ["zero_shot"]),
        ("no_prompt", ["--prompt_select", "none"], ["few_shot"]),
        ("no_prompt", ["--prompt_select", "none", "--context", "carried"], ["few_shot"]),
        ("random_prompt", ["--prompt_select", "random"], ["few_shot"]),
        ("last_prompt", ["--prompt_select", "last"], ["few_shot"]),
        ("top_share_0.5+hindsight_share_0.5", ["--hindsight_share", "0.5", "--top_share", "0.5"], ["few_shot"]),
        ("full_windows", ["--full_windows"], ["few_shot"]),
    ],
)
def test_ablations(models, policy_root, ablation, flags, regimes):
    paths = run_stage("train_meta_dt", models, "--warmup_episodes", "1", *flags)
    variant = "-context_carried" if "carried" in flags else ""
    warm = "" if "--zero_shot" in flags else "-warmup_episodes_1"
    folder = models / "results/point_robot/random" / f"meta_dt+debug-{ablation}{warm}{variant}"
    assert paths == [folder / f"{regime}-strict" / "seed_0.json" for regime in regimes]
    found = read_result(paths[0])
    assert (found["method"], found["ablation"]) == ("meta_dt", ablation) and ("warmup_returns" in found) == ("few" in regimes[0])
    unprompted = ablation == "no_prompt" or "--zero_shot" in flags
    folder = models / SAVES / f"meta_dt+debug-{ablation}" / ("zero_shot" if unprompted else "few_shot") / "seed_0"
    assert not same_weights(folder, policy_root / POLICY, "model")
    state = load_state(folder / "state.pt")
    fixed = ("observation_mean", "observation_std", "observation_bound", "action_scale")
    names = [name for name in state["policy"] if name not in fixed]
    moments = {names[index]: value["exp_avg"] for index, value in state["optimizer"]["state"].items()}
    if ablation == "no_context":  # nothing came through the columns that read z
        assert not moments["history.states.weight"][:, 16:].any() and moments["history.states.weight"][:, :16].any()
    if unprompted:  # the prompt's own layers were never used
        assert moments.keys() == {name for name in names if not name.startswith("prompt.")}


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        "--rescale_actions --full_windows --explore probe --explore_steps 2",
        "--prompt_select sample --target_return -4 --hindsight_share 0.5",
        "--precision bfloat16 --heads 2 --lr_schedule cosine --prompt_select last --top_share 0.3",
        "--precision float32 --history_length 30 --prompt_length 20 --prompt_start_step 0",
        "--history_length 1 --prompt_length 1 --dropout 0 --curve_episodes 2",
        "--top_share 0.1 --imitate steps --explore noise --explore_steps 2 --history_length 3 --batch_size 2",
        "--context tried",
        "--context carried --rescale_actions --precision bfloat16",
        "--ignore_returns True --context carried --prompt_select last",
    ],
)
def test_other_settings_run(models, flags):
    short = ["--steps", "6", "--eval_every", "6", "--eval_episodes", "1", "--warmup_episodes", "1"]
    found = read_result(run_stage("train_meta_dt", models, *short, *flags.split())[0])
    assert np.isfinite(found["returns"]).all()
    assert ("--target_return" in flags) == (found.get("target_return") == -4)
    assert ("--ignore_returns" in flags) == ("target_return" not in found)
    (weights,) = (models / SAVES).glob("meta_dt*/few_shot/seed_0/model.safetensors")
    agent = load_agent(weights.parent)
    agent.start(np.zeros(2))
    assert np.isfinite(agent.act()).all()
    bounds = load_tensors(weights)["action_scale"].tolist()
    assert bounds == pytest.approx([0.1, 0.1] if "--rescale_actions" in flags else [1, 1])


@pytest.mark.parametrize(("head", "place"), [("reward", 0), ("state", 1)])
def test_a_head_that_was_not_trained_chooses_no_prompt(models, head, place):
    settings = models / CONTEXT / "config.json"
    write_json(settings, read_json(settings) | {f"{head}_weight": 0.0})
    run_stage("train_meta_dt", models, "--steps", "1", "--prompt_start_step", "0", "--eval_episodes", "1")
    (agent,) = (models / SAVES).glob("meta_dt*/few_shot/seed_0/agent.json")
    scale = read_json(agent)["error_scale"]
    assert scale[place] == LEFT_OUT and scale[1 - place] < 1e3


def test_best_steps_reach_the_relabelled_episodes_and_the_loss(models, monkeypatch):
    """Windows of whole episodes: without the flag every step of a batch is learned, with it some of each window."""
    masks, chosen = [], []

    def noted_mean(errors, mask):
        masks.append(mask)
        return masked_mean(errors, mask)

    def noted_choice(*given):
        chosen.append(given[-1])
        return with_best_of_other_tasks(*given)

    monkeypatch.setattr(meta_dt_training, "masked_mean", noted_mean)
    monkeypatch.setattr(meta_dt_training, "with_best_of_other_tasks", noted_choice)
    short = ["--steps", "4", "--eval_every", "4", "--eval_episodes", "1", "--prompt_start_step", "0", "--history_length", "20"]
    short += ["--full_windows", "--other_tasks", "training", "--top_share", "0.3"]
    run_stage("train_meta_dt", models, *short)
    assert torch.cat(masks).all() and chosen == [False]
    masks.clear()
    run_stage("train_meta_dt", models, *short, "--imitate", "steps", "--no-resume")
    assert torch.cat(masks).any(1).all() and not torch.cat(masks).all() and chosen == [False, True]


@pytest.mark.long
def test_running_contexts_run_and_resume(data, tmp_path, monkeypatch):
    """Both stages with contexts of the whole episode so far; stopped and continued, the world model is the same."""
    flags = ["--context_horizon", "0", "--steps", "12", "--eval_every", "4"]
    twin = shutil.copytree(data, tmp_path / "twin")
    run_stage("train_context", data, *flags)
    stop_at(monkeypatch, 7, signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_stage("train_context", twin, *flags)
    monkeypatch.undo()
    run_stage("train_context", twin, *flags)
    changed = SAVES / "context+debug-context_horizon_0" / "seed_0"  # another model than the recipe's, in a folder of its own
    assert same_weights(data / changed, twin / changed, "best", "last")
    assert result(data, "context+debug-context_horizon_0/diagnostics")["ablation"] == "context_horizon_0"
    run_stage("train_meta_dt", data, "--hindsight_share", "0.5", "--world_model", str(data / changed))
    name = "meta_dt+debug-hindsight_share_0.5+context_context_horizon_0"
    found = result(data, f"{name}/few_shot-strict")
    assert np.isfinite(found["returns"]).all()
    run_stage("train_meta_dt", data, "--hindsight_share", "0.5", "--world_model", f"{data / changed}/")  # the same folder
    run_stage("train_meta_dt", data, "--hindsight_share", "0.5", "--world_model", str(data / changed), "--seed", "1")
    assert result(data, f"{name}+context_of_seed_0/few_shot-strict", seed=1)["ablation"].endswith("+context_of_seed_0")


@pytest.mark.long
def test_our_own_recipe_runs(data):
    """The recipe `fast` as it stands in the settings file, cut short."""
    common = ["--env_type", "point_robot", "--data_quality", "random", "--recipe", "fast", "--no-tensorboard", "--output_dir"]
    train_context.main([*common, str(data), "--steps", "4", "--eval_every", "2"])
    short = ["--steps", "4", "--eval_every", "4", "--eval_episodes", "1", "--curve_episodes", "1"]
    paths = train_meta_dt.main([*common, str(data), *short])
    whole = data / RESULTS / "meta_dt+fast"
    assert paths == [whole / f"{regime}-strict/seed_0.json" for regime in ("few_shot", "zero_shot")]
    zero_shot = paths[1].read_bytes()
    (path,) = train_meta_dt.main([*common, str(data), *short, "--eval_only", "--context", "running"])  # no copy of zero-shot
    assert path == whole.with_name("meta_dt+fast-context_running") / "few_shot-strict/seed_0.json"
    paths = train_meta_dt.main([*common, str(data), *short, "--eval_only", "--explore", "none", "--explore_steps", "0"])
    assert [path.parts[-3:-1] for path in paths] == [
        ("meta_dt+fast-explore_none-explore_steps_0", f"{regime}-strict") for regime in ("few_shot", "zero_shot")
    ]
    assert (whole / "zero_shot-strict/seed_0.json").read_bytes() == zero_shot
    (path,) = train_meta_dt.main([*common, str(data), *short, "--prompt_select", "argmax", "--prompt_start_step", "0"])
    assert path == whole.with_name("meta_dt+fast-argmax_prompt") / "few_shot-strict/seed_0.json"  # the published prompt is added
    folders = (data / SAVES / name / "seed_0" for name in ("meta_dt+fast/zero_shot", "meta_dt+fast-argmax_prompt/few_shot"))
    plain, prompted = (load_tensors(folder / "model.safetensors") for folder in folders)
    layers = [name for name in plain if name.startswith("prompt.") and name.endswith("weight")]
    assert layers and not any(torch.equal(plain[name], prompted[name]) for name in layers)  # they learned
    train_meta_dt.main([*common, str(data), *short, "--zero_shot"])


@pytest.mark.parametrize(
    ("family", "flags", "few_shot", "zero_shot"),
    [
        ("point_robot", "--context running", {"context": "running"}, {}),
        ("point_robot", "--warmup_episodes 9", {"warmup_episodes": 9}, {}),
        ("point_robot", "--explore_steps 4", {"explore_steps": 4}, {}),  # its first episode begins with probes
        ("point_robot", "--explore noise --explore_steps 4", {"explore": "noise", "explore_steps": 4}, None),
        (
            "point_robot",
            "--target_return=-5 --context running",
            {"context": "running", "target_return": -5.0},
            {"target_return": -5},
        ),
        ("point_robot", "--context none", {}, {}),  # trained otherwise: an ablation
        ("hopper_rand_params", "--context carried --warmup_episodes 3", {"warmup_episodes": 3, "context": "carried"}, {}),
    ],
)
def test_zero_shot_is_a_row_of_its_own_only_where_a_first_episode_is_another(family, flags, few_shot, zero_shot):
    _, variants = changes_of(train_meta_dt, ["--env_type", family, "--recipe", "fast", *flags.split()])
    assert variants == {"few_shot": few_shot, "zero_shot": few_shot if zero_shot is None else zero_shot}
    assert list(variants["few_shot"]) == list(few_shot)  # their order is the row's name


def test_our_own_recipe_runs_on_a_settings_file_of_ones_own(tmp_path):
    """It stands in configs/recipes/ for every file, also for one that says nothing of recipes."""
    settings = ROOT / "tests" / "toy" / "slide.yaml"
    common = ["--config", str(settings), "--data_type", "random", "--output_dir", str(tmp_path)]
    get_datasets.main([*common, "--recipe", "fast", "--workers", "1"])
    common += ["--recipe", "fast", "--no-tensorboard"]
    train_context.main([*common, "--steps", "4", "--eval_every", "2"])
    paths = train_meta_dt.main([*common, "--steps", "4", "--eval_every", "4", "--eval_episodes", "1", "--curve_episodes", "1"])
    assert [path.parent.name for path in paths] == ["few_shot-strict", "zero_shot-strict"]  # one policy serves both
    found = read_result(paths[0])
    assert found["recipe"] == "fast" and np.isfinite(found["returns"]).all()


# ---------------------------------------------------------------------------------------------------- unusual datasets


def test_episodes_of_unequal_length(tmp_path):
    """As an importer may bring them: some shorter than the prompt, all shorter than the horizon of the environment."""
    lengths = np.tile([15, 3, 9, 1, 15, 12, 15, 7, 15, 2], 6)
    generator = np.random.default_rng(0)
    observations = generator.uniform(-1, 1, (60, 16, 2)).astype(np.float32)
    tasks = list(range(6))
    episodes = trajectories.Trajectories(
        observations,
        (observations[:, 1:] - observations[:, :-1]).clip(-0.1, 0.1),
        generator.normal(size=(60, 15)).astype(np.float32),
        lengths,
        np.repeat(tasks, 10),
        trajectories.task_parameters(point_robot().make(), tasks),
    )
    trajectories.save(episodes, tmp_path / "datasets", point_robot(), "random", {})
    run_stage("train_context", tmp_path)
    run_stage("train_meta_dt", tmp_path, "--full_windows", "--prompt_length", "6")
    assert np.isfinite(result(tmp_path, "meta_dt+debug-full_windows/few_shot-strict")["returns"]).all()


def test_episodes_that_end_on_their_own(tmp_path, monkeypatch):
    """An environment that says `terminates: true`: warm-up episodes of a round may all be shorter than the longest."""
    code, settings = ((ROOT / f"tests/toy/slide.{kind}").read_text() for kind in ("py", "yaml"))
    (tmp_path / "fragile_slide.py").write_text(code.replace("reward, False,", "reward, bool(abs(self.state[0]) > 0.4),"))
    changed = settings.replace("tests.toy.slide", "fragile_slide").replace("max_episode", "terminates: true\nmax_episode", 1)
    (tmp_path / "fragile.yaml").write_text(changed)
    monkeypatch.syspath_prepend(tmp_path)
    common = [
        "--config",
        str(tmp_path / "fragile.yaml"),
        "--output_dir",
        str(tmp_path),
        "--data_type",
        "random",
        "--no-tensorboard",
    ]
    for script in ("get_datasets", "train_context", "train_meta_dt"):
        importlib.import_module(script).main(common)
    (found,) = (r for r in read_results(tmp_path / "results")[0] if r["regime"] == "few_shot")
    assert np.shape(found["returns"]) == np.shape(found["lengths"]) == (2, 2) and np.shape(found["warmup_returns"]) == (2, 2, 3)
    assert np.max(found["lengths"]) <= 6 and np.isfinite(found["returns"]).all()


def test_data_of_a_single_task(tmp_path, capsys):
    run_stage("get_datasets", tmp_path, "--task_id_start", "3", "--task_id_end", "4")
    run_stage("train_context", tmp_path)
    output = capsys.readouterr().out
    assert "note: the dataset holds 1 of the 45 training tasks" in output and "R²: dataset -," in output
    probes = result(tmp_path, "context+debug/diagnostics")["probe"]
    assert probes["dataset"] == {"r2": None}
    run_stage("train_meta_dt", tmp_path)
    report.main(["--results", str(tmp_path / "results"), "--table_only"])


def test_diagnostics_say_what_the_world_model_knows(model_root):
    found = result(model_root, "context+debug/diagnostics")
    scores = found["errors"]
    dataset = trajectories.load(model_root / "datasets", "point_robot", "random").select(range(45))
    assert scores["reward_std"] == pytest.approx(dataset.rewards.std(), rel=0.1)  # on the held-out tenth
    assert scores["reward_rmse"] > 0 and 0 < scores["state_rmse"] < scores["state_std"]
    assert found["probe"].keys() == {"dataset", "random_walk", "random_walk_unseen_tasks", "relabelled_unseen_tasks"}
    learned = found["learned_reward"]
    assert (
        learned["held_out_r2"] > 0.8 and learned["wrong_task_r2"] < learned["other_tasks_r2"] and learned["other_tasks_r2"] > 0.5
    )
    assert learned["best_own"] < learned["best_learned"] <= learned["best_true"] < 0 < learned["gain_share"] <= 1
    embedding = found["pictures"]["embedding"]
    assert np.shape(embedding["points"]) == (len(embedding["task_ids"]), 2) and max(embedding["task_ids"]) < 45
    goals = point_robot().make().tasks["goal"]
    assert {int(task) for task in embedding["task_parameters"]} == set(embedding["task_ids"])
    for task, goal in embedding["task_parameters"].items():
        np.testing.assert_allclose(goal, goals[int(task)], atol=1e-3)
    assert found["curve"]["gradient_steps"] == [10, 20] and found["training"]["gradient_steps"] == 20
    json.dumps(found, allow_nan=False)
