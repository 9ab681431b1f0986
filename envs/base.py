"""What an environment offers: the one list of it, and the two faces that our families share.

An environment is a `gymnasium.Env` (`Environment` below). It must offer

    observation_space    Box (d_s,)
    action_space         Box (d_a,) with finite bounds (BOReL's methods also take Discrete)
    tasks                dict: parameter -> float array (N, ...); row i is task i, and N is the same for all of them
    reset(seed=, options={"task": i})   begins an episode of task i; later resets, without options, keep it -> observation (d_s,),
                         info. seed: 0 to 2**63 - 1 (np.random.default_rng takes them all, RandomState does not), and it decides
                         what follows
    step(action)         -> observation (d_s,), reward, terminated, truncated, info. `truncated` comes at max_episode_steps and
                         not before; `terminated` is False unless the settings file says `terminates: true`. Numbers and
                         arrays in `info` are recorded: the same keys and shapes at every step; "success" is 0 or 1; other entries
                         are ignored

and may offer, each an attribute of the object that the settings file's entry point returns. (What a wrapper hides is not looked
for: an inner reward function would not know of the wrapper's. A wrapper that leaves one valid repeats it.)

    max_episode_steps    as a keyword of the constructor: it is given the settings file's number, so that this is stated once
    render_mode          as a keyword of the constructor, with metadata["render_modes"], metadata["render_fps"] (policy steps per
                         second) and render() -> (height, width, 3) uint8: the camera of --render
    batch_class          a class: batch_class(tasks, one row per episode) is a `Batch`, which replaces a loop over environments:
                         the same seeds and actions give the same starts, steps and rewards, to a hundredth (it is tried)
    compute_rewards(observations (..., d_s), actions (..., d_a), next_observations (..., d_s), tasks, infos=None)
                         -> (...,) float32, what other tasks would pay for these transitions; arrays broadcast, tasks:
                         parameter -> (..., ...); infos is given where the dataset holds infos
    hidden_parameters    tuple: the keys of `tasks` that an agent has to infer, for the probe of what it infers (default: all)
    info_keys            tuple: the entries of `info` on which rewards depend beside the transition, whatever the task: given to
                         compute_rewards as infos: key -> (..., ...), and read by learned rewards (src/models/reward_model.py)
    compute_success(next_observations (..., d_s), tasks) -> (...,) bool: is the goal reached here?
    task_features(tasks) -> (N, k): what a behaviour agent that knows its task is told; by default its parameters
    task_frame(tasks)    -> an object with observe(observations (N, d_s)) and act(actions (N, d_a)): a symmetry through which all
                         tasks look alike to a behaviour agent
    simulator            a text: what computes the physics, and its version ("mujoco 3.3.0"); part of every dataset's SHA-256
    scripted_policy(observations (B, d_s), task ids (B,), errors (B, 3)) -> actions (B, d_a): an expert made by hand, wrong about
                         its task by so many metres; makes data without any training. scripted_name: its name for the record
    reference_policies(tasks, train_ids) -> {"trivial" | "task_blind" | "best_known": function (observations (B, d_s), task ids
                         (B,)) -> actions (B, d_a)}: reference levels; task_blind may use the training tasks alone
    reference_levels(tasks, train_ids)   -> {name: returns (N,)}: levels that are known by a formula, "explicit_inference" for one
    infer_tasks(observations (B, t + 1, d_s), actions (B, t, d_a), rewards (B, t)) -> parameters, as `tasks` with B rows: what an
                         episode's first steps tell without learning; the level explicit_inference is played with it

Our families are a subclass of `TaskBatch` (many rows) and one of `TaskEnv`, a batch of one row: the numbers of both are the same.
"""

import copy
from typing import Protocol

import gymnasium as gym
import numpy as np

from envs.settings import family_settings
from envs.tasks import load_tasks


class Environment(Protocol):
    """What every environment must offer; see above for what it may."""

    observation_space: gym.Space
    action_space: gym.Space
    tasks: dict

    def reset(self, *, seed=None, options=None): ...

    def step(self, action): ...


class Batch(Protocol):
    """B episodes stepped as one, each on a task of its own; a row's numbers do not depend on the other rows.

    infos: dict key -> (B, ...) of the last step. infos["terminated"] (B,) bool, where episodes end on their own, is True from a
    row's last step on; such a row rests: it repeats its observation, and its reward is 0. It is there if, and only if, the
    settings file says `terminates: true`. infos["success"] (B,) is 0 or 1.
    """

    infos: dict

    def reset(self, seeds=None):
        """seeds: (B,) integers of 0 to 2**63 - 1 or numpy Generators, None for fresh entropy -> observations (B, d_s) float32."""

    def step(self, actions):
        """actions (B, d_a) -> next observations (B, d_s) float32, rewards (B,) float32."""


class TaskBatch:
    """The batched face: a `Batch` of start states drawn per row and a transition function of all rows.

    A subclass gives the spaces of one row, the dynamics, and two functions of stored arrays, which also serve to relabel data
    with other tasks (the arrays broadcast; an observation may carry further features behind the d_s of this environment):

        transition(actions)                                              -> next states (B, d_s)
        compute_rewards(observations, actions, next_observations, tasks) -> rewards (...,) float32
        compute_success(next_observations, tasks)                        -> (...,) bool

    The state is rounded to float32 after every step, exactly as it is observed, so that rewards recomputed from stored
    observations agree bit for bit. After every step `infos` holds "success" (B,) bool. Families whose state is not what is
    observed replace `reset` and `step`.

    Args:
        tasks: dict of task parameters, each (B, ...), one row per episode.
        start: start distribution, one of the class's `starts`, of which the first is that of evaluations.
    """

    observation_space = action_space = None  # of one row
    starts = ("fixed",)
    fixed_start = np.zeros(2)

    def __init__(self, tasks, start=None):
        start = self.starts[0] if start is None else start
        if start not in self.starts:
            raise ValueError(f"{type(self).__name__} knows no start {start!r}: choose from {', '.join(self.starts)}")
        self.tasks = {key: np.asarray(value, dtype=np.float64) for key, value in tasks.items()}
        self.size = len(next(iter(self.tasks.values())))
        self.start = start
        self.infos = {}

    def draw_start(self, generator, row):
        """Start state (d_s,) of one row, for distributions other than "fixed"."""
        raise NotImplementedError

    def reset(self, seeds=None):
        """Begin an episode in every row; see `Batch`."""
        if self.start == "fixed":
            starts = np.tile(self.fixed_start, (self.size, 1))
        else:
            seeds = [None] * self.size if seeds is None else seeds
            starts = [self.draw_start(np.random.default_rng(seed), row) for row, seed in enumerate(seeds)]
        self.infos = {}
        self.states = np.asarray(starts, dtype=np.float32)
        return self.states.copy()

    def step(self, actions):
        """One step of every row; see `Batch`."""
        before = self.states
        self.states = self.transition(np.asarray(actions)).astype(np.float32)
        self.infos = {"success": self.compute_success(self.states, self.tasks)}
        return self.states.copy(), self.compute_rewards(before, actions, self.states, self.tasks)


class TaskEnv(gym.Env):
    """The gymnasium face: one episode, run as a batch of one row. A subclass sets `env_type` and `batch_class`.

    `reset(options={"task": i})` chooses row i of `tasks`, later resets keep it. `terminated` is what the batch says, else False;
    `truncated` comes after `max_episode_steps`.

    Args:
        render_mode: None, or one of metadata["render_modes"].
        max_episode_steps: steps of an episode; by default those of configs/<env_type>.yaml.
        batch_options: keywords of the batch class, such as `start`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's name)
    info_keys = ()

    def __init__(self, render_mode=None, max_episode_steps=None, **batch_options):
        self.render_mode = render_mode
        self.max_episode_steps = max_episode_steps or family_settings(self.env_type)["max_episode_steps"]
        self.batch_options = batch_options
        self.tasks = load_tasks(self.env_type)
        self.set_task(0)
        # copies: a space carries the random generator of its `sample`
        self.observation_space = copy.deepcopy(self._batch.observation_space)
        self.action_space = copy.deepcopy(self._batch.action_space)

    def set_task(self, task):
        """Choose task `task` (row of `tasks`) for the episodes from the next reset on. Raises ValueError if there is none."""
        count = len(next(iter(self.tasks.values())))
        if not 0 <= task < count:
            raise ValueError(f"task {task} does not exist: {self.env_type} has tasks 0 to {count - 1}")
        self.task = task
        self._batch = self.batch_class({key: values[[task]] for key, values in self.tasks.items()}, **self.batch_options)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options and "task" in options:
            self.set_task(int(options["task"]))
        self._steps = 0
        return self._batch.reset([self.np_random])[0], {}

    def step(self, action):
        observations, rewards = self._batch.step(np.asarray(action)[None])
        self._steps += 1
        info = {key: values[0] for key, values in self._batch.infos.items()}
        terminated = bool(info.pop("terminated", False))
        return observations[0], float(rewards[0]), terminated, self._steps >= self.max_episode_steps, info
