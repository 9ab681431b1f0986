"""Stage 1: training, killing, resuming, and acting as stable-baselines3 does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import get_datasets
from src.behaviour.policies import BehaviourPolicies
from src.behaviour.store import Source, load_behaviour
from src.data.trajectories import load
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.rollout import rollout
from src.run.config import load_env, read_env, read_yaml
from src.run.errors import UserError
from src.run.files import locked_file, read_json, save_state, write_json
from train_data_collection import main

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--learning_starts", "20", "--batch_size", "16", "--hidden_sizes", "16", "16"]
TINY += ["--eval_episodes", "2", "--save_freq", "20"]
TOY = """
import os
import gymnasium as gym
import numpy as np

class Toy(gym.Env):
    def __init__(self, sign=1, max_episode_steps=5):
        self.length = max_episode_steps
        self.tasks = {"speed": np.array([1.0, 2.0]) + float(os.environ.get("TOY_SHIFT", 0))}
        self.observation_space = gym.spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))
        self.task = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = (options or {}).get("task", self.task)
        self.steps = 0
        return self.np_random.random(3).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        broken = self.task == 1 and self.steps == 5 and os.environ.get("TOY_BROKEN")  # later than the first look
        reward = float("nan") if broken else float(self.tasks["speed"][self.task] * action[0])
        length = 4 if os.environ.get("TOY_SHORT") else self.length
        return np.full(3, self.steps, np.float32), reward, False, self.steps >= length, {"speed": reward}
"""
TOY_YAML = """
env_name: Toy-v0
entry_point: toy_environment:Toy
max_episode_steps: 5
train_tasks: [0, 1]
test_tasks: [1, 2]
train_data_collection: {num_steps: 40, algo: sac}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Path of the settings file of an environment without a batch class."""
    (tmp_path / "toy_environment.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text(TOY_YAML)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "toy.yaml"


def point_robot():
    path = ROOT / "configs" / "point_robot.yaml"
    return read_env(path, read_yaml(path))


def run(output_dir, *flags):
    return ["--env_type", "point_robot", "--output_dir", str(output_dir), "--num_steps", "160", *TINY, *flags]


def artifacts(output_dir, tasks):
    """What the run produced, byte for byte, without the note of where it ran."""
    found = {}
    for task in tasks:
        directory = output_dir / "saves" / "point_robot" / "behaviour" / f"task_{task:03d}"
        curve = json.loads((directory / "curve.json").read_text())
        curve.pop("provenance")
        found[task] = curve, (directory / "checkpoints.safetensors").read_bytes()
        assert not (directory / "state.pt").exists()
    return found


@pytest.mark.long
def test_killed_run_resumes_to_the_same_weights(tmp_path, capsys):
    main(run(tmp_path / "whole", "--task_id_end", "2", "--workers", "1"))
    assert "next: python get_datasets.py --env_type point_robot" in capsys.readouterr().out.splitlines()[-1]
    command = [
        sys.executable,
        "train_data_collection.py",
        *run(tmp_path / "killed", "--task_id_end", "2"),
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "saves" / "point_robot" / "behaviour"
    deadline = time.time() + 120
    while not list(folder.glob("*/state.pt")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "task_001" / "curve.json").exists()
    for lock in folder.glob("*/.lock"):
        with locked_file(lock):  # once its worker has noticed that its parent is gone
            pass
    main(run(tmp_path / "killed", "--task_id_end", "2", "--workers", "1"))
    assert artifacts(tmp_path / "killed", [0, 1]) == artifacts(tmp_path / "whole", [0, 1])

    main(run(tmp_path / "whole", "--task_id_end", "2", "--workers", "1"))  # finished: nothing is trained again
    assert "2 of 2 tasks are finished already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(run(tmp_path / "whole", "--task_id_end", "2", "--learning_rate", "0.01"))
    assert stop.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


def test_interrupted_run_goes_on_with_another_save_freq(tmp_path, monkeypatch, capsys):
    def stop_after(path, state):
        save_state(path, state)
        raise KeyboardInterrupt

    command = run(tmp_path, "--task_id_end", "1", "--workers", "1")
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr("src.run.loop.save_state", stop_after)
        main(command)
    main([*command, "--save_freq", "60"])
    folder = tmp_path / "saves" / "point_robot" / "behaviour" / "task_000"
    assert json.loads((folder / "curve.json").read_text())["steps"] == [20, 80, 140, 160]
    with pytest.raises(SystemExit) as stop:  # of a finished run nothing can be changed
        main([*command, "--save_freq", "60"])
    assert stop.value.code == 2
    assert "save_freq 20, this command says 60" in capsys.readouterr().err


def test_policies_act_as_stable_baselines3(toy):
    from stable_baselines3 import SAC

    environment = read_env(toy, read_yaml(toy)).make()  # bounds that are neither symmetric nor equal
    models = [SAC("MlpPolicy", environment, policy_kwargs={"net_arch": [16, 8]}, seed=seed) for seed in (0, 1)]
    weights = [model.actor.state_dict() for model in models]
    stacked = {name: torch.stack([part[name] for part in weights]) for name in weights[0]}
    policies = BehaviourPolicies(stacked, environment.action_space.low, environment.action_space.high)
    observations = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    expected = [model.predict(rows, deterministic=True)[0] for model, rows in zip(models, observations, strict=True)]
    np.testing.assert_allclose(policies.act(observations, deterministic=True), expected, atol=1e-6)

    first = BehaviourPolicies({name: value[:1] for name, value in stacked.items()}, policies.low, policies.high)
    torch.manual_seed(3)
    expected = models[0].predict(observations[0])[0]
    actions = first.act(observations[:1], torch.Generator().manual_seed(3))[0]
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_failed_task_names_itself_and_is_tried_again(toy, tmp_path, capsys, monkeypatch):
    command = ["--config", str(toy), "--output_dir", str(tmp_path), "--workers", "1", "--no-tensorboard", *TINY]
    monkeypatch.setenv("TOY_BROKEN", "1")
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 1
    assert "task 1 failed: toy_environment:Toy returned a reward" in capsys.readouterr().err
    monkeypatch.delenv("TOY_BROKEN")
    main([*command, "--no-resume", "--task_id_start", "1"])
    main(command)
    assert "2 of 2 tasks are finished already" in capsys.readouterr().err


def test_loop_checks_the_contract(toy, monkeypatch):
    env = read_env(toy, read_yaml(toy))
    batch = make_batch(env, [0, 1])
    ones = PolicyAgent(lambda observations: np.ones((len(observations), 2)))
    episode = rollout(ones, batch, [0, 1], env.max_episode_steps)
    observations, rewards, infos = (episode[key] for key in ("observations", "rewards", "infos"))
    assert observations.shape == (2, 6, 3) and observations.dtype == np.float32
    np.testing.assert_array_equal(rewards, [[1] * 5, [2] * 5])
    np.testing.assert_array_equal(infos["speed"], rewards)
    monkeypatch.setenv("TOY_SHORT", "1")
    with pytest.raises(UserError, match="truncated=True at step 4"):
        rollout(ones, make_batch(env, [0]), [0], env.max_episode_steps)


def test_batch_class_is_the_environment():
    env = point_robot()
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (20, 2)).astype(np.float32)
    steps = iter(actions)
    episode = rollout(PolicyAgent(lambda observations: next(steps)[None]), make_batch(env, [3]), [0], env.max_episode_steps)
    observations, rewards = episode["observations"], episode["rewards"]
    single = env.make()
    rows = [single.reset(options={"task": 3})[0]]
    for action, reward in zip(actions, rewards[0], strict=True):
        observation, expected, *_ = single.step(action)
        rows.append(observation)
        assert reward == np.float32(expected)
    np.testing.assert_array_equal(observations[0], rows)


def test_missing_policy_names_the_command(tmp_path):
    with pytest.raises(UserError, match="make it: python train"):
        source = Source(tmp_path, "per_task")
        load_behaviour(source, point_robot(), 0, "python train_data_collection.py --env_type point_robot")


def test_policies_of_another_environment_are_not_played(toy, tmp_path, capsys, monkeypatch):
    """Neither are they taken for finished. Former versions recorded no tasks, which holds nobody up."""
    flags = ["--config", str(toy), "--output_dir", str(tmp_path), "--workers", "1", "--task_id_end", "1"]
    train, play = [*flags, "--no-tensorboard", *TINY], [*flags, "--data_type", "expert", "--capacity", "20"]

    def refused(script, words, message):
        with pytest.raises(SystemExit) as stop:
            script(words)
        assert stop.value.code == 2 and message in capsys.readouterr().err

    main(train)
    toy.write_text(f"{TOY_YAML}options: {{sign: -1}}")
    refused(get_datasets.main, play, "were trained with other options (sign): rename the settings file, or train them again: py")
    toy.write_text(TOY_YAML.replace("steps: 5", "steps: 4"))
    refused(get_datasets.main, play, "were trained with max_episode_steps 5, toy has 4: rename")
    toy.write_text(TOY_YAML)
    with monkeypatch.context() as patch:
        patch.setenv("TOY_SHIFT", "0.7")
        refused(get_datasets.main, play, "has speed 1.0, that of toy 1.7: train them again: python train_data_collection.py")
        refused(main, train, "has speed 1.0, that of toy 1.7: pass --no-resume to train them again")
        path = tmp_path / "saves/toy/behaviour/task_000/config.json"
        write_json(path, {key: value for key, value in read_json(path).items() if key != "tasks"})
        main(train)
        get_datasets.main(play)
    assert "1 of 1 tasks are finished already" in capsys.readouterr().err


def test_another_familys_policies_play_where_only_the_reward_differs(tmp_path, capsys):
    """The sparse half circle has the dense one's episodes, paid by its own reward."""
    main(["--env_type", "point_robot_semicircle", "--recipe", "debug", "--output_dir", str(tmp_path)])
    flags = ["--recipe", "debug", "--data_type", "expert", "--output_dir", str(tmp_path)]
    dense, sparse = "point_robot_semicircle", "point_robot_semicircle_sparse"
    for family in (dense, sparse):
        get_datasets.main(["--env_type", family, *flags])
    theirs, ours = (load(tmp_path / "datasets", family, "expert", load_env(family)) for family in (dense, sparse))
    np.testing.assert_array_equal(theirs.actions, ours.actions)
    np.testing.assert_array_equal(theirs.observations, ours.observations)
    np.testing.assert_array_equal(ours.rewards, np.maximum(1 + theirs.rewards / 0.2, 0).astype(np.float32))
    capsys.readouterr()
    for other, message in (("point_robot", "tasks, observations, actions or steps"), ("nowhere", "--behaviour_of")):
        with pytest.raises(SystemExit):
            get_datasets.main(["--env_type", dense, *flags, "--behaviour_of", other])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):  # nothing is trained there
        get_datasets.main(["--env_type", sparse, *flags[:-1], str(tmp_path / "empty")])
    assert "train_data_collection.py --env_type point_robot_semicircle" in capsys.readouterr().err


def test_the_policies_that_cross_data_miss_are_all_named(tmp_path, capsys):
    flags = ["--env_type", "point_robot", "--data_type", "cross", "--behaviour", "per_task", "--output_dir", str(tmp_path)]
    for given, named in (["--task_id_end", "4"], "--task_id_end 45"), (["--task_id_start", "46"], "--task_id_start 0"), ([], ""):
        with pytest.raises(SystemExit):
            get_datasets.main([*flags, *given])
        made = f"python train_data_collection.py --env_type point_robot {named}".strip()
        assert f"make them: {made} --output_dir" in capsys.readouterr().err
