"""Batches for the sequence models: windows are gathered by (episode, start) index at batch time, none is ever materialised."""

import torch
import torch.nn.functional as F

from src.data.prompts import choose_starts


class EpisodeTensors:
    """Episodes of a dataset, or of a warm-up pool, as tensors on the training device.

    Args (E episodes of at most T steps; what lies beyond an episode's length is never read):
        observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), lengths (E,).
        contexts (E, T + 1, 16), and errors (E, T) of the world model, which choose the prompt: None where there is no world
            model; steps have no contexts then, and prompts are chosen without errors ("last", "random").
    """

    def __init__(self, observations, actions, rewards, lengths, contexts=None, errors=None):
        self.observations, self.actions, self.rewards = observations, actions, rewards
        self.lengths, self.contexts = lengths, contexts
        self.errors = torch.zeros_like(rewards) if errors is None else errors
        self.returns_to_go = returns_to_go(rewards, lengths)

    @property
    def inside(self):
        """(E, T) which steps exist."""
        return torch.arange(self.rewards.shape[1], device=self.lengths.device) < self.lengths[:, None]

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
        contexts = {} if self.contexts is None else {"contexts": self.contexts[rows, steps]}
        return contexts | {
            "returns_to_go": self.returns_to_go[rows, steps],
            "observations": self.observations[rows, steps],
            "actions": self.actions[rows, steps],
            "timesteps": steps,
            "mask": mask,
        }

    def final_contexts(self, episodes):
        """z after the whole of `episodes` (B,): (B, 16)."""
        return self.contexts[episodes, self.lengths[episodes]]

    def prompts(self, episodes, length, horizon, select, generator):
        """The self-guided prompt segment of each of `episodes` (B,): dict as `gather` gives but for z, k = `length` steps."""
        starts = choose_starts(self.errors[episodes], self.lengths[episodes], length, horizon, select, generator)
        prompt = self.gather(episodes, starts, length, align_right=False)
        prompt.pop("contexts", None)
        return prompt


def returns_to_go(rewards, lengths):
    """R̂_t = r_t + r_{t+1} + ... to the episode's end, undiscounted: rewards (E, T), lengths (E,) -> (E, T), 0 beyond the end."""
    inside = torch.arange(rewards.shape[1], device=rewards.device) < lengths[:, None]
    return rewards.double().masked_fill(~inside, 0).flip(1).cumsum(1).flip(1).to(rewards.dtype)


class BatchSampler:
    """Draws training batches: history windows, and prompts from episodes of the same task.

    Args:
        episodes: EpisodeTensors of the training tasks. task_ids: (E,) task of each episode.
        length: K. prompt_length: k. horizon: h. select: prompt selection (src/data/prompts.py).
        full_windows: draw only starts whose window is K steps long (ours); the paper draws any start and pads on the left.
        top_share: this share of every task's episodes is imitated, the best by return; prompts come from all (ours; 1 is the
            paper's way).
        best_steps: the share is not of episodes but of their steps, at each time t of those that last so long the ones with the
            best return-to-go: an episode that began badly is imitated from where it is good (ours).
        hindsight_share: this share of the windows gets, in place of its own contexts, the last context of another episode of
            the same task: what the world model knows in the end (ours; 0 is the paper's way).
    """

    def __init__(
        self, episodes, task_ids, length, prompt_length, horizon, select, full_windows, top_share=1.0, best_steps=False,
        hindsight_share=0.0, values=None,
    ):  # fmt: skip
        self.episodes, self.length, self.prompt_length = episodes, length, prompt_length
        self.horizon, self.select, self.hindsight_share = horizon, select, hindsight_share
        self.values = episodes.returns_to_go if values is None else values
        order = torch.argsort(task_ids, stable=True)
        _, inverse, counts = torch.unique(task_ids, return_inverse=True, return_counts=True)
        self.order = order  # episodes sorted by task: those of one task are neighbours
        self.first = (counts.cumsum(0) - counts)[inverse]  # (E,) where the task of each episode begins in `order`
        self.count = counts[inverse]
        steps, inside = torch.arange(episodes.rewards.shape[1], device=task_ids.device), episodes.inside
        chosen = [self._best(step, inside[:, step], top_share) for step in range(len(steps) if best_steps else 1)]
        self.imitated = torch.stack(chosen, 1) & inside  # (E, T) which steps the policy learns
        # A window may start where it holds such a step; it ends K steps later or with its episode.
        before = F.pad(self.imitated.cumsum(1), (1, 0))  # (E, T + 1) such steps before each
        starts = inside & (before[:, (steps + length).clamp_max(len(steps))] > before[:, :-1])
        if full_windows:
            starts &= steps < (episodes.lengths - length + 1).clamp_min(1)[:, None]
        self.starts = starts.nonzero()  # (N, 2) episode and start of every window

    def _best(self, step, alive, share):
        """Which episodes belong to the best `share` of their task's `alive` (E,) ones by the return from `step` on, at least one
        of each task: (E,) bool."""
        values = self.values[:, step].masked_fill(~alive, -torch.inf)
        by_value = torch.argsort(values, descending=True, stable=True)
        task = self.first[by_value]
        rank = torch.empty_like(self.first)
        rank[by_value[torch.argsort(task, stable=True)]] = torch.arange(len(rank), device=rank.device)
        count = torch.zeros_like(self.first).index_add_(0, self.first, alive.long())[self.first]
        return rank - self.first < (share * count).ceil().clamp_min(1)

    def draw(self, batch, generator, with_prompt):
        """(history, prompt or None): `batch` windows, uniform over all (episode, start) pairs that hold something to imitate.
        history has `imitated` (B, K) too, the steps of its mask that the policy learns, and `episodes` (B,), where it is from."""
        device = self.starts.device
        pick = torch.randint(len(self.starts), (batch,), generator=generator).to(device)
        episodes, starts = self.starts[pick].T
        history = self.episodes.gather(episodes, starts, self.length)
        history["episodes"] = episodes
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
