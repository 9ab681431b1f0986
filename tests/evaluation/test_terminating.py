"""Episodes that end on their own: gymnasium's robots, roll-outs, datasets, imports, and SAC with a learned temperature."""

import json
import pickle
import sys
import types
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest

from envs.locomotion import HalfCheetahEnv, HopperEnv, Walker2dEnv
from envs.tasks import load_tasks
from get_datasets import main as get_datasets
from src.behaviour.sac import SegmentedSAC
from src.data.qualities import choose_checkpoints
from src.data.trajectories import load
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import evaluate
from src.evaluation.rollout import rollout
from src.run.config import read_env, read_yaml
from src.run.errors import UserError
from train_data_collection import main as train_data_collection

ROOT = Path(__file__).resolve().parents[2]
HOPPER = read_env(ROOT / "configs" / "gym_hopper.yaml", read_yaml(ROOT / "configs" / "gym_hopper.yaml"))
ROBOTS = {"Hopper-v5": HopperEnv, "HalfCheetah-v5": HalfCheetahEnv, "Walker2d-v5": Walker2dEnv}


@pytest.mark.parametrize("name", ROBOTS)
def test_robots_are_those_of_gymnasium(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio", types.ModuleType("imageio"))  # gymnasium wants it to save films only
    theirs, ours = gym.make(name), ROBOTS[name]()
    assert theirs.observation_space.shape == ours.observation_space.shape and ours.action_space == theirs.action_space
    generator = np.random.default_rng(0)
    ends = 0
    for seed in range(4):
        expected, _ = theirs.reset(seed=seed)
        found, _ = ours.reset(seed=seed)
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        for _ in range(120):
            action = generator.uniform(-1, 1, ours.action_space.shape)
            expected, reward, *flags, _ = theirs.step(action)
            found, our_reward, *our_flags, _ = ours.step(action)
            np.testing.assert_array_equal(found, expected.astype(np.float32))
            assert our_reward == pytest.approx(reward, rel=1e-5, abs=1e-6) and our_flags == flags
            if flags[0]:
                ends += 1
                break
    assert ends == (0 if name == "HalfCheetah-v5" else 4)
    ours.reset(seed=0)
    ours._steps = 999
    assert ours.step(action)[3]


def constant(value):
    """An agent that always plays the same."""
    return PolicyAgent(lambda observations: np.full((len(observations), 3), value))


def test_rows_rest_after_their_end():
    batch = make_batch(HOPPER, [0] * 6)
    episode = rollout(constant(0.5), batch, range(6), 1000)
    observations, rewards, lengths = (episode[key] for key in ("observations", "rewards", "lengths"))
    ended = episode["infos"]["terminated"]
    assert observations.shape == (6, 1001, 11) and lengths.min() >= 5 and lengths.max() < 200 and len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        assert rewards[row, length - 1] != 0 and not rewards[row, length:].any()
        assert not ended[row, : length - 1].any() and ended[row, length - 1]
        alone = rollout(constant(0.5), make_batch(HOPPER, [0]), [row], 1000)
        np.testing.assert_array_equal(alone["observations"][0, : length + 1], observations[row, : length + 1])
        np.testing.assert_array_equal(alone["rewards"][0], rewards[row])


def test_evaluation_counts_rewards_up_to_the_end():
    result = evaluate(constant(0.0), HOPPER, [0], 3, seed=1)
    lengths, returns = np.array(result["lengths"]), np.array(result["returns"])
    assert lengths.shape == returns.shape == (1, 3)
    assert (lengths < 200).all() and (np.abs(returns / lengths - 1) < 0.5).all()  # about 1 per step while it stands


LOOP = """
import gymnasium as gym
import numpy as np

class Fuse(gym.Env):
    observation_space = gym.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gym.spaces.Box(np.float32([2]), np.float32([3]))  # without 0, which stands behind an end
    tasks = {"unit": np.array([1.0])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.length = 0, int(self.np_random.integers(1, 8))
        return np.float32([0]), {}

    def step(self, action):
        self.steps += 1
        return np.float32([self.steps]), 1.0, self.steps == self.length, self.steps == 5, {"heat": 2.0}
"""
YAML = """
env_name: Fuse-v0
entry_point: fuse_environment:Fuse
max_episode_steps: 5
terminates: true
train_tasks: [0, 1]
test_tasks: [0, 1]
"""


@pytest.fixture
def fuse(tmp_path, monkeypatch):
    """An environment without a batch class whose episodes last 1 to 5 steps: its settings file."""
    (tmp_path / "fuse_environment.py").write_text(LOOP)
    (tmp_path / "fuse.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "fuse.yaml"


def test_an_early_end_must_be_announced(fuse):
    env, still = read_env(fuse, read_yaml(fuse)), PolicyAgent(lambda observations: observations * 0)
    episode = rollout(still, make_batch(env, [0] * 8), range(8), 5)
    rewards, infos, lengths = (episode[key] for key in ("rewards", "infos", "lengths"))
    assert set(lengths) <= set(range(1, 6)) and (rewards.sum(1) == lengths).all()
    assert (infos["terminated"].any(1) | (lengths == 5)).all() and infos["heat"].shape == (8, 5)
    document = {**read_yaml(fuse), "terminates": False}
    with pytest.raises(UserError, match="terminates: true"):
        rollout(still, make_batch(read_env(fuse, document), [0] * 8), range(8), 5)
    with pytest.raises(UserError, match="terminates must be true or false"):
        read_env(fuse, {**document, "terminates": "yes"})


def test_data_hold_whole_episodes_and_how_they_ended(fuse, tmp_path, monkeypatch, capsys):
    import minari

    get_datasets(["--config", str(fuse), "--output_dir", str(tmp_path), "--data_type", "random", "--capacity", "100"])
    assert "python -m baselines.online_dt --config" in capsys.readouterr().out
    data = load(tmp_path / "datasets", "fuse", "random", read_env(fuse, read_yaml(fuse)))
    assert 100 <= data.lengths.sum() <= 180  # 20 rows of at least 5 steps, the last episode of each whole
    ended = data.infos["terminated"]
    assert (data.rewards.sum(1) == data.lengths).all()
    assert (ended.sum(1) <= 1).all() and (ended[np.arange(len(data)), data.lengths - 1] == ended.sum(1)).all()
    assert ((data.lengths == 5) | (ended.sum(1) == 1)).all() and (ended.sum(1)[data.lengths == 5] == 0).any()
    # lengths are uniform on 1..7, cut at 5: leaving out what exceeds the capacity would favour short episodes
    assert data.lengths.mean() == pytest.approx(np.minimum(np.arange(1, 8), 5).mean(), abs=0.7)

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    for row, episode in enumerate(minari.load_dataset("fuse/random-v0").iterate_episodes()):
        assert episode.terminations[-1] == ended[row].any() and episode.truncations[-1] != episode.terminations[-1]
        assert not episode.terminations[:-1].any() and not episode.truncations[:-1].any()

    flags = ["--config", str(fuse), "--output_dir", str(tmp_path / "copy"), "--data_type", "medium"]
    get_datasets([*flags, "--import_from", "fuse/random-v0"])  # any Minari dataset, by its id
    copy = load(tmp_path / "copy" / "datasets", "fuse", "medium")
    for name in ("observations", "actions", "rewards", "lengths"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(data, name))
    np.testing.assert_array_equal(copy.infos["terminated"], ended)
    with pytest.raises(SystemExit):
        get_datasets([*flags, "--import_from", "fuse/expert-v0"])
    assert "minari download fuse/expert-v0" in capsys.readouterr().err


def test_d4rl_files_with_terminals_and_timeouts(fuse, tmp_path):
    """Three episodes: ended after 2 steps, cut after 5, and one that the file breaks off."""
    observations = np.concatenate([np.arange(2), np.arange(5), np.arange(1)])[:, None].astype(np.float32)
    fields = {
        "observations": observations,
        "next_observations": observations + 1,
        "actions": np.full((8, 1), 2.5, np.float32),
        "rewards": np.arange(8, dtype=np.float32),
        "terminals": np.array([0, 1, 0, 0, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 0, 0, 1, 0], bool),
    }
    with h5py.File(tmp_path / "hopper_medium-v2.hdf5", "w") as file:
        for key, values in fields.items():
            file[key] = values
    parts = [{key: values[rows] for key, values in fields.items() if key != "timeouts"} for rows in (slice(0, 2), slice(2, 7))]
    (tmp_path / "hopper-medium-v2.pkl").write_bytes(pickle.dumps(parts))
    for source in ("hopper_medium-v2.hdf5", "hopper-medium-v2.pkl"):
        flags = ["--config", str(fuse), "--output_dir", str(tmp_path / source[:8]), "--no-resume"]
        get_datasets([*flags, "--import_from", str(tmp_path / source)])
        data = load(tmp_path / source[:8] / "datasets", "fuse", "medium")
        assert data.lengths.tolist() == [2, 5] and data.returns.tolist() == [1, 20]
        assert data.infos["terminated"].sum(1).tolist() == [1, 0] and data.infos["terminated"][0, 1] == 1


def test_d4rls_kinds_of_data():
    curve = {"stochastic_returns": [[0], [10], [40], [60], [100]], "random_returns": [0]}
    assert choose_checkpoints(curve, "medium", 4, 1 / 3).tolist() == [2] * 4
    assert choose_checkpoints(curve, "medium-replay", 6, 1 / 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert choose_checkpoints(curve, "medium-expert", 4, 1 / 3).tolist() == [2, 2, 4, 4]


def test_sac_with_a_learned_temperature_resumes_to_the_same_weights(fuse, tmp_path, monkeypatch):
    flags = ["--config", str(fuse), "--num_steps", "60", "--save_freq", "20", "--learning_starts", "5", "--batch_size", "8",
             "--hidden_sizes", "8", "--eval_episodes", "2", "--workers", "1", "--entropy_coefficient", "auto"]  # fmt: skip
    train_data_collection([*flags, "--output_dir", str(tmp_path / "whole")])

    learn = SegmentedSAC.learn

    def stop_at_40(self, steps):
        if self.sac.num_timesteps == 40:
            raise UserError("stopped")
        learn(self, steps)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(SegmentedSAC, "learn", stop_at_40)
        train_data_collection([*flags, "--output_dir", str(tmp_path / "stopped")])
    train_data_collection([*flags, "--output_dir", str(tmp_path / "stopped")])
    found = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name / "saves" / "fuse" / "behaviour" / "task_000"
        curve = json.loads((folder / "curve.json").read_text())
        found.append(((folder / "checkpoints.safetensors").read_bytes(), curve["stochastic_returns"]))
    assert found[0] == found[1]
    with pytest.raises(SystemExit):
        train_data_collection([*flags, "--entropy_coefficient", "-1", "--output_dir", str(tmp_path)])


def test_settings_of_the_robots():
    for name in ("hopper", "halfcheetah", "walker2d"):
        env = read_env(ROOT / f"configs/gym_{name}.yaml", read_yaml(ROOT / f"configs/gym_{name}.yaml"))
        environment = env.make()
        assert environment.max_episode_steps == env.max_episode_steps == 1000 and environment.env_type == env.env_type
        assert env.terminates == (name != "halfcheetah") and load_tasks(env.env_type) == {"forward_reward_weight": [1.0]}
