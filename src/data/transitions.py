"""Batches for the world model: context windows and the transitions to decode, with reward relabelling across tasks."""

import dataclasses

import numpy as np
import torch

from src.run.config import fraction, positive_int
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class Decoding:
    """what is decoded"""

    decode: str = setting(
        "own", "the episode's next transition (the paper), any of the task, or any, under relabelled rewards (both ours)",
        choices=["own", "task", "relabelled"],
    )  # fmt: skip
    true_rewards: bool = setting(False, "relabel by the environment's reward function, not by a learned one (an ablation)")
    relabel_share: float = setting(0.5, "share of the windows that --decode relabelled moves to another task", fraction)
    shuffle_share: float = setting(0.0, "share of the windows made of any transitions in any order", fraction)
    per_context: int = setting(1, "transitions decoded by each context", positive_int)


def make_sampler(episodes, horizon, decoding=Decoding(), rewards=None):
    """TransitionSampler over Trajectories; relabelling needs Rewards (src/data/relabel.py)."""
    arrays = (torch.from_numpy(getattr(episodes, name)) for name in ("observations", "actions", "rewards", "lengths", "task_ids"))
    if decoding.decode != "relabelled":
        return TransitionSampler(*arrays, horizon, across_episodes=decoding.decode == "task")
    infos = {key: torch.from_numpy(values) for key, values in episodes.infos.items()}
    return TransitionSampler(*arrays, horizon, rewards, decoding.relabel_share, infos, shuffle_share=decoding.shuffle_share, per_context=decoding.per_context)


class TransitionSampler:
    """Draws (context window, transition to decode) pairs from episodes of the training tasks.

    Without relabelling the decoded transition is the one that follows the window, as in the paper. With it (BOReL's reward
    relabelling), a share of the windows gets the rewards that another training task would have paid for the same transitions,
    and what is decoded is a random transition of the whole data under that task: z can then tell the task only by the rewards
    and not by where the behaviour policy of the task went. `across_episodes` does the like where tasks differ in their dynamics:
    what is decoded is a random transition of the same task, so that z must keep the task and not the moment.

    Args:
        observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), lengths (E,), task_ids (E,): CPU tensors.
        horizon: h, or 0 for running contexts: whole episodes are drawn then, and each of their steps is a transition to decode.
        relabel: None, or Rewards. What a task has recorded itself stays as it is recorded.
        relabel_share: share of the windows that are moved to a task drawn uniformly among the tasks of the data.
        infos: dict key -> (E, T, ...): recorded facts that these may need.
        across_episodes: decode transitions of any episode of the task; without relabelling only.
    """

    def __init__(self, observations, actions, rewards, lengths, task_ids, horizon, relabel=None, relabel_share=0.5, infos=None,
                 across_episodes=False, shuffle_share=0.0, per_context=1):  # fmt: skip
        self.shuffle_share, self.per_context = shuffle_share, per_context
        self.observations, self.actions, self.rewards, self.infos = observations, actions, rewards, infos or {}
        self.lengths, self.task_ids, self.horizon = lengths, task_ids, horizon
        self.relabel, self.relabel_share = relabel, relabel_share
        self.across_episodes = across_episodes
        self.episodes_of = {int(task): (task_ids == task).nonzero()[:, 0] for task in task_ids.unique()}
        self.tasks = torch.tensor(list(self.episodes_of))
        self.cumulative = lengths.cumsum(0)
        self.size = int(self.cumulative[-1])

    def chunks(self, size):
        """All the data in order, `size` transitions at a time, with its own rewards; batches as `draw` gives."""
        if self.horizon:
            for first in range(0, self.size, size):
                episodes, steps = self._locate(torch.arange(first, min(first + size, self.size)))
                yield self._window(episodes, steps)[0], self._transition(episodes, steps)
        else:
            for rows in torch.arange(len(self.lengths)).split(max(1, size // self.rewards.shape[1])):
                window, _ = self._whole(rows)
                index = window[3].nonzero()
                yield window, self._transition(rows[index[:, 0]], index[:, 1])

    def draw(self, batch, generator):
        """A training batch of about `batch` transitions.

        Returns: window, transition. With a horizon, the window is (observations (B, h, d_s), actions (B, h, d_a), rewards
        (B, h, 1), mask (B, h)). With running contexts it is whole episodes (B, T, ...) and the mask says which of their
        steps exist. The transition (observations (N, d_s), actions (N, d_a), rewards (N, 1), next_observations (N, d_s)) has
        one row for each context that `WorldModel.contexts` makes of the window.
        """
        if self.horizon:
            episodes, steps = self._locate(torch.randint(self.size, (batch,), generator=generator))
            window, places = self._window(episodes, steps)
        else:
            rows = torch.randint(len(self.lengths), (max(1, batch // self.rewards.shape[1]),), generator=generator)
            window, places = self._whole(rows)
            index = window[3].nonzero()
            episodes, steps = rows[index[:, 0]], index[:, 1]
        if self.relabel is None:
            if self.across_episodes:
                episodes, steps = self._same_task(episodes, generator)
            return window, self._transition(episodes, steps)
        observations, actions, _, mask = window
        rows = episodes if self.horizon else rows
        tasks = self.tasks[torch.randint(len(self.tasks), (len(rows),), generator=generator)]
        moved = torch.rand(len(rows), generator=generator) < self.relabel_share
        tasks = torch.where(moved, tasks, self.task_ids[rows])
        if self.shuffle_share:
            shuffled = (torch.rand(len(rows), generator=generator) < self.shuffle_share)[:, None]
            anywhere = self._locate(torch.randint(self.size, mask.shape, generator=generator))
            places = [torch.where(shuffled, any_, own) for any_, own in zip(anywhere, places)]
            observations, actions = self.observations[tuple(places)], self.actions[tuple(places)]
            mask = mask | shuffled
        rewards = self._relabelled(*places, tasks[:, None].expand(mask.shape))
        if not self.horizon:
            tasks = tasks[:, None].expand(mask.shape)[mask].repeat_interleave(self.per_context)
        elsewhere = self._locate(torch.randint(self.size, tasks.shape, generator=generator))
        observation, action, _, after = self._transition(*elsewhere)
        reward = self._relabelled(*elsewhere, tasks)
        return (observations, actions, rewards[..., None], mask), (observation, action, reward[..., None], after)

    def _locate(self, index):
        """Flat transition numbers (B,) -> episodes (B,) and time steps (B,)."""
        episodes = torch.searchsorted(self.cumulative, index, right=True)
        return episodes, index - (self.cumulative - self.lengths)[episodes]

    def _same_task(self, episodes, generator):
        """Episodes (B,) -> random transitions of the same tasks: episodes (B,) and time steps (B,)."""
        tasks, order = self.task_ids[episodes], torch.rand(2, len(episodes), generator=generator)
        chosen = torch.empty_like(episodes)
        for task in tasks.unique().tolist():
            rows, known = tasks == task, self.episodes_of[task]
            chosen[rows] = known[(order[0, rows] * len(known)).long()]
        return chosen, (order[1] * self.lengths[chosen]).long()

    def _window(self, episodes, steps):
        """Windows before `steps`, and (episodes, steps) of their transitions."""
        indices, mask = context_windows(steps, self.horizon)
        rows = episodes[:, None]
        window = self.observations[rows, indices], self.actions[rows, indices], self.rewards[rows, indices][..., None], mask
        return window, (rows, indices)

    def _whole(self, rows):
        """Whole episodes, and (episodes, steps) of their transitions."""
        mask = torch.arange(self.rewards.shape[1]) < self.lengths[rows, None]
        window = self.observations[rows, :-1], self.actions[rows], self.rewards[rows][..., None], mask
        return window, (rows[:, None], torch.arange(self.rewards.shape[1]))

    def _transition(self, episodes, steps):
        rewards = self.rewards[episodes, steps][:, None]
        return self.observations[episodes, steps], self.actions[episodes, steps], rewards, self.observations[episodes, steps + 1]

    def _relabelled(self, episodes, steps, tasks):
        """Rewards (...) of the transitions at (episodes, steps) under `tasks`."""
        episodes, steps, tasks = torch.broadcast_tensors(episodes, steps, tasks)
        rewards, moved = self.rewards[episodes, steps], tasks != self.task_ids[episodes]
        rows, times = episodes[moved], steps[moved]
        arrays = self.observations[rows, times], self.actions[rows, times], self.observations[rows, times + 1]
        infos = {key: values[rows, times].numpy() for key, values in self.infos.items()}
        paid = self.relabel(*(array.numpy() for array in arrays), infos, tasks[moved].numpy())
        rewards[moved] = torch.from_numpy(np.asarray(paid, np.float32))
        return rewards


def context_windows(starts_at, horizon):
    """Indices of the windows t-h ... t-1 of time steps t (B,): (B, h) indices (0 where padded) and mask (B, h)."""
    indices = starts_at[:, None] + torch.arange(-horizon, 0, device=starts_at.device)
    mask = indices >= 0
    return indices.clamp_min(0), mask
