"""A trained BOReL off its training: exported, measured again to the last digit, played, and refused where damaged."""

import re

import numpy as np
import pytest
from borel_helpers import shell
from helpers import assert_refused, listing

from baselines.borel import online_training
from baselines.borel.problem import play
from envs.multi_episode import scale_actions
from src.evaluation.results import read_result
from src.run.files import load_tensors, read_json, save_tensors, write_json
from tools import models

RUN = "saves/gridworld/log/borel/offline/borel+debug/seed_0"


@pytest.fixture(scope="module")
def exported(grid, tmp_path_factory):
    """(folder, what the command said) of a tiny offline BOReL in the gridworld."""
    folder = tmp_path_factory.mktemp("models") / "borel"
    return folder, shell("tools.models", "export", str(grid[0] / RUN), str(folder)).stdout


def test_it_earns_its_row_again(grid, exported):
    """By the commands: every return of all K episodes, to the last digit, without any data."""
    folder, said = exported
    assert "bamdp: the returns of" in said
    assert {path.name for path in folder.iterdir()} == set(models.FILES)
    done = shell("tools.models", "measure", str(folder), "--results", str(grid[0] / "results"))
    assert "bamdp: return" in done.stdout and "every return as recorded" in done.stdout and ": the same returns" in done.stdout
    config = read_json(folder / "config.json")
    assert (config["episodes"], config["regimes"]) == (1, {"bamdp": {"warmup": 3, "later": 0}})
    measured = read_json(folder / "results.json")["bamdp"]
    row = read_result(grid[0] / "results" / config["rows"]["bamdp"])
    assert (measured["returns"], measured["success"]) == (row["returns"], row["success"])
    assert "of 4 episodes, the belief kept" in (folder / "README.md").read_text()


def test_the_lines_of_its_card(exported):
    """It acts in a gymnasium environment, K episodes on one task, and its belief goes on."""
    folder, _ = exported
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(lines.replace("FOLDER", str(folder)), names)
    agent = names["agent"]
    assert names["episode"] == 3 and names["done"] and len(agent.lived) == 3
    assert agent.action_space.contains(agent.act()) and len(agent.agent.agent.beliefs) == 61
    agent.agent.adapt([])
    agent.agent.start(np.zeros((1, 2), np.float32))
    assert len(agent.agent.agent.beliefs) == 1


@pytest.mark.long
def test_it_plays(grid, exported, tmp_path):
    """From its folder and from the run's: the K episodes side by side."""
    for number, folder in enumerate((exported[0], grid[0] / RUN)):
        done = shell("tools.play", str(folder), "--task", "7", "--output", str(tmp_path / f"{number}.png"))
        assert done.stdout.count("task 7, ") == 4 and (tmp_path / f"{number}.png").exists()


def test_in_the_environment_it_is_the_agent_that_was_measured(tmp_path):
    """Continuous actions, trained online: measured again to the last digit; in the environment itself, flag and range of actions
    are those of the training."""
    flags = ["--env-type", "point_robot_dense", "--recipe", "debug", "--output_dir", str(tmp_path), "--tensorboard", "False"]
    online_training.main(flags)
    (run,) = [path.parent for path in (tmp_path / "saves").rglob("agent.json")]
    folder = models.save_pretrained(run, tmp_path / "out")
    assert models.measure(folder, results=tmp_path / "results")
    config = read_json(folder / "config.json")
    (result,) = read_json(folder / "results.json").values()
    assert result["returns"] == read_result(tmp_path / "results" / config["rows"]["bamdp"])["returns"]
    env = models.find_env(config)
    trained = models.read_trained(folder, config["method"], env, models.find_device("cpu"), config["settings"])
    agent, problem = trained.agent(2), trained.agent(2).problem
    inside = play(problem, np.array(config["task_ids"][:3]), agent.agent, (0, "evaluation"))
    agent.adapt([])
    for step in range(problem.horizon * problem.episodes):  # shown the same, without the flag, it does the same
        if step % problem.horizon == 0:
            agent.adapt([{}] * (step // problem.horizon))
            agent.start(inside["obs"][:, step, :-1])
        action = agent.act()
        np.testing.assert_array_equal(action, scale_actions(inside["actions"][:, step], problem.space))
        agent.observe(action, inside["rewards"][:, step], inside["next_obs"][:, step, :-1])


def test_damaged_ones_are_refused(exported, tmp_path, capsys):
    def harmed(name, harm):
        models.copy(exported[0], str(tmp_path / name), models.FILES)
        harm(tmp_path / name)
        return ["measure", str(tmp_path / name)]

    def settings(folder, name, **values):
        write_json(folder / name, read_json(folder / name) | values)

    def other_weights(folder):
        tensors = load_tensors(folder / "model.safetensors")
        save_tensors(folder / "model.safetensors", {name: values * 2 for name, values in tensors.items()})

    told = read_json(exported[0] / "agent.json")
    smaller = told["belief"] | {"task_embedding_size": 3}
    misfit = "its weights do not fit its settings: export the policy again"
    assert_refused(capsys, models, harmed("belief", lambda f: settings(f, "agent.json", belief=smaller)), misfit)
    assert_refused(capsys, models, harmed("none", lambda f: settings(f, "agent.json", belief=None)), misfit)
    assert_refused(capsys, models, harmed("weights", other_weights), "is of another policy, or was altered")
    assert_refused(capsys, models, harmed("name", lambda f: settings(f, "config.json", method="mine")), "which cannot be loaded")
    assert_refused(capsys, models, ["torchscript", str(exported[0]), str(tmp_path / "x.pt")], "only policies of Meta-DT")


def test_a_run_of_before_is_refused(grid, exported, tmp_path, capsys):
    """It has no results.json that names its row."""
    (tmp_path / "saves/x/seed_0").mkdir(parents=True)
    write_json(tmp_path / "saves/x/seed_0/config.json", read_json(grid[0] / RUN / "config.json"))
    before = listing(tmp_path)
    argv = ["export", str(tmp_path / "saves/x/seed_0"), str(tmp_path / "out")]
    assert_refused(capsys, models, argv, "BOReL: --no-resume")
    assert listing(tmp_path) == before
