"""The data of a family from the committed policies: made by one command, the same every time, and not made twice."""

import numpy as np
import pytest

from src.behaviour.store import COMMITTED, SHARED, committed_directory
from src.data import trajectories
from src.run.files import load_tensors, read_json
from src.run.provenance import processor
from tools import make_datasets

FLAGS = ["--env_types", "cheetah_dir", "--qualities", "medium"]


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
        make_datasets.main(["--env_types", "point_robot"])
    assert "invalid choice: 'point_robot'" in capsys.readouterr().err


@pytest.mark.parametrize("env_type", ["cheetah_vel", "cheetah_dir", "ant_dir", "hopper_rand_params", "walker_rand_params"])
def test_committed_policies_are_small_and_complete(env_type):
    folder = committed_directory(env_type) / SHARED
    curve, tensors = read_json(folder / "curve.json"), load_tensors(folder / "checkpoints.safetensors")
    assert {value.dtype.itemsize for name, value in tensors.items() if "weight" in name} == {2}  # half precision
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    tasks = len(curve["task_ids"])
    assert np.shape(curve["stochastic_returns"])[:2] == (len(curve["steps"]), tasks) and len(curve["random_returns"]) == tasks
    expert, random = np.mean(curve["stochastic_returns"][-1]), np.mean(curve["random_returns"])
    assert expert > random + 100


def test_what_comes_with_the_repository_stays_small():
    sizes = {path: path.stat().st_size for path in COMMITTED.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 20e6
    curves = {path: size for path, size in sizes.items() if path.name == "curve.json"}
    assert len(curves) >= 8 and max(curves.values()) < 40_000
    for path in curves:
        assert len(path.read_text().splitlines()) < 100  # a line per checkpoint
