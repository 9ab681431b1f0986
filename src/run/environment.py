"""Making the environment that a settings file names, and the one check of what it offers (envs/base.py lists it)."""

import contextlib
import importlib
import inspect
import multiprocessing
import sys

import numpy as np
from gymnasium.spaces import Box, Discrete

from src.run.errors import UserError
from src.run.stepping import LARGEST_SEED, EnvironmentLoop, OwnBatch, batch_class, blamed, is_task, usable_name

LARGEST_ACTION = 1e15  # float32 still squares and sums them
TRIED_STEPS = 3  # of the episodes that are compared
_checked = set()  # what has been stepped in this process


def make_environment(env, render_mode=None, discrete=False):
    """A fresh environment of an EnvConfig, with a camera where `render_mode` is "rgb_array".

    discrete: whether the caller can act in a Discrete action space too. Raises UserError, one line that names the entry point,
    when the environment cannot be imported or breaks the contract of envs/base.py. It is played once per process, one episode and
    a few steps more; of our own families, which tests hold to the contract, two steps.
    """
    where = f"entry_point {env.entry_point!r} of {env.env_type}"
    with blamed(f"{where} cannot be made"):
        entry_point, options = constructor(env)
        environment = entry_point(**options, **({"render_mode": render_mode} if render_mode else {}))
    check_tasks(where, env, environment)
    check_spaces(where, environment, discrete)
    check_names(where, environment)
    if env not in _checked:
        probe = entry_point(**options)
        ours, theirs = environment.unwrapped.tasks, probe.unwrapped.tasks
        if ours.keys() != theirs.keys() or not all(np.array_equal(ours[key], theirs[key]) for key in ours):
            raise UserError(f"{where} has another task table each time that it is made: draw it by a fixed seed")
        check_steps(env, probe)
        check_batch(env, probe)
        if not is_ours(probe) and check_resets(env, probe):
            compare_batch(env, probe)
        probe.close()
        _checked.add(env)
    return environment


def constructor(env):
    """What makes the environment of an EnvConfig, and its keywords: the options, and the horizon where it takes one."""
    module, name = env.entry_point.split(":")
    entry_point, options = getattr(importlib.import_module(module), name), dict(env.options)
    if "max_episode_steps" in inspect.signature(entry_point).parameters:
        options["max_episode_steps"] = env.max_episode_steps
    return entry_point, options


def is_ours(environment):
    """Whether its class is one of envs/."""
    return type(environment).__module__.split(".")[0] == "envs"


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


def check_tasks(where, env, environment):
    """The task table: finite numbers, a row per task, under names that a dataset can hold. Raises UserError."""
    tasks = getattr(getattr(environment, "unwrapped", None), "tasks", None)
    if not tasks or not isinstance(tasks, dict):
        raise UserError(f"{where} has no task table: set self.tasks = {{name: array of shape (number of tasks, ...)}}")
    counts = {}
    for name, values in tasks.items():
        if not usable_name(name):
            raise UserError(f"{where}: the task parameter {name!r} has no usable name: take letters, without slashes")
        if is_task(name):
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
        low, high = actions.low.astype(np.float32), actions.high.astype(np.float32)
    if not (np.abs([low, high]) <= LARGEST_ACTION).all() or not (low < high).all():
        raise UserError(
            f"{where} has an action space without bounds: give its Box finite low and high, low below high in float32 and both "
            f"within {LARGEST_ACTION:g}"
        )


def check_names(where, environment):
    """`hidden_parameters` and `info_keys` are tuples of names, the former of task parameters, `simulator` is a text. Raises
    UserError."""
    for attribute in ("hidden_parameters", "info_keys"):
        names = getattr(environment, attribute, ())
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{where}: {attribute} must be a tuple of names, not {names!r}")
    simulator = getattr(environment.unwrapped, "simulator", None)
    if simulator is not None and not (isinstance(simulator, str) and simulator.isprintable()):
        raise UserError(f"{where}: simulator must be a text of one line, a name and a version, not {simulator!r}")
    hidden, tasks = getattr(environment, "hidden_parameters", None), environment.unwrapped.tasks
    if hidden is not None and not set(hidden) & tasks.keys():
        raise UserError(f"{where}: hidden_parameters name none of {', '.join(tasks)}: leave them out where an agent infers all")
    for name in hidden or ():
        if name not in tasks:
            raise UserError(f"{where} names {name!r} in hidden_parameters, and has the task parameters {', '.join(tasks)}")


def check_steps(env, environment):
    """An episode of random actions keeps the contract, of our own families its beginning. Raises UserError."""
    loop = EnvironmentLoop(env, [0], [environment])
    loop.reset([0])
    generator, last = np.random.default_rng(0), min(2, env.max_episode_steps) if is_ours(environment) else env.max_episode_steps
    while loop.steps < last and not loop.ended.all():
        loop.step(_some_actions(generator, environment.action_space, 1))
    _check_info_keys(loop, environment)
    if loop.unrecorded and multiprocessing.parent_process() is None:  # workers need not repeat it
        names = ", ".join(sorted(loop.unrecorded))
        print(f"note: {env.entry_point} reports the infos {names}: they are not recorded, as a dataset's task id has such a name",
              file=sys.stderr)  # fmt: skip


def check_resets(env, environment):
    """Whether a seed decides an episode; stderr tells where it does not.

    Raises UserError where a seed of 63 bits is refused, or a reset without options does not keep the task.
    """
    loop, generator = EnvironmentLoop(env, [_last_task(env)], [environment]), np.random.default_rng(0)
    actions = _some_actions(generator, environment.action_space, _tried(env), 1)
    first, second = (_played(loop, [LARGEST_SEED], actions) for _ in range(2))
    if not all(map(np.array_equal, first, second)):
        if multiprocessing.parent_process() is None:  # workers need not repeat it
            print(f"note: {env.entry_point} plays another episode each time that it is reset by the same seed: data and returns "
                  "will differ from run to run; draw from self.np_random alone", file=sys.stderr)  # fmt: skip
        return False
    loop.task_ids = [None]
    if not all(map(np.array_equal, first, _played(loop, [LARGEST_SEED], actions))):
        raise UserError(f"{env.entry_point}: reset without options changes the task: later resets must keep the last one")
    return True


def check_batch(env, environment):
    """A step of two rows of an own environment's `batch_class`, where it has one, keeps the contract. Raises UserError."""
    if batch_class(environment) is None or is_ours(environment):
        return
    batch = OwnBatch(env, environment, np.zeros(2, int))
    batch.reset([0, LARGEST_SEED])
    batch.step(_some_actions(np.random.default_rng(0), environment.action_space, 2))
    _check_info_keys(batch, environment)


def compare_batch(env, environment):
    """The rows of a `batch_class` and the environment itself make the same of the same seeds and actions, but for roundings.

    Raises UserError: stable-baselines3 trains on the one what is measured in the other.
    """
    if batch_class(environment) is None:
        return
    tasks, seeds = np.array([0, _last_task(env)]), [0, LARGEST_SEED]
    actions = _some_actions(np.random.default_rng(0), environment.action_space, _tried(env), 2)
    alone = [
        _played(EnvironmentLoop(env, [task], [environment]), [seed], actions[:, [row]])
        for row, (task, seed) in enumerate(zip(tasks, seeds, strict=True))
    ]
    for rows in ([0, 1], [1]):  # also a batch of one
        batch = OwnBatch(env, environment, tasks[rows])
        together = _played(batch, [seeds[row] for row in rows], actions[:, rows])
        for name, ours, theirs in zip(("ends", "observations", "rewards"), together, zip(*alone, strict=True), strict=True):
            theirs = np.concatenate(theirs)[rows].astype(np.float64)
            tolerance = 1e-2 * np.abs(theirs).max(axis=(0, 1)) + 1e-6  # of each entry's own size
            wrong = np.argwhere(np.abs(ours - theirs) > tolerance)
            if len(wrong):
                row, step = wrong[0][:2]
                raise UserError(
                    f"{batch.who} gives other {name} than the environment alone, from the same seed and by the same actions: "
                    f"{ours[tuple(wrong[0])]:.6g}, not {theirs[tuple(wrong[0])]:.6g}, in task {tasks[rows][row]} at step "
                    f"{step + (name != 'observations')}; make both alike (a start: by np.random.default_rng(seed), which is what "
                    "self.np_random is after a reset), or remove batch_class"
                )


def _played(batch, seeds, actions):
    """What actions (n, B, ...) make of a batch: ends (B, n) bool, observations (B, n + 1, d_s), rewards (B, n)."""
    ended, observations, rewards = [], [batch.reset(seeds)], []
    for action in actions:
        following, paid = batch.step(action)
        ended.append(batch.ended.copy())
        observations.append(following)
        rewards.append(paid)
    return np.stack(ended, 1), np.stack(observations, 1), np.stack(rewards, 1)


def _check_info_keys(batch, environment):
    for key in getattr(environment, "info_keys", ()):
        if is_task(key):
            raise UserError(f"{batch.who}: info_keys names {key!r}, as a task's id is called in a dataset: rename that info")
        if key not in batch.infos:
            raise UserError(f"{batch.who} does not report the info {key!r} at its steps, which info_keys names")
        if not np.isfinite(batch.infos[key]).all():
            raise UserError(f"{batch.who}: the info {key!r}, which info_keys names, is not finite: rewards cannot depend on it")


def _some_actions(generator, space, *shape):
    """(*shape, d_a) float32 drawn from a Box, (*shape,) integers from a Discrete."""
    if isinstance(space, Discrete):
        return generator.integers(space.n, size=shape)
    return generator.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32)


def _last_task(env):
    return max(env.train_tasks[1], env.test_tasks[1]) - 1


def _tried(env):
    return min(TRIED_STEPS, env.max_episode_steps)


def _described(space):
    if space is None:
        return "nothing that is declared"
    return f"a {type(space).__name__}" + (f" of shape {space.shape}" if isinstance(space, Box) else "")
