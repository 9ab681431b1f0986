"""Batches for the world model: context windows and the transitions to decode, with reward relabelling across tasks."""

import numpy as np
import torch

from src.context import context_windows


class TransitionSampler:
    """Draws (context window, transition to decode) pairs from episodes of the training tasks.

    Without relabelling the decoded transition is the one that follows the window, as in the paper. With it (BOReL's reward
    relabelling), a share of the windows gets the rewards that another training task would have paid for the same transitions,
    and what is decoded is a random transition of the whole data under that task: z can then tell the task only by the rewards
    and not by where the behaviour policy of the task went.

    Args:
        observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), lengths (E,), task_ids (E,): CPU tensors.
        horizon: h.
        relabel: None, or a function (observations, actions, next_observations, infos, task ids (...)) -> rewards (...), numpy.
        relabel_share: share of the windows that are moved to a task drawn uniformly among the tasks of the data.
        infos: dict key -> (E, T, ...): recorded facts that `relabel` may need.
    """

    def __init__(self, observations, actions, rewards, lengths, task_ids, horizon, relabel=None, relabel_share=0.5, infos=None):
        self.observations, self.actions, self.rewards, self.infos = observations, actions, rewards, infos or {}
        self.task_ids, self.horizon, self.relabel, self.relabel_share = task_ids, horizon, relabel, relabel_share
        self.tasks = task_ids.unique()
        self.cumulative = lengths.cumsum(0)
        self.size = int(self.cumulative[-1])

    def locate(self, index):
        """Flat transition numbers (B,) -> episodes (B,) and time steps (B,)."""
        episodes = torch.searchsorted(self.cumulative, index, right=True)
        starts = torch.cat([self.cumulative.new_zeros(1), self.cumulative[:-1]])
        return episodes, index - starts[episodes]

    def gather(self, index):
        """Windows before, and transitions at, flat numbers `index` (B,), with the rewards of the data.

        Returns: window (observations (B, h, d_s), actions (B, h, d_a), rewards (B, h, 1), mask (B, h)) and
        transition (observations (B, d_s), actions (B, d_a), rewards (B, 1), next_observations (B, d_s)).
        """
        window, (episodes, steps) = self._window(index)
        return window, self._transition(episodes, steps)

    def draw(self, batch, generator):
        """A training batch in the format of `gather`."""
        index = torch.randint(self.size, (batch,), generator=generator)
        window, (episodes, steps) = self._window(index)
        if self.relabel is None:
            return window, self._transition(episodes, steps)
        tasks = self.tasks[torch.randint(len(self.tasks), (batch,), generator=generator)]
        moved = torch.rand(batch, generator=generator) < self.relabel_share
        tasks = torch.where(moved, tasks, self.task_ids[episodes])
        observations, actions, _, mask = window
        rows, indices = episodes[:, None], context_windows(steps, self.horizon)[0]
        rewards = self._relabelled(rows, indices, tasks[:, None].expand(-1, self.horizon))
        elsewhere = self.locate(torch.randint(self.size, (batch,), generator=generator))
        observation, action, _, after = self._transition(*elsewhere)
        reward = self._relabelled(*elsewhere, tasks)
        return (observations, actions, rewards[..., None], mask), (observation, action, reward[..., None], after)

    def _window(self, index):
        episodes, steps = self.locate(index)
        indices, mask = context_windows(steps, self.horizon)
        rows = episodes[:, None]
        window = self.observations[rows, indices], self.actions[rows, indices], self.rewards[rows, indices][..., None], mask
        return window, (episodes, steps)

    def _transition(self, episodes, steps):
        rewards = self.rewards[episodes, steps][:, None]
        return self.observations[episodes, steps], self.actions[episodes, steps], rewards, self.observations[episodes, steps + 1]

    def _relabelled(self, episodes, steps, tasks):
        """Rewards (...) of the transitions at (episodes, steps) under `tasks`."""
        arrays = self.observations[episodes, steps], self.actions[episodes, steps], self.observations[episodes, steps + 1]
        infos = {key: values[episodes, steps].numpy() for key, values in self.infos.items()}
        return torch.from_numpy(np.asarray(self.relabel(*(a.numpy() for a in arrays), infos, tasks.numpy()), dtype=np.float32))
