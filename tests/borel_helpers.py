"""What the tests of BOReL share: its scripts, called through the shell or in this process, and tiny runs of them."""

import shutil

import helpers
import numpy as np

from baselines.borel import convert, hindsight_data_collection, online_training
from baselines.borel import train_offline_agent as offline
from baselines.borel import train_single_agent as single
from baselines.borel import train_vae_offline as vae_script
from baselines.borel.data import Rollouts
from baselines.borel.problem import play, random_actions
from baselines.borel.settings import parse

SCRIPTS = {"train_single_agent": single, "hindsight_data_collection": hindsight_data_collection, "convert": convert,
           "train_vae_offline": vae_script, "train_offline_agent": offline, "online_training": online_training}  # fmt: skip


ALL_TASKS = ["--task-id-start", "0", "--task-id-end", "21"]


def parsed(script, argv):
    """[BorelRun, the settings objects of a script]."""
    return parse(script.make_parser(), script.__name__.rpartition(".")[2], script.SETTINGS, argv)


def random_rollouts(problem, tasks, count, seed=0):
    rows = np.repeat(tasks, count)
    played = play(problem, rows, random_actions(problem, np.random.default_rng(seed)), (seed, "test"))
    arrays = {key: values.reshape(len(tasks), count, *values.shape[1:]) for key, values in played.items() if key != "success"}
    return Rollouts(np.asarray(tasks), **arrays)


def shell(module, *words, check=True):
    done = helpers.shell(f"-m {module}", *words)
    assert not check or done.returncode == 0, done.stderr
    return done


def finished_data(folder, method="borel+debug"):
    """(policy, relabelled data) of a finished run, as bytes."""
    policy = folder / "saves/gridworld/log/borel/offline" / method / "seed_0/model.safetensors"
    cache = sorted((folder / "datasets/gridworld/log+debug/data_bamdp").rglob("*.safetensors"))
    return policy.read_bytes(), [path.read_bytes() for path in cache]


def copy_of(grid, target):
    """The same finished run in a folder of its own: (folder, flags)."""
    folder, flags = grid
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target, [word if word != str(folder) else str(target) for word in flags]


TINY_WIND = """
env_name: TinyWind-v0
entry_point: envs.borel_points:PointRobotWindEnv
max_episode_steps: 25
train_tasks: [0, 3]
test_tasks: [3, 5]
baselines:
  borel:
    train_single_agent: {num_iters: 1, num_init_rollouts_pool: 3, num_rollouts_per_iter: 1, rl_updates_per_iter: 2,
                         batch_size: 8, hidden_layers: [8], log_interval: 1}
    hindsight_data_collection: {num_rollouts: 2}
    train_vae_offline: {num_iters: 1, aggregator_hidden_size: 8, decode_state: true, input_action: true,
                        num_decoded_transitions: 5, vae_batch_num_elbo_terms: 5}
    train_offline_agent: {num_iters: 2, rl_updates_per_iter: 2, batch_size: 8, hidden_layers: [8], log_interval: 1}
"""
