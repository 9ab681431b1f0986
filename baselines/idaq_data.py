"""IDAQ's files of trajectories as a dataset: <folder>/goal_idx<i>/trj_evalsample<n>_step<checkpoint>.npy, an episode each.

A file holds a table of objects with the rows (observation, action, reward, next observation), or plain numbers side by side in
that order. The table is read by src/data/pickles.py, which runs no code and knows arrays of numbers alone. Actions are in
[-1, 1], and become those of the environment. Where the environment can tell the rewards of the recorded steps they are compared,
and those of the sparse point robot, whose data are the dense one's, are computed.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from envs.multi_episode import scale_actions
from src.data.hdf5 import FAULTS
from src.data.importers import assemble, read_npy, read_npy_header
from src.data.layouts import episodes_of
from src.data.pickles import read_pickle
from src.data.trajectories import dataset_directory, save
from src.run.errors import UserError, shortened
from src.run.files import open_regular, read_json
from src.run.provenance import provenance

FOLDER, FILE = re.compile(r"goal_idx(0|[1-9]\d*)"), re.compile(r"trj_evalsample(\d+)_step(\d+)\.npy")
# Rewards are another task's where more than this share of them differs by more than this: of point robots, of simulated ones. The
# original's Cheetah reads a torso that is one of five simulation steps old, which moves its speed by 0.13 m/s in the mean.
REWARD_SHARE, REWARD_ERROR = 0.02, {False: 1e-3, True: 0.5}


def convert(folder, env, name, output_dir, episodes=None, checkpoint=None):
    """Write the dataset `name` of an EnvConfig from IDAQ's files in `folder`, unless it is there; one line says which.

    episodes: the first so many of each task (default: all). checkpoint: of the agent that made them, where there are several.
    Raises UserError, and writes nothing, where a file cannot be understood or is not of its task, or where the dataset that is
    there holds other episodes.
    """
    target = dataset_directory(Path(output_dir) / "datasets", env.env_type, name)
    chosen = {"episodes_per_task": episodes, "checkpoint": checkpoint}
    if (target / "data" / "main_data.hdf5").exists():
        (made, *_) = read_json(target / "data" / "metadata.json", "provenance")["provenance"]
        if any(made.get(key) != value for key, value in chosen.items()):
            raise UserError(f"{target} holds other episodes of {folder} (n_trj, train_epoch): remove it to read them again")
        print(f"{target} is there and used; remove it to read {folder} again")
        return
    environment, found, sources = env.make(), [], {}
    order = goal_order(environment, env.env_type)
    for index, path in task_folders(folder):
        if index >= len(order):
            raise UserError(f"{path}: {env.env_type} has {len(order)} tasks, of which the last is goal_idx{len(order) - 1}")
        task = int(order[index])
        files = episode_files(path, episodes, checkpoint)
        lived = [episode for file in files for episode in read_episode(file, env, environment)]
        contents = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
        told = hashlib.sha256(contents).hexdigest()
        twin = next((folder for folder, other in sources.values() if other == told), None)
        if twin:
            raise UserError(f"{twin} and {path.name} hold the same episodes: one of them has the data of the other")
        sources[str(task)] = [path.name, told]
        check_rewards(lived, task, path, environment)
        found += [(task, episode) for episode in lived]
    trajectories = assemble(found, environment, env.terminates)
    if env.env_type.endswith("_sparse"):
        parameters = {key: values[trajectories.task_ids][:, None] for key, values in environment.unwrapped.tasks.items()}
        arrays = trajectories.observations[:, :-1], trajectories.actions, trajectories.observations[:, 1:]
        trajectories.rewards[:] = environment.compute_rewards(*arrays, parameters)
    record = {"seed": 0, "rule": "imported", "imported_from": sources, **chosen, **provenance()}
    joined = save(trajectories, Path(output_dir) / "datasets", env, name, record, f"IDAQ's data in {Path(folder).name}")
    print(f"{target}: {len(joined)} episodes of {len(joined.tasks)} tasks, mean return {joined.returns.mean():.4g}")


def goal_order(environment, env_type):
    """(N,) our task of each goal index of IDAQ: the same, but on the half circle, where IDAQ counts by angle."""
    tasks = environment.unwrapped.tasks
    if env_type.startswith("point_robot_semicircle"):
        return np.argsort(np.arctan2(*tasks["goal"].T[::-1]), kind="stable")
    return np.arange(len(next(iter(tasks.values()))))


def task_folders(folder):
    """[(goal index, path)] in order. Raises UserError where there is none."""
    matches = [(FOLDER.fullmatch(path.name), path) for path in Path(folder).glob("*")]
    found = sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())
    if not found:
        raise UserError(f"{folder} holds no folder goal_idx<i> of IDAQ's files: give the folder that does")
    return found


def episode_files(path, episodes, checkpoint):
    """The files of one task in order. Raises UserError where it is not told which."""
    matches = [(FILE.fullmatch(file.name), file) for file in path.glob("*.npy")]
    found = {(int(match[2]), int(match[1])): file for match, file in matches if match}
    checkpoints = sorted({step for step, _ in found})
    if checkpoint is None and len(checkpoints) == 1:
        checkpoint = checkpoints[0]
    if checkpoint not in checkpoints:
        there = ", ".join(map(str, checkpoints)) or "none"
        raise UserError(f"{path} has no files trj_evalsample<n>_step{checkpoint}.npy; checkpoints there: {there[:100]}")
    numbers = sorted(number for step, number in found if step == checkpoint and (episodes is None or number < episodes))
    if not numbers:
        raise UserError(f"{path} has no episode below number {episodes}: raise n_trj")
    return [found[checkpoint, number] for number in numbers]


def read_episode(file, env, environment):
    """[Episode] of one file. Raises UserError where it is none, or not of this environment."""
    sizes = environment.observation_space.shape[0], environment.action_space.shape[0], 1, environment.observation_space.shape[0]
    try:
        rows = read_rows(file)
        if isinstance(rows, list) and {len(row) for row in rows} == {4}:
            columns = [np.array([np.ravel(row[place]) for row in rows], np.float32) for place in range(4)]
        elif np.ndim(rows) == 2:
            columns = np.split(np.asarray(rows, np.float32), np.cumsum(sizes)[:-1], 1)
        else:
            raise ValueError("neither four things nor numbers side by side in every row")
    except FAULTS as error:
        raise UserError(f"{file} is no table of transitions ({shortened(error, 120)})") from None
    widths = tuple(column.shape[1] for column in columns)
    if widths != sizes:
        raise UserError(f"{file} has rows of {widths} numbers, those of {env.env_type} have {sizes}")
    observations, actions, rewards, following = columns
    if len(rewards) != env.max_episode_steps:
        raise UserError(f"{file} has {len(rewards)} steps, an episode of {env.env_type} has {env.max_episode_steps}")
    if np.abs(actions).max() > 1 + 1e-5:
        raise UserError(f"{file} has actions outside of [-1, 1], in which IDAQ records them")
    actions = scale_actions(actions, environment.action_space).astype(np.float32)
    content = {"observations": observations, "actions": actions, "rewards": rewards[:, 0], "next_observations": following}
    return episodes_of([content], file, env)[0]


def read_rows(file):
    """A table (N, 4) of objects as a list of lists, or an array of numbers (N, d)."""
    with open_regular(file) as stream:
        dtype, start = read_npy_header(stream)[2], stream.tell()
        if not dtype.hasobject:
            stream.seek(0)
            return read_npy(stream, file.stat().st_size)
    return read_pickle(file, start, tables=True)


def check_rewards(episodes, task, path, environment):
    """Raises UserError where the recorded rewards are another task's; nothing where the environment cannot tell."""
    if not hasattr(environment, "compute_rewards") or getattr(environment.unwrapped, "info_keys", ()):
        return
    dense = getattr(environment, "compute_dense_rewards", environment.compute_rewards)
    told = np.concatenate([episode.rewards for episode in episodes])
    parts = (lambda e: e.observations[:-1]), (lambda e: e.actions), (lambda e: e.observations[1:])
    arrays = [np.concatenate([part(episode) for episode in episodes]) for part in parts]
    parameters = {key: values[task] for key, values in environment.unwrapped.tasks.items()}
    wrong = np.abs(dense(*arrays, parameters) - told) > REWARD_ERROR[hasattr(environment.unwrapped, "simulator")]
    if wrong.mean() > REWARD_SHARE:
        raise UserError(
            f"{path}: {wrong.mean():.0%} of the rewards are not those of this goal: the list is another, or its order"
        )
