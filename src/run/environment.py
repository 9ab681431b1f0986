"""Making the environment that a settings file names, and the one check of what it offers (envs/base.py lists it)."""

import contextlib
import importlib
import inspect
import traceback
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box, Discrete

from src.run.errors import UserError, shortened

RESERVED_PARAMETER = "task"  # beside the parameters stands the task's id, under this name
RESERVED_INFO = "terminated"  # where an episode ends, as the roll-out records it
LARGEST_INFO = 4  # axes of an info
_checked = set()  # what has been stepped in this process


def make_environment(env, render_mode=None, discrete=False):
    """A fresh environment of an EnvConfig, with a camera where `render_mode` is "rgb_array".

    discrete: whether the caller can act in a Discrete action space too. Raises UserError, one line that names the entry point,
    when the environment cannot be imported or breaks the contract of envs/base.py. Its infos are looked at once per process.
    """
    where = f"entry_point {env.entry_point!r} of {env.env_type}"
    with blamed(f"{where} cannot be made"):
        module, name = env.entry_point.split(":")
        entry_point = getattr(importlib.import_module(module), name)
        options = dict(env.options) | ({"render_mode": render_mode} if render_mode else {})
        if "max_episode_steps" in inspect.signature(entry_point).parameters:
            options["max_episode_steps"] = env.max_episode_steps
        environment = entry_point(**options)
    check_tasks(where, env, environment)
    check_spaces(where, environment, discrete)
    if (env, discrete) not in _checked:
        probe = entry_point(**{key: value for key, value in options.items() if key != "render_mode"})
        ours, theirs = environment.unwrapped.tasks, probe.unwrapped.tasks
        if ours.keys() != theirs.keys() or not all(np.array_equal(ours[key], theirs[key]) for key in ours):
            raise UserError(f"{where} has another task table each time that it is made: draw it by a fixed seed")
        check_steps(where, probe)
        with blamed(f"{where}: its batch_class fails"):
            check_batch(where, probe)
        probe.close()
        _checked.add((env, discrete))
    return environment


def has_camera(environment):
    """Whether it can be made with render_mode="rgb_array"."""
    return "rgb_array" in type(environment.unwrapped).metadata.get("render_modes", [])


def check_camera(env, mend):
    """Raises UserError, which ends in `mend`, where the camera of an EnvConfig's environment gives no picture on this machine."""
    with contextlib.closing(make_environment(env, "rgb_array")) as environment:
        try:  # only a picture shows whether the machine has what it takes
            environment.reset(seed=0, options={"task": env.test_tasks[0]})
            environment.render()
        except Exception as error:  # of the simulator, of OpenGL, or of a class of one's own
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"the camera of {env.env_name} does not work here ({reason}): {mend}") from None


@contextlib.contextmanager
def blamed(what):
    """Within, what the environment's own code raises becomes a UserError: `what`, the exception, and the line that raised it."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise UserError(f"{what} ({where}: {shortened(f'{type(error).__name__}: {error}', 300)})") from None


def begin(where, environment, seed, task):
    """Reset an environment to a task; its observation, as it gave it. Raises UserError."""
    with blamed(f"{where}: reset fails"):
        result = environment.reset(seed=seed, options={"task": task})
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(f"{where}: reset must return (observation, info)")
    return result[0]


def advance(where, environment, action):
    """One step of an environment: observation, reward, terminated, truncated, info, as it gave them. Raises UserError."""
    with blamed(f"{where}: step fails"):
        result = environment.step(action)
    if not isinstance(result, tuple) or len(result) != 5:
        raise UserError(f"{where}: step must return (observation, reward, terminated, truncated, info)")
    for name, value in zip(("terminated", "truncated"), result[2:4], strict=True):
        if not isinstance(value, bool | np.bool_) and (np.size(value) != 1 or np.asarray(value).dtype.kind not in "biu"):
            raise UserError(f"{where}: step returned {name} that is not True or False")
    return result


def batch_class(environment):
    """The environment's own `batch_class`; None where it has none, or is wrapped: the batch would leave the wrapper out."""
    return getattr(environment, "batch_class", None) if environment.unwrapped is environment else None


def check_tasks(where, env, environment):
    """The task table: finite numbers, a row per task, under names that a dataset can hold. Raises UserError."""
    tasks = getattr(getattr(environment, "unwrapped", None), "tasks", None)
    if not tasks or not isinstance(tasks, dict):
        raise UserError(f"{where} has no task table: set self.tasks = {{name: array of shape (number of tasks, ...)}}")
    counts = {}
    for name, values in tasks.items():
        if not _plain(name):
            raise UserError(f"{where}: the task parameter {name!r} has no usable name: take letters, without slashes")
        if name == RESERVED_PARAMETER:
            raise UserError(f"{where}: a task parameter is named {name!r}, as the task's number in a dataset is: rename it")
        plain = isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray)
        if not plain or values.dtype.kind not in "biuf":
            raise UserError(f"{where}: the task parameter {name!r} is no array of numbers: give np.array of shape (tasks, ...)")
        if values.dtype.itemsize > 8:  # JSON and HDF5 know none
            raise UserError(f"{where}: the task parameter {name!r} is of {values.dtype}: make it np.float64")
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32)).all()
        if not values.ndim or not finite:
            raise UserError(
                f"{where}: the task parameter {name!r} must have a row per task, of finite numbers that float32 can hold"
            )
        counts[name] = len(values)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"{where}: task parameters are of unequal length ({listed}): one row per task in each")
    ranges = (env.train_tasks, env.test_tasks, env.fresh_tasks)
    count, highest = next(iter(counts.values())), max(pair[1] for pair in ranges if pair)
    if highest > count:
        raise UserError(f"{env.env_type}: task ranges reach {highest}, the environment has {count} tasks")


def check_spaces(where, environment, discrete=False):
    """Observations a Box (d_s,), actions a Box (d_a,) with finite bounds, or Discrete where allowed. Raises UserError."""
    observations, actions = (getattr(environment, f"{name}_space", None) for name in ("observation", "action"))
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise UserError(f"{where} observes {_described(observations)}: flatten it to a Box of one dimension")
    if discrete and isinstance(actions, Discrete):
        return
    if not isinstance(actions, Box) or len(actions.shape) != 1:
        mend = "only BOReL's methods take discrete actions" if isinstance(actions, Discrete) else "give a Box of one dimension"
        raise UserError(f"{where} acts in {_described(actions)}: {mend}")
    if not observations.shape[0] or not actions.shape[0]:
        raise UserError(f"{where} has no {'actions' if observations.shape[0] else 'observations'}: a Box needs a number at least")
    if actions.dtype.kind != "f":
        raise UserError(f"{where} acts in a Box of {actions.dtype}, and policies give fractions: make its Box one of float32")
    with np.errstate(over="ignore"):
        bounded = actions.is_bounded() and np.isfinite(actions.high - actions.low).all() and (actions.low < actions.high).all()
    if not bounded:
        raise UserError(f"{where} has an action space without bounds: give its Box finite low and high, low below high")


def check_steps(where, environment):
    """Two steps from a reset: what they report in `info` can be recorded. Raises UserError."""
    begin(where, environment, 0, 0)
    recorded = []
    for _ in range(2):
        *_, terminated, truncated, info = advance(where, environment, _some_action(environment.action_space))
        recorded.append(recorded_infos(where, info))
        if terminated or truncated:
            break
    if recorded[0].keys() != recorded[-1].keys():
        different = sorted(recorded[0].keys() ^ recorded[-1].keys())
        raise UserError(f"{where}: info {different[0]!r} is reported at some steps only: report it at every step, or never")
    for key in getattr(environment, "info_keys", ()):
        if key not in recorded[0]:
            raise UserError(f"{where} names {key!r} in info_keys, but its steps do not report it")


def check_batch(where, environment):
    """One step of the environment's batch of two rows: are its arrays of the promised shapes? Raises UserError."""
    make_batch = batch_class(environment)
    if make_batch is None:
        return
    rows = np.zeros(2, int)
    batch = make_batch({key: values[rows] for key, values in environment.tasks.items()})
    shape, space = (2, *environment.observation_space.shape), environment.action_space
    observations = np.asarray(batch.reset(np.array([0, 1])))
    following, rewards = batch.step(np.stack([_some_action(space)] * 2))
    for name, values, expected in (
        ("reset", observations, shape), ("step", np.asarray(following), shape), ("step's rewards", np.asarray(rewards), (2,)),
    ):  # fmt: skip
        if values.shape != expected:
            raise UserError(f"{where}: of two rows, {name} of its batch_class gives shape {values.shape}, not {expected}")
    infos = getattr(batch, "infos", {})
    for key, values in infos.items():
        if not _plain(key) or np.shape(values)[:1] != (2,) or np.asarray(values).dtype.kind not in "biuf":
            raise UserError(f"{where}: infos[{key!r}] of its batch_class must be an array of numbers with a value per row")
    for key in getattr(environment, "info_keys", ()):
        if key not in infos:
            raise UserError(f"{where} names {key!r} in info_keys, but its batch_class does not report it")


def recorded_infos(where, info):
    """What of a step's `info` a dataset keeps: {key: array}, numbers and arrays of them. Raises UserError."""
    if not isinstance(info, dict):
        raise UserError(f"{where} returned infos that are no dictionary")
    kept = {key: np.asarray(value) for key, value in info.items() if _numeric(value)}
    for key in kept:
        if kept[key].dtype.kind == "c":
            raise UserError(f"{where}: the info {key!r} is complex: give its real and imaginary part under names of their own")
        if kept[key].dtype.kind == "O":  # an integer of more than 64 bits
            try:
                kept[key] = np.asarray(float(kept[key]))
            except OverflowError:
                raise UserError(f"{where}: the info {key!r} is too large a number: give its logarithm, or leave it out") from None
        if not _plain(key):
            raise UserError(f"{where}: the info {key!r} has no usable name: take letters, without slashes")
        if key == RESERVED_INFO:
            raise UserError(f"{where}: an info is named {key!r}, which says where an episode ended: rename it")
        if not kept[key].size or kept[key].ndim > LARGEST_INFO:
            raise UserError(
                f"{where}: the info {key!r} has shape {kept[key].shape}: give a number, or an array of up to {LARGEST_INFO} axes"
            )
    return kept


def _numeric(value):
    plain = isinstance(value, int | float | complex | np.number | np.bool_)
    return plain or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _plain(name):
    return isinstance(name, str) and name.strip(".") != "" and name.isprintable() and "/" not in name


def _some_action(space):
    return 0 if isinstance(space, Discrete) else ((space.low + space.high) / 2).astype(np.float32)


def _described(space):
    if space is None:
        return "nothing that is declared"
    return f"a {type(space).__name__}" + (f" of shape {space.shape}" if isinstance(space, Box) else "")
