"""The data of a family from the committed policies: made by one command, the same every time, and not made twice."""

import mujoco
import numpy as np
import pytest
from helpers import ROOT

import get_datasets
from envs.mujoco_env import MujocoEnv
from src.behaviour.store import COMMITTED, SHARED, committed_directory
from src.data import trajectories
from src.run.config import read_env, read_yaml
from src.run.files import digest, load_tensors, read_json
from src.run.provenance import processor
from tools import make_datasets

FLAGS = ["--env_types", "cheetah_dir", "--qualities", "medium"]


@pytest.mark.long
def test_data_are_made_once_and_are_the_same_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_datasets, "RECORD", tmp_path / "record.json")
    for name in ("one", "two"):
        make_datasets.main([*FLAGS, "--output_dir", str(tmp_path / name), "--record", str(name == "one")])
    assert f"1 datasets, 1 of 1 with the SHA-256 recorded on {processor()}" in capsys.readouterr().out  # bit for bit
    found = trajectories.load(tmp_path / "one" / "datasets", "cheetah_dir", "medium")
    assert len(found) == 400 and found.metadata["provenance"][0]["policies"] == "committed"
    assert read_json(tmp_path / "one/datasets/manifest.json")["sha256"] == {"cheetah_dir/medium": found.metadata["sha256"]}
    assert {task: round(float(np.sign(found.returns[found.task_ids == task].mean()))) for task in range(4)} == dict.fromkeys(
        range(4), 1
    )

    card = (tmp_path / "one/datasets/cheetah_dir/medium-v0/README.md").read_text()
    assert found.metadata["simulator"] == f"mujoco {mujoco.__version__}" and f"`{found.metadata['sha256']}`" in card
    told = "it is told its task by 1 numbers, and was trained on 2 tasks, 0 to 1"
    assert f"On what knowledge: {told}" in card and "comes with the repository" in card and "python get_datasets.py" in card
    sha = digest(load_tensors(committed_directory("cheetah_dir") / SHARED / "checkpoints.safetensors"))
    assert f"SHA-256 of the policies: `{sha}`" in card

    assert list(read_json(tmp_path / "record.json")) == [processor()]  # elsewhere the last bits of the physics differ

    file = tmp_path / "one/datasets/cheetah_dir/medium-v0/data/main_data.hdf5"
    before = file.stat().st_mtime_ns
    make_datasets.main([*FLAGS, "--output_dir", str(tmp_path / "one")])
    (tmp_path / "record.json").unlink()  # as on a processor that nobody has recorded
    make_datasets.main([*FLAGS, "--output_dir", str(tmp_path / "one")])
    assert file.stat().st_mtime_ns == before
    assert "1 datasets, 0 of 0 with the SHA-256 recorded" in capsys.readouterr().out
    monkeypatch.setattr(make_datasets, "digest", lambda tensors: "of other policies")
    make_datasets.main([*FLAGS, "--output_dir", str(tmp_path / "one")])
    assert file.stat().st_mtime_ns > before


def test_a_family_without_policies_is_refused(capsys):
    with pytest.raises(SystemExit):
        make_datasets.main(["--env_types", "gridworld"])
    assert "invalid choice: 'gridworld'" in capsys.readouterr().err


@pytest.mark.parametrize("env_type", ["cheetah_vel", "cheetah_dir", "ant_dir", "hopper_rand_params", "walker_rand_params"])
def test_committed_policies_are_small_and_complete(env_type):
    folder = committed_directory(env_type) / SHARED
    curve, tensors = read_json(folder / "curve.json"), load_tensors(folder / "checkpoints.safetensors")
    assert {value.dtype.itemsize for name, value in tensors.items() if "weight" in name} == {2}  # half precision
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    tasks = len(curve["task_ids"])
    path = ROOT / "configs" / f"{env_type}.yaml"
    assert set(curve["task_ids"]) <= set(range(*read_env(path, read_yaml(path)).train_tasks))  # they have seen no test task
    assert np.shape(curve["stochastic_returns"])[:2] == (len(curve["steps"]), tasks) and len(curve["random_returns"]) == tasks
    expert, random = np.mean(curve["stochastic_returns"][-1]), np.mean(curve["random_returns"])
    assert expert > random + 100


@pytest.mark.long
def test_agents_of_single_tasks_make_data_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_datasets, "RECORD", tmp_path / "record.json")
    flags = ["--env_types", "point_robot", "--qualities", "medium", "--output_dir", str(tmp_path)]
    make_datasets.main(flags)
    found = trajectories.load(tmp_path / "datasets", "point_robot", "medium")
    assert len(found.tasks) == 50 and found.metadata["provenance"][0]["policies"] == "committed"
    levels = found.returns[found.task_ids < 45].mean()
    assert -11.5 < levels < -9  # half of the way from -15.5, random, to -5.3
    file = tmp_path / "datasets/point_robot/medium-v0/data/main_data.hdf5"
    before = file.stat().st_mtime_ns
    make_datasets.main(flags)
    assert file.stat().st_mtime_ns == before
    monkeypatch.setattr(make_datasets, "policies_digest", lambda folder: "of other policies")
    make_datasets.main(flags)
    assert file.stat().st_mtime_ns > before


def test_what_comes_with_the_repository_stays_small():
    sizes = {path: path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 20e6
    curves = {path: size for path, size in sizes.items() if path.name == "curve.json"}
    assert len(curves) >= 8 and max(curves.values()) < 40_000
    for path in curves:
        assert len(path.read_text().splitlines()) < 100  # a line per checkpoint


def test_another_simulator_makes_another_dataset(tmp_path, monkeypatch, capsys):
    flags = ["--env_type", "cheetah_dir", "--data_type", "random", "--capacity", "200", "--workers", "1", "--output_dir"]
    get_datasets.main([*flags, str(tmp_path / "one"), "--task_id_end", "1"])
    monkeypatch.setattr(MujocoEnv, "simulator", "mujoco 9.9.9")
    get_datasets.main([*flags, str(tmp_path / "two"), "--task_id_end", "1"])
    one, two = (trajectories.load(tmp_path / name / "datasets", "cheetah_dir", "random") for name in ("one", "two"))
    assert np.array_equal(one.rewards, two.rewards) and one.metadata["sha256"] != two.metadata["sha256"]
    with pytest.raises(SystemExit) as stop:  # tasks of both never lie in one dataset
        get_datasets.main([*flags, str(tmp_path / "one"), "--task_id_start", "1"])
    assert stop.value.code == 2
    assert f"was made by mujoco {mujoco.__version__}, this is by mujoco 9.9.9: make all tasks again" in capsys.readouterr().err


def test_cross_data_are_made_where_the_dynamics_differ():
    assert "cross" in make_datasets.qualities_of("hopper_rand_params") and "cross" not in make_datasets.qualities_of("ant_dir")
