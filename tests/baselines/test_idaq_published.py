"""IDAQ's published commands and files: what they become, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_refused, shell

from baselines import idaq
from baselines.idaq_data import convert, goal_order
from baselines.idaq_published import our_words
from src.data.trajectories import load
from src.evaluation.results import read_result
from src.run.config import CONFIG_DIR, load_env
from src.run.errors import UserError
from src.run.files import read_json

CONFIGS = CONFIG_DIR / "idaq"
# as run_point.sh and run_ml1.sh give them
POINT = """
--gpu=0 --is_sparse_reward=0 --use_brac=0 --use_information_bottleneck=0 --is_zloss=1 --is_onlineadapt_thres=0
--is_onlineadapt_max=1 --num_exp_traj_eval=10 --allow_backward_z=0 --is_true_sparse_rewards=0 --r_thres=-1000000"""
ML1 = """
--gpu 0 --is_sparse_reward 0 --use_brac 1 --use_information_bottleneck 0 --is_zloss 1 --is_onlineadapt_thres 0
--is_onlineadapt_max 1 --num_exp_traj_eval 5 --allow_backward_z 0 --is_true_sparse_rewards 0 --r_thres 0"""


def meaning(words):
    """{setting: text} of our own words, the device apart."""
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True) if name != "--device"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where ./data/ is not


def written(path, **changes):
    """A configuration like that of the point robot with other entries of algo_params."""
    document = read_json(CONFIGS / "cpearl-sparse-point-robot.json")
    document |= changes.pop("outer", {})
    document["algo_params"] |= changes
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize(("script", "config", "data", "flags"), [
    ("run_point.sh", "cpearl-sparse-point-robot.json", "./data/sparse-point-robot", POINT),
    ("run_ml1.sh", "cpearl-ml1.json", "./data/soccer-v2", ML1),
])  # fmt: skip
def test_a_shell_script_is_its_launcher_with_its_flags(script, config, data, flags):
    launch = [f"./configs/{config}", data, *flags.split()]
    whole = our_words(["launch_experiment_cpearl.py", *launch])
    assert meaning(our_words([script])) == meaning(whole) == meaning(our_words(launch))


def test_what_the_published_settings_become():
    said = meaning(our_words(["run_ml1.sh"]))
    expected = {"env_type": "metaworld_soccer", "rl": "brac", "steps": "300000", "eval_every": "1000", "warmup_episodes": "9",
                "reference_episodes": "5", "candidates": "5", "context_size": "400", "metric_weight": "100", "kl_weight": "50",
                "kl_weight_max": "2000", "gamma": "0.99"}  # fmt: skip
    assert expected.items() <= said.items()
    said = meaning(our_words(["run_cheetah.sh"]))  # 2 + 2 + 1 episodes, what its configuration means
    expected = {"env_type": "cheetah_vel_100", "warmup_episodes": "4", "reference_episodes": "2", "kl_weight": "0"}
    assert expected.items() <= said.items()
    words = our_words(["./configs/cpearl-point-robot-wind.json", "data/wind", "--is_onlineadapt_max", "0"])
    assert meaning(words)["adaptation"] == "plain" and "candidates" not in meaning(words)


def test_a_flag_counts_more_than_the_file_and_one_that_is_not_given_changes_nothing(tmp_path):
    path = written(tmp_path / "mine.json", num_exp_traj_eval=7, use_brac=1)
    assert meaning(our_words([path, "data/x"]))["reference_episodes"] == "7"
    said = meaning(our_words([path, "data/x", "--num_exp_traj_eval", "4", "--steps", "3"]))
    assert (said["reference_episodes"], said["steps"], said["kl_weight"]) == ("4", "3", "500")


def test_files_of_the_original_are_taken_and_what_has_no_effect_is_named(tmp_path, capsys):
    path = written(tmp_path / "theirs.json", outer={"algo_type": "CPEARL", "util_params": {"use_gpu": 1}}, is_onlineadapt_model=1)
    our_words([path, "data/x"])
    assert "without effect here, of theirs.json: algo_type, is_onlineadapt_model, util_params" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "changes", "message"), [
    (["--num_exp_traj_eval", "10"], {"num_steps_per_eval": 100}, "at most 3 leave room for inference"),  # run_cheetah.sh's defect
    (["--use_information_bottleneck", "1"], {}, "--belief_noise"),
    (["--is_onlineadapt_thres", "1"], {}, "not by a fixed return"),
    (["--is_zloss", "0"], {}, "without a loss"),
    (["--use_brac", "2"], {}, "invalid choice: 2"),
    (["--is_true_sparse_rewards", "1"], {}, "needs --is_sparse_reward 1"),
    (["--num_exp_traj_eval", "4", "--reference_episodes", "4"], {}, "--reference_episodes is said by the published words"),
    (["--env_type", "point_robot"], {}, "--env_type is said by the published words"),
    (["--num_exp_traj_evals", "4"], {}, "unknown argument --num_exp_traj_evals"),
    ([], {"num_exp_traj_evals": 4}, "unknown key 'num_exp_traj_evals' (did you mean num_exp_traj_eval?)"),
    ([], {"max_path_length": 200}, "an episode of point_robot_semicircle has 20"),
    ([], {"meta_batch": "many"}, "meta_batch must be a number"),
    ([], {"use_brac": 0.5}, "use_brac must be 0 or 1"),
    ([], {"num_iterations": 1e300}, "num_iterations must be a number"),
    ([], {"embedding_mini_batch_size": 3}, "must be embedding_batch_size"),
    ([], {"outer": {"env_params": {"goal_radius": 0.3}}}, "the rewarded disc has 0.2 here"),
    ([], {"outer": {"env_name": "sparse-point-robots"}}, "has no family here (did you mean sparse-point-robot?)"),
    (["--is_sparse_reward", "1"], {"outer": {"env_name": "cheetah-vel"}}, "cheetah-vel has no sparse reward"),
])  # fmt: skip
def test_what_is_unknown_or_contradicts_is_refused_in_one_line(words, changes, message, tmp_path, capsys):
    assert_refused(capsys, idaq, [written(tmp_path / "c.json", **changes), "data/x", *words], message)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_words_that_are_no_command(capsys):
    assert_refused(capsys, idaq, ["run_points.sh"], "neither a flag nor a published command")
    assert_refused(capsys, idaq, ["./configs/cpearl-ml1.json"], "give CONFIG.json and DATA_DIR first")
    assert_refused(capsys, idaq, ["cpearl-ml1.json", "data/push-v2"], "data of another task set than env_name soccer-v2")
    assert_refused(capsys, idaq, ["nowhere.json", "data/x"], "nowhere.json does not exist")
    Path("here").touch()
    assert_refused(capsys, idaq, ["cpearl-cheetah-vel.json", "here"], "here holds no folder goal_idx<i>")
    assert_refused(capsys, idaq, ["cpearl-ml1.json", "data/a b"], "'a b' is no name of a dataset")
    assert_refused(capsys, idaq, ["policy_train.py", "./configs/ml1.json"], "policy_train.py is not for metaworld_reach")
    assert_refused(capsys, idaq, ["policy_train.py", "./configs/cheetah-vel.json", "--is_uniform"], "are not here")


# ------------------------------------------------------------------------------------------------------------- the files


def record(folder, indices=(0, 1), episodes=2, steps=20, form="objects", checkpoint=4800, order=None, seed=0):
    """IDAQ's files of the half circle: wild play in the original's units, goal i at the i-th angle. Returns {(i, n): rows}."""
    generator, made = np.random.default_rng(seed), {}
    for index in indices:
        angle = np.pi * (index if order is None else order[index]) / 99
        path = folder / f"goal_idx{index}"
        path.mkdir(parents=True, exist_ok=True)
        for number in range(episodes):
            actions = generator.uniform(-1, 1, (steps, 2))
            places = np.concatenate([np.zeros((1, 2)), np.cumsum(0.1 * actions, 0)])
            rewards = -np.linalg.norm(places[1:] - [np.cos(angle), np.sin(angle)], axis=1)
            rows = [[places[t], actions[t].astype(np.float32), rewards[t], places[t + 1]] for t in range(steps)]
            table = np.array(rows, dtype=object)
            if form == "numbers":
                table = np.array([np.concatenate([o, a, [r], p]) for o, a, r, p in rows])
            np.save(path / f"trj_evalsample{number}_step{checkpoint}.npy", table)
            made[index, number] = rows
    return made


@pytest.mark.parametrize("form", ["objects", "numbers"])
def test_files_become_the_dataset_of_their_tasks(tmp_path, form):
    made, env = record(tmp_path / "d", (3, 60), form=form), load_env("point_robot_semicircle")
    convert(tmp_path / "d", env, "theirs", tmp_path)
    dataset = load(tmp_path / "datasets", env.env_type, "theirs", env)
    angles = {task: np.arctan2(*parameters["goal"][::-1]) for task, parameters in dataset.tasks.items()}
    assert sorted(angles.values()) == pytest.approx([3 * np.pi / 99, 60 * np.pi / 99])
    task = max(angles, key=angles.get)
    rows = made[60, 1]
    episode = dataset.select([task]).take([1])
    assert episode.observations[0, 1:] == pytest.approx(np.stack([row[3] for row in rows]), abs=1e-6)
    assert episode.actions[0] == pytest.approx(0.1 * np.stack([row[1] for row in rows]), abs=1e-6)  # the environment's units
    assert episode.rewards[0] == pytest.approx([row[2] for row in rows], abs=1e-6)


def test_the_sparse_family_pays_its_own_reward(tmp_path):
    record(tmp_path / "d", (3,))
    env = load_env("point_robot_semicircle_sparse")
    convert(tmp_path / "d", env, "theirs", tmp_path)
    dataset = load(tmp_path / "datasets", env.env_type, "theirs", env)
    distances = np.linalg.norm(dataset.observations[:, 1:] - [np.cos(3 * np.pi / 99), np.sin(3 * np.pi / 99)], axis=-1)
    assert dataset.rewards == pytest.approx(np.maximum(1 - distances / 0.2, 0), abs=1e-5)


def test_only_so_many_episodes_of_one_checkpoint(tmp_path):
    record(tmp_path / "d", (0,), episodes=3)
    record(tmp_path / "d", (0,), episodes=3, checkpoint=200, seed=1)
    env = load_env("point_robot_semicircle")
    with pytest.raises(UserError, match="checkpoints there: 200, 4800"):
        convert(tmp_path / "d", env, "theirs", tmp_path)
    convert(tmp_path / "d", env, "theirs", tmp_path, episodes=2, checkpoint=200)
    for other in ({"episodes": 3, "checkpoint": 200}, {"episodes": 2, "checkpoint": 4800}):
        with pytest.raises(UserError, match="holds other episodes of"):
            convert(tmp_path / "d", env, "theirs", tmp_path, **other)
    assert len(load(tmp_path / "datasets", env.env_type, "theirs", env)) == 2


class Evil:
    def __reduce__(self):
        return open, ("stolen", "w")


@pytest.mark.parametrize(("change", "message"), [
    ({"order": [5, 6]}, "are not those of this goal"),  # the shuffled goals of the older readme
    ({"steps": 200}, "has 200 steps, an episode of point_robot_semicircle has 20"),
    ({"indices": (0, 100)}, "the last is goal_idx99"),
    (Evil(), "is refused"),
    (np.zeros((20, 9)), "has rows of"),
    (np.full((20, 7), np.nan), "not finite"),
    (np.arange(7.0), "neither four things nor numbers"),
    (np.array(["a", "b"]), "neither four things nor numbers"),
    (b"\x93NUMPY\x01\x00\x03\x00'''", "header cannot be understood"),
    (b"garbage", "is no table of transitions"),
])  # fmt: skip
def test_files_that_cannot_be_right_are_refused_and_nothing_is_written(change, message, tmp_path):
    record(tmp_path / "d", **(change if isinstance(change, dict) else {}))
    path = tmp_path / "d" / "goal_idx1" / "trj_evalsample0_step4800.npy"
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif isinstance(change, np.ndarray):
        np.save(path, change)
    elif isinstance(change, Evil):
        np.save(path, np.array([[change] * 4] * 20, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "d", load_env("point_robot_semicircle"), "theirs", tmp_path)
    assert not (tmp_path / "datasets").exists() and not (tmp_path / "stolen").exists()


def test_two_tasks_with_the_same_episodes_are_refused(tmp_path):
    record(tmp_path / "d")
    shutil.rmtree(tmp_path / "d/goal_idx1")
    shutil.copytree(tmp_path / "d/goal_idx0", tmp_path / "d/goal_idx1")
    with pytest.raises(UserError, match="goal_idx0 and goal_idx1 hold the same episodes"):
        convert(tmp_path / "d", load_env("point_robot_semicircle"), "theirs", tmp_path)
    assert not (tmp_path / "datasets").exists()


def test_a_wrong_flag_is_refused_before_data_are_made(tmp_path, capsys):
    record(tmp_path / "mine")
    path = written(tmp_path / "tiny.json")
    assert_refused(
        capsys, idaq, [path, str(tmp_path / "mine"), "--output_dir", str(tmp_path), "--widht", "8"], "did you mean --width"
    )
    assert not (tmp_path / "datasets").exists()


def test_goal_indices_are_task_ids_but_on_the_half_circle():
    assert goal_order(load_env("point_robot_wind_dense").make(), "point_robot_wind_dense").tolist() == list(range(50))
    env = load_env("point_robot_semicircle").make()
    goals = env.tasks["goal"][goal_order(env, "point_robot_semicircle")]
    assert np.allclose(np.arctan2(goals[:, 1], goals[:, 0]), np.linspace(0, np.pi, 100))


def test_a_published_command_from_the_shell(tmp_path):
    record(tmp_path / "data" / "mine", range(0, 100, 9))
    path = written(tmp_path / "tiny.json", num_iterations=2, num_train_steps_per_itr=3, num_steps_per_eval=80, meta_batch=4,
                   embedding_batch_size=16, batch_size=8, n_trj=2)  # fmt: skip
    sizes = "--width 8 --layers 1 --encoder_width 8 --encoder_layers 1 --eval_episodes 1 --curve_episodes 1 --no-tensorboard"
    published = [*POINT.split()[:7], "--num_exp_traj_eval", "2"]
    command = [path, tmp_path / "data/mine", *published, "--output_dir", tmp_path, *sizes.split()]
    first = shell("-m baselines.idaq", *command)
    assert first.returncode == 0, first.stderr
    (result,) = (tmp_path / "results").rglob("few_shot*/seed_0.json")
    document = read_json(result)
    assert len(read_result(result)["warmup_returns"][0][0]) == 3 and document["training"]["gradient_steps"] == 6
    again = shell("-m baselines.idaq", *command)  # nothing is trained twice
    assert again.returncode == 0 and "is there and used" in again.stdout


def test_a_recipe_counts_more_than_the_configuration():
    words = our_words(["run_point.sh", "--recipe", "debug"])
    assert words[-2:] == ["--recipe", "debug"] and not {"--steps", "--width", "--context_size", "--batch_size"} & set(words)
    assert "--steps" in our_words(["run_point.sh"])
