"""The Bayes-adaptive problem of one environment: K episodes of H steps on a task that is not told, T = K·H steps in all.

Time, as in envs/multi_episode.py: the policy acts on `obs`; encoder and decoders read `next_obs`, in which the last
observation of an episode stands with its flag; what follows step t for a critic is obs[t + 1], the true start of the next
episode where one ended.
"""

import numpy as np
from gymnasium.spaces import Box, Discrete

from envs.multi_episode import add_flag, draw_seed, scale_actions
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.rollout import rollout
from src.run.config import num_known_tasks
from src.run.errors import UserError
from src.run.seeding import derive
from src.run.stepping import batch_class


class Problem:
    """What the scripts need to know of an environment.

    Args:
        env: EnvConfig. episodes: K.
    """

    def __init__(self, env, episodes):
        self.env, self.episodes, self.horizon = env, episodes, env.max_episode_steps
        self.steps = episodes * self.horizon
        self.environment = env.make(discrete=True)
        self.num_tasks = num_known_tasks(env, self.environment)
        self.tasks = {key: values[: self.num_tasks] for key, values in self.environment.unwrapped.tasks.items()}
        self.space = self.environment.action_space
        self.discrete = isinstance(self.space, Discrete)
        self.action_size = int(self.space.n) if self.discrete else self.space.shape[0]
        self.plain_size = self.environment.observation_space.shape[0]
        self.observation_size = self.plain_size + (episodes > 1)  # with the flag
        self.recorded = tuple(f"infos/{key}" for key in getattr(self.environment.unwrapped, "info_keys", ()))  # what rewards read

    def batch(self, task_ids, start=None, **options):
        """Episodes as the policy sees them, one row per entry of `task_ids`: a PolicyBatch.

        start: a start distribution other than that of evaluations; options: further keywords of the environment's batch.
        """
        if start and start != "fixed":
            options["start"] = start
        if options:
            rows = {key: values[np.asarray(task_ids)] for key, values in self.tasks.items()}
            batch = batch_class(self.environment)(rows, **options)
        else:
            batch = make_batch(self.env, task_ids)
        return PolicyBatch(batch, self)

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

    def rewards(self, task, obs, actions, next_obs, infos=None):
        """What task `task` pays for transitions (..., d), actions as the policy gives them -> (...,) float32.

        infos: dict that has the arrays (..., ...) named in `recorded`, where there are some. Raises UserError when the
        environment cannot say so, or not from these.
        """
        self.require_rewards(infos)
        actions = scale_actions(actions, self.space)
        plain = (np.asarray(values)[..., : self.plain_size] for values in (obs, next_obs))
        before, after = plain
        read = [{key.removeprefix("infos/"): infos[key] for key in self.recorded}] if self.recorded else []
        return np.asarray(self.environment.compute_rewards(before, actions, after, self._task(task), *read), dtype=np.float32)

    def require_rewards(self, infos=None):
        """Raises UserError where the environment cannot say what a task pays, or not from data with these infos."""
        if not hasattr(self.environment, "compute_rewards"):
            raise UserError(
                f"{self.env.env_type} cannot tell what another task would pay (its environment has no compute_rewards): give "
                "--hindsight-relabelling False"
            )
        missing = [key.removeprefix("infos/") for key in self.recorded if key not in (infos or {})]
        if missing:
            raise UserError(
                f"the rewards of {self.env.env_type} depend on the infos {', '.join(missing)}, which these data do not hold: "
                "make the data again, or give --hindsight-relabelling False"
            )

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
    """One roll-out of K episodes in every row, a row per entry of `task_ids`, by the shared roll-out.

    It stands beside src/evaluation/evaluate.py, whose episodes begin by other draws: a row's starts come from one generator here.

    Args:
        agent: an Agent (src/evaluation/agent.py) with actions in [−1, 1] (B, d_a) or (B,) int, adapted before every episode.
        names: a seed and what tells these roll-outs from others; they decide random starts.
        options: see `Problem.batch`.

    Returns:
        dict of arrays (B, T, ...): obs, actions, rewards, next_obs, what `recorded` names, and success where the environment
        tells it.
    """
    batch = problem.batch(task_ids, **options)
    generators = [np.random.default_rng(derive(*names, row)) for row in range(len(task_ids))]
    lived = []
    for _ in range(problem.episodes):
        agent.adapt(lived)
        lived = [*lived, rollout(agent, batch, [draw_seed(generator) for generator in generators], problem.horizon)]
    observations = [episode["observations"] for episode in lived]
    played = {
        "obs": np.concatenate([values[:, :-1] for values in observations], 1),
        "actions": np.concatenate([episode["actions"] for episode in lived], 1),
        "rewards": np.concatenate([episode["rewards"] for episode in lived], 1),
        "next_obs": np.concatenate([values[:, 1:] for values in observations], 1),
    }
    if problem.discrete:
        played["actions"] = played["actions"].astype(np.int64)
    for key in problem.recorded:
        parts = [episode["infos"][key.removeprefix("infos/")] for episode in lived]
        played[key] = np.concatenate(parts, 1).astype(np.float32)
    if "success" in lived[0]["infos"]:
        played["success"] = np.concatenate([episode["infos"]["success"] for episode in lived], 1)
    return played


class PolicyBatch:
    """Single episodes as a policy on hyper-states sees them: actions of its own range, and where a roll-out has several episodes
    one more feature, 1 on the last observation of an episode.

    Args:
        batch: the environments (`make_batch`). problem: Problem.
    """

    def __init__(self, batch, problem):
        self.batch, self.problem = batch, problem
        self.action_space = problem.space if problem.discrete else Box(-1.0, 1.0, (problem.action_size,))

    def reset(self, seeds):
        """seeds (B,) -> observations (B, d) float32."""
        self.steps = 0
        return add_flag(self.batch.reset(seeds), 0, self.problem.episodes)

    def step(self, actions):
        """actions (B, d_a) in [−1, 1], or (B,) whole numbers -> observations (B, d) float32, rewards (B,) float32."""
        self.steps += 1
        observations, rewards = self.batch.step(scale_actions(actions, self.problem.space))
        self.infos = getattr(self.batch, "infos", {})
        return add_flag(observations, self.steps == self.problem.horizon, self.problem.episodes), rewards


def random_actions(problem, generator):
    """An Agent of uniform actions: over [−1, 1], the policy's own range, not over the environment's smaller box."""

    def act(observations):
        if problem.discrete:
            return generator.integers(problem.action_size, size=len(observations))
        return generator.uniform(-1, 1, (len(observations), problem.action_size)).astype(np.float32)

    return PolicyAgent(act)


def episode_returns(problem, rewards):
    """rewards (..., T) -> undiscounted returns of the episodes (..., K)."""
    return rewards.reshape(*rewards.shape[:-1], problem.episodes, problem.horizon).sum(-1, dtype=np.float64)
