"""Datasets of other projects as Trajectories: Meta-DT's official pickles, D4RL-style HDF5 and pickles, Minari.

A pickle is a program. These are read by an unpickler that knows numpy arrays of numbers, numpy scalars and plain
containers, builds the arrays itself from shape, dtype and bytes, and refuses every other name before a call.
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pickle
import re
import sys
from pathlib import Path

import h5py
import numpy as np

from src.data.trajectories import Trajectories, task_parameters
from src.run.config import num_tasks
from src.run.errors import UserError

CONTINUITY = 1e-4  # how far next_observations may differ from the observations that follow, relative to the largest
# Field names vary by environment and quality in the published files.
FIELDS = {
    "observations": ("observations", "obs", "states", "state"),
    "actions": ("actions", "acts", "action"),
    "rewards": ("rewards", "rews", "reward"),
    "next_observations": ("next_observations", "next_obs", "next_states", "next_state"),
    "terminals": ("terminals", "terminations", "dones", "done"),
    "timeouts": ("timeouts", "truncations"),
}


# ------------------------------------------------------------------------------------------------ the restricted reader


class _Dtype:
    """Stands for numpy.dtype while a pickle is read: type code and byte order of numbers, nothing else."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biufc]\d{1,2}", code):
            raise pickle.UnpicklingError(f"an array of {str(code)[:20]!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in "<>" else "=")


class _Array:
    """Stands for numpy.ndarray while a pickle is read."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data, dtype, shape, order="C"):
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array without plain bytes")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array without a shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError("an array whose bytes do not fit its shape")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(*_):
    return _Array()


def _from_buffer(data, dtype, shape, order="C"):
    array = _Array()
    array.value = _array(data, dtype, shape, order if order in ("C", "F") else "C")
    return array


def _scalar(dtype, data):
    return _array(data, dtype, (1,))[0].item()


def _encode(text, encoding):
    """Bytes in a pickle of protocol 2 are text and the name of an encoding."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin-1")


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        module = module.replace("numpy._core", "numpy.core")
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("_codecs", "encode"): _encode,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


def read_pickle(path):
    """Numbers, text, lists, dicts and numpy arrays of numbers from a pickle file, without running any of its code.

    Raises UserError when the file asks for anything else, or is damaged.
    """
    try:
        with Path(path).open("rb") as file:
            return _plain(_NumpyUnpickler(file).load())
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: {error}; only numpy arrays of numbers are read") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a readable pickle ({type(error).__name__}); fetch it again") from None


def _plain(value):
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


# --------------------------------------------------------------------------------------------------------- the sources


def import_trajectories(source, env, tasks, task_id=None):
    """Read a folder of Meta-DT's dataset_task_<i>.pkl (those of `tasks` that it has), or data of the one task `task_id`.

    The latter: a D4RL-style .hdf5, a .pkl with a list of trajectories (Decision Transformer's D4RL files), or a Minari dataset,
    by its id ("mujoco/hopper/medium-v0", already downloaded), its folder or its main_data.hdf5.
    Returns (Trajectories, facts to record). Raises UserError.
    """
    source = Path(source)
    minari = _find_minari(source)
    if not minari:
        _refuse_other_storage(source)
    if source.is_dir() and not minari:
        files = {task: source / f"dataset_task_{task}.pkl" for task in tasks}
        files = {task: path for task, path in files.items() if path.exists()}
        if not files:
            raise UserError(f"{source} holds no dataset_task_<i>.pkl of the tasks {tasks.start} to {tasks.stop - 1}")
        read = read_pickle
    elif minari or source.suffix in (".hdf5", ".h5", ".pkl"):
        if task_id is None and num_tasks(env.make()) > 1:
            raise UserError(f"say which task {source} belongs to: --task_id 0")
        task_id = task_id or 0
        if task_id >= num_tasks(env.make()):
            raise UserError(f"--task_id {task_id} is unknown: {env.env_type} has {num_tasks(env.make())} tasks")
        files = {task_id: minari or source}
        read = _read_minari if minari else read_pickle if source.suffix == ".pkl" else _read_hdf5
    else:
        raise UserError(
            f"--import_from {source} is neither a folder of dataset_task_<i>.pkl files nor an .hdf5 or .pkl file nor a Minari "
            f"dataset in {_minari_root()} (fetch one: minari download {source})"
        )
    parts = {task: _all_episodes(read(path), path, env) for task, path in files.items()}
    environment = env.make()
    if source.is_dir() and not minari:
        _compare_goals(source, environment, files)
    facts = {"imported_from": {task: [path.name, _sha256(path)] for task, path in files.items()}}
    return _assemble(parts, task_parameters(environment, files), env.terminates), facts


def _all_episodes(content, path, env):
    """What a file holds, flat arrays or a list of them per episode -> episodes as `_episodes` gives them.

    Says on stderr where the last steps of episodes are left out.
    """
    if isinstance(content, list) and not content:
        raise UserError(f"{path} holds no episode")
    if not isinstance(content, list):
        parts = [_fields(content, path)]
    else:
        parts = [_fields(part, path) for part in content]
        for fields in parts:
            fields["timeouts"] = np.arange(len(fields["rewards"])) == len(fields["rewards"]) - 1
    episodes = [episode for fields in parts for episode in _episodes(fields, path, env)]
    if not episodes:
        raise UserError(f"{path} holds no whole episode")
    lost = sum(len(fields["rewards"]) for fields in parts) - sum(len(rewards) for *_, rewards, _ in episodes)
    if lost:
        missing = "" if all("next_observations" in fields for fields in parts) else "; it has no next_observations"
        print(f"note: {lost} steps of {path} are left out, whose next observation or end is unknown{missing}", file=sys.stderr)
    return episodes


def _minari_root():
    return Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets"))


def _find_minari(source):
    """The main_data.hdf5 of a Minari dataset that `source` names, or None."""
    for path in (source, source / "data" / "main_data.hdf5", _minari_root() / source / "data" / "main_data.hdf5"):
        if path.name == "main_data.hdf5" and path.is_file():
            return path
    return None


def _refuse_other_storage(source):
    """Raises UserError where `source` names a Minari dataset that is not in HDF5."""
    for path in (source / "metadata.json", source / "data" / "metadata.json", _minari_root() / source / "data" / "metadata.json"):
        try:
            storage = json.loads(path.read_text())["data_format"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if storage != "hdf5":
            raise UserError(f'{path.parent} is a Minari dataset in {storage} storage: make it again with data_format="hdf5"')


def _read_minari(path):
    """The episodes of a Minari dataset: a list of dicts with the arrays of one episode."""
    episodes = []
    try:
        with h5py.File(path, "r") as file:
            for name in sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:])):
                group = file[name]
                if not isinstance(group["observations"], h5py.Dataset) or not isinstance(group["actions"], h5py.Dataset):
                    raise UserError(f"{path}: observations and actions must be plain arrays, not dicts of them")
                arrays = {key: group[key][()] for key in ("observations", "actions", "rewards", "terminations")}
                states = arrays["observations"]
                if len(states) != len(arrays["rewards"]) + 1:
                    raise UserError(f"{path}: {name} holds {len(states)} observations for {len(arrays['rewards'])} rewards")
                episodes.append({**arrays, "observations": states[:-1], "next_observations": states[1:]})
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable Minari dataset ({' '.join(str(error).split())[:100]})") from None
    return episodes


def _read_hdf5(path):
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            if "episode_0" in file:  # by the name it is told from D4RL's files, which have constants of their own
                raise UserError(f"{path} holds a Minari dataset under another name: rename it main_data.hdf5")
            return {key: file[key][()] for key in file if isinstance(file[key], h5py.Dataset)}
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file ({' '.join(str(error).split())[:100]})") from None


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fields(content, path):
    """The arrays of a file under our names: (N, d) observations, actions, next_observations; (N,) rewards and flags."""
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of arrays")
    fields = {}
    for field, names in FIELDS.items():
        name = next((name for name in names if name in content), None)
        if name is not None:
            try:
                fields[field] = np.asarray(content[name])
            except ValueError:
                raise UserError(f"{path}: {field} are lists of unequal lengths, not an array") from None
            if not fields[field].size or not fields[field].ndim:
                raise UserError(f"{path}: {field} hold no steps")
    for field in ("observations", "actions", "rewards"):
        if field not in fields:
            raise UserError(f"{path} has no {field}; it has {', '.join(map(str, content))[:200]}")
    count = len(fields["observations"])
    for field, array in fields.items():
        if len(array) != count or array.dtype.kind not in "biuf":
            raise UserError(f"{path}: {field} have shape {array.shape}, observations {fields['observations'].shape}")
        flat = field in ("rewards", "terminals", "timeouts")
        fields[field] = array.reshape(-1) if flat else array.reshape(count, -1)
        if flat and array.size != count:
            raise UserError(f"{path}: {field} have shape {array.shape}; one number per step is expected")
    return fields


def _ends(fields, path, horizon):
    """One past the last step of every whole episode (n,); what a file breaks off has none.

    Ends are the timeouts and terminals. Where no timeout is marked, as in the official pickles, an episode also ends `horizon`
    steps after its start.
    """
    count = len(fields["rewards"])
    terminals, timeouts = (fields.get(name, np.zeros(count)) > 0.5 for name in ("terminals", "timeouts"))
    marked = np.flatnonzero(terminals | timeouts) + 1
    if timeouts.any():
        return marked
    if not len(marked) and count % horizon:
        raise UserError(f"{path} marks no episode's end, and its {count} steps are no multiple of {horizon}")
    starts = [0, *marked]
    pieces = [np.arange(start + horizon, end, horizon) for start, end in zip(starts, [*marked, count + 1], strict=True)]
    return np.sort(np.concatenate([*pieces, marked]))


def _episodes(fields, path, env):
    """Cut flat arrays into episodes, a list of (observations (L + 1, d), actions (L, d), rewards (L,), whether terminated)."""
    horizon, ends = env.max_episode_steps, _ends(fields, path, env.max_episode_steps)
    episodes = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        terminated = "terminals" in fields and fields["terminals"][end - 1] > 0.5
        observations, following = fields["observations"][start:end], fields.get("next_observations")
        if following is None and terminated and env.terminates:
            observations = np.concatenate([observations, observations[-1:]])  # unknown, but no policy acts after its end
        elif following is None:  # the observation after the last step is unknown: the last transition is left out
            end -= 1
        else:
            following = following[start:end]
            if following.shape != observations.shape:
                raise UserError(f"{path}: next observations have another shape than observations")
            if np.abs(following[:-1] - observations[1:]).max(initial=0) > CONTINUITY * (1 + np.abs(observations).max()):
                raise UserError(f"{path}: steps {start} to {end} are not one episode (next observations do not follow)")
            observations = np.concatenate([observations, following[-1:]])
        if end - start > horizon:
            raise UserError(f"{path}: an episode has {end - start} steps, the environment allows {horizon}")
        if end > start:
            episodes.append((observations, fields["actions"][start:end], fields["rewards"][start:end], terminated))
    return episodes


def _compare_goals(folder, environment, files):
    """Refuse data of another task list, where the folder says what its tasks are (task_goals.pkl)."""
    path = folder / "task_goals.pkl"
    tasks = environment.unwrapped.tasks
    if not path.exists():
        return
    goals = read_pickle(path)
    for task in files:
        try:
            goal = goals[task] if task < len(goals) else {}
            pairs = goal.items() if isinstance(goal, dict) else [(next(iter(tasks)), goal)]
            pairs = [(np.ravel(value), np.ravel(tasks[key][task]), key) for key, value in pairs if key in tasks]
            differing = [pair for pair in pairs if not np.allclose(*pair[:2], atol=1e-4)]
        except (TypeError, ValueError, KeyError):
            raise UserError(f"{path} is no list of goals, one per task: put it right, or move it away") from None
        for value, ours, key in differing:
            raise UserError(f"{path}: task {task} has {key} {value.tolist()}, ours has {ours.tolist()}: it is another task list")


def _assemble(parts, tasks, terminates):
    episodes = [(task, *episode) for task in sorted(parts) for episode in parts[task]]
    lengths = np.array([len(rewards) for *_, rewards, _ in episodes])
    steps = lengths.max()
    sizes = {np.shape(e[1])[1:] + np.shape(e[2])[1:] for e in episodes}
    if len(sizes) > 1:
        raise UserError(f"the files differ in the sizes of observations and actions: {sorted(sizes)}")
    (d_s, d_a), count = sizes.pop(), len(episodes)
    arrays = Trajectories(
        observations=np.zeros((count, steps + 1, d_s), np.float32),
        actions=np.zeros((count, steps, d_a), np.float32),
        rewards=np.zeros((count, steps), np.float32),
        lengths=lengths,
        task_ids=np.array([task for task, *_ in episodes]),
        infos={"terminated": np.zeros((count, steps), np.float32)} if terminates else {},
    )
    for row, (_, observations, actions, rewards, terminated) in enumerate(episodes):
        length = len(rewards)
        if terminates:
            arrays.infos["terminated"][row, length - 1] = terminated
        arrays.observations[row, : length + 1] = observations
        arrays.actions[row, :length], arrays.rewards[row, :length] = actions, rewards
    return dataclasses.replace(arrays, tasks=tasks)
