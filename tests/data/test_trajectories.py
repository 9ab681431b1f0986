"""Stage 2: which checkpoints play, the dataset on disk and in memory, and the arithmetic on it."""

import dataclasses
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from get_datasets import main
from src.behaviour.store import task_directory
from src.data.qualities import choose_checkpoints, choose_players
from src.data.trajectories import Trajectories, check, load, observation_statistics, save, task_parameters
from src.run.config import CONFIG_DIR, known_env_types, read_env, read_yaml
from src.run.errors import UserError
from src.run.files import read_json, save_tensors, write_json

ROOT = Path(__file__).resolve().parents[2]
ENV = read_env(ROOT / "configs" / "point_robot.yaml", read_yaml(ROOT / "configs" / "point_robot.yaml"))

ASKS = """
from envs.point_robot import PointRobotEnv

class Asks(PointRobotEnv):
    def __init__(self, max_episode_steps):
        super().__init__()
        self.horizon = max_episode_steps
"""


def make(tasks, lengths=(20, 20), seed=0, infos=False):
    """A dataset of len(lengths) random episodes for every task."""
    rng = np.random.default_rng(seed)
    count, steps = len(tasks) * len(lengths), max(lengths)
    lengths = np.tile(lengths, len(tasks))
    inside = np.arange(steps) < lengths[:, None]
    states = np.arange(steps + 1) <= lengths[:, None]
    return Trajectories(
        observations=(rng.normal(size=(count, steps + 1, 2)) * states[..., None]).astype(np.float32),
        actions=(rng.uniform(-0.1, 0.1, (count, steps, 2)) * inside[..., None]).astype(np.float32),
        rewards=(rng.normal(size=(count, steps)) * inside).astype(np.float32),
        lengths=lengths,
        task_ids=np.repeat(tasks, len(lengths) // len(tasks)),
        tasks=task_parameters(ENV.make(), tasks),
        infos={"speed": (rng.normal(size=(count, steps)) * inside).astype(np.float32)} if infos else {},
    )


def behaviour(output_dir, tasks, checkpoints=4):
    """Policies with random weights, as stage 1 would have left them."""
    for task in tasks:
        directory = task_directory(output_dir, "point_robot", task)
        rng = torch.Generator().manual_seed(task)
        shapes = {"latent_pi.0": (8, 2), "latent_pi.2": (8, 8), "mu": (2, 8), "log_std": (2, 8)}
        weights = {}
        for name, (rows, columns) in shapes.items():
            weights[f"{name}.weight"] = (0.3 * torch.randn(checkpoints, rows, columns, generator=rng)).half()
            weights[f"{name}.bias"] = (0.3 * torch.randn(checkpoints, rows, generator=rng)).half()
        steps = [100 * (i + 1) for i in range(checkpoints)]
        save_tensors(directory / "checkpoints.safetensors", {"steps": torch.tensor(steps), **weights})
        curve = [[-20.0 + 4 * i, -20.0 + 4 * i] for i in range(checkpoints)]
        write_json(directory / "curve.json", {"steps": steps, "stochastic_returns": curve, "random_returns": [-20.0]})


def command(output_dir, quality, start, end, *flags):
    flags = ["--output_dir", str(output_dir), "--capacity", "100", "--workers", "1", *flags]
    return [
        "--env_type",
        "point_robot",
        "--data_type",
        quality,
        "--task_id_start",
        str(start),
        "--task_id_end",
        str(end),
        *flags,
    ]


def equal(a, b):
    names = ("observations", "actions", "rewards", "lengths", "task_ids")
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
    return arrays and a.tasks == b.tasks and all(np.array_equal(a.infos[key], b.infos[key]) for key in a.infos | b.infos)


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_statistics_ignore_padding():
    t = make([0], lengths=(20, 3, 7))
    states = np.concatenate([t.observations[i, :n] for i, n in enumerate(t.lengths)])
    mean, std, bound = observation_statistics(t)
    np.testing.assert_allclose(mean, states.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, states.std(0), atol=1e-6)
    assert bound.tolist() == [10, 10]


def test_checkpoints_by_hand():
    curve = {"stochastic_returns": [[r] for r in (-19, -14, -9, -12, -2, -4, -1, -3, -2, -4)], "random_returns": [-20]}
    # expert level: mean of the last two, -3; medium at 0.5: first to reach -11.5; expert: -2, the better of the two
    assert choose_checkpoints(curve, "medium", 2, 0.5).tolist() == [2, 2]
    assert choose_checkpoints(curve, "medium", 1, 0.2).tolist() == [1]
    assert choose_checkpoints(curve, "expert", 2, 0.5).tolist() == [8, 8]
    assert choose_checkpoints(curve, "mixed", 10, 0.5).tolist() == [2] * 7 + [8] * 3
    assert choose_checkpoints(curve, "replay", 20, 0.5).tolist() == sorted([*range(10), *range(10)])
    assert choose_checkpoints(curve, "replay", 5, 0.5).tolist() == [0, 2, 4, 6, 8]
    curve = {"stochastic_returns": [[-30], [-25], [-40]], "random_returns": [-20]}
    assert choose_checkpoints(curve, "medium", 1, 0.5).tolist() == [1]
    assert choose_checkpoints(curve, "cross", 3, 0.5).tolist() == choose_checkpoints(curve, "expert", 3, 0.5).tolist()


def test_players_of_cross_data():
    """Own policy in one half; in the other every other training task's before any plays twice, never a test task's."""
    generator = np.random.default_rng(0)
    players = choose_players("cross", 2, range(5), 12, generator)
    assert players[:6].tolist() == [2] * 6 and sorted(players[6:10]) == [0, 1, 3, 4] and len(set(players[10:])) == 2
    assert sorted(set(choose_players("cross", 7, range(3), 9, generator).tolist())) == [0, 1, 2, 7]
    assert choose_players("expert", 2, range(5), 3, generator).tolist() == [2] * 3
    assert choose_players("cross", 0, range(1), 3, generator).tolist() == [0] * 3


def test_medium_is_one_rule_in_every_family_of_tasks():
    """The same share of the way from random to expert; only the domains of one task follow D4RL's."""
    for name in known_env_types():
        share = (read_yaml(CONFIG_DIR / f"{name}.yaml").get("get_datasets") or {}).get("medium_share")
        assert share is None or name.startswith("gym_"), name


# ------------------------------------------------------------------------------------------------------------- disk


@pytest.mark.parametrize("lengths", [(20, 20), (20, 3, 7)])
def test_round_trip(tmp_path, lengths):
    t = make([0, 4], lengths, infos=True)
    save(t, tmp_path, ENV, "medium", {"seed": 7})
    read = load(tmp_path, "point_robot", "medium", ENV)
    assert equal(read, t)
    assert read.metadata["provenance"] == [{"task_ids": [0, 4], "seed": 7}]
    t.rewards[:, 10:] += 100 * (t.lengths[:, None] <= 10)  # whatever stands beyond the end is not part of the dataset
    assert equal(save(t, tmp_path, ENV, "medium", {}), read)
    assert read.select([4]).task_ids.tolist() == [4] * len(lengths)
    np.testing.assert_allclose(read.returns, [sum(rewards) for rewards in read.rewards.tolist()], rtol=1e-5)


def test_minari_reads_it(tmp_path, monkeypatch):
    import minari

    t = make([0, 4], (20, 5))
    written = save(t, tmp_path, ENV, "medium", {"seed": 7})
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("point_robot/medium-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (4, 50)
    for episode, row in zip(dataset.iterate_episodes(), range(4), strict=True):
        length = t.lengths[row]
        np.testing.assert_array_equal(episode.observations, t.observations[row, : length + 1])
        np.testing.assert_array_equal(episode.rewards, t.rewards[row, :length])
        assert not episode.terminations.any() and episode.truncations.tolist() == [False] * (length - 1) + [True]
    options = next(iter(dataset.storage.get_episode_metadata([3])))["options"]
    assert options["task"] == 4 and options["goal"].tolist() == t.tasks[4]["goal"]
    assert dataset.storage.metadata["sha256"] == written.digest()
    assert type(dataset.recover_environment().unwrapped).__name__ == "PointRobotEnv"


def test_tasks_join_and_replace(tmp_path):
    save(make([2, 3], seed=1), tmp_path, ENV, "medium", {"seed": 1})
    save(make([0, 2], (20, 9), seed=2), tmp_path, ENV, "medium", {"seed": 2})
    read = load(tmp_path, "point_robot", "medium", ENV)
    assert read.task_ids.tolist() == [0, 0, 2, 2, 3, 3] and read.lengths.tolist() == [20, 9, 20, 9, 20, 20]
    assert read.metadata["provenance"] == [{"task_ids": [3], "seed": 1}, {"task_ids": [0, 2], "seed": 2}]
    assert equal(read.select([3]), make([2, 3], seed=1).select([3]))
    assert save(make([1]), tmp_path, ENV, "medium", {}, join=False).task_ids.tolist() == [1, 1]


def test_data_of_another_environment_are_neither_read_nor_joined(tmp_path):
    """Those that are replaced altogether do not count."""
    longer = dataclasses.replace(ENV, max_episode_steps=30)
    save(make([0, 1]), tmp_path, ENV, "medium", {})
    message = "the dataset was made with max_episode_steps 20, point_robot has 30: rename .* or make .* again, with --no-resume"
    with pytest.raises(UserError, match=message):
        load(tmp_path, "point_robot", "medium", longer)
    with pytest.raises(UserError, match=message):
        save(make([1, 2]), tmp_path, longer, "medium", {})
    assert sorted(load(tmp_path, "point_robot", "medium", ENV).tasks) == [0, 1]
    save(make([0, 1, 2], (30,)), tmp_path, longer, "medium", {})
    assert load(tmp_path, "point_robot", "medium", longer).lengths.tolist() == [30] * 3


@pytest.mark.parametrize("shape", [(1,), (2,), ()])
def test_infos_of_another_shape_are_not_joined(tmp_path, shape):
    def with_infos(task, shape):
        return dataclasses.replace(make([task]), infos={"heat": np.ones((2, 20, *shape), np.float32)})

    save(with_infos(0, (3,)), tmp_path, ENV, "medium", {})
    with pytest.raises(UserError, match="has other shapes or infos"):
        save(with_infos(1, shape), tmp_path, ENV, "medium", {})


def test_an_environment_may_ask_for_its_horizon(tmp_path, monkeypatch):
    """The one that is made from the file has the same."""
    (tmp_path / "asks.py").write_text(ASKS)
    monkeypatch.syspath_prepend(tmp_path)
    save(make([0]), tmp_path, dataclasses.replace(ENV, entry_point="asks:Asks"), "medium", {})
    written = read_json(tmp_path / "point_robot" / "medium-v0" / "data" / "metadata.json")
    assert EnvSpec.from_json(written["env_spec"]).make().unwrapped.horizon == 20


def _save_one(root, task):
    save(make([task]), root, ENV, "medium", {})


def test_two_writers_at_once(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=_save_one, args=(tmp_path, i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert load(tmp_path, "point_robot", "medium").task_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_damage_is_one_line_that_names_the_mend(tmp_path):
    mend = "python get_datasets.py --env_type point_robot --data_type medium"
    with pytest.raises(UserError, match=f"no dataset .*; make it: {mend}"):
        load(tmp_path, "point_robot", "medium")
    save(make([0]), tmp_path, ENV, "medium", {})
    path = tmp_path / "point_robot" / "medium-v0" / "data" / "main_data.hdf5"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a dataset"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged") as error:
            load(tmp_path, "point_robot", "medium")
        assert mend in str(error.value) and "\n" not in str(error.value)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["episode_1/rewards"][3] += 1
    with pytest.raises(UserError, match="its bytes are not those"):
        load(tmp_path, "point_robot", "medium")
    goal = str(make([0]).tasks[0]["goal"][0]).encode()  # a parameter of the task is no array, and counts as well
    assert goal in whole
    path.write_bytes(whole.replace(goal, goal[:-1] + bytes([goal[-1] ^ 1])))
    with pytest.raises(UserError, match="its bytes are not those"):
        load(tmp_path, "point_robot", "medium")
    path.write_bytes(whole)
    other = tmp_path / "ant_dir" / "medium-v0" / "data"
    other.mkdir(parents=True)
    (other / "main_data.hdf5").write_bytes(whole)
    with pytest.raises(UserError, match="holds point_robot medium, not ant_dir medium"):
        load(tmp_path, "ant_dir", "medium")


def _changed(name, change):
    t = make([0, 1])
    array = getattr(t, name).copy()
    return dataclasses.replace(t, **{name: change(array)})


def _put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_changed("rewards", _put((1, 2), np.nan)), "rewards of episode 1 .task 0. are not all finite"),
        (_changed("observations", lambda a: a[:, :-1]), r"observations need T \+ 1 rows"),
        (_changed("actions", _put((2, 0, 1), 0.3)), r"episode 2 .task 1. leave .*, \[-0.1, 0.1\] of action 1"),
        (_changed("lengths", _put(0, 21)), "lengths do not fit"),
        (_changed("task_ids", _put(0, 9)), "tasks without parameters"),
        (dataclasses.replace(make([0]), tasks={0: {"goal": [0.0, 0.0]}}), "goal .* make the dataset again"),
        (make([0], (21,)), "an episode has 21 steps"),
        (_changed("actions", lambda a: np.concatenate([a, a], -1)), r"actions have shape \(4,\)"),
    ],
)
def test_check_refuses(broken, message):
    with pytest.raises(UserError, match=message):
        check(broken, ENV)


# ----------------------------------------------------------------------------------------------------------- script


def test_expert_level_is_that_of_the_checkpoint_behind_expert_data(tmp_path):
    """Scores are normalised by it: of the last two returns, 8 and 2, it is 8 and not their mean."""
    behaviour(tmp_path, [0], checkpoints=10)
    path = task_directory(tmp_path, "point_robot", 0) / "curve.json"
    write_json(path, {**read_json(path), "stochastic_returns": [[r] for r in (-19, -14, -9, -12, -2, 9, -1, -3, 8, 2)]})
    for quality in ("medium", "expert"):
        main(command(tmp_path, quality, 0, 1))
        provenance = load(tmp_path / "datasets", "point_robot", quality, ENV).metadata["provenance"]
        assert provenance[0]["behaviour"]["0"]["expert_return"] == 8
    assert provenance[0]["behaviour"]["0"]["checkpoint_steps"] == [900]


@pytest.mark.parametrize("quality", ["medium", "expert", "mixed", "replay", "random"])
def test_a_task_does_not_depend_on_the_range(tmp_path, quality):
    for name in ("whole", "parts"):
        behaviour(tmp_path / name, range(4))
    main(command(tmp_path / "whole", quality, 0, 4))
    main(command(tmp_path / "parts", quality, 2, 4))
    main(command(tmp_path / "parts", quality, 0, 2))
    main(command(tmp_path / "parts", quality, 3, 4))
    whole, parts = (load(tmp_path / name / "datasets", "point_robot", quality, ENV) for name in ("whole", "parts"))
    assert equal(whole, parts) and len(whole) == 20
    assert len(np.unique(whole.actions[..., 0])) > 300  # episodes and tasks differ
    notes = [entry for entry in whole.metadata["provenance"] if quality != "random"]
    for entry in notes:
        assert sum(entry["behaviour"]["2"]["checkpoint_episodes"]) == 5
        assert set(entry["behaviour"]["2"]["checkpoint_steps"]) <= {100, 200, 300, 400}


def test_script_from_the_shell(tmp_path):
    def shell(*words):
        words = [sys.executable, "get_datasets.py", *words]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    missing = shell(*command(tmp_path, "medium", 0, 2), "--behaviour", "per_task")
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("error: no per_task behaviour policies in ")
    assert "python train_data_collection.py --env_type point_robot" in missing.stderr
    assert not (tmp_path / "datasets").exists()
    behaviour(tmp_path, [0, 1])
    made = shell(*command(tmp_path, "medium", 0, 2))
    assert made.returncode == 0, made.stderr
    assert "next: python train_context.py --env_type point_robot --data_type medium" in made.stdout.splitlines()[-1]
    metadata = json.loads((tmp_path / "datasets/point_robot/medium-v0/data/metadata.json").read_text())
    (entry,) = metadata["provenance"]
    assert entry["behaviour"]["0"]["checkpoint_returns"] == [-12.0] and entry["command"].startswith("python get_datasets.py")
    assert shell(*command(tmp_path, "medium", 0, 2, "--capacity", "7")).returncode == 2
