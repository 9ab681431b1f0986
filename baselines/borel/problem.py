"""The Bayes-adaptive problem of one environment: K episodes of H steps on a task that is not told, T = K·H steps in all.

Time, as in envs/multi_episode.py: the policy acts on `obs`; encoder and decoders read `next_obs`, in which the last
observation of an episode stands with its flag; what follows step t for a critic is obs[t + 1], the true start of the next
episode where one ended.
"""

import numpy as np
from gymnasium.spaces import Discrete

from envs.multi_episode import MultiEpisodeBatch, scale_actions
from src.evaluation.batch import make_batch
from src.run.environment import batch_class
from src.run.errors import UserError
from src.run.seeding import derive


class Problem:
    """What the scripts need to know of an environment.

    Args:
        env: EnvConfig. episodes: K.
    """

    def __init__(self, env, episodes):
        self.env, self.episodes, self.horizon = env, episodes, env.max_episode_steps
        self.steps = episodes * self.horizon
        self.environment = env.make(discrete=True)
        self.tasks = self.environment.unwrapped.tasks
        self.num_tasks = len(next(iter(self.tasks.values())))
        self.space = self.environment.action_space
        self.discrete = isinstance(self.space, Discrete)
        self.action_size = int(self.space.n) if self.discrete else self.space.shape[0]
        self.plain_size = self.environment.observation_space.shape[0]
        self.observation_size = self.plain_size + (episodes > 1)  # with the flag

    def batch(self, task_ids, start=None, **options):
        """Roll-outs of K episodes, one row per entry of `task_ids`.

        start: a start distribution other than that of evaluations; options: further keywords of the environment's batch.
        """
        if start and start != "fixed":
            options["start"] = start
        if options:
            rows = {key: values[np.asarray(task_ids)] for key, values in self.tasks.items()}
            batch = batch_class(self.environment)(rows, **options)
        else:
            batch = make_batch(self.env, task_ids)
        return MultiEpisodeBatch(batch, self.episodes, self.horizon, self.space)

    def start(self, modified, on_circle=True):
        """Name of the start distribution: the widest that the environment has when `modified`, else that of evaluations.

        Raises UserError where `on_circle` is False and the environment has no start off the circle of its goals.
        """
        starts = getattr(batch_class(self.environment), "starts", ("fixed",))
        if modified and not on_circle and "off_circle" in starts:
            return "off_circle"
        chosen = "uniform" if modified and "uniform" in starts else starts[0]
        if not on_circle and chosen != "off_circle":
            condition = " without --modify-init-state-dist True" if "off_circle" in starts else ""
            raise UserError(f"--on-circle-init-state False: {self.env.env_type} has no such start{condition}; give True")
        return chosen

    def rewards(self, task, obs, actions, next_obs):
        """What task `task` pays for transitions (..., d), actions as the policy gives them -> (...,) float32.

        Raises UserError when the environment cannot say so.
        """
        if not hasattr(self.environment, "compute_rewards"):
            raise UserError(f"{self.env.entry_point} has no compute_rewards: run without reward relabelling")
        actions = scale_actions(actions, self.space)
        plain = (np.asarray(values)[..., : self.plain_size] for values in (obs, next_obs))
        before, after = plain
        return np.asarray(self.environment.compute_rewards(before, actions, after, self._task(task)), dtype=np.float32)

    def success(self, task, next_obs):
        """Is the goal of `task` reached here? (..., d) -> (...,) bool; None where the environment has no such notion."""
        if not hasattr(self.environment, "compute_success"):
            return None
        return np.asarray(self.environment.compute_success(np.asarray(next_obs)[..., : self.plain_size], self._task(task)))

    def _task(self, task):
        return {key: values[task] for key, values in self.tasks.items()}

    def unflagged(self, next_obs):
        """The observation after the last step, (..., d), as a policy would see it if the roll-out went on."""
        if self.episodes == 1:
            return next_obs
        return np.concatenate([next_obs[..., :-1], np.zeros_like(next_obs[..., -1:])], -1)


def play(problem, task_ids, agent, names, **options):
    """One roll-out in every row, a row per entry of `task_ids`.

    Args:
        agent: has start(rows), act(observations (B, d)) -> actions in [−1, 1] (B, d_a) or (B,) int, and
            observe(actions, next_observations, rewards).
        names: a seed and what tells these roll-outs from others; they decide random starts.
        options: see `Problem.batch`.

    Returns:
        dict of arrays (B, T, ...): obs, actions, rewards, next_obs, and success where the environment tells it.
    """
    batch = problem.batch(task_ids, **options)
    observations = batch.reset([derive(*names, row) for row in range(len(task_ids))])
    agent.start(len(task_ids))
    record = {"obs": [], "actions": [], "rewards": [], "next_obs": [], "success": []}
    for _ in range(problem.steps):
        actions = agent.act(observations)
        following, rewards = batch.step(actions)
        next_obs = batch.infos["next_observation"]
        agent.observe(actions, next_obs, rewards)
        step = observations, actions, rewards, next_obs, batch.infos.get("success")
        for values, value in zip(record.values(), step, strict=True):
            values.append(value)
        observations = following
    return {key: np.stack(values, 1) for key, values in record.items() if values[0] is not None}


class ActingAlone:
    """An agent that remembers nothing: `act` is a function observations -> actions."""

    def __init__(self, act):
        self.act = act

    def start(self, rows):
        """Nothing to prepare."""

    def observe(self, actions, next_observations, rewards):
        """Nothing to remember."""


def random_actions(problem, generator):
    """Uniform actions: over [−1, 1], the policy's own range, not over the environment's smaller box."""

    def act(observations):
        if problem.discrete:
            return generator.integers(problem.action_size, size=len(observations))
        return generator.uniform(-1, 1, (len(observations), problem.action_size)).astype(np.float32)

    return ActingAlone(act)


def episode_returns(problem, rewards):
    """rewards (..., T) -> undiscounted returns of the episodes (..., K)."""
    return rewards.reshape(*rewards.shape[:-1], problem.episodes, problem.horizon).sum(-1, dtype=np.float64)
