"""BOReL where rewards depend on more than the transition: what the environment reported is kept, moved and read again."""

import numpy as np
import pytest
from borel_helpers import SCRIPTS
from helpers import assert_refused

from baselines.borel import train_vae_offline as vae_script
from baselines.borel.data import Rollouts, task_directory
from baselines.borel.mixing import load_logs, mix, relabel_rewards
from baselines.borel.problem import Problem, play, random_actions
from baselines.borel.settings import parse
from src.run.config import read_env, read_yaml
from src.run.errors import UserError
from src.run.files import load_tensors, save_tensors

MODULE = """
import gymnasium as gym
import numpy as np


class SpringEnv(gym.Env):
    '''A point on a line whose pull is reported and paid, but not observed: the reward of task g is pull · g + x.'''

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)
    tasks = {"goal": np.arange(1.0, 6.0)}
    info_keys = ("pull",)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = (options or {}).get("task", getattr(self, "task", 0))
        self.x, self.steps = 0.0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.x += float(action[0])
        pull = np.array([np.sin(7.0 * self.steps) + self.task])
        reward = float(pull[0] * self.tasks["goal"][self.task] + self.x)
        return np.array([self.x], np.float32), reward, False, self.steps == 5, {"pull": pull, "unread": np.ones(3)}

    def compute_rewards(self, observations, actions, next_observations, tasks, infos=None):
        if infos is None or "pull" not in infos:
            raise ValueError("these rewards need the recorded pull")
        return (infos["pull"][..., 0] * tasks["goal"] + next_observations[..., 0]).astype(np.float32)
"""
SETTINGS = """
env_name: Spring-v0
entry_point: spring_for_borel:SpringEnv
max_episode_steps: 5
train_tasks: [0, 3]
test_tasks: [3, 5]
baselines:
  borel:
    train_single_agent: {num_iters: 1, num_init_rollouts_pool: 3, num_rollouts_per_iter: 1, rl_updates_per_iter: 2,
                         batch_size: 8, hidden_layers: [8], log_interval: 1}
    train_vae_offline: {num_iters: 1, aggregator_hidden_size: 8, hindsight_relabelling: true, num_decoded_transitions: 5,
                        vae_batch_num_elbo_terms: 5}
    train_offline_agent: {num_iters: 2, rl_updates_per_iter: 2, batch_size: 8, hidden_layers: [8], log_interval: 1}
"""


@pytest.fixture(scope="module")
def spring(tmp_path_factory):
    """Flags of a tiny environment whose rewards need infos, with its logs."""
    folder = tmp_path_factory.mktemp("spring")
    (folder / "spring_for_borel.py").write_text(MODULE)
    (folder / "spring.yaml").write_text(SETTINGS)
    flags = ["--config", str(folder / "spring.yaml"), "--output_dir", str(folder), "--no-tensorboard"]
    SCRIPTS["train_single_agent"].main([*flags, "--task-id-start", "0", "--task-id-end", "3"])
    return folder, flags


def mixing_of(flags):
    """(BorelRun, Mixing) of train_vae_offline."""
    return parse(vae_script.make_parser(), "train_vae_offline", vae_script.SETTINGS, flags)[:2]


def test_logs_hold_what_rewards_need_and_relabelling_reads_it(spring):
    _, flags = spring
    run, mixing = mixing_of(flags)
    logs = load_logs(run, mixing)
    rollouts = logs[0]
    assert set(rollouts.infos) == {"infos/pull"} and rollouts.infos["infos/pull"].shape == (*rollouts.rewards.shape, 1)
    for row, task in enumerate(rollouts.task_ids):  # the data as they are
        pull = rollouts.infos["infos/pull"][row, ..., 0]
        np.testing.assert_allclose(pull * (task + 1) + rollouts.next_obs[row, ..., 0], rollouts.rewards[row], rtol=1e-5)
    mixed = mix(run, mixing, *logs)
    moved = (mixed.infos["infos/pull"] != rollouts.infos["infos/pull"]).any((2, 3))
    assert moved.all()  # the first episode of each roll-out is another task's, with its pull
    for row, task in enumerate(mixed.task_ids):
        pull = mixed.infos["infos/pull"][row, ..., 0]
        np.testing.assert_allclose(pull * (task + 1) + mixed.next_obs[row, ..., 0], mixed.rewards[row], rtol=1e-5)
    assert mixed.fingerprint() != rollouts.fingerprint() == load_logs(run, mixing)[0].fingerprint()


def test_a_whole_run_with_relabelling(spring):
    folder, flags = spring
    vae_script.main(flags)
    SCRIPTS["train_offline_agent"].main([*flags, "--transform-data-bamdp", "True", "--vae-model-name", "relabel__seed_0",
                                         "--hindsight-relabelling", "True"])  # fmt: skip
    assert list((folder / "results" / "spring").rglob("seed_0.json"))


def test_data_without_them_are_refused_in_one_line(spring, capsys, tmp_path):
    folder, flags = spring
    path = task_directory(folder / "datasets/spring/log", 1) / "rollouts.safetensors"
    whole = path.read_bytes()
    tensors = load_tensors(path)
    save_tensors(path, {key: values for key, values in tensors.items() if not key.startswith("infos/")})
    fresh = [*flags, "--vae-model-name", "lacking"]
    assert_refused(capsys, vae_script, fresh, "depend on the infos pull, which these data do not hold")
    assert not list(folder.rglob("lacking"))
    plain = mixing_of([*flags, "--hindsight-relabelling", "False"])
    assert load_logs(*plain)[0].infos == {}  # without relabelling nobody asks
    path.write_bytes(whole)


def problem_of_file(name, episodes=2):
    from src.run.config import CONFIG_DIR

    path = CONFIG_DIR / f"{name}.yaml"
    return Problem(read_env(path, read_yaml(path)), episodes)


def test_meta_world_is_relabelled_exactly_where_the_goal_is_hidden():
    pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install -r requirements-metaworld.txt")
    problem = problem_of_file("metaworld_plate_slide_200")
    problem.horizon, problem.steps = 6, 12  # short episodes are episodes, too
    rows = np.repeat([0, 3], 2)
    played = play(problem, rows, random_actions(problem, np.random.default_rng(0)), (0, "test"))
    played = {key: values.reshape(2, 2, *values.shape[1:]) for key, values in played.items() if key != "success"}
    infos = {key: played.pop(key) for key in problem.recorded}
    assert set(infos) == {"infos/tcp", "infos/object_start"}
    rollouts = Rollouts(np.array([0, 3]), **played, infos=infos)
    for row, task in enumerate((0, 3)):
        parts = [getattr(rollouts, key)[row] for key in ("obs", "actions", "next_obs")]
        own = problem.rewards(task, *parts, {key: values[row] for key, values in infos.items()})
        np.testing.assert_allclose(own, rollouts.rewards[row], atol=1e-4)
    mixed = relabel_rewards(rollouts, problem, np.random.default_rng(1))
    assert not np.allclose(mixed.rewards[:, :, :6], rollouts.rewards[:, :, :6]) and np.isfinite(mixed.rewards).all()


def test_a_visible_set_is_refused_in_one_line(capsys, tmp_path):
    pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install -r requirements-metaworld.txt")
    flags = ["--env-type", "metaworld_door_lock_200", "--output_dir", str(tmp_path), "--hindsight-relabelling", "True"]
    assert_refused(capsys, vae_script, flags, "cannot tell what another task would pay")
    with pytest.raises(UserError, match=r"python -m baselines\.borel\.convert"):  # nothing trains single agents there
        load_logs(*mixing_of(flags[:4]))
    assert not list(tmp_path.iterdir())
