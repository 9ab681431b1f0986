"""Many episodes stepped as one array: by an environment's own `batch_class` where it has one, else in a loop."""

import numpy as np

from src.run.environment import advance, batch_class, begin, recorded_infos
from src.run.errors import UserError


def make_batch(env, task_ids):
    """Rows of episodes, one task per row; row i of every array belongs to task_ids[i]. A `Batch` of envs/base.py.

    Args:
        env: EnvConfig.
        task_ids: (B,) integers.
    A wrapped environment is stepped in a loop, wrapper and all: its inner `batch_class` knows nothing of the wrapper.
    `action_space` is that of one row.
    """
    task_ids = np.asarray(task_ids)
    environment = env.make(discrete=True)  # who acts has asked for actions that it can give
    own = batch_class(environment)
    if own is None:
        batch = EnvironmentLoop(env, task_ids)
    else:
        batch = own({key: values[task_ids] for key, values in environment.tasks.items()})
    batch.action_space = environment.action_space
    return batch


class EnvironmentLoop:
    """The batch of an environment that has no `batch_class`. Checks the contract that every environment must keep.

    Raises UserError, naming the entry point, for a wrong shape, a number that is not finite, an early end (unless the settings
    say `terminates: true`), a truncation that does not come exactly at max_episode_steps, and infos that change their names or
    shapes.
    """

    def __init__(self, env, task_ids):
        self.env, self.task_ids = env, task_ids
        self.environments = [env.make(discrete=True) for _ in task_ids]
        self.shape = self.environments[0].observation_space.shape
        self.info_shapes = None  # key -> shape, as the first step reports them

    def reset(self, seeds):
        """seeds (B,) -> observations (B, d) float32."""
        self.steps, self.infos, self.results = 0, {}, [None] * len(self.environments)
        self.ended = np.zeros(len(self.environments), bool)
        return np.stack(
            [
                self._checked(begin(self.env.entry_point, environment, int(seed), int(task)))
                for environment, task, seed in zip(self.environments, self.task_ids, seeds, strict=True)
            ]
        )

    def step(self, actions):
        """actions (B, da) -> observations (B, d) float32, rewards (B,) float32."""
        self.steps += 1
        last = self.steps == self.env.max_episode_steps
        for row, (environment, action) in enumerate(zip(self.environments, actions, strict=True)):
            if self.ended[row]:
                self.results[row] = self.results[row][0], 0.0, self.results[row][2]
                continue
            observation, reward, terminated, truncated, info = advance(self.env.entry_point, environment, action)
            self.results[row] = self._checked(observation), reward, self._recorded(info)
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
        rewards = self._float32(rewards, f"a reward at step {self.steps} that is not one finite number")
        if rewards.shape != (len(self.environments),) or not np.isfinite(rewards).all():
            self._fail(f"returned a reward at step {self.steps} that is not one finite number")
        self.infos = {key: np.stack([info[key] for info in infos]) for key in infos[0]}
        if self.env.terminates:
            self.infos["terminated"] = self.ended.copy()
        return np.stack(observations), rewards

    def _recorded(self, info):
        kept = recorded_infos(self.env.entry_point, info)
        shapes = {key: values.shape for key, values in kept.items()}
        self.info_shapes = shapes if self.info_shapes is None else self.info_shapes
        for key in sorted(self.info_shapes.keys() | shapes.keys()):
            if self.info_shapes.get(key) != shapes.get(key):
                self._fail(f"reported the info {key!r} otherwise at step {self.steps}: give it one shape, at every step")
        return kept

    def _checked(self, observation):
        observation = self._float32(observation, "an observation that is no array of numbers")
        if observation.shape != self.shape:
            self._fail(f"returned an observation of shape {observation.shape}, its observation_space says {self.shape}")
        if not np.isfinite(observation).all():
            self._fail(f"returned an observation at step {self.steps} that is not finite")
        return observation

    def _float32(self, values, otherwise):
        try:
            with np.errstate(over="ignore"):
                return np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError):
            self._fail(f"returned {otherwise}")

    def _fail(self, what):
        raise UserError(f"{self.env.entry_point} {what}")
