"""What the batched environments share: start states drawn per row, and the gymnasium face, a batch of one row."""

import gymnasium as gym
import numpy as np

from envs.tasks import load_tasks


class TaskBatch:
    """Base of the batches: B rows, each with a task of its own.

    A subclass gives the dynamics and two functions of stored arrays, which also serve to relabel data with other tasks
    (the arrays broadcast; an observation may carry further features behind the d of this environment):

        transition(actions)                                            -> next states (B, d)
        compute_rewards(observations, actions, next_observations, tasks) -> rewards (...,) float32
        compute_success(next_observations, tasks)                        -> (...,) bool, is the goal reached here?

    The state is rounded to float32 after every step, exactly as it is observed, so that rewards recomputed from stored
    observations agree bit for bit. After every step `infos` holds "success" (B,) bool.

    Args:
        tasks: dict of task parameters, each (B, ...), one row per episode.
        start: start distribution, one of the class's `starts`; "fixed" is the start state of evaluations.
    """

    starts = ("fixed",)
    fixed_start = np.zeros(2)

    def __init__(self, tasks, start="fixed"):
        if start not in self.starts:
            raise ValueError(f"{type(self).__name__} knows no start {start!r}: choose from {', '.join(self.starts)}")
        self.tasks = {key: np.asarray(value, dtype=np.float64) for key, value in tasks.items()}
        self.size = len(next(iter(self.tasks.values())))
        self.start = start

    def draw_start(self, generator, row):
        """Start state (d,) of one row, for distributions other than "fixed"."""
        raise NotImplementedError

    def reset(self, seeds=None):
        """Begin an episode in every row.

        Args:
            seeds: B integers or numpy generators; without them random starts are drawn from fresh entropy.

        Returns:
            observations (B, d) float32.
        """
        if self.start == "fixed":
            starts = np.tile(self.fixed_start, (self.size, 1))
        else:
            seeds = [None] * self.size if seeds is None else seeds
            starts = [self.draw_start(np.random.default_rng(seed), row) for row, seed in enumerate(seeds)]
        self.infos = {}
        self.states = np.asarray(starts, dtype=np.float32)
        return self.states.copy()

    def step(self, actions):
        """actions (B, ...) -> next observations (B, d) float32, rewards (B,) float32."""
        before = self.states
        self.states = self.transition(np.asarray(actions)).astype(np.float32)
        self.infos = {"success": self.compute_success(self.states, self.tasks)}
        return self.states.copy(), self.compute_rewards(before, actions, self.states, self.tasks)


class BatchedTaskEnv(gym.Env):
    """One environment under the gymnasium interface, run as a batch of one row.

    `reset(options={"task": i})` chooses row i of `tasks` and later resets keep it. Never terminates; truncated after
    `horizon` steps. A subclass sets `env_type`, `batch_class` and `horizon`, and the two spaces in `__init__`.

    Args:
        batch_options: keywords of the batch class, such as `start`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's name)

    def __init__(self, render_mode=None, **batch_options):
        self.render_mode = render_mode
        self.batch_options = batch_options
        self.tasks = load_tasks(self.env_type)
        self.set_task(0)
        self._new_batch()  # an impossible option is refused here, not at the first reset

    def set_task(self, task):
        """Choose task `task` (row of `tasks`) from the next reset on. Raises ValueError if there is no such task."""
        count = len(next(iter(self.tasks.values())))
        if not 0 <= task < count:
            raise ValueError(f"task {task} does not exist: {self.env_type} has tasks 0 to {count - 1}")
        self.task = task

    def _new_batch(self):
        return self.batch_class({key: values[[self.task]] for key, values in self.tasks.items()}, **self.batch_options)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options and "task" in options:
            self.set_task(int(options["task"]))
        self._batch = self._new_batch()
        self._steps = 0
        return self._batch.reset([self.np_random])[0], {}

    def step(self, action):
        observations, rewards = self._batch.step(np.asarray(action)[None])
        self._steps += 1
        info = {key: values[0] for key, values in self._batch.infos.items()}
        return observations[0], float(rewards[0]), False, self._steps >= self.horizon, info
