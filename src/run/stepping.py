"""Stepping environments, one by one or as a batch, under the contract of envs/base.py: who breaks it is named in one line."""

import contextlib
import re
import traceback
from pathlib import Path

import numpy as np

from src.run.errors import UserError, shortened

RESERVED_INFO = "terminated"  # where an episode ends, as the roll-out records it
TASK_NAMES = {"task", "tasks", "taskid", "taskids", "taskidx", "taskindex", "tasknum", "tasknumber"}  # their letters alone
LARGEST_INFO = 4  # axes of an info
LARGEST_SEED = 2**63 - 1  # that `derive` gives


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
    """Reset an environment to a task, None for the one that it has; its observation, as it gave it. Raises UserError."""
    options = {} if task is None else {"options": {"task": int(task)}}
    with blamed(f"{where}: reset fails"):
        result = environment.reset(seed=int(seed), **options)
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


class _Checks:
    """What is checked of every kind of batch.

    Args: env: EnvConfig. rows: B. space: of one row's observations. who: may have broken the contract.
    """

    def __init__(self, env, rows, space, who):
        self.env, self.rows, self.space, self.who = env, rows, space, who
        self.info_shapes = None  # key -> shape, as the first step reports them
        self.unrecorded = set()  # infos under names that mean the task's id in a dataset

    def _start(self):
        self.steps, self.infos, self.ended = 0, {}, np.zeros(self.rows, bool)

    def _observation(self, values, *rows):
        """A copy, (*rows, d_s) float32."""
        copied, shape = self._float32(values, "an observation that is no array of numbers"), (*rows, *self.space.shape)
        if copied.shape != shape:
            self._fail(f"returned an observation of shape {copied.shape}, its observation_space says {shape}")
        if not np.isfinite(copied).all():
            self._fail(f"returned an observation at step {self.steps} that is not finite")
        if self.space.dtype.kind != "f":  # stable-baselines3 stores them in that dtype
            with np.errstate(invalid="ignore"):
                held = copied.astype(self.space.dtype)
            if not np.array_equal(held, copied):
                self._fail(f"returned fractions, and its observation_space is of {self.space.dtype}: make it one of float32")
        return copied

    def _rewards(self, values):
        """A copy, (B,) float32."""
        copied = self._float32(values, f"a reward at step {self.steps} that is not one finite number")
        if copied.shape != (self.rows,):
            shapes = f"rewards of shape {copied.shape}, not ({self.rows},)"
            self._fail(f"returned a reward at step {self.steps} that is not one finite number: {shapes}")
        if not np.isfinite(copied).all():
            self._fail(f"returned a reward at step {self.steps} that is not one finite number")
        return copied

    def _require_same(self, infos):
        shapes = {key: values.shape for key, values in infos.items()}
        self.info_shapes = shapes if self.info_shapes is None else self.info_shapes
        if shapes == self.info_shapes:
            return
        for key in sorted(self.info_shapes.keys() | shapes.keys()):
            if self.info_shapes.get(key) != shapes.get(key):
                self._fail(f"reported the info {key!r} otherwise at step {self.steps}: give it one shape, at every step")

    def _recorded(self, infos):
        """Infos without those that a reader of the dataset would take for the episode's task."""
        named = set(filter(is_task, infos))
        self.unrecorded |= named
        return {key: values for key, values in infos.items() if key not in named}

    def _float32(self, values, otherwise):
        if isinstance(values, np.ndarray) and values.dtype == np.float32:
            return values.copy()  # they may go on writing into theirs
        try:
            with np.errstate(over="ignore"):
                return np.array(values, dtype=np.float32)
        except (TypeError, ValueError, RuntimeError):  # the last: of a tensor that needs its gradient
            self._fail(f"returned {otherwise}")

    def _fail(self, what):
        raise UserError(f"{self.who} {what}")


class EnvironmentLoop(_Checks):
    """The batch of an environment that has no `batch_class`. Checks the contract that every environment must keep.

    Raises UserError, naming the entry point, for a wrong shape, a number that is not finite, an early end (unless the settings
    say `terminates: true`), a truncation that does not come exactly at max_episode_steps, and infos that change their names or
    shapes.

    Args: env: EnvConfig. task_ids: (B,); None for the task that an environment has. environments: of the rows, by default new.
    """

    def __init__(self, env, task_ids, environments=None):
        self.task_ids, self.environments = task_ids, environments or [env.make(discrete=True) for _ in task_ids]
        super().__init__(env, len(task_ids), self.environments[0].observation_space, env.entry_point)

    def reset(self, seeds):
        """seeds (B,) -> observations (B, d) float32."""
        self._start()
        self.results = [None] * self.rows
        return np.stack(
            [
                self._observation(begin(self.who, environment, seed, task))
                for environment, task, seed in zip(self.environments, self.task_ids, seeds, strict=True)
            ]
        )

    def step(self, actions):
        """actions (B, da) -> observations (B, d) float32, rewards (B,) float32."""
        self.steps += 1
        last = self.steps == self.env.max_episode_steps
        for row, (environment, action) in enumerate(zip(self.environments, np.array(actions), strict=True)):
            if self.ended[row]:
                self.results[row] = self.results[row][0], 0.0, self.results[row][2]
                continue
            observation, reward, terminated, truncated, info = advance(self.who, environment, action)
            self.results[row] = self._observation(observation), reward, self._recorded(recorded_infos(self.who, info))
            self._require_same(self.results[row][2])
            if terminated and not self.env.terminates:
                self._fail(
                    f"terminated at step {self.steps}; episodes have a fixed length: return terminated=False, "
                    "or write terminates: true into the settings file"
                )
            if bool(truncated) != last and not terminated:
                self._fail(
                    f"returned truncated={bool(truncated)} at step {self.steps}, "
                    f"but max_episode_steps is {self.env.max_episode_steps}"
                )
            self.ended[row] = terminated
        observations, rewards, infos = zip(*self.results, strict=True)
        rewards = self._rewards(rewards)
        self.infos = {key: np.stack([info[key] for info in infos]) for key in infos[0]}
        if self.env.terminates:
            self.infos[RESERVED_INFO] = self.ended.copy()
        return np.stack(observations), rewards


class OwnBatch(_Checks):
    """The batch of an environment that brings a `batch_class`, held to its contract. What it gives is copied, and so is what it
    is given: either side may write into its own arrays. From a row's end on its rewards are 0 and its observation stays.

    Raises UserError, naming the entry point, for what fails in it, a wrong shape, a number that is not finite, infos that change
    their names or shapes, and infos["terminated"] where the settings do not say `terminates: true`, or none where they do.

    Args: env: EnvConfig. environment: of it. task_ids: (B,).
    """

    def __init__(self, env, environment, task_ids):
        super().__init__(env, len(task_ids), environment.observation_space, f"{env.entry_point}: its batch_class")
        with blamed(f"{self.who} fails"):
            self.batch = batch_class(environment)({key: values[task_ids] for key, values in environment.tasks.items()})

    def reset(self, seeds):
        """seeds (B,) -> observations (B, d) float32."""
        self._start()
        with blamed(f"{self.who} fails"):
            observations = self.batch.reset(seeds)
        self.seen = self._observation(observations, self.rows)
        return self.seen

    def step(self, actions):
        """actions (B, da) -> observations (B, d) float32, rewards (B,) float32."""
        self.steps += 1
        with blamed(f"{self.who} fails"):
            result = self.batch.step(np.array(actions))
            infos = getattr(self.batch, "infos", {})
            infos = {key: np.array(values) for key, values in infos.items()} if isinstance(infos, dict) else None
        if infos is None:
            self._fail("must keep its infos in a dictionary")
        if not isinstance(result, tuple) or len(result) != 2:
            self._fail("must return (observations, rewards) from step")
        observations, rewards = self._observation(result[0], self.rows), self._rewards(result[1])
        infos = self._recorded(infos)
        self._check_infos(infos)
        if self.env.terminates:
            observations[self.ended], rewards[self.ended] = self.seen[self.ended], 0
            infos[RESERVED_INFO] = self.ended = self.ended | infos[RESERVED_INFO].astype(bool)
        self.seen, self.infos = observations, infos
        return observations, rewards

    def _check_infos(self, infos):
        for key, values in infos.items():
            known = self.info_shapes is not None and key in self.info_shapes
            if not (known or usable_name(key)) or values.shape[:1] != (self.rows,) or values.dtype.kind not in "biuf":
                self._fail(f"must report infos[{key!r}] as an array of numbers with a value per row")
            if key in ("success", RESERVED_INFO) and not (values.ndim == 1 and _tell(values)):
                self._fail(f"must report infos[{key!r}] as 0 or 1 in every row, an array of shape ({self.rows},)")
        if (RESERVED_INFO in infos) != self.env.terminates:
            self._fail(
                "must report infos['terminated'] (B,), since the settings file says terminates: true"
                if self.env.terminates
                else "reports infos['terminated']: write terminates: true into the settings file, or leave that info out"
            )
        self._require_same(infos)


def recorded_infos(where, info):
    """What of a step's `info` a dataset keeps: {key: array}, copies of numbers and arrays of them. Raises UserError."""
    if not isinstance(info, dict):
        raise UserError(f"{where} returned infos that are no dictionary")
    kept = {key: np.array(value) for key, value in info.items() if _numeric(value)}
    for key in kept:
        if kept[key].dtype.kind == "c":
            raise UserError(f"{where}: the info {key!r} is complex: give its real and imaginary part under names of their own")
        if kept[key].dtype.kind == "O":  # an integer of more than 64 bits
            try:
                kept[key] = np.asarray(float(kept[key]))
            except OverflowError:
                raise UserError(f"{where}: the info {key!r} is too large a number: give its logarithm, or leave it out") from None
        if not usable_name(key):
            raise UserError(f"{where}: the info {key!r} has no usable name: take letters, without slashes")
        if key == RESERVED_INFO:
            raise UserError(f"{where}: an info is named {key!r}, which says where an episode ended: rename it")
        with np.errstate(over="ignore"):
            if (np.isfinite(kept[key]) & ~np.isfinite(kept[key].astype(np.float32))).any():
                raise UserError(f"{where}: the info {key!r} is too large for float32: give its logarithm, or leave it out")
        if not kept[key].size or kept[key].ndim > LARGEST_INFO:
            raise UserError(
                f"{where}: the info {key!r} has shape {kept[key].shape}: give a number, or an array of up to {LARGEST_INFO} axes"
            )
    if "success" in kept:
        if kept["success"].size != 1 or not _tell(kept["success"]):
            raise UserError(f"{where}: the info 'success' is {info['success']}: give 0 or 1, or another name to what is graded")
        kept["success"] = kept["success"].reshape(())
    return kept


def _tell(values):
    """Whether an array says yes or no, in numbers."""
    return bool(((values == 0) | (values == 1)).all())


def _numeric(value):
    number = isinstance(value, int | float | complex | np.number | np.bool_)
    return number or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def usable_name(name):
    """Whether a dataset can hold a name."""
    return isinstance(name, str) and 0 < len(name) <= 200 and name.strip(".") != "" and name.isprintable() and "/" not in name


def is_task(name):
    """Whether a name, in any spelling and with or without the groups of a file that it lies in, is one of a task's id."""
    return re.sub(r"[^a-z]", "", str(name).rsplit("/", 1)[-1].lower()) in TASK_NAMES
