"""Batches for the sequence models: windows are gathered by (episode, start) index at batch time, none is ever materialised."""

import torch

from src.prompts import choose_starts


class EpisodeTensors:
    """Episodes of a dataset, or of a warm-up pool, as tensors on the training device.

    Args (E episodes of at most T steps; what lies beyond an episode's length is never read):
        observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), lengths (E,), contexts (E, T + 1, 16),
        errors (E, T): world-model errors that choose the prompt.
    """

    def __init__(self, observations, actions, rewards, lengths, contexts, errors):
        self.observations, self.actions, self.rewards = observations, actions, rewards
        self.lengths, self.contexts, self.errors = lengths, contexts, errors
        self.returns_to_go = returns_to_go(rewards, lengths)

    def gather(self, episodes, starts, length, align_right=True):
        """Windows of `length` steps from `starts` (B,) of `episodes` (B,); steps past the episode's end are masked.

        align_right: put the padding on the left (history windows), else on the right (prompts).
        Returns: dict of returns_to_go (B, length), observations, contexts, actions, timesteps, mask. Padding reads step 0 of the
        episode and is masked, so that its values cannot matter.
        """
        missing = (starts + length - self.lengths[episodes]).clamp_min(0) if align_right else torch.zeros_like(starts)
        steps = (starts - missing)[:, None] + torch.arange(length, device=starts.device)
        mask = (steps >= starts[:, None]) & (steps < self.lengths[episodes][:, None])
        steps, rows = steps * mask, episodes[:, None]
        return {
            "returns_to_go": self.returns_to_go[rows, steps],
            "observations": self.observations[rows, steps],
            "contexts": self.contexts[rows, steps],
            "actions": self.actions[rows, steps],
            "timesteps": steps,
            "mask": mask,
        }

    def prompts(self, episodes, length, horizon, select, generator):
        """The self-guided prompt segment of each of `episodes` (B,): dict as `gather` gives, k = `length` steps."""
        starts = choose_starts(self.errors[episodes], self.lengths[episodes], length, horizon, select, generator)
        return self.gather(episodes, starts, length, align_right=False)


def returns_to_go(rewards, lengths):
    """R̂_t = r_t + r_{t+1} + ... to the episode's end, undiscounted: rewards (E, T), lengths (E,) -> (E, T), 0 beyond the end."""
    inside = torch.arange(rewards.shape[1], device=rewards.device) < lengths[:, None]
    return rewards.double().masked_fill(~inside, 0).flip(1).cumsum(1).flip(1).to(rewards.dtype)


class BatchSampler:
    """Draws training batches: history windows, and prompts from episodes of the same task.

    Args:
        episodes: EpisodeTensors of the training tasks. task_ids: (E,) task of each episode.
        length: K. prompt_length: k. horizon: h. select: prompt selection (src/prompts.py).
        full_windows: draw only starts whose window is K steps long (ours); the paper draws any start and pads on the left.
    """

    def __init__(self, episodes, task_ids, length, prompt_length, horizon, select, full_windows):
        self.episodes, self.length, self.prompt_length = episodes, length, prompt_length
        self.horizon, self.select, self.full_windows = horizon, select, full_windows
        order = torch.argsort(task_ids, stable=True)
        _, inverse, counts = torch.unique(task_ids, return_inverse=True, return_counts=True)
        self.order = order  # episodes sorted by task: those of one task are neighbours
        self.first = (counts.cumsum(0) - counts)[inverse]  # (E,) where the task of each episode begins in `order`
        self.count = counts[inverse]
        self.cumulative = self._starts_per_episode().cumsum(0)

    def _starts_per_episode(self):
        lengths = self.episodes.lengths
        return (lengths - self.length + 1).clamp_min(1) if self.full_windows else lengths

    def draw(self, batch, generator, with_prompt):
        """(history, prompt or None): `batch` windows, uniform over all (episode, start) pairs."""
        device = self.cumulative.device
        pick = torch.randint(int(self.cumulative[-1]), (batch,), generator=generator).to(device)
        episodes = torch.searchsorted(self.cumulative, pick, right=True)
        starts = self.cumulative[episodes] - 1 - pick  # any one-to-one map of the pairs of an episode onto its starts
        history = self.episodes.gather(episodes, starts, self.length)
        if not with_prompt:
            return history, None
        share = torch.rand(batch, generator=generator).to(device)
        others = self.order[self.first[episodes] + (share * self.count[episodes]).long()]
        return history, self.episodes.prompts(others, self.prompt_length, self.horizon, self.select, generator)
