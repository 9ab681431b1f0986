"""Evaluation as several papers do it: the agent is shown recorded episodes of the test task itself in the place of its own."""

import numpy as np
import torch

from src.evaluation.method import StrictProtocol
from src.run.errors import UserError
from src.run.seeding import torch_generator


class ShownAgent:
    """An Agent that adapts to `episodes` (list of Episodes of its rows), whatever it has lived itself."""

    def __init__(self, agent, episodes):
        self.agent, self.episodes = agent, episodes
        self.start, self.act, self.observe = agent.start, agent.act, agent.observe

    def adapt(self, episodes):
        self.agent.adapt(self.episodes)


class ShownProtocol(StrictProtocol):
    """Every evaluated episode has `count` episodes of its test task, drawn from `dataset`, before it.

    They are data of the test tasks, so the results stand apart, under the protocol `name`.

    Args: run, evaluation, test_tasks: as of StrictProtocol. dataset: Trajectories.
    Raises UserError where a test task has no episode.
    """

    def __init__(self, run, evaluation, test_tasks, name, dataset, count):
        super().__init__(run, evaluation, test_tasks)
        missing = [task for task in test_tasks if not (dataset.task_ids == task).any()]
        if missing:
            raise UserError(f"test task {missing[0]} has no recorded episodes to show: make its data, or measure without them")
        self.name, self.dataset, self.count = name, dataset, count

    def curve(self, agent, warmup):
        return super().curve(self._shown(agent, self.evaluation.curve_episodes), 0)

    def final(self, agent, warmup, keep=0, watch=None):
        return super().final(self._shown(agent, self.evaluation.eval_episodes), 0, keep, watch)

    def _shown(self, agent, episodes):
        tasks, generator = np.repeat(self.test_tasks, episodes), torch_generator(self.run.seed, "shown")
        chosen = [self.dataset.take(draw_of_tasks(self.dataset, tasks, generator)) for _ in range(self.count)]
        names = ("observations", "actions", "rewards", "lengths")
        return ShownAgent(agent, [{name: getattr(episode, name) for name in names} for episode in chosen])


def draw_of_tasks(dataset, tasks, generator):
    """A uniformly drawn episode of each of `tasks` (B,): rows (B,) of `dataset`."""
    share = torch.rand(len(tasks), generator=generator).numpy()
    rows = [np.flatnonzero(dataset.task_ids == task) for task in tasks]
    return np.array([found[int(part * len(found))] for found, part in zip(rows, share, strict=True)])
