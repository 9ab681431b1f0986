"""Algorithm Distillation (Laskin et al., 2023): cloning over learning histories, several episodes of one task in one context.

    python -m baselines.ad --env_type point_robot --data_quality replay

No return and no task is told: a causal transformer reads the reward of the last step, the state and the action of every step of E
episodes, the oldest first, and predicts every action. A training context is E episodes of one task in the order in which a
behaviour policy learned (replay data hold its checkpoints in that order), drawn at random, so that a context spans much of the
learning. Acting, the last E - 1 episodes stand before the running one. Data of one checkpoint (medium, expert) hold no learning,
and teach cloning in context alone. Batches hold as many steps as the other methods': batch_size windows of history_length.
Differs from the original in what was not published as code: reward, state and action are a token each; time is counted over the
whole context, so that episodes tell each other apart; the policy is deterministic and the loss squared, as in the other methods.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from baselines.sequence import Cloning, Sequence, blank_policy, cloning_loss, episode_tensors, make_policy, run_method
from src.data.scales import clipped, scale_of
from src.evaluation.agent import as_tensor
from src.models.transformer import attention_bias
from src.run.errors import UserError, main_guard
from src.run.flags import positive_int
from src.run.loop import Optimisation
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class Context:
    """context"""

    context_episodes: int = setting(4, "E: episodes in one context", positive_int)


def draw_histories(histories, count, batch, generator):
    """Rows (batch, count): episodes of one task each, drawn at random, in order. histories: each task's rows, as it learned."""
    tasks = torch.randint(len(histories), (batch,), generator=generator).tolist()
    places = [torch.randperm(len(histories[task]), generator=generator)[:count].sort().values for task in tasks]
    return torch.stack([histories[task][order] for task, order in zip(tasks, places, strict=True)])


def context_of(episodes, rows, reward_scale):
    """Whole episodes, rows (B, n) of EpisodeTensors, one behind the other, as a dict that `MetaDT.forward` takes, (B, n T, ...):
    conditions are the last reward, time goes on over the context. reward_scale: see `scaled`."""
    rewards = scaled(episodes.rewards[rows], reward_scale)
    steps = {
        "conditions": F.pad(rewards, (1, -1))[..., None],  # 0 at an episode's first step, which no reward precedes
        "observations": episodes.observations[rows][:, :, :-1],
        "actions": episodes.actions[rows],
        "mask": episodes.inside[rows],
    }
    timesteps = torch.arange(rewards[0].numel(), device=rows.device).expand(len(rows), -1)
    return {name: values.flatten(1, 2) for name, values in steps.items()} | {"timesteps": timesteps}


def scaled(rewards, reward_scale):
    """Rewards (...) in units of those of training; reward_scale: what `src.data.scales.scale_of` gives of them as a column."""
    mean, divisor, bound = reward_scale
    return clipped((rewards - mean) / divisor, bound)


class HistoryAgent:
    """A frozen policy that acts behind the episodes that its rows have lived; keys and values of what was read are kept.
    episodes: E, in a context. length: T. reward_scale: see `scaled`."""

    def __init__(self, policy, episodes, length, reward_scale):
        self.policy, self.episodes, self.length, self.reward_scale = policy, episodes, length, reward_scale
        self.device = policy.observation_mean.device

    @torch.inference_mode()
    def adapt(self, episodes):
        """Read the last E - 1 of the episodes."""
        known = episodes[max(0, len(episodes) - self.episodes + 1) :]
        self.first, self.past, self.unread = len(known) * self.length, None, None
        if known:
            names = ("observations", "actions", "rewards", "lengths")
            arrays = {name: np.stack([episode[name] for episode in known], 1) for name in names}  # (B, n, ...)
            rows = torch.arange(arrays["lengths"].size, device=self.device).view(arrays["lengths"].shape)
            tensors = episode_tensors({name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}, self.device)
            steps = context_of(tensors, rows, self.reward_scale)
            mask = self.policy.by_token(steps["mask"])
            _, self.past = self.policy.transformer(self.policy.history_tokens(steps), attention_bias(mask))
            self.unread = torch.zeros(mask.shape, device=self.device).masked_fill_(~mask, -torch.inf)[:, None]

    def start(self, observations):  # (B, d_s)
        self.step, self.kept, self.action_token = 0, self.past, None
        self.observations, self.reward = as_tensor(observations, self.device), torch.zeros(len(observations), device=self.device)

    @torch.inference_mode()
    def act(self):
        """Actions (B, d_a) of the current step."""
        tokens = self._step_tokens(self.policy.action_scale.expand(len(self.observations), -1))[:, :2]  # the action is to come
        tokens = tokens if self.action_token is None else torch.cat([self.action_token, tokens], 1)
        length, known = tokens.shape[1], self.kept[0][0].shape[2] if self.kept else 0
        bias = attention_bias(torch.ones(1, length, dtype=torch.bool, device=self.device), known)
        if self.unread is not None:
            bias = bias.repeat(len(tokens), 1, 1)
            bias[:, :, : self.unread.shape[2]] += self.unread
        hidden, self.kept = self.policy.transformer(tokens, bias, readout=slice(length - 1, None), past=self.kept)
        return self.policy.read_actions(hidden[:, 0]).cpu().numpy()

    @torch.inference_mode()
    def observe(self, actions, rewards, next_observations):
        self.action_token = self._step_tokens(as_tensor(actions, self.device))[:, 2:]
        self.observations, self.step = as_tensor(next_observations, self.device), self.step + 1
        self.reward = scaled(as_tensor(rewards, self.device), self.reward_scale)

    def _step_tokens(self, actions):  # the three of the current step, (B, 3, D)
        steps = {"conditions": self.reward[:, None], "observations": self.observations, "actions": actions}
        steps["timesteps"] = torch.full((1,), self.first + self.step, device=self.device)
        return self.policy.history_tokens({name: values[:, None] for name, values in steps.items()})


def build(data, run, model, context, optimisation):
    """TrainingData, RunSettings, Sequence, Context, Optimisation -> Method."""
    length, count = run.env.max_episode_steps, context.context_episodes
    policy = make_policy(data, run, model, condition_size=1, max_steps=count * length)
    episodes, tasks = episode_tensors(data.episodes, run.device), torch.from_numpy(data.episodes.task_ids)
    histories = [(tasks == task).nonzero()[:, 0] for task in tasks.unique()]
    if count > min(map(len, histories)):
        raise UserError(f"--context_episodes {count}: a task of these data has {min(map(len, histories))} episodes; lower it")
    reward_scale = scale_of(episodes.rewards[episodes.inside][:, None])
    batch = max(1, optimisation.batch_size * model.history_length // (count * length))

    def loss(generator):
        rows = draw_histories(histories, count, batch, generator).to(run.device)
        steps = context_of(episodes, rows, reward_scale)
        return cloning_loss(policy, steps | {"imitated": steps["mask"]})

    known = {"reward_scale": torch.stack(reward_scale)}
    return Cloning(policy, run.seed, optimisation, loss, lambda: HistoryAgent(policy, count, length, reward_scale), known)


def restore(saved):
    """Saved -> (policy, function warmup -> Agent)."""
    model, context = saved.pick(Sequence, Context)
    count, length = context.context_episodes, saved.horizon
    policy = saved.filled(blank_policy(saved.sizes, count * length, model, condition_size=1))
    return policy, lambda warmup: HistoryAgent(policy, count, length, saved.tensor("reward_scale").unbind())


@main_guard
def main(argv=None):
    return run_method("ad", __doc__, build, (Sequence, Context, Optimisation), argv)


if __name__ == "__main__":
    main()
