"""The published commands on MuJoCo families, shortened; relabelled imitation and the film on one of them."""

import numpy as np
import pytest
from PIL import Image

import get_datasets
import train_context
import train_data_collection
import train_meta_dt
from envs.ant import AntDirEnv
from src.data import trajectories
from src.evaluation.results import read_result
from tools import play

SHORT_POLICY = ["--steps", "3", "--eval_every", "3", "--prompt_start_step", "1", "--batch_size", "4", "--width", "16"]
SHORT_POLICY += ["--eval_episodes", "1", "--curve_episodes", "1", "--warmup_episodes", "1", "--later_episodes", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stages 1 to 3 of Ant-Dir as the README of Meta-DT prints them, with fewer steps."""
    root = tmp_path_factory.mktemp("ant")
    out = ["--output_dir", str(root), "--no-tensorboard"]
    tasks = ["--task_id_start", "0", "--task_id_end", "5"]
    short = ["--num_steps", "240", "--save_freq", "80", "--learning_starts", "200", "--eval_episodes", "1", "--workers", "1"]
    train_data_collection.main(["--env_type", "ant_dir", "--save_freq", "4000", *tasks, *short, *out])
    get_datasets.main(["--env_type", "ant_dir", "--data_type", "medium", *tasks, "--capacity", "400", "--workers", "1", *out])
    train_context.main(["--env_name", "AntDir-v0", "--steps", "4", "--validation_share", "0.5", *out])
    return root


def test_the_data_hold_what_relabelling_needs(root):
    dataset = trajectories.load(root / "datasets", "ant_dir", "medium")
    assert dataset.observations.shape == (10, 201, 27) and dataset.actions.shape == (10, 200, 8)
    assert dataset.tasks.keys() == set(range(5)) and set(dataset.infos) == {"x_velocity", "y_velocity", "contact_cost"}
    forward = (
        dataset.infos["x_velocity"] * np.cos(angles := np.array([dataset.tasks[t]["angle"] for t in dataset.task_ids]))[:, None]
    )
    forward = forward + dataset.infos["y_velocity"] * np.sin(angles)[:, None]
    expected = forward - 0.5 * (dataset.actions**2).sum(-1) - dataset.infos["contact_cost"] + 1
    np.testing.assert_allclose(dataset.rewards, expected, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("zero_shot", ["False", "True"])
def test_published_commands(root, zero_shot):
    flags = ["--env_name", "AntDir-v0", "--zero_shot", zero_shot, "--data_quality", "medium"]
    (path,) = train_meta_dt.main([*flags, *SHORT_POLICY, "--output_dir", str(root), "--no-tensorboard"])
    found = read_result(path)
    assert found["task_ids"] == list(range(45, 50)) and np.shape(found["returns"]) == (5, 1)
    assert found["regime"] == ("zero_shot" if zero_shot == "True" else "few_shot")
    assert ("later_returns" in found) == ("warmup_returns" in found) == (zero_shot == "False")
    for level in ("trivial", "task_blind", "best_known"):
        assert len(found["reference"][level]) == 5, level


@pytest.mark.long
def test_relabelled_imitation_and_a_film(root, tmp_path):
    camera = AntDirEnv(render_mode="rgb_array")
    camera.reset(seed=0)
    try:
        camera.render()
    except RuntimeError as error:
        pytest.skip(str(error))  # no OpenGL here
    film = tmp_path / "ant.gif"
    flags = ["--env_type", "ant_dir", "--other_tasks", "training", "--top_share", "0.5", "--seed", "1", "--output_dir", str(root)]
    flags += ["--world_model", str(root / "saves/ant_dir/medium/context/seed_0"), "--no-tensorboard", "--render", str(film)]
    path, *_ = train_meta_dt.main([*flags, *SHORT_POLICY])
    with Image.open(film) as picture:
        assert picture.n_frames == 100  # 10 s at 10 frames per second
    assert read_result(path)["config"]["other_tasks"] == "training"
    (folder,) = (root / "saves/ant_dir/medium").glob("meta_dt*/few_shot/seed_1")
    play.main([str(folder), "--task", "46", "--warmup_episodes", "1", "--output", str(tmp_path / "beside.gif")])
    with Image.open(tmp_path / "beside.gif") as picture:
        assert picture.n_frames == 101 and picture.width == 2 * play.WIDTH + play.GAP


def test_a_camera_that_does_not_work_is_named_before_training(root, tmp_path, monkeypatch, capsys):
    def blind(self):
        raise RuntimeError("no\nOpenGL")

    monkeypatch.setattr(AntDirEnv, "render", blind)
    flags = ["--env_type", "ant_dir", "--seed", "2", "--output_dir", str(root), "--no-tensorboard", *SHORT_POLICY]
    flags += ["--world_model", str(root / "saves/ant_dir/medium/context/seed_0"), "--render", str(tmp_path / "ant.gif")]
    with pytest.raises(SystemExit) as stop:
        train_meta_dt.main(flags)
    assert stop.value.code == 2
    assert "the camera of AntDir-v0 does not work here (no OpenGL): leave --render out" in capsys.readouterr().err
    assert not list((root / "saves").rglob("seed_2")) and not list(tmp_path.iterdir())
