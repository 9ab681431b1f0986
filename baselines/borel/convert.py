"""Convert data into the layout of BOReL's logs: what the original code wrote, or a dataset of get_datasets.py.

    python -m baselines.borel.convert --env-type gridworld --source batch_data/GridNavi-v2/data
    python -m baselines.borel.convert --env-type cheetah_vel --dataset replay
    python -m baselines.borel.convert --env-type ant_semicircle_sparse --dataset replay --dataset-of ant_semicircle

The second joins K successive episodes of a task to a roll-out, so that BOReL learns from the data that Meta-DT does. The third
reads the dataset of another environment that has the same robot and tasks, and computes the rewards anew. About the first:

Reads folders `seed_<seed>_goal_<g1>_<g2>...` with obs, actions, rewards, next_obs as .npy arrays: flat (N, dim) with the
roll-outs in sequence, or (T, roll-outs, dim). Nothing but plain arrays is opened, so the files can run no code. The task
is the one of configs/tasks/<env_type>.json that has the rounded parameters of the folder's name; rewards of another task are
refused where they can be computed.

The original records the last observation of an episode in place of the next one's start. task.json notes that
(`starts_recorded`), and decoders that read s then leave the first step of later episodes out.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from baselines.borel.data import task_directory, write_task
from baselines.borel.settings import borel_parser, next_command, parse
from envs.multi_episode import add_flag, unscale_actions
from src.data import trajectories
from src.data.hdf5 import FAULTS
from src.data.importers import read_npy
from src.data.qualities import QUALITIES
from src.run import command_line
from src.run.config import load_env
from src.run.errors import UserError, main_guard, shortened
from src.run.files import open_regular
from src.run.flags import plain_name
from src.run.settings import setting

NAME = re.compile(r"(?:seed_(?P<seed>\d+)_)?(?:goal|task)_(?P<parameters>.+)")
ROUNDING = 6e-4  # of three decimals, with a little slack
# Rewards count as another task's where more than this share differs by more than this. Those of the original's Cheetah are not
# exactly ours: its torso's position is one of five simulation steps old, which moves the speed by 0.13 m/s in the mean.
REWARD_ERROR, REWARD_SHARE = 0.5, 0.02


@dataclasses.dataclass(frozen=True)
class Source:
    """data"""

    source: str | None = setting(None, "folder that holds the folders seed_..._goal_...; or give --dataset")
    dataset: str | None = setting(None, "which dataset of get_datasets.py", choices=QUALITIES)
    dataset_of: str | None = setting(None, "whose dataset (its --env-type), where it is not the environment's own")
    save_dir: str | None = setting(None, "name of the data set to write (default: log, with the recipe's suffix)", plain_name)


SETTINGS = (Source,)


def make_parser():
    return borel_parser(__doc__, SETTINGS)


@main_guard
def main(argv=None):
    run, source = parse(make_parser(), "convert", SETTINGS, argv)
    if (source.source is None) == (source.dataset is None):
        raise UserError("convert reads one thing: give either --source or --dataset")
    if source.dataset_of and not source.dataset:
        raise UserError("--dataset-of has no effect without --dataset")
    found = read_dataset(run, source) if source.dataset else read_original(run.problem, source.source)  # checked before a write
    for task, (arrays, description) in sorted(found.items()):
        folder = task_directory(run.logs, task)
        (folder / "agent.safetensors").unlink(missing_ok=True)  # of an agent that did not make these data
        write_task(folder, run.problem, task, arrays, description)
    print(f"{len(found)} tasks in {run.logs}; next: {next_command(run, 'train_vae_offline')}")


def read_dataset(run, source):
    """task id -> (arrays, entries of task.json), from datasets/<env_type>/<quality>-v0; an odd last episode is left out."""
    problem, dataset = run.problem, open_dataset(run, source)
    told = f"{source.dataset} dataset" + (f" of {source.dataset_of}" if source.dataset_of else "")
    if (dataset.lengths != problem.horizon).any():
        raise UserError(f"the {source.dataset} dataset holds episodes that are shorter than {problem.horizon} steps")
    found = {}
    for task in dataset.tasks:
        episodes = dataset.select([task])
        count = len(episodes) // problem.episodes
        if not count:
            raise UserError(f"the {source.dataset} dataset has fewer than {problem.episodes} episodes of task {task}")
        episodes = episodes.take(range(count * problem.episodes))
        obs, next_obs = (
            add_flag(part, 0, problem.episodes) for part in (episodes.observations[:, :-1], episodes.observations[:, 1:])
        )
        if problem.episodes > 1:
            next_obs[:, -1, -1] = 1
        actions, rewards = unscale_actions(episodes.actions, problem.space), episodes.rewards
        infos = {f"infos/{key}": values for key, values in episodes.infos.items() if f"infos/{key}" in problem.recorded}
        if source.dataset_of:
            rewards = problem.rewards(task, obs, actions, next_obs, infos)
        arrays = {"obs": obs, "actions": actions, "rewards": rewards, "next_obs": next_obs, **infos}
        arrays = {key: values.reshape(count, problem.steps, *values.shape[2:]) for key, values in arrays.items()}
        found[task] = arrays, {"source": told, "dataset_sha256": dataset.metadata["sha256"]}
    return found


def open_dataset(run, source):
    """The dataset of the environment itself, or of --dataset-of. Raises UserError where that one has another robot or tasks."""
    env, owner, problem = run.env, run, run.problem
    if source.dataset_of:
        env = load_env(source.dataset_of, "--dataset-of")
        owner = dataclasses.replace(run, env_type=source.dataset_of, config=None, recipe="paper")
    follow = command_line.next_command(owner, "get_datasets.py", "--data_type", source.dataset)
    dataset = trajectories.load(Path(run.output_dir, "datasets"), env.env_type, source.dataset, env, follow)
    own = trajectories.task_parameters(problem.environment, range(problem.num_tasks))
    sizes = dataset.observations.shape[-1], dataset.actions.shape[-1]
    if sizes != (problem.plain_size, problem.action_size) or any(dataset.tasks[task] != own.get(task) for task in dataset.tasks):
        raise UserError(f"the dataset of {env.env_type} has other observations, actions or tasks than {run.env_type}")
    return dataset


def read_original(problem, source):
    """task id -> (arrays, entries of task.json), from the original's folders in `source`."""
    found, paths = {}, {}
    for path, parameters, seed in find_folders(source):
        task = match_task(problem, parameters, path)
        if task in found:
            raise UserError(f"{paths[task]} and {path} both hold task {task}: move one of them elsewhere")
        arrays = read_folder(problem, path)
        arrays["rewards"] = checked_rewards(problem, task, path, **arrays)
        found[task] = arrays, {"seed": seed, "starts_recorded": problem.episodes == 1, "source": path.name}
        paths[task] = path
    return found


def checked_rewards(problem, task, path, obs, actions, next_obs, rewards=None):
    """The stored rewards (R, T), or computed ones: the ant's collector stores terms of another, dense reward.

    Raises UserError where they are another task's, or cannot be computed.
    """
    if not hasattr(problem.environment, "compute_rewards") and rewards is not None:
        return rewards
    if problem.recorded and rewards is not None:  # they read what the original does not record
        return rewards
    own, starts = problem.rewards(task, obs, actions, next_obs), slice(problem.horizon, None, problem.horizon)
    if rewards is None:
        moved = problem.rewards(task, next_obs[:, starts], actions[:, starts], next_obs[:, starts])
        if not np.array_equal(own[:, starts], moved):  # they read s, which is not recorded there
            raise UserError(f"{path / 'rewards.npy'} is missing, and the other arrays do not tell all of the rewards")
        return own
    wrong = np.abs(own - rewards) > REWARD_ERROR
    wrong[:, starts] = False
    if wrong.mean() > REWARD_SHARE:
        raise UserError(
            f"{path}: {wrong.mean():.0%} of the rewards are not those of task {task}, which the folder's name gives: "
            "name the folder after the task of the data, or leave rewards.npy out to have them computed"
        )
    return rewards


def find_folders(source):
    """[(path, parameters, seed or None)] of the task folders in `source`. Raises UserError when there is none."""
    folders = []
    for path in sorted(path for path in Path(source).glob("*") if path.is_dir()):
        match = NAME.fullmatch(path.name)
        if match:
            try:
                parameters = [float(part) for part in match["parameters"].split("_")]
            except ValueError:
                raise UserError(f"{path}: the task's parameters cannot be read from the folder's name") from None
            folders.append((path, parameters, int(match["seed"]) if match["seed"] else None))
    if not folders:
        raise UserError(f"--source {source} holds no folder called seed_<seed>_goal_<parameters>")
    return folders


def match_task(problem, parameters, path):
    """The one task with these rounded parameters. Raises UserError when there is none, or more than one."""
    rows = np.concatenate([values.reshape(problem.num_tasks, -1) for values in problem.tasks.values()], 1)
    if rows.shape[1] != len(parameters):
        raise UserError(f"{path}: the name gives {len(parameters)} parameters, a {problem.env.env_type} task has {rows.shape[1]}")
    matching = np.flatnonzero(np.abs(rows - parameters).max(1) <= ROUNDING)
    if len(matching) != 1:
        raise UserError(
            f"{path}: {len(matching)} tasks of configs/tasks/{problem.env.env_type}.json have the parameters {parameters}; "
            "put the tasks of your data there, or into an environment of your own"
        )
    return int(matching[0])


def read_folder(problem, path):
    """dict of obs, actions, next_obs and, where they are stored, rewards: (R, T, ...). Raises UserError for a bad file."""
    action = 1 if problem.discrete else problem.action_size
    sizes = {"obs": problem.observation_size, "next_obs": problem.observation_size, "actions": action, "rewards": 1}
    arrays = {}
    for key, size in sizes.items():
        file = path / f"{key}.npy"
        if file.exists():
            arrays[key] = read_array(file, problem, size)
        elif key != "rewards":
            raise UserError(f"{file} is missing")
    counts = {len(values) for values in arrays.values()}
    if len(counts) > 1:
        raise UserError(f"{path}: the arrays hold different numbers of roll-outs ({', '.join(map(str, sorted(counts)))})")
    if "rewards" in arrays:
        arrays["rewards"] = arrays["rewards"][..., 0]
    if problem.discrete:
        arrays["actions"] = arrays["actions"][..., 0].astype(np.int64)
    space = problem.environment.observation_space
    for key in ("obs", "next_obs"):
        plain = arrays[key][..., : problem.plain_size]
        cells = hasattr(problem.environment, "num_cells")  # of which there is no half
        if not ((space.low <= plain) & (plain <= space.high)).all() or (cells and (plain != plain.round()).any()):
            raise UserError(
                f"{path / key}.npy holds observations that {problem.env.env_type} does not have; leave the folder out"
            )
    return arrays


def read_array(file, problem, size):
    """One .npy file -> (R, T, size) float32; one-hot actions become their index."""
    try:
        with open_regular(file) as stream:
            values = read_npy(stream, file.stat().st_size)
    except FAULTS as error:
        raise UserError(f"{file} is not a plain numpy array ({shortened(error, 200)})") from None
    if values is None or not (np.abs(values) < np.finfo(np.float32).max).all():
        raise UserError(f"{file} holds something else than finite numbers")
    if not values.size:
        raise UserError(f"{file} holds no roll-out")
    values = values.astype(np.float32)
    if values.ndim == 3:  # (T, roll-outs, dim)
        values = values.swapaxes(0, 1)
    elif values.ndim in (1, 2) and len(values) % problem.steps == 0:
        values = values.reshape(-1, problem.steps, values.shape[1] if values.ndim == 2 else 1)
    if values.ndim != 3 or values.shape[1] != problem.steps:
        raise UserError(f"{file} has shape {values.shape}, which is no whole number of roll-outs of {problem.steps} steps")
    discrete = file.stem == "actions" and problem.discrete
    if discrete and values.shape[-1] == problem.action_size and (values.sum(-1) == 1).all() and np.isin(values, (0, 1)).all():
        values = values.argmax(-1)[..., None].astype(np.float32)
    if values.shape[-1] != size:
        raise UserError(f"{file} has {values.shape[-1]} numbers per step, {problem.env.env_type} has {size}")
    if discrete and not np.isin(values, np.arange(problem.action_size)).all():
        known = f"0 to {problem.action_size - 1}, or one-hot vectors"
        raise UserError(f"{file} holds actions that {problem.env.env_type} does not have: they are {known}")
    return values


if __name__ == "__main__":
    main()
