"""The offline dataset: whole episodes of many tasks, in memory as one float32 array per key, on disk as Minari HDF5.

Time, for every array of an episode of length L (L <= T):

    index t          0     1     2    ...   L-1    L   ...  T
    observations    s_0   s_1   s_2   ...  s_L-1  s_L   0   0     (T + 1 rows)
    actions         a_0   a_1   a_2   ...  a_L-1   0    0         (T rows)
    rewards         r_0   r_1   r_2   ...  r_L-1   0    0         r_t is paid for (s_t, a_t, s_t+1)

The file format is described in datasets/README.md.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
from pathlib import Path

import h5py
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from src.data.cards import write_card
from src.data.hdf5 import FAULTS, integer, is_sealed, json_attribute, subgroup, write_sealed
from src.data.hdf5 import dataset as hdf5_dataset
from src.data.origin import check_settings, check_tasks
from src.data.qualities import QUALITIES
from src.data.scales import EPSILON, bounds, spreads
from src.run.environment import constructor
from src.run.errors import UserError
from src.run.files import atomic_path, locked_file, write_json

MINARI_VERSION = "0.5.0"  # the version of the layout, read by every Minari from 0.5 on


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Episodes of one environment family and one quality. Steps beyond an episode's length are zero."""

    observations: np.ndarray  # (E, T + 1, d_s) float32
    actions: np.ndarray  # (E, T, d_a) float32
    rewards: np.ndarray  # (E, T) float32
    lengths: np.ndarray  # (E,) int64
    task_ids: np.ndarray  # (E,) int64
    tasks: dict = dataclasses.field(default_factory=dict)  # task id -> {parameter: number or list}
    # key -> (E, T, ...) float32: extra facts of every step. "terminated", where episodes can end on their own, is 1 at that end
    infos: dict = dataclasses.field(default_factory=dict)
    metadata: dict = dataclasses.field(default_factory=dict)  # env_type, quality, provenance, ...

    def __len__(self):
        return len(self.lengths)

    @property
    def returns(self):
        """(E,) undiscounted return of every episode, float64."""
        return self.rewards.sum(1, dtype=np.float64)

    @property
    def inside(self):
        """(E, T) which steps exist."""
        return np.arange(self.rewards.shape[1]) < self.lengths[:, None]

    def select(self, task_ids):
        """The episodes of the given tasks, in the order of this dataset."""
        task_ids = sorted({int(task) for task in task_ids})
        rows = np.flatnonzero(np.isin(self.task_ids, task_ids))
        tasks = {task: self.tasks[task] for task in task_ids if task in self.tasks}
        return dataclasses.replace(self.take(rows), tasks=tasks)

    def take(self, rows):
        """The episodes in `rows` (integers), in that order; views where they follow each other, copies otherwise."""
        rows = np.asarray(rows, int)
        if len(rows) and (np.diff(rows) == 1).all():
            rows = slice(rows[0], rows[-1] + 1)
        arrays = {name: getattr(self, name)[rows] for name in ("observations", "actions", "rewards", "lengths", "task_ids")}
        return dataclasses.replace(self, **arrays, infos={key: values[rows] for key, values in self.infos.items()})

    def digest(self):
        """SHA-256 of all arrays, which the file carries. Where a simulator made them, of that and of its name
        and version: the same policies in another version are another dataset."""
        sha = hashlib.sha256()
        for name in ("observations", "actions", "rewards", "lengths", "task_ids"):
            sha.update(np.ascontiguousarray(getattr(self, name)))
        for key in sorted(self.infos):
            sha.update(np.ascontiguousarray(self.infos[key]))
        simulator = self.metadata.get("simulator")
        return stamped(sha.hexdigest(), simulator) if simulator else sha.hexdigest()


def stamped(arrays, simulator):
    """SHA-256 of a dataset from that of its arrays and its simulator ("mujoco 3.3.0")."""
    return hashlib.sha256(f"{arrays} {simulator}".encode()).hexdigest()


def observation_statistics(trajectories):
    """What standardises the observations that a policy acts on, s_0 ... s_L-1, by src/data/scales.py: mean, standard deviation (1
    where there is none) and bound of the standardised values, each (d_s,) float32."""
    inside = trajectories.inside
    count, total, squares = inside.sum(), 0.0, 0.0
    lowest = highest = torch.from_numpy(trajectories.observations[0, 0])
    shift = trajectories.observations[0, 0].astype(np.float64)  # keeps the sum of squares well conditioned
    for observations, mask in zip(trajectories.observations, inside, strict=True):
        acted = observations[:-1][mask]
        lowest = torch.minimum(lowest, torch.from_numpy(acted.min(0)))
        highest = torch.maximum(highest, torch.from_numpy(acted.max(0)))
        difference = acted - shift
        total = total + difference.sum(0)
        squares = squares + (difference**2).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    mean, deviation = (torch.from_numpy(values.astype(np.float32)) for values in (mean + shift, deviation))
    std = spreads(deviation, torch.maximum(highest.abs(), lowest.abs()))
    return mean.numpy(), std.numpy(), bounds(lowest, highest, mean, std + EPSILON).numpy()


# ---------------------------------------------------------------------------------------------------------- the checks


def check(trajectories, env=None):
    """Raises UserError when the arrays do not fit each other or, given the EnvConfig, do not fit the environment."""
    t = trajectories
    episodes, steps = t.rewards.shape if t.rewards.ndim == 2 else (0, 0)
    if not episodes or not steps:
        raise UserError("the dataset holds no episode")
    shapes = {
        "observations": (*t.observations.shape[:2], t.observations.ndim) == (episodes, steps + 1, 3),
        "actions": (*t.actions.shape[:2], t.actions.ndim) == (episodes, steps, 3),
        "lengths": t.lengths.shape == (episodes,) and t.lengths.min() >= 1 and t.lengths.max() <= steps,
        "task_ids": t.task_ids.shape == (episodes,),
        **{f"infos/{key}": values.shape[:2] == (episodes, steps) for key, values in t.infos.items()},
    }
    for name, fits in shapes.items():
        if not fits:
            raise UserError(f"{name} do not fit {episodes} episodes of up to {steps} steps (observations need T + 1 rows)")
    for name in ("observations", "actions", "rewards"):
        finite = np.isfinite(getattr(t, name)).reshape(episodes, -1).all(1)
        if not finite.all():
            episode = int(np.argmin(finite))
            raise UserError(f"{name} of episode {episode} (task {t.task_ids[episode]}) are not all finite; make the task again")
    unknown = set(t.task_ids.tolist()) - set(t.tasks)
    if unknown:
        raise UserError(f"the dataset names tasks without parameters: {sorted(unknown)[:5]}")
    if env is not None:
        _check_environment(t, env)


def _check_environment(t, env):
    environment = env.make()
    _check_origin(t, env, environment)
    space = environment.action_space
    for name, array, theirs in (("observations", t.observations, environment.observation_space), ("actions", t.actions, space)):
        if array.shape[2:] != theirs.shape:
            raise UserError(f"{name} have shape {array.shape[2:]}, those of {env.env_type} have {theirs.shape}")
    if t.lengths.max() > env.max_episode_steps:
        raise UserError(f"an episode has {t.lengths.max()} steps, {env.env_type} allows {env.max_episode_steps}")
    tolerance = 1e-5 * (space.high - space.low)
    outside = (t.actions < space.low - tolerance) | (t.actions > space.high + tolerance)
    outside &= t.inside[:, :, None]  # the zeros behind an end are no actions
    if outside.any():
        episode, _, number = np.argwhere(outside)[0]
        raise UserError(
            f"actions of episode {episode} (task {t.task_ids[episode]}) leave the bounds of {env.env_type}, "
            f"[{space.low[number]:g}, {space.high[number]:g}] of action {number}"
        )


def _check_origin(t, env, environment):
    mend = "make the dataset again, with --no-resume"
    check_settings(t.metadata, env, "the dataset was made", f"rename the settings file, or {mend}")
    check_tasks(t.tasks, env, environment, "the dataset", mend)


def check_twins(trajectories):
    """Raises UserError where more than half of a task's episodes are those of another one too, which has more or as many.

    Fewer may be alike by chance: where nothing is paid and nothing moves."""
    t, owners = trajectories, {}
    for row, (length, task) in enumerate(zip(t.lengths.tolist(), t.task_ids.tolist(), strict=True)):
        sha = hashlib.sha256(np.ascontiguousarray(t.observations[row, : length + 1]))
        for values in (t.actions[row, :length], t.rewards[row, :length]):
            sha.update(np.ascontiguousarray(values))
        owners.setdefault(sha.digest(), collections.Counter())[task] += 1
    sizes, shared = collections.Counter(t.task_ids.tolist()), collections.Counter()
    for tasks in owners.values():
        for pair in itertools.combinations(sorted(tasks), 2):
            shared[pair] += min(tasks[task] for task in pair)
    for (first, second), number in sorted(shared.items()):
        most = min(sizes[first], sizes[second])
        if number > most / 2:
            raise UserError(
                f"tasks {first} and {second} have the same episodes ({number} of {most}): one of them has the data of the other, "
                "give it its own"
            )


def task_parameters(environment, task_ids):
    """{task id: {parameter: number or list}} from an environment's task table."""
    tasks = environment.unwrapped.tasks
    return {int(task): {key: np.asarray(values[task]).tolist() for key, values in tasks.items()} for task in task_ids}


# ------------------------------------------------------------------------------------------------------------- the disk


def dataset_directory(root, env_type, quality):
    """Folder of a dataset under the Minari root (<output_dir>/datasets); its Minari id is "<env_type>/<quality>-v0"."""
    return Path(root) / env_type / f"{quality}-v0"


def load(root, env_type, quality, env=None, command=None):
    """Read and verify a dataset.

    Args:
        root: <output_dir>/datasets.
        env: EnvConfig to check against (shapes, bounds, task parameters).
        command: the command that makes the dataset, for the message when it is missing (default: get_datasets.py).
    Raises UserError, one line that names the mend: missing, truncated, altered, of another environment or quality.
    """
    path = dataset_directory(root, env_type, quality) / "data" / "main_data.hdf5"
    command = command or f"python get_datasets.py --env_type {env_type} --data_type {quality}"
    if not path.exists() and quality not in QUALITIES:
        raise UserError(f"no dataset {path}: {quality} is none of {', '.join(QUALITIES)}; import it by that name, or choose one")
    if not path.exists():
        raise UserError(f"no dataset {path}; make it: {command}")
    trajectories = read(path, command)
    found = trajectories.metadata.get("env_type"), trajectories.metadata.get("quality")
    if found != (env_type, quality):
        raise UserError(f"{path} holds {found[0]} {found[1]}, not {env_type} {quality}; put it back or make it: {command}")
    check(trajectories, env)
    return trajectories


def read(path, command):
    """The dataset in a main_data.hdf5, whatever it is of. command: as of `load`. Raises UserError where it was damaged."""
    try:
        if not is_sealed(path):
            raise ValueError("its bytes are not those that were written")
        with h5py.File(path, "r") as file:
            return _read(file)
    except FAULTS as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is damaged ({reason}); delete it and make it again: {command}") from None


def _read(file):
    """One pass over the episodes into arrays allocated once; h5py's low level, several times as fast as indexing.

    Every shape and type is checked before it is read: the low level writes as much as the file says, wherever that ends.
    """
    metadata = json_attribute(file, "metadata")
    if not isinstance(metadata, dict):
        raise ValueError("metadata is no JSON object")
    episodes, steps = (_count(metadata, key) for key in ("total_episodes", "max_steps"))
    tasks, infos = metadata.pop("tasks"), metadata["info_shapes"]
    if not all(isinstance(part, dict) for part in (tasks, infos, metadata.get("options", {}), *tasks.values())):
        raise ValueError("tasks, info_shapes and options are no JSON objects")
    tasks = {int(task): parameters for task, parameters in tasks.items()}
    shapes = {
        "observations": (steps + 1, *_shape(metadata["observation_shape"])),
        "actions": (steps, *_shape(metadata["action_shape"])),
        "rewards": (steps,),
    }
    shapes |= {f"infos/{key}": (steps, *_shape(shape)) for key, shape in infos.items()}
    if episodes > len(file):
        raise ValueError(f"it has {len(file)} of {episodes} episodes")
    groups = [_episode(file, episode) for episode in range(episodes)]
    lengths, task_ids = (np.array([integer(group, name) for group in groups]) for name in (b"total_steps", b"options/task"))
    if lengths.min() < 1 or lengths.max() > steps:
        raise ValueError(f"its episodes have {lengths.min()} to {lengths.max()} steps, max_steps is {steps}")
    needed = 4 * episodes * sum(map(math.prod, shapes.values()))
    if needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):  # zeros would cost nothing at first
        raise ValueError(f"it says that it takes {needed >> 30} GiB, more than there is memory")
    arrays = {name: np.zeros((episodes, *shape), np.float32) for name, shape in shapes.items()}
    for episode, group in enumerate(groups):
        for name, array in arrays.items():
            rows = lengths[episode] + (name == "observations")
            found = hdf5_dataset(group, name.encode())
            if found.shape != (rows, *array.shape[2:]) or found.dtype != np.float32:
                raise ValueError(f"{name} of episode {episode} are {found.dtype} of shape {found.shape}")
            found.read(h5py.h5s.ALL, h5py.h5s.ALL, array[episode, :rows])
    infos = {name.removeprefix("infos/"): arrays.pop(name) for name in list(arrays) if name.startswith("infos/")}
    return Trajectories(**arrays, lengths=lengths, task_ids=task_ids, tasks=tasks, infos=infos, metadata=metadata)


def _count(metadata, key):
    value = metadata[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {str(value)[:40]}")
    return value


def _shape(value):
    if not isinstance(value, list) or len(value) > 4 or not all(type(size) is int and 0 < size < 2**31 for size in value):
        raise ValueError(f"{str(value)[:40]} is no shape")
    return value


def _episode(file, episode):
    return subgroup(file, f"episode_{episode}").id


def save(trajectories, root, env, quality, provenance, description="", join=True):
    """Write a dataset, or join these tasks to the one that is there: their former episodes go, other tasks stay.

    Two processes that write different tasks at the same time both end up inside: reading, joining and writing happen
    under a lock, and the file appears under its name by one rename.

    Args:
        root: <output_dir>/datasets. env: EnvConfig.
        provenance: JSON-able dict, kept with the ids of the tasks that it holds for.
        join: False replaces what is there, unread.
    Returns the joined Trajectories. Raises UserError, and leaves what was there untouched, when a check fails.
    """
    check(trajectories, env)
    trajectories = _with_zero_padding(trajectories)
    directory = dataset_directory(root, env.env_type, quality)
    entry, simulator = {"task_ids": sorted(trajectories.tasks), **provenance}, _simulator(env, provenance)
    with _locked(directory.with_name(f".{directory.name}.lock")):
        entries = [entry]
        if join and (directory / "data" / "main_data.hdf5").exists():
            former = load(root, env.env_type, quality)
            if former.metadata.get("simulator") != simulator:
                theirs, ours = (name or "something unknown" for name in (former.metadata.get("simulator"), simulator))
                raise UserError(f"{directory} was made by {theirs}, this is by {ours}: make all tasks again, with --no-resume")
            entries = _remaining(former.metadata["provenance"], entry["task_ids"]) + entries
            kept = former.select(former.tasks.keys() - trajectories.tasks.keys())
            if len(kept):
                _check_origin(kept, env, env.make())
                trajectories = _join(kept, trajectories)
            if "imported_from" in provenance:
                check_twins(trajectories)
        metadata = _metadata(trajectories, env, quality, entries, description, simulator)
        trajectories = dataclasses.replace(trajectories, metadata=metadata)
        _write(directory / "data", trajectories, env)
        write_card(directory / "README.md", trajectories, env.train_tasks)
    return trajectories


def _simulator(env, provenance):
    """What computed the physics, with its version; None where it was the environment's own code, or of imported data."""
    return None if "imported_from" in provenance else getattr(env.make().unwrapped, "simulator", None)


def _with_zero_padding(t):
    """The same episodes with zeros beyond their ends, which is what `load` gives back (and the SHA-256 covers)."""
    steps = t.rewards.shape[1]
    if (t.lengths == steps).all():
        return t
    inside = np.arange(steps + 1) < t.lengths[:, None] + 1  # (E, T + 1)

    def cleared(array, mask):
        return np.where(mask.reshape(*mask.shape, *[1] * (array.ndim - 2)), array, np.float32(0))

    return dataclasses.replace(
        t,
        observations=cleared(t.observations, inside),
        actions=cleared(t.actions, inside[:, 1:]),
        rewards=cleared(t.rewards, inside[:, 1:]),
        infos={key: cleared(values, inside[:, 1:]) for key, values in t.infos.items()},
    )


@contextlib.contextmanager
def _locked(path):
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(path))
        except OSError as error:
            raise UserError(f"cannot write into {path.parent}: {error.strerror}; choose another --output_dir") from None
        yield


def _remaining(entries, replaced):
    kept = [{**entry, "task_ids": [task for task in entry["task_ids"] if task not in replaced]} for entry in entries]
    return [entry for entry in kept if entry["task_ids"]]


def _join(kept, new):
    """Episodes of both, which have no task in common, in the order of task ids."""
    if _step_shapes(kept) != _step_shapes(new):
        raise UserError("the dataset that is there has other shapes or infos: delete it, or choose another --output_dir")
    order = np.argsort(np.concatenate([kept.task_ids, new.task_ids]), kind="stable")
    steps = max(kept.rewards.shape[1], new.rewards.shape[1])

    def both(a, b, rows):
        joined = np.zeros((len(order), rows, *a.shape[2:]), np.float32)
        joined[: len(a), : a.shape[1]], joined[len(a) :, : b.shape[1]] = a, b
        return joined[order]

    return Trajectories(
        observations=both(kept.observations, new.observations, steps + 1),
        actions=both(kept.actions, new.actions, steps),
        rewards=both(kept.rewards, new.rewards, steps),
        lengths=np.concatenate([kept.lengths, new.lengths])[order],
        task_ids=np.concatenate([kept.task_ids, new.task_ids])[order],
        tasks=dict(sorted((kept.tasks | new.tasks).items())),
        infos={key: both(kept.infos[key], new.infos[key], steps) for key in kept.infos},
    )


def _step_shapes(t):
    """What one step holds: {name: shape}."""
    arrays = {"observations": t.observations, "actions": t.actions, **{f"infos/{key}": values for key, values in t.infos.items()}}
    return {name: values.shape[2:] for name, values in arrays.items()}


def _metadata(trajectories, env, quality, entries, description, simulator):
    known = {"simulator": simulator} if simulator else {}
    t = dataclasses.replace(trajectories, metadata=known)
    return {
        **known,
        "env_type": env.env_type,
        "quality": quality,
        "total_episodes": len(t),
        "total_steps": int(t.lengths.sum()),
        "max_steps": t.rewards.shape[1],
        "observation_shape": list(t.observations.shape[2:]),
        "action_shape": list(t.actions.shape[2:]),
        "info_shapes": {key: list(values.shape[2:]) for key, values in t.infos.items()},
        "entry_point": env.entry_point,
        "options": dict(env.options),
        "env_name": env.env_name,
        "max_episode_steps": env.max_episode_steps,
        "description": description,
        "provenance": entries,
        "sha256": t.digest(),
    }


def _write(directory, t, env):
    """main_data.hdf5, complete in itself, then the metadata.json that Minari reads beside it."""
    metadata, minari = t.metadata, _minari_metadata(t, env)
    # built in memory: on a full disk HDF5 itself would print a page of errors for every object that it holds
    with h5py.File("image", "w", driver="core", backing_store=False, block_size=1 << 24, libver=("v110", "v110")) as file:
        file.attrs["metadata"] = json.dumps({**metadata, "tasks": t.tasks})
        for episode, (length, task) in enumerate(zip(t.lengths, t.task_ids, strict=True)):
            group = file.create_group(f"episode_{episode}")
            options = {"task": task, **t.tasks[int(task)]}
            group.attrs.update({"id": episode, "total_steps": length, **{f"options/{k}": v for k, v in options.items()}})
            group["observations"] = t.observations[episode, : length + 1]
            group["actions"] = t.actions[episode, :length]
            group["rewards"] = t.rewards[episode, :length]
            terminations = t.infos["terminated"][episode, :length] > 0 if "terminated" in t.infos else np.zeros(length, bool)
            group["terminations"] = terminations
            group["truncations"] = (np.arange(length) == length - 1) & ~terminations
            for key, values in t.infos.items():
                group[f"infos/{key}"] = values[episode, :length]
        file.flush()
        image = file.id.get_file_image()
    with atomic_path(directory / "main_data.hdf5") as temporary:
        write_sealed(temporary, image)
    write_json(directory / "metadata.json", {**minari, **metadata, "tasks": t.tasks})


def _minari_metadata(t, env):
    """The keys that Minari asks for (its dataset standard); gymnasium can make the environment from the env_spec."""
    metadata, spaces = t.metadata, env.make()
    environment = EnvSpec(env.env_name, entry_point=env.entry_point, kwargs=constructor(env)[1])
    return {
        "dataset_id": f"{metadata['env_type']}/{metadata['quality']}-v0",
        "data_format": "hdf5",
        "minari_version": MINARI_VERSION,
        "observation_space": _box(spaces.observation_space),
        "action_space": _box(spaces.action_space),
        "env_spec": environment.to_json(),
        "algorithm_name": metadata["quality"],
        "dataset_size": round(sum(a.nbytes for a in (t.observations, t.actions, t.rewards)) / 1e6, 1),
    }


def _box(space):
    return json.dumps({"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), "low": space.low.tolist(),
                       "high": space.high.tolist()})  # fmt: skip
