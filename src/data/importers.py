"""Datasets of other projects as Trajectories: Meta-DT's official pickles, files of many libraries, Minari.

src/data/layouts.py says which layouts are known, src/data/pickles.py and src/data/hdf5.py how files of unknown origin are opened.
"""

import functools
import hashlib
import lzma
import math
import os
import re
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np

from src.data.hdf5 import FAULTS, NUMBERS, Room, dataset, members, open_hdf5, read_array, subgroup
from src.data.layouts import FIELDS, INFOS, KNOWN, OTHERS, episodes_of, with_labels
from src.data.pickles import read_pickle
from src.data.relabel import pay, rewards_on
from src.data.trajectories import Trajectories, check_twins, task_parameters
from src.run.config import num_known_tasks, num_tasks
from src.run.errors import UserError
from src.run.files import as_utf8, open_regular, read_json, refuse_packed
from src.run.stepping import is_task

REWARD_TOLERANCE = 0.01  # how far recorded rewards may be from those of the task, relative to it and to the mean
LARGEST_IMPORT = 1 << 30  # bytes
MAGIC = np.lib.format.MAGIC_PREFIX  # how an array in an npz file begins
UNPACKING = (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, lzma.LZMAError)  # of a broken zip archive
EXPECTED = "arrays at its top, or one group of arrays per episode, there or inside of data/, are expected"
KINDS = "a .hdf5, .h5, .npz, .json or .pkl file"


def import_trajectories(source, env, tasks, task_id=None, prompts=False):
    """Read a folder of Meta-DT's dataset_task_<i>.pkl (those of `tasks` that it has), or the data of one file. With `prompts`
    the folder's dataset_task_prompt<i>.pkl: a list of whole trajectories of each task, from which the official code cuts prompts.

    The latter: an HDF5, npz, JSON or pickle file in a layout that src/data/layouts.py knows, or a Minari dataset, by its id
    ("mujoco/hopper/medium-v0", already downloaded), its folder or its main_data.hdf5. Its episodes say to which tasks they
    belong, or all of them belong to `task_id`. Returns (Trajectories, facts to record, notes for the user). Raises UserError.
    """
    if not str(source).strip():
        raise UserError(f"--import_from names nothing: give a folder of dataset_task_<i>.pkl, {KINDS}, or a Minari dataset")
    source, environment = Path(source), env.make()
    minari = _find_minari(source)
    if not minari:
        _refuse_other_storage(source)
    folder = source.is_dir() and not minari
    if prompts and not folder:
        raise UserError("--import_prompts takes a folder of dataset_task_prompt<i>.pkl: leave it out for a file")
    if folder:
        files, others = (_task_files(source, tasks, kind) for kind in (prompts, not prompts))
        if not files:
            name, other = (f"dataset_task_{'prompt' * kind}<i>.pkl" for kind in (prompts, not prompts))
            instead = f"; for its {other} {'leave out' if prompts else 'pass'} --import_prompts" if others else ""
            raise UserError(f"{source} holds no {name} of the tasks {tasks.start} to {tasks.stop - 1}{instead}")
        if task_id is not None:
            raise UserError(f"--task_id {task_id}: the files of {source} say their tasks in their names; leave it out")
    elif minari or source.suffix.lower() in READERS:
        files = {task_id: minari or source}
    elif source.exists():
        raise UserError(f"--import_from {source} is not {KINDS}: store its arrays in one of these")
    else:
        raise UserError(
            f"--import_from {source} is neither a folder of dataset_task_<i>.pkl files nor {KINDS} nor a Minari dataset in "
            f"{_minari_root()} (fetch one: minari download {source})"
        )
    episodes, notes = [], []
    for task, path in files.items():
        refuse_packed(path)
        content = READERS[path.suffix.lower()](path)
        found, said = episodes_of(content, path, env)
        notes += said
        told = [(of_task(episode, task, path, env, environment), episode) for episode in found]
        episodes += [(task, episode) for task, episode in told if task in tasks]
    if not episodes:
        raise UserError(f"{source} holds no episode of the tasks {tasks.start} to {tasks.stop - 1}")
    if folder:
        _compare_goals(source, environment, files)
    sources = {path: [as_utf8(path.name), _sha256(path)] for path in files.values()}
    if not folder:
        (path,) = files.values()
        files = dict.fromkeys(sorted({task for task, _ in episodes}), path)
    facts = {"imported_from": {str(task): sources[path] for task, path in files.items()}}
    trajectories = assemble(episodes, environment, env.terminates)
    notes += check_tasks(trajectories, environment)
    return trajectories, facts, notes


def _task_files(folder, tasks, prompts):
    """{task: official file} of those that a folder has."""
    files = {task: folder / f"dataset_task_{'prompt' * prompts}{task}.pkl" for task in tasks}
    return {task: path for task, path in files.items() if path.exists()}


def of_task(episode, task_id, path, env, environment):
    """The task id of an episode, by what the file and the command say. Raises UserError where they contradict or say nothing."""
    total, known = num_known_tasks(env, environment), episode.task
    if known is None and task_id is None and total > 1:
        raise UserError(f"say which task {path} belongs to: --task_id 0")
    if known is not None and task_id is not None and known != task_id:
        raise UserError(f"{path} holds episodes of task {known}, and --task_id says {task_id}: leave --task_id out")
    task = next((task for task in (known, task_id) if task is not None), 0)
    if not 0 <= task < total:
        raise UserError(f"--task_id {task} is unknown: the environment has {total} tasks for data" if known is None else
                        f"{path} holds episodes of task {task}, and the environment has {total} tasks for data")  # fmt: skip
    for key, ours in environment.unwrapped.tasks.items():
        for facts in (episode.options, episode.infos):
            if isinstance(facts, dict) and facts.get(key) is not None:
                told = facts is episode.options
                _compare_parameter(key, facts[key], ours[task], task, path, len(episode.rewards), told)
    return task


def _compare_parameter(key, theirs, ours, task, path, steps, told):
    """Raises UserError where a file's value of a task parameter is not ours. One value per step counts where all are equal.

    told: it is said of the episode itself, so that nothing else can be meant.
    """
    try:
        theirs = np.asarray(theirs)
    except ValueError:
        raise UserError(f"{path}: {key} of task {task} are lists of unequal lengths, not an array") from None
    if theirs.dtype.kind not in NUMBERS:
        return
    if theirs.size != np.size(ours) and theirs.ndim and len(theirs) in (steps, steps + 1) and steps > 1:
        if (theirs != theirs[0]).any():  # a quantity of that name that changes is another one
            return
        theirs = theirs[0]
    if theirs.size != np.size(ours) and not told:
        return
    if theirs.size != np.size(ours) or not np.allclose(theirs.ravel(), np.ravel(ours), atol=1e-4):
        raise UserError(f"{path}: task {task} has {key} {theirs.tolist()}, ours has {np.asarray(ours).tolist()}: "
                        "it is another task list, or another task")  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- the files


def _minari_root():
    return Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets"))


def _find_minari(source):
    """The main_data.hdf5 of a Minari dataset that `source` names, or None."""
    for path in (source, source / "data" / "main_data.hdf5", _minari_root() / source / "data" / "main_data.hdf5"):
        if path.name == "main_data.hdf5" and path.exists():
            return path
    return None


def _refuse_other_storage(source):
    """Raises UserError where `source` names a Minari dataset that is not in HDF5."""
    for path in (source / "metadata.json", source / "data" / "metadata.json", _minari_root() / source / "data" / "metadata.json"):
        if not path.is_file():
            continue
        try:
            storage = read_json(path, "data_format")["data_format"]
        except UserError:
            continue
        if storage != "hdf5":
            raise UserError(f'{path.parent} is a Minari dataset in {storage} storage: make it again with data_format="hdf5"')


def read_hdf5(path):
    """An HDF5 file: a dict of its arrays, or a list of dicts where it has a group per episode (Minari, robomimic and others)."""
    with open_hdf5(path) as file:
        room = Room(path)
        names = members(file)
        parent = subgroup(file, "data") if isinstance(file.get("data"), h5py.Group) else file
        groups = [name for name in members(parent) if isinstance(parent[name], h5py.Group)]
        groups = [name for name in groups if any(action in parent[name] for action in FIELDS["actions"])]
        if not groups or any(isinstance(file.get(name), h5py.Dataset) for name in FIELDS["actions"] if name in names):
            arrays = _arrays(file, room)
            if not arrays:
                raise UserError(f"{path} has no arrays, but {', '.join(names)[:100] or 'nothing'}: {EXPECTED}")
            if "discrete_action" in names and not {"version", "total_size"} & set(names):
                raise UserError(
                    f"{path} is of a d3rlpy before 1.0, which kept with an observation the reward of the step before: let "
                    "rewards follow their actions, and remove discrete_action"
                )
            return arrays | _labels(file, path, room) | _infos(file, room)
        _check_complete(file, parent, groups)
        order = sorted(groups, key=lambda name: (int("".join(re.findall("[0-9]", name))[:18] or 0), name))
        parts = {name: _episode(subgroup(parent, name), f"{path}: {name}", room) for name in order}
        beside = {}
        for group in {file.id: file, parent.id: parent}.values():
            known = {name: read_array(group, name, room) for name in members(group) if isinstance(group[name], h5py.Dataset)
                     and (name in KNOWN or is_task(name))}  # fmt: skip
            beside |= {f"{group.name}/{name}".strip("/"): array for name, array in _numeric(known, path).items()}
            beside |= {f"{group.name}/{name}".strip("/"): array for name, array in _labels(group, path, room).items()}
        return with_labels(parts, beside, path)


def _check_complete(file, parent, groups):
    """Raises UserError where episodes are missing, by the number that the file gives, or without their arrays."""
    path, mend = file.filename, "it is not complete, fetch it again"
    said = file.attrs.get("total_episodes", len(groups))
    if not np.array_equal(said, len(groups)):
        raise UserError(f"{path}: it says that it has {str(said)[:40]} episodes, and has {len(groups)}: {mend}")
    kinds = {re.sub(r"\d+", "", name) for name in groups}
    for name in members(parent):
        if name not in groups and re.search(r"\d", name) and re.sub(r"\d+", "", name) in kinds:
            raise UserError(f"{path}: {name} has no actions: {mend}")
    total = 0
    for name in groups:
        group = parent[name]
        actions = dataset(group.id, next(key for key in FIELDS["actions"] if key in group).encode())
        steps = (actions.shape or (0,))[0]
        for key in ("total_steps", "num_samples"):  # of Minari, of robomimic
            if key in group.attrs and not np.array_equal(group.attrs[key], steps):
                raise UserError(f"{path}: {name} has {steps} actions, its {key} is {str(group.attrs[key])[:40]}: {mend}")
        total += steps
    if parent.name == "/data" and not np.array_equal(parent.attrs.get("total", total), total):  # of robomimic
        raise UserError(f"{path}: its total is {str(parent.attrs['total'])[:40]}, its episodes have {total} steps: {mend}")


def _arrays(group, room, known=KNOWN):
    """The arrays of numbers in a group; `known`: the names that only numbers may have."""
    arrays = {name: read_array(group, name, room) for name in members(group) if isinstance(group[name], h5py.Dataset)}
    return _numeric(arrays, group.file.filename, known)


def _numeric(arrays, path, known=KNOWN):
    """{name: array} without those that are None, which hold no numbers. Raises UserError where one has a name that is known."""
    for name in known & arrays.keys():
        if arrays[name] is None:
            raise UserError(f"{path}: {name} are no array of numbers")
    return {name: array for name, array in arrays.items() if array is not None}


def _episode(group, where, room):
    """The arrays of one episode, with what is known of its task in "options" and further facts of its steps in "infos"."""
    arrays = _arrays(group, room)
    for field in ("observations", "next_observations", "actions"):
        for name in FIELDS[field]:
            if isinstance(group.get(name), h5py.Group):  # several arrays, of which one that is alone is what is meant
                inner = _arrays(subgroup(group, name), room)
                if len(inner) != 1:
                    raise UserError(f"{where}: {name} are {len(inner)} arrays ({', '.join(inner)[:100]}): join them into one")
                arrays[name] = next(iter(inner.values()))
    if group.name.startswith("/data/demo_"):  # robomimic: its dones mark successes, and may mark several steps
        arrays.pop("dones", None)
    options = {key.removeprefix("options/"): group.attrs[key] for key in group.attrs if key.startswith("options/")}
    options = {key: value for key, value in options.items() if not is_task(key)}
    return {**arrays, **_labels(group, where, room), "options": options, **_infos(group, room)}


def _infos(group, room):
    """{"infos": facts of the steps in a group}, nothing where it has none."""
    infos = [_arrays(subgroup(group, name), room, set()) for name in INFOS if isinstance(group.get(name), h5py.Group)]
    return {"infos": functools.reduce(dict.__or__, infos)} if infos else {}


def _labels(group, where, room):
    """The task ids in the attributes of a group and in its groups of infos and options: {name with a slash: array}."""
    labels = {}
    for key in group.attrs:
        if is_task(key):
            value = np.asarray(group.attrs[key])
            if value.dtype.kind in "OUS" and group.name in ("/", "/data"):  # what all of it is about
                continue
            if value.dtype.kind not in "iuf":
                raise UserError(f"{where} names its task {str(group.attrs[key])[:60]!r}: give the row of the environment's task "
                                "table instead")  # fmt: skip
            labels[f"attributes/{key}"] = value
    for name in (*INFOS, *OTHERS, "options"):
        if isinstance(group.get(name), h5py.Group):
            inner = subgroup(group, name)
            found = {key: read_array(inner, key, room) for key in members(inner) if is_task(key)}
            labels |= {f"{name}/{key}": array for key, array in found.items() if array is not None}
    return labels


def read_npz(path):
    """The arrays of a .npz file: a dict by name. Arrays of objects are pickles and are refused."""
    room, arrays = Room(path), {}
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    if member.read(len(MAGIC)) != MAGIC:  # no array: a folder, a note
                        continue
                room.take(entry.file_size, entry.filename)
                name = entry.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"it has {name} twice")
                with archive.open(entry) as member:
                    arrays[name] = read_npy(member, entry.file_size)
        return _numeric(arrays, path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (*FAULTS, *UNPACKING) as error:
        raise UserError(
            f"{path} is not a readable npz file ({' '.join(str(error).split())[:100]}); save it by np.savez"
        ) from None


def read_npy(file, size):
    """One array of numpy's format from an open file of `size` bytes, or None where it holds text.

    Raises ValueError where its header does not fit its size, or OSError and others of FAULTS.
    """
    shape, fortran, dtype = read_npy_header(file)
    if dtype.hasobject:
        raise ValueError("an array of objects is a pickle and is not read; save each trajectory's arrays by names of their own")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array whose shape is none")
    count = math.prod(shape)
    if count * dtype.itemsize > size:
        raise ValueError("an array is larger than what is stored of it")
    data = file.read(count * dtype.itemsize)
    if dtype.kind not in NUMBERS:
        return None
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def read_npy_header(file):
    """(shape, whether in Fortran's order, dtype) of one array of numpy's format, whose data come next in the open file.

    Raises ValueError where it cannot be understood, or OSError.
    """
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"an array of format {version}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old writers
            return read_header[version](file)
    except (SyntaxError, tokenize.TokenError):
        raise ValueError("an array whose header cannot be understood") from None


def read_json_trajectories(path):
    """A JSON file: a list of trajectory dicts, or one dict of lists."""
    return read_json(path, mend="a list of trajectories, each {name: list of numbers}, is expected", largest=LARGEST_IMPORT)


READERS = {".hdf5": read_hdf5, ".h5": read_hdf5, ".npz": read_npz, ".json": read_json_trajectories, ".pkl": read_pickle}


def _sha256(path):
    with open_regular(path) as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
        return sha.hexdigest()


# ---------------------------------------------------------------------------------------------------------- the tasks


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


def check_tasks(trajectories, environment):
    """Raises UserError where episodes are not those of their task: rewards that the environment would not have paid for them
    (where it has `compute_rewards` and the data hold what it needs), or the same episodes under two tasks. Returns notes."""
    check_twins(trajectories)
    if not hasattr(environment, "compute_rewards"):
        return []
    try:
        expected = _paid(trajectories, environment, trajectories.task_ids)
        if not np.isfinite(expected).all():
            raise UserError(f"{type(environment).__name__}.compute_rewards gives numbers that are not finite")
    except UserError as error:  # it is broken, or rewards depend on more than these data hold
        return [f"rewards are not compared with those that the environment pays: {error}"]
    inside = trajectories.inside
    if "terminated" in trajectories.infos:  # an end may be paid by itself
        inside &= trajectories.infos["terminated"] == 0
    scale = np.abs(expected[inside]).mean() if inside.any() else 0

    def fits(rows, paid):
        near = np.abs(trajectories.rewards[rows] - paid) <= REWARD_TOLERANCE * (np.abs(paid) + scale)
        return (near | ~inside[rows]).all(-1)

    wrong = np.flatnonzero(~fits(slice(None), expected))
    if len(wrong):
        row, task = int(wrong[0]), int(trajectories.task_ids[wrong[0]])
        episode = trajectories.take(wrong[:1])
        every = range(num_tasks(environment))
        others = [other for other in every if fits(wrong[:1], _paid(episode, environment, np.array([other]))).all()]
        number = int((trajectories.task_ids[:row] == task).sum())
        instead = f", but those of task {others[0]}" if others else ""
        raise UserError(
            f"the rewards of task {task}, episode {number}, are not those that the environment pays for its steps{instead}: "
            f"put the data right ({len(wrong)} of {len(trajectories)} episodes do not fit their tasks)"
        )
    return []


def _paid(trajectories, environment, tasks):
    return rewards_on(functools.partial(pay, environment), trajectories, tasks)


def assemble(episodes, environment, terminates):
    """Trajectories of [(task, Episode)], tasks in order."""
    episodes = sorted(episodes, key=lambda pair: pair[0])
    lengths = np.array([len(episode.rewards) for _, episode in episodes])
    steps, count = lengths.max(), len(episodes)
    sizes = {episode.observations.shape[1:] + episode.actions.shape[1:] for _, episode in episodes}
    if len(sizes) > 1:
        raise UserError(f"the files differ in the sizes of observations and actions: {sorted(sizes)}")
    d_s, d_a = sizes.pop()
    infos = {"terminated": np.zeros((count, steps), np.float32)} if terminates else {}
    for key in getattr(environment.unwrapped, "info_keys", ()):  # all of them or none: what rewards depend on
        values = [episode.infos.get(key) if isinstance(episode.infos, dict) else None for _, episode in episodes]
        known = all(isinstance(a, np.ndarray) and a.ndim and a.dtype.kind in NUMBERS for a in values)
        if known and len({a.shape[1:] for a in values}) == 1 and all(map(int.__le__, lengths.tolist(), map(len, values))):
            infos[key] = np.zeros((count, steps, *values[0].shape[1:]), np.float32)
    arrays = Trajectories(
        observations=np.zeros((count, steps + 1, d_s), np.float32),
        actions=np.zeros((count, steps, d_a), np.float32),
        rewards=np.zeros((count, steps), np.float32),
        lengths=lengths,
        task_ids=np.array([task for task, _ in episodes]),
        tasks=task_parameters(environment, sorted({task for task, _ in episodes})),
        infos=infos,
    )
    for row, ((_, episode), length) in enumerate(zip(episodes, lengths, strict=True)):
        arrays.observations[row, : length + 1] = episode.observations
        arrays.actions[row, :length], arrays.rewards[row, :length] = episode.actions, episode.rewards
        for key, values in infos.items():
            if key == "terminated":
                values[row, length - 1] = episode.terminated
            else:
                values[row, :length] = episode.infos[key][:length]
    return arrays
