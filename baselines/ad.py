"""Algorithm Distillation (Laskin et al., 2023): cloning over learning histories, several episodes of one task in one context.

    python -m baselines.ad --env_type point_robot --data_quality replay

No return and no task is told: a causal transformer reads the reward of the last step, the state and the action of every step of E
episodes, the oldest first, and predicts every action. A training context is E episodes of one task in the order in which a
behaviour policy learned (replay data hold its checkpoints in that order), drawn at random, so that a context spans much of the
learning. Acting, the episodes lived so far stand before the running one; those of long ago are forgotten. Data of one checkpoint
(medium, expert) hold no learning, and teach cloning in context alone. Batches hold as many steps as those of the other sequence
methods: batch_size windows of history_length steps.

Differs from the original in what was not published as code: reward, state and action are a token each; time is counted over the
whole context, so that episodes tell each other apart; the policy is deterministic and the loss squared, as in the other methods.
"""

import dataclasses

import numpy as np
import torch
from src.evaluation.method import Evaluation, RunSettings, method_parser, train_and_measure
from src.run.settings import pick, setting

from baselines.sequence import Cloning, Sequence, cloning_loss, episode_tensors, make_policy
from src.models.transformer import attention_bias
from src.run.config import parse_args, positive_int, settings
from src.run.devices import keep_memory
from src.run.errors import UserError, main_guard
from src.run.loop import Optimisation


@dataclasses.dataclass(frozen=True)
class Context:
    """context"""

    context_episodes: int = setting(4, "E: episodes in one context", positive_int)


class Histories:
    """Draws contexts from the learning histories of the training tasks.

    Args: episodes: EpisodeTensors. task_ids: (E,), the episodes of a task in the order of learning. count: episodes in a context.
    Raises UserError where a task has fewer.
    """

    def __init__(self, episodes, task_ids, count):
        self.episodes, self.count = episodes, count
        self.rows = [(task_ids == task).nonzero()[:, 0] for task in task_ids.unique()]
        fewest = min(map(len, self.rows))
        if fewest < count:
            raise UserError(
                f"--context_episodes {count} is more than the {fewest} episodes that a task of these data has: lower it"
            )

    def draw(self, batch, generator):
        """`batch` contexts, tasks alike: rows (batch, count) of the episodes, in their order."""
        tasks = torch.randint(len(self.rows), (batch,), generator=generator).tolist()
        chosen = [torch.randperm(len(self.rows[task]), generator=generator)[: self.count].sort().values for task in tasks]
        return torch.stack(
            [self.rows[task][places.to(self.rows[task].device)] for task, places in zip(tasks, chosen, strict=True)]
        )


def context_of(episodes, rows, reward_scale):
    """Steps of whole episodes, one behind the other.

    Args: episodes: EpisodeTensors. rows: (B, n). reward_scale: mean and standard deviation of the rewards.
    Returns: dict as `MetaDT.forward` takes it, (B, n T, ...): conditions are the last reward, timesteps count on over the context.
    """
    length = episodes.rewards.shape[1]
    mask = torch.arange(length, device=rows.device) < episodes.lengths[rows][..., None]
    rewards = (episodes.rewards[rows] - reward_scale[0]) / reward_scale[1]
    rewards = torch.cat(
        [torch.zeros_like(rewards[..., :1]), rewards[..., :-1]], -1
    )  # an episode's first step was paid nothing yet
    steps = {
        "conditions": rewards[..., None],
        "observations": episodes.observations[rows][:, :, :-1],
        "actions": episodes.actions[rows],
        "mask": mask,
    }
    timesteps = torch.arange(rows.shape[1] * length, device=rows.device).expand(len(rows), -1)
    return {name: values.flatten(1, 2) for name, values in steps.items()} | {"timesteps": timesteps}


class HistoryAgent:
    """A frozen policy that acts behind the episodes that its rows have lived; keys and values of what was read are kept.

    Args: policy: MetaDT with conditions of one number. episodes: E, in a context. length: T. reward_scale: see `context_of`.
    """

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
            mask = steps["mask"].repeat_interleave(3, 1)
            _, self.past = self.policy.transformer(self.policy.history_tokens(steps), attention_bias(mask))
            self.unread = torch.zeros(mask.shape, device=self.device).masked_fill_(~mask, -torch.inf)[:, None]

    def start(self, observations):
        """Begin B episodes: observations (B, d_s)."""
        self.step, self.kept, self.action_token = 0, self.past, None
        self.observations, self.reward = self._tensor(observations), torch.zeros(len(observations), device=self.device)

    @torch.inference_mode()
    def act(self):
        """Actions (B, d_a) of the current step."""
        tokens = self._step_tokens(self.policy.action_scale.expand(len(self.observations), -1))[:, :2]  # the action is to come
        if self.action_token is not None:
            tokens = torch.cat([self.action_token, tokens], 1)
        length, known = tokens.shape[1], self.kept[0][0].shape[2] if self.kept else 0
        bias = attention_bias(torch.ones(1, length, dtype=torch.bool, device=self.device), known)
        if self.unread is not None:
            bias = bias.repeat(len(tokens), 1, 1)
            bias[:, :, : self.unread.shape[2]] += self.unread
        hidden, self.kept = self.policy.transformer(tokens, bias, readout=slice(length - 1, None), past=self.kept)
        return self.policy.read_actions(hidden[:, 0]).cpu().numpy()

    @torch.inference_mode()
    def observe(self, actions, rewards, next_observations):
        """What the environment answered: (B, d_a) as they were played, (B,), (B, d_s)."""
        self.action_token = self._step_tokens(self._tensor(actions))[:, 2:]
        self.observations, self.step = self._tensor(next_observations), self.step + 1
        self.reward = (self._tensor(rewards) - self.reward_scale[0]) / self.reward_scale[1]

    def _step_tokens(self, actions):
        """The three tokens of the current step, (B, 3, D)."""
        steps = {
            "conditions": self.reward[:, None, None],
            "observations": self.observations[:, None],
            "actions": actions[:, None],
        }
        return self.policy.history_tokens(steps | {"timesteps": torch.tensor([[self.first + self.step]], device=self.device)})

    def _tensor(self, values):
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.device)


def build(data, run, model, context, optimisation):
    """TrainingData, RunSettings, Sequence, Context, Optimisation -> Method."""
    length, count = run.env.max_episode_steps, context.context_episodes
    policy = make_policy(data, run, model, condition_size=1, max_steps=count * length)
    episodes = episode_tensors(data.episodes, run.device)
    histories = Histories(episodes, torch.from_numpy(data.episodes.task_ids).to(run.device), count)
    inside = torch.arange(episodes.rewards.shape[1], device=run.device) < episodes.lengths[:, None]
    reward_scale = episodes.rewards[inside].mean().item(), episodes.rewards[inside].std().item() + 1e-6
    batch = max(1, optimisation.batch_size * model.history_length // (count * length))

    def loss(generator):
        steps = context_of(episodes, histories.draw(batch, generator).to(run.device), reward_scale)
        return cloning_loss(policy, steps | {"imitated": steps["mask"]})

    return Cloning(policy, run.seed, optimisation, loss, lambda: HistoryAgent(policy, count, length, reward_scale))


@main_guard
def main(argv=None):
    args = parse_args(method_parser(__doc__, Sequence, Context, Optimisation), "baselines.ad", argv)
    run, evaluation, *kinds = (pick(cls, args) for cls in (RunSettings, Evaluation, Sequence, Context, Optimisation))
    keep_memory()
    return train_and_measure(
        "ad", run, evaluation, settings(args), kinds[-1].steps, lambda data: build(data, run, *kinds)
    )  # fmt: skip


if __name__ == "__main__":
    main()
