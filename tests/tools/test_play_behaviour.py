"""Behaviour agents filmed and measured: what is told of falls is what the observations show."""

import numpy as np
import pytest
from helpers import assert_refused, load_env
from PIL import Image

from src.run.files import read_json
from tools import play_behaviour


def test_first_falls_by_hand():
    environment = load_env("hopper_rand_params").make()
    observations = np.zeros((4, 5, 11), np.float32)
    observations[..., 0] = 1.25  # stands
    observations[1, 3, 0] = observations[1, 4, 0] = 0.5  # lies from step 3 on
    observations[2, 2, 1] = 1.5  # leans too far, and comes up again
    observations[3, 0, 0] = 0.1
    assert play_behaviour.first_falls(environment, observations).tolist() == [-1, 3, 2, 0]
    assert play_behaviour.first_falls(load_env("point_robot").make(), observations) == [None] * 4


def test_returns_and_falls_of_the_committed_agents(tmp_path, capsys):
    argv = ["--env_type", "hopper_rand_params", "--output_dir", str(tmp_path), "--record", str(tmp_path / "falls.json")]
    play_behaviour.main([*argv, "--tasks", "32", "5"])
    told = read_json(tmp_path / "falls.json")
    assert told["tasks"] == [32, 5] and len(told["falls"]) == len(told["returns"]) == 2 and min(told["returns"]) > 300
    assert all(fall is None or 0 < fall <= 200 for fall in told["falls"])
    printed = capsys.readouterr().out
    assert f"task 32: return {told['returns'][0]:.6g}"[:20] in printed
    play_behaviour.main([*argv, "--tasks", "5"])  # alone it plays the same episode
    assert read_json(tmp_path / "falls.json")["returns"] == told["returns"][1:]


@pytest.mark.long
def test_a_film_has_a_panel_for_each_task(tmp_path):
    play_behaviour.main(["--env_type", "hopper_rand_params", "--output_dir", str(tmp_path), "--tasks", "32", "5", "--output",
                         str(tmp_path / "film.gif")])  # fmt: skip
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 34 and film.width == 2 * 240 + 4


def test_tasks_that_do_not_exist(tmp_path, capsys):
    argv = [
        "--env_type",
        "hopper_rand_params",
        "--output_dir",
        str(tmp_path),
        "--tasks",
        "100",
        "--record",
        str(tmp_path / "a.json"),
    ]
    assert_refused(capsys, play_behaviour, argv, "--tasks 100 does not exist: hopper_rand_params has tasks 0 to 99")
