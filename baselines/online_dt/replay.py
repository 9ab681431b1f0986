"""What is trained on: trajectories with the return-to-go that they achieved, sampled by length."""

import numpy as np
import torch

from src.data.windows import EpisodeTensors


class TrajectoryBuffer(EpisodeTensors):
    """Up to `capacity` trajectories; new ones fill free rows, then replace others.

    The row that is replaced is the next one in row order, as in the official code: `best` puts the worst trajectory first, so
    that the worst offline ones go first and the online ones last. With `keep_best` it is that of the lowest return, and a new
    trajectory below all that are there is not stored. The return-to-go of a stored trajectory is
    the sum of its own rewards from each step on (hindsight relabelling), unless `add` is told otherwise.

    Args:
        observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), lengths (E,): tensors on the training device, which are
            copied. capacity: rows, at least E. max_steps: T of the buffer. keep_best: see above.
    """

    def __init__(self, observations, actions, rewards, lengths, capacity, max_steps, keep_best=False):
        def extended(values, steps):
            rows = values.new_zeros(capacity, steps, *values.shape[2:])
            rows[: len(values), : min(steps, values.shape[1])] = values[:, :steps]
            return rows

        observations = extended(observations, max_steps + 1)
        super().__init__(
            observations,
            extended(actions, max_steps),
            extended(rewards, max_steps),
            torch.cat([lengths, lengths.new_zeros(capacity - len(lengths))]),
            observations.new_zeros(capacity, max_steps + 1, 0),  # contexts: this policy has none
            None,
        )
        self.first, self.keep_best = len(lengths), keep_best
        self.added = 0  # also those that were not stored
        self.cumulative = self.lengths.cumsum(0)

    def add(self, observations, actions, rewards, returns_to_go=None):
        """Store a trajectory: observations (L + 1, d_s), actions (L, d_a), rewards (L,).

        returns_to_go: (L,), what to condition on instead of the achieved ones (the ablation without relabelling).
        Returns: its row, or None when it was not stored.
        """
        row = (self.first + self.added) % len(self.lengths)
        self.added += 1
        if self.keep_best and self.lengths.all():
            inside = torch.arange(self.rewards.shape[1], device=self.lengths.device) < self.lengths[:, None]
            returns = self.rewards.double().masked_fill(~inside, 0).sum(1)
            row = int(returns.argmin())
            if rewards.double().sum() <= returns[row]:
                return None
        self.put(row, observations, actions, rewards, returns_to_go)
        return row

    def put(self, row, observations, actions, rewards, returns_to_go=None):
        """Write a trajectory, as `add` takes it, into one row."""
        length = len(rewards)
        achieved = rewards.double().flip(0).cumsum(0).flip(0).float()
        self.observations[row, : length + 1] = observations
        self.actions[row, :length] = actions
        self.rewards[row, :length] = rewards
        self.returns_to_go[row, :length] = achieved if returns_to_go is None else returns_to_go
        self.lengths[row] = length
        self.cumulative = self.lengths.cumsum(0)

    def draw(self, batch, length, generator, by_end=False):
        """`batch` windows of `length` steps, left-padded: a trajectory by its length, then a start uniform over its steps.

        by_end: it is the end that is uniform, for a policy that learns the last action of a window only (behaviour cloning; with
        uniform starts, as in the unofficial code, it would never see the first length − 1 actions of an episode).
        """
        pick = torch.randint(int(self.cumulative[-1]), (batch,), generator=generator).to(self.cumulative.device)
        episodes = torch.searchsorted(self.cumulative, pick, right=True)
        steps = self.cumulative[episodes] - 1 - pick
        return self.gather(episodes, steps - length + 1 if by_end else steps, length)


def best(returns, lengths, count=None, share=1.0):
    """Rows of the trajectories with the highest return, in ascending order of return.

    Args:
        returns, lengths: (E,). count: how many at most. share: stop before they exceed this share of all time steps (the best one
            is always kept).
    """
    order = np.argsort(-returns, kind="stable")[:count]
    inside = np.cumsum(lengths[order]) <= share * lengths.sum()
    inside[0] = True
    return order[inside][::-1]


def delayed(rewards, lengths):
    """All reward moved to the last step: rewards (E, T), lengths (E,) -> (E, T)."""
    moved = np.zeros_like(rewards)
    moved[np.arange(len(rewards)), lengths - 1] = rewards.sum(1, dtype=np.float64)
    return moved
