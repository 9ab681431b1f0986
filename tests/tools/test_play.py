"""A policy on a task of one's choice, its episodes side by side in one picture."""

import re

import numpy as np
import pytest
from helpers import POLICY, ROOT, assert_refused, point_robot
from PIL import Image

from envs.render import film
from src.evaluation.evaluate import evaluate
from src.run.config import load_env
from tools import models, play

IQL = ROOT / "trained/point_robot/replay/iql+compare"


def played(capsys, *argv):
    """{episode's name: return} that the command tells, and its file."""
    capsys.readouterr()
    play.main([str(word) for word in argv])
    *lines, file = capsys.readouterr().out.splitlines()
    return {
        name: float(number) for name, number in (re.match(r"task \d+, (.*): return (\S+)", line).groups() for line in lines)
    }, file


def test_a_committed_policy_adapts_in_the_picture(tmp_path, capsys, monkeypatch):
    """The episodes are those of the evaluation's first row of the task."""
    monkeypatch.chdir(tmp_path)
    returns, file = played(capsys, IQL, "--task", 47)
    assert file == "point_robot-task_47.png" and list(returns) == ["warm-up 1", "warm-up 2", "warm-up 3", "evaluated"]
    assert returns["evaluated"] > returns["warm-up 1"] + 5
    config = models.read_config(IQL)
    agent = models.read_trained(IQL, "iql", point_robot(), models.find_device("cpu"), config["settings"]).agent(3)
    alone = evaluate(agent, point_robot(), [47], 1, 3, config["seed"])
    np.testing.assert_allclose(list(returns.values()), [*alone["warmup_returns"][0][0], alone["returns"][0][0]], rtol=1e-5)
    with Image.open(tmp_path / file) as picture:
        assert picture.width > 3 * picture.height > 600  # four panels beside each other


def test_a_run_and_its_choices(policy_root, tmp_path, capsys):
    argv = [policy_root / POLICY, "--task", 3, "--warmup_episodes", 1, "--output"]
    first, file = played(capsys, *argv, tmp_path / "a.png")
    other, _ = played(capsys, *argv, tmp_path / "b.png", "--seed", 5)
    assert list(first) == list(other) == ["warm-up 1", "evaluated"] and file == str(tmp_path / "a.png")
    exported = models.save_pretrained(policy_root / POLICY, tmp_path / "exported")
    again, _ = played(capsys, exported, *argv[1:], tmp_path / "c.png")
    np.testing.assert_allclose(list(again.values()), list(first.values()), rtol=1e-5)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (5, 5, 1), (6, 3, 2), (10, 5, 2), (11, 4, 3)])
def test_many_panels_stand_in_rows(count, columns, rows):
    panels = [Image.new("RGB", (6, 4), (number, 0, 0)) for number in range(1, count + 1)]
    whole = play.beside(panels)
    assert whole.size == (columns * (6 + play.GAP) - play.GAP, rows * (4 + play.GAP) - play.GAP)
    starts = [whole.getpixel((x * (6 + play.GAP), y * (4 + play.GAP)))[0] for y in range(rows) for x in range(columns)]
    assert starts[:count] == list(range(1, count + 1))


@pytest.mark.long
def test_a_film_is_as_long_as_the_episode_and_ends_with_its_return(tmp_path):
    env = load_env("hopper_rand_params")
    camera = env.make("rgb_array")
    try:
        camera.reset(seed=0)
        camera.render()
    except RuntimeError as error:
        pytest.skip(str(error))  # no OpenGL here
    steps, rng = env.max_episode_steps, np.random.default_rng(0)
    episodes = [(seed, {"actions": rng.uniform(-1, 1, (1, steps, 3)).astype(np.float32)}) for seed in (0, 1)]
    play.film_episodes(env, 46, ["warm-up 1", "evaluated"], episodes, tmp_path / "film.gif")
    images, returns = film(camera, lambda _: np.zeros(3), 46, 0)
    assert len(returns) == len(images) + 1 and returns[0] == 0 < returns[-1]
    with Image.open(tmp_path / "film.gif") as picture:
        assert picture.n_frames == len(images) + 1 and picture.width == 2 * play.WIDTH + play.GAP
        left, right = (np.asarray(picture.convert("L"))[play.CAPTION :, part] for part in (slice(0, 240), slice(-240, None)))
        assert left.shape == right.shape and not np.array_equal(left, right)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([str(IQL), "--task", "1000"], "--task 1000 does not exist: point_robot has tasks 0 to"),
        ([str(IQL), "--output", "film.gif"], "PointRobot-v0 gives a file that ends in .png"),
        (["nothing"], "name a folder of an exported policy, or of a run"),
        (["hf://me"], "give hf://name/model"),
    ],
)
def test_what_cannot_be_played_is_refused(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, play, argv, message)
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_settings_are_none_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text("5")
    assert_refused(capsys, play, [str(tmp_path)], "name a folder of an exported policy, or of a run")
