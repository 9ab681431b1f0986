"""Episodes as other libraries store them: what the tests of imports write."""

import contextlib
import dataclasses
import json
import pickle

import h5py
import numpy as np

from src.data.hdf5 import USER_BLOCK, write_sealed
from src.data.importers import import_trajectories
from src.run.config import load_env

ENV = load_env("point_robot")
ENDING = dataclasses.replace(ENV, terminates=True)
GOALS = ENV.make().tasks["goal"]


def walk(lengths=(20, 7, 13), task=7, seed=0):
    """Episodes of a random walk from the origin, as dicts with L + 1 observations."""
    rng, episodes = np.random.default_rng(seed), []
    for length in lengths:
        actions = rng.uniform(-0.1, 0.1, (length, 2)).astype(np.float32)
        observations = np.concatenate([np.zeros((1, 2)), actions.cumsum(0)]).astype(np.float32)
        rewards = -np.linalg.norm(observations[1:] - GOALS[task], axis=-1).astype(np.float32)
        episodes.append({"observations": observations, "actions": actions, "rewards": rewards})
    return episodes


def flat(episodes, following=True):
    """One array per key, and the last steps of the episodes."""
    content = {key: np.concatenate([part[key] for part in episodes]) for key in ("actions", "rewards")}
    content["observations"] = np.concatenate([part["observations"][:-1] for part in episodes])
    if following:
        content["next_observations"] = np.concatenate([part["observations"][1:] for part in episodes])
    last = np.zeros(len(content["rewards"]), bool)
    last[np.cumsum([len(part["rewards"]) for part in episodes]) - 1] = True
    return content, last


@contextlib.contextmanager
def sealed_again(path, mode="a"):
    """One of our own files, open to be changed by someone who mends its seal as well."""
    with h5py.File(path, mode) as file:
        yield file
    write_sealed(path, path.read_bytes()[USER_BLOCK:])


def write_hdf5(path, content):
    with h5py.File(path, "w") as file:
        for key, values in content.items():
            file[key] = values
    return path


def put(path, content):
    """`content` in the format that the name of the file says."""
    if path.suffix in (".hdf5", ".h5"):
        return write_hdf5(path, content)
    if path.suffix.lower() == ".npz":
        with path.open("wb") as file:
            np.savez(file, **content)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        lists = [{k: v.tolist() for k, v in part.items()} for part in content] if isinstance(content, list) else {
            k: v.tolist() for k, v in content.items()}  # fmt: skip
        path.write_text(json.dumps(lists))
    return path


def lengths_of(path, env=ENV, task_id=7):
    return import_trajectories(path, env, range(50), task_id)[0]


def notes_of(path, env=ENV):
    return import_trajectories(path, env, range(50), 7)[2]
