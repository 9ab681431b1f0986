"""Mistakes of every kind: status 2, one line that names the mend, and not a file more or less than before."""

import importlib
import re
import shutil

import h5py
import numpy as np
import pytest
from helpers import CONTEXT, POLICY, ROOT, listing, run_stage, words
from recorded import sealed_again

from src.run.files import load_state, read_json, save_state, write_json

TOY = ROOT / "tests" / "toy" / "slide.yaml"
HDF5 = "datasets/point_robot/random-v0/data/main_data.hdf5"


def refused(capsys, folder, script, argv, mend):
    """Run a script that must refuse; returns its line."""
    before = listing(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).main(list(map(str, argv)))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]  # not the progress bar
    assert end.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert re.search(mend, lines[0]), lines[0]
    assert listing(folder) == before
    return lines[0]


# ------------------------------------------------------------------------------------------- seen on the command line


@pytest.mark.parametrize(
    ("script", "argv", "mend"),
    [
        ("train_context", [], r"name an environment: --env_type .*point_robot"),
        ("train_context", ["--env_type", "point_robt"], r"unknown --env_type point_robt \(did you mean point_robot\?\); known: "),
        ("train_context", ["--env_name", "PointRobot"], r"unknown --env_name PointRobot \(did you mean PointRobot-v0\?\)"),
        ("train_context", ["--env_type", "point_robot", "--env_name", "AntDir-v0"], "contradicts .* give one of them"),
        ("train_context", ["--config", "no/such/file.yaml"], "--config no/such/file.yaml does not exist"),
        ("train_context", ["--config", "configs"], "--config configs does not exist"),
        ("train_context", ["--env"], r"unknown argument|name an environment"),
        ("get_datasets", ["--capactiy", "100"], r"unknown argument --capactiy \(did you mean --capacity"),
        ("train_meta_dt", ["--recipe", "fats"], "has no recipe 'fats': choose paper, fast, compare, compare_long, debug"),
        ("train_meta_dt", ["--seed"], "--seed: expected one argument"),
        ("train_meta_dt", ["--output_dir="], "'' names no folder: give one"),
        ("train_meta_dt", ["--seed", "-1"], "'-1' is not an integer of at least 0"),
        ("train_meta_dt", ["--seed", "first"], "'first' is not an integer of at least 0"),
        ("train_meta_dt", ["--device", "cuda:99"], "--device cuda:99 is not available here; use --device cpu"),
        ("train_meta_dt", ["--learning_rate", "0"], "'0' is not a number above 0"),
        ("train_meta_dt", ["--learning_rate", "nan"], "'nan' is not a number above 0"),
        ("train_meta_dt", ["--learning_rate", "1e-4,"], "'1e-4,' is not a number above 0"),
        ("train_meta_dt", ["--steps", "2.5"], "'2.5' is not an integer of at least 1"),
        ("train_meta_dt", ["--dropout", "10"], "'10' is not a number of at least 0 and below 1"),
        ("train_meta_dt", ["--zero_shot", "maybe"], "'maybe' is not True or False"),
        ("train_meta_dt", ["--no-zero_shot", "False"], "--no-zero_shot takes no value"),
        ("train_meta_dt", ["--prompt_select", "best"], "invalid choice: 'best' .*argmax.*sample.*random.*last"),
        ("train_meta_dt", ["--width", "130", "--heads", "4"], "--width 130 must be a multiple of --heads 4"),
        ("train_meta_dt", ["--zero_shot", "--prompt_select", "none"], "has no effect with --zero_shot True"),
        ("train_meta_dt", ["--zero_shot", "--prompt_select", "random"], "has no effect with --zero_shot True"),
        ("train_meta_dt", ["--zero_shot", "--prompt_select", "last"], "has no effect with --zero_shot True"),
        ("train_context", ["--decode", "own", "--relabel_share", "0.3"], "has no effect without --decode relabelled"),
        ("train_context", ["--context_horizon", "100000"], "longer than an episode, 20 steps: give 0"),
        ("get_datasets", ["--behaviour_of", "cheetah_vel"], "--behaviour_of has no effect on random or imported data"),
        ("train_meta_dt", ["--protocol", "paper", "--target_return", "-3"], "leave --target_return out"),
        ("train_meta_dt", ["--data_type", "mediun"], "no world model in .*mediun"),
        ("train_meta_dt", ["--ignore_returns", "True", "--target_return", "-3"], "--target_return asks for a return"),
        ("train_meta_dt", ["--ignore_returns", "True", "--protocol", "paper"], "--protocol paper asks for a return"),
        ("train_meta_dt", ["--target_return", "much"], "--target_return: .*'much'"),
        ("train_meta_dt", ["--target_return", "nan"], "--target_return: .*'nan'"),
        ("train_meta_dt", ["--target_return", "1e39"], r"'1e39' is not a finite number \(-1e15 to 1e15\), nor auto"),
        ("train_meta_dt", ["--return_scale", "1e-300"], r"'1e-300' is not a number above 0 \(1e-15 to 1e15\)"),
        ("train_context", ["--weight_decay", "1e300"], r"'1e300' is not a number of at least 0 \(to 1e15\)"),
        ("train_context", ["--threads", "1000000000000"], r"'1000000000000' is not an integer of at least 1 \(to 1024\)"),
        ("get_datasets", ["--data_type", "medium", "--data_quality", "random"],
         "--data_type medium and --data_quality random contradict: give one of them"),
        ("train_meta_dt", ["--data-quality=medium"], "--data_type random and --data_quality medium contradict"),
        ("train_meta_dt", ["--prompt_length", "21"], r"--prompt_length 21 .* an episode \(20 steps\): give --prompt_length 20"),
        ("train_meta_dt", ["--prompt_start_step", "12"], "12 is not below --steps 12.*lower it, or pass --zero_shot True"),
        ("train_meta_dt", ["--render", "film.mp4"], "a file that ends in .gif"),
        ("train_meta_dt", ["--render", "film.gif"], "PointRobot-v0 has no camera"),
        ("train_meta_dt", ["--render", "no/such/film.gif"], "there is no such folder; make it first"),
        ("train_meta_dt", ["--warmup_episodes", "0"], "'0' is not an integer of at least 1"),
        ("train_context", ["--reward_weight", "0", "--state_weight", "0"], "make one of them positive"),
        ("train_context", ["--decode", "own", "--true_rewards"], "--true_rewards has no effect without --decode relabelled"),
        ("train_meta_dt", ["--true_rewards"], "--true_rewards has no effect without --other_tasks"),
        ("train_meta_dt", ["--other_tasks", "some"], "--other_tasks: invalid choice: 'some' .*none.*training"),
        ("train_context", ["--decode", "any"], "invalid choice: 'any' .*own.*task.*relabelled"),
        ("train_meta_dt", ["--context", "tried", "--protocol", "paper"], "pass --context running"),
        ("train_meta_dt", ["--prompt_select", "none", "--protocol", "paper"], "pass --prompt_select argmax"),
        ("train_context", ["--validation_share", "1.5"], "'1.5' is not a number between 0 and 1"),
        ("train_context", ["--lr_schedule", "linear"], "invalid choice: 'linear'"),
        ("get_datasets", ["--data_type", "mediun"], "--data_type mediun is none of medium, expert"),
        ("get_datasets", ["--capacity", "19"], "--capacity 19 holds no episode: give at least 20"),
        ("get_datasets", ["--workers", "0"], "'0' is not an integer of at least 1"),
        ("get_datasets", ["--task_id_start", "5", "--task_id_end", "5"], "must satisfy 0 <= start < end <= 50"),
        ("get_datasets", ["--task_id_end", "51"], "must satisfy 0 <= start < end <= 50"),
        ("get_datasets", ["--import_from", "no/such/folder"], "no/such/folder"),
        ("get_datasets", ["--task_id", "3"], "--task_id has no effect without --import_from"),
        ("get_datasets", ["--import_prompts"], "--import_prompts has no effect without --import_from"),
        ("train_meta_dt", ["--explore_steps", "3"], "--explore_steps has no effect with --explore none"),
        ("train_meta_dt", ["--explore", "noise"], "--explore noise has no effect without --explore_steps"),
        ("train_meta_dt", ["--dropout", "1"], "'1' is not a number of at least 0 and below 1"),
        ("train_meta_dt", ["--explore", "probe", "--explore_steps", "20"], "--explore_steps 20 leaves nothing of an episode"),
        ("train_meta_dt", ["--imitate", "steps"], "--imitate steps has no effect with --top_share 1"),
        (
            "get_datasets",
            ["--env_type", "point_robot_wind", "--data_type", "medium", "--behaviour", "committed"],
            "come with the repository: leave --behaviour",
        ),
        (
            "get_datasets",
            ["--data_type", "medium", "--behaviour", "per_task"],
            "no per_task behaviour policies in .*train_data_collection.py",
        ),
        ("train_data_collection", ["--save_freq", "0"], "'0' is not an integer of at least 1"),
        ("train_data_collection", ["--hidden_sizes", "64", "-1"], "'-1' is not|unknown argument|expected"),
        ("train_data_collection", ["--gamma", "1.01"], "'1.01' is not a number between 0 and 1"),
        ("train_data_collection", ["--algo", "ppo"], "invalid choice: 'ppo'"),
        ("train_data_collection", ["--task_id_start", "60"], "must satisfy"),
        ("train_context", ["--data_type", "expert"], r"no dataset .*; make it: python get_datasets.py .*--data_type expert"),
        ("train_meta_dt", ["--data_type", "expert"], r"no world model in .*; train it: python train_context.py .*expert"),
        ("train_meta_dt", ["--world_model", "configs"], "no world model in configs"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(tmp_path, capsys, script, argv, mend):
    named = not argv or {"--env_type", "--env_name", "--config", "--env"} & set(argv)
    base = ["--output_dir", str(tmp_path)]
    if script != "train_data_collection" and not named:
        base = words(tmp_path)
    elif not named:
        base += ["--env_type", "point_robot", "--recipe", "debug"]
    refused(capsys, tmp_path, script, [*base, *argv], mend)
    assert not listing(tmp_path)


# ---------------------------------------------------------------------------------------------- seen in what lies there


@pytest.fixture
def root(tmp_path, policy_root):
    """A copy of a dataset, a world model and a policy, all finished."""
    for part in ("datasets", "saves"):
        shutil.copytree(policy_root / part, tmp_path / "root" / part)
    return tmp_path / "root"


def cut(root, path):
    data = (root / path).read_bytes()
    (root / path).write_bytes(data[: len(data) // 2])


def put_nan(root, edit=h5py.File):
    with edit(root / HDF5, "a") as file:
        file["episode_7/rewards"][3] = np.nan


def forget_test_tasks(root):
    shutil.rmtree(root)
    for script in ("get_datasets", "train_context"):
        run_stage(script, root, *(["--task_id_end", "3"] if script == "get_datasets" else []))


def only_test_tasks(root):
    shutil.rmtree(root)
    run_stage("get_datasets", root, "--task_id_start", "45")


def edit(root, path, **changes):
    write_json(root / path, read_json(root / path) | changes)


NOTHING = ()
SEEN = {
    "other learning rate of the world model": ("train_context", NOTHING, ["--learning_rate", "0.1"],
        r"holds a run with learning_rate 0.001, this command says 0.1: pass --no-resume to replace it, or choose another"),
    "other learning rate of the policy": ("train_meta_dt", NOTHING, ["--learning_rate", "0.1"], "holds a run with learning_rate"),
    "other width when measured again": ("train_meta_dt", NOTHING, ["--eval_only", "--width", "32"], "holds a run with width 16"),
    "more steps": ("train_meta_dt", NOTHING, ["--steps", "13"], "holds a run with steps 12, this command says 13"),
    "measured before trained": ("train_meta_dt", NOTHING, ["--eval_only", "--seed", "7", "--world_model", CONTEXT],
        "no trained policy in .*seed_7: run the same command without --eval_only first"),
    "measured without a world model": ("train_meta_dt", NOTHING, ["--eval_only", "--seed", "7"],
        "no (world model|trained policy) in .*seed_7"),
    "world model of other data": ("train_meta_dt", NOTHING, ["--world_model", CONTEXT, "--data_type", "medium"],
        "was trained with data_quality random, this command says medium"),
    "world model of a tuning run": ("train_meta_dt", NOTHING, ["--validation", "--world_model", CONTEXT],
        "was trained with validation False"),
    "no world model of a tuning run": ("train_meta_dt", NOTHING, ["--validation"], r"no world model in .*debug-validation"),
    "world model of another environment": ("train_meta_dt", NOTHING,
        ["--config", TOY, "--recipe", "paper", "--world_model", CONTEXT], "was trained with env_type point_robot"),
    "world model of other options": ("train_meta_dt", [lambda r: edit(
        r, CONTEXT / "config.json", env={"options": [["sign", -1]]})], [],
        r"was trained with other options \(sign\): put the settings file right, or run train_context.py --no-resume again"),
    "world model of other training tasks": ("train_meta_dt", [lambda r: edit(r, CONTEXT / "config.json", env={
        "train_tasks": [0, 50]})], [], r"was trained with train_tasks \[0, 50\], not \[0, 45\]: put the settings file right"),
    "a policy in place of a world model": ("train_meta_dt", [lambda r: shutil.copy(
        r / POLICY / "model.safetensors", r / CONTEXT / "best.safetensors")], [], "holds no world model of train_context.py"),
    "a world model that is not finished": ("train_meta_dt", [lambda r: save_state(
        r / CONTEXT / "state.pt", load_state(r / CONTEXT / "state.pt") | {"total": 1000})], [],
        "is at step 20 of 1000: run train_context.py again"),
    "settings of the world model without its keys": ("train_meta_dt", [lambda r: write_json(r / CONTEXT / "config.json", {})], [],
        "holds no world model of train_context.py"),
    "a wrong horizon in the world model's settings": ("train_meta_dt", [lambda r: edit(
        r, CONTEXT / "config.json", context_horizon=-3)], [], "holds no world model of train_context.py"),
    "words in the world model's settings": ("train_meta_dt", [lambda r: edit(
        r, CONTEXT / "config.json", context_horizon="four")], [], "holds no world model of train_context.py"),
    "a folder in place of settings": ("train_meta_dt", [lambda r: (r / CONTEXT / "config.json").unlink(),
        lambda r: (r / CONTEXT / "config.json").mkdir()], [], "cannot read .*config.json: Is a directory"),
    "dataset made again": ("train_meta_dt", [lambda r: run_stage("get_datasets", r, "--seed", "1")], [],
        "another version of this dataset: run train_context.py --no-resume again"),
    "dataset made again under a world model": ("train_context", [lambda r: run_stage("get_datasets", r, "--seed", "1")], [],
        "reward_model.pt was learned from another dataset_sha256: delete it, or pass --no-resume"),
    "world model trained again": ("train_meta_dt", [lambda r: run_stage("train_context", r, "--no-resume", "--steps", "3")], [],
        "holds a run with world_model_sha256"),
    "half a dataset": ("train_context", [lambda r: cut(r, HDF5)], [], "is damaged .*make it again: python get_datasets.py"),
    "a changed dataset": ("train_context", [put_nan], [], "its bytes are not those.*make it again: python get_datasets.py"),
    "half a world model": ("train_meta_dt", [lambda r: cut(r, CONTEXT / "best.safetensors")], [], "best.safetensors is damaged"),
    "half the world model's settings": ("train_meta_dt", [lambda r: cut(r, CONTEXT / "config.json")], [], "is not valid JSON"),
    "half a training state": ("train_meta_dt", [lambda r: cut(r, POLICY / "state.pt")], [], "damaged .*pass --no-resume"),
    "half a policy": ("train_meta_dt", [lambda r: cut(r, POLICY / "model.safetensors")], [], "model.safetensors is damaged"),
    "half the policy's settings": ("train_meta_dt", [lambda r: cut(r, POLICY / "config.json")], [], "is not valid JSON"),
    "killed before the world model's first state": ("train_meta_dt", [lambda r: (r / CONTEXT / "state.pt").unlink()], [],
        "has no state.pt: give its train_context.py command again"),
    "a lost world model": ("train_context", [lambda r: (r / CONTEXT / "best.safetensors").unlink()], [],
        "best.safetensors does not exist: give the command that makes it once more, with --no-resume"),
    "a state without its curve": ("train_meta_dt", [lambda r: save_state(r / POLICY / "state.pt", {
        key: value for key, value in load_state(r / POLICY / "state.pt").items() if key != "curve"})], [],
        "is not the state of such a run"),
    "a foreign state": ("train_meta_dt", [lambda r: save_state(r / POLICY / "state.pt", {"a": 1})], [],
        "is not the state of such a run: delete it, or pass --no-resume"),
    "a list for settings": ("train_meta_dt", [lambda r: write_json(r / POLICY / "config.json", [])], [], "holds no settings"),
    "a policy beyond memory": ("train_meta_dt", NOTHING, ["--seed", "7", "--world_model", CONTEXT, "--width", "1000000000000"],
        "out of memory .*: make sizes, batches or numbers of episodes smaller"),
    "half a state of the world model": ("train_context", [lambda r: cut(r, CONTEXT / "state.pt")], [], "pass --no-resume"),
    "no held-out episode": ("train_context", NOTHING, ["--seed", "1", "--validation_share", "0"], "no episode to validate on"),
    "no training episode": ("train_context", NOTHING, ["--seed", "1", "--validation_share", "1"], "no episode to train on"),
    "no training task": ("train_context", [only_test_tasks], [], "holds none of the training tasks 0-44: generate some of them: "
        "python get_datasets.py .*--data_type random --task_id_start 0 --task_id_end 45"),
    "paper protocol without data of the test tasks": ("train_meta_dt", [forget_test_tasks], ["--protocol", "paper"],
        "takes targets from the data of the test tasks, and task 45 has none"),
    "started again with a contradiction": ("train_meta_dt",
        [forget_test_tasks, lambda r: run_stage("train_meta_dt", r, "--zero_shot")],
        ["--zero_shot", "--protocol", "paper", "--no-resume"], "task 45 has none"),
    "capacity of an existing dataset": ("get_datasets", NOTHING, ["--capacity", "7"], "holds no episode"),
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN.values(), ids=SEEN)
def test_mistakes_about_what_lies_there(root, capsys, case):
    script, changes, argv, mend = case
    for change in changes:
        change(root)
    argv = [root / word if word is CONTEXT else word for word in argv]
    base = words(root) if TOY not in argv else ["--output_dir", str(root), "--data_type", "random"]
    refused(capsys, root, script, [*base, *argv], mend)


def test_numbers_that_are_not_finite(root, capsys):
    """NaN written by someone who also mends the seal."""
    put_nan(root, sealed_again)
    mend = r"rewards of episode 7 \(task 0\) are not all finite; make the task again"
    refused(capsys, root, "train_context", words(root), mend)


@pytest.mark.parametrize("script", ["train_context", "train_meta_dt"])
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(script, model_root, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(model_root / "datasets", root / "datasets")
    shutil.copytree(model_root / CONTEXT, root / CONTEXT)
    argv = words(
        root, "--learning_rate", "1e15", "--steps", "20", "--eval_every", "10", "--no-resume", "--prompt_start_step", "0"
    )
    argv = argv[:-2] if script == "train_context" else [*argv, "--lr_warmup_steps", "0"]
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).main(argv)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and len(lines) == 1 and "lower --learning_rate" in lines[0]
    assert not (root / "results").exists() and not list(root.rglob(".*.tmp"))


# ---------------------------------------------------------------------------------------- an environment of the user's own


BROKEN = {
    "ends early": ("self.steps >= 6", "self.steps >= 5", "returned truncated=True at step 5, but max_episode_steps is 6"),
    "never ends": ("self.steps >= 6", "False", "returned truncated=False at step 6, but max_episode_steps is 6"),
    "terminates": ("reward, False,", "reward, self.steps == 2,", "terminated at step 2; episodes have a fixed length"),
    "reward is nan": ("reward = -abs(", "reward = np.nan * abs(", "returned a reward at step 1 that is not one finite number"),
    "wrong shape": ("return self.state.astype(np.float32), {}", "return self.state[:1].astype(np.float32), {}",
                    r"returned an observation of shape \(1,\), its observation_space says \(2,\)"),
    "observation is inf": ("self.state[1] +=", "self.state[1] = np.inf +", "an observation at step 1 that is not finite"),
    "no tasks": ('self.tasks = {"mark": np.linspace(-1, 1, 8)}', "pass", "has no task table: set self.tasks"),
    "too few tasks": ("np.linspace(-1, 1, 8)", "np.linspace(-1, 1, 7)", "task ranges reach 8, the environment has 7 tasks"),
    "no bounds": ("gym.spaces.Box(-1, 1, (1,)", "gym.spaces.Box(-np.inf, 1, (1,)", "action space without bounds"),
    "no class": ("class SlideEnv", "class SlidingEnv", "cannot be made .*SlideEnv"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_an_environment_that_breaks_the_contract(tmp_path, monkeypatch, capsys, request, case):
    old, new, mend = case
    module = "broken_" + re.sub(r"\W", "_", request.node.callspec.id)
    code, settings = TOY.with_suffix(".py").read_text(), TOY.read_text()
    assert code.count(old) == 1
    (tmp_path / f"{module}.py").write_text(code.replace(old, new))
    (tmp_path / "own.yaml").write_text(settings.replace("tests.toy.slide", module))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    argv = ["--config", tmp_path / "own.yaml", "--data_type", "random", "--output_dir", tmp_path / "out", "--workers", "1"]
    refused(capsys, tmp_path, "get_datasets", argv, mend)


def test_a_validation_run_without_validation_tasks(tmp_path, capsys):
    base = ["--config", str(TOY), "--data_type", "random", "--output_dir", str(tmp_path)]
    importlib.import_module("get_datasets").main(base)
    mend = "--validation leaves no training task: give slide.yaml validation_tasks inside train_tasks"
    refused(capsys, tmp_path, "train_context", [*base, "--validation"], mend)


def test_the_output_folder_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for script in ("get_datasets", "train_data_collection"):
        argv = words(tmp_path / "file")
        if script == "train_data_collection":
            argv = ["--env_type", "point_robot", "--recipe", "debug", "--output_dir", tmp_path / "file", "--workers", "1"]
        refused(capsys, tmp_path, script, argv, "cannot write into .*choose another --output_dir")


def test_a_report_without_results(tmp_path, capsys):
    refused(capsys, tmp_path, "tools.report", ["--results", tmp_path, "--output", tmp_path / "report"], "train a policy first")
    (tmp_path / "taken").write_text("")
    refused(capsys, tmp_path, "tools.report", ["--output", tmp_path / "taken"], "taken is a file: name a folder")
    (tmp_path / "x.json").write_text("{")
    mend = "x.json is not valid JSON .*repeat the run that wrote it, or remove the file"
    refused(capsys, tmp_path, "tools.report", ["--results", tmp_path, "--output", tmp_path / "report"], mend)
