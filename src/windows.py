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

        align_right: put the padding on the left (history windows), else on the right (prompts). A start may be negative: the
        steps before the first are padding then.
        Returns: dict of returns_to_go (B, length), observations, contexts, actions, timesteps, mask. Padding reads step 0 of the
        episode and is masked, so that its values cannot matter.
        """
        missing = (starts + length - self.lengths[episodes]).clamp_min(0) if align_right else torch.zeros_like(starts)
        steps = (starts - missing)[:, None] + torch.arange(length, device=starts.device)
        mask = (steps >= starts.clamp_min(0)[:, None]) & (steps < self.lengths[episodes][:, None])
        steps, rows = steps * mask, episodes[:, None]
        return {
            "returns_to_go": self.returns_to_go[rows, steps],
            "observations": self.observations[rows, steps],
            "contexts": self.contexts[rows, steps],
            "actions": self.actions[rows, steps],
            "timesteps": steps,
            "mask": mask,
        }

    def final_contexts(self, episodes):
        """z after the whole of `episodes` (B,): (B, 16)."""
        return self.contexts[episodes, self.lengths[episodes]]

    def prompts(self, episodes, length, horizon, select, generator):
        """The self-guided prompt segment of each of `episodes` (B,): dict as `gather` gives, k = `length` steps.

        A prompt comes from a finished episode, so with running contexts (horizon 0) its z is the one after the whole episode.
        """
        starts = choose_starts(self.errors[episodes], self.lengths[episodes], length, horizon, select, generator)
        prompt = self.gather(episodes, starts, length, align_right=False)
        if not horizon:
            prompt["contexts"] = self.final_contexts(episodes)[:, None].expand(-1, length, -1)
        return prompt


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
        top_share: this share of every task's episodes is imitated, the best by return; prompts come from all (ours; 1 is the
            paper's way).
        best_steps: the share is not of episodes but of their steps, at each time those with the best return-to-go: an episode
            that began well and then overshot is imitated until it did (ours).
        hindsight_share: this share of the windows gets, in place of its own contexts, the last context of another episode of
            the same task: what the world model knows in the end (ours; 0 is the paper's way).
    """

    def __init__(
        self, episodes, task_ids, length, prompt_length, horizon, select, full_windows, top_share=1.0, best_steps=False,
        hindsight_share=0.0,
    ):  # fmt: skip
        self.episodes, self.length, self.prompt_length = episodes, length, prompt_length
        self.horizon, self.select, self.hindsight_share = horizon, select, hindsight_share
        order = torch.argsort(task_ids, stable=True)
        _, inverse, counts = torch.unique(task_ids, return_inverse=True, return_counts=True)
        self.order = order  # episodes sorted by task: those of one task are neighbours
        self.first = (counts.cumsum(0) - counts)[inverse]  # (E,) where the task of each episode begins in `order`
        self.count = counts[inverse]
        inside = torch.arange(episodes.rewards.shape[1], device=task_ids.device) < episodes.lengths[:, None]
        values = episodes.returns_to_go.masked_fill(~inside, -torch.inf)  # (E, T)
        columns = [self._best(column, top_share) for column in (values.T if best_steps else values[:, :1].T)]
        self.imitated = torch.stack(columns, 1) & inside  # (E, T) which steps the policy learns
        windows = (episodes.lengths - length + 1).clamp_min(1) if full_windows else episodes.lengths
        self.cumulative = (windows * self.imitated.any(1)).cumsum(0)  # episodes that are left out have no window

    def _best(self, values, share):
        """Which episodes belong to the best `share` of their task by values (E,), at least one of each: (E,) bool."""
        by_value = torch.argsort(values, descending=True, stable=True)
        task = self.first[by_value]
        rank = torch.empty_like(self.first)
        rank[by_value[torch.argsort(task, stable=True)]] = torch.arange(len(rank), device=rank.device)
        return rank - self.first < (share * self.count).ceil().clamp_min(1)

    def draw(self, batch, generator, with_prompt):
        """(history, prompt or None): `batch` windows, uniform over all (episode, start) pairs. history has `imitated` (B, K) too,
        the steps of its mask that the policy learns."""
        device = self.cumulative.device
        pick = torch.randint(int(self.cumulative[-1]), (batch,), generator=generator).to(device)
        episodes = torch.searchsorted(self.cumulative, pick, right=True)
        starts = self.cumulative[episodes] - 1 - pick  # any one-to-one map of the pairs of an episode onto its starts
        history = self.episodes.gather(episodes, starts, self.length)
        history["imitated"] = self.imitated[episodes[:, None], history["timesteps"]] & history["mask"]
        if self.hindsight_share:
            known = self.episodes.final_contexts(self._same_task(episodes, generator))[:, None]
            chosen = torch.rand(batch, generator=generator).to(device) < self.hindsight_share
            history["contexts"] = torch.where(chosen[:, None, None], known, history["contexts"])
        if not with_prompt:
            return history, None
        others = self._same_task(episodes, generator)
        return history, self.episodes.prompts(others, self.prompt_length, self.horizon, self.select, generator)

    def _same_task(self, episodes, generator):
        """A uniformly drawn episode of the same task for each of `episodes` (B,)."""
        share = torch.rand(len(episodes), generator=generator).to(episodes.device)
        return self.order[self.first[episodes] + (share * self.count[episodes]).long()]
