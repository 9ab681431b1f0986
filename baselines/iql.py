"""IQL in context: value learning over histories of several episodes, no task representation (Tarasov et al. 2025, arXiv
2502.17666).

    python -m baselines.iql --env_type point_robot --data_quality replay

A GRU reads the transitions lived on a task, over the borders of episodes; actor and critics act on (s, h), so that adaptation is
in h alone. At every step of a recorded history IQL's losses (baselines/actor_critic.py) are taken before and after its step;
the GRU learns through the critics' loss. The paper's model is a transformer over 100 tasks' learning histories; this is the idea
at the size of the others here. Zero-shot h begins empty and reads the running episode; few-shot it has read the warm-up ones too.
"""

import dataclasses
import typing

import torch
from torch import nn

from baselines.actor_critic import IQL, Actor, ActorCriticSettings
from baselines.context_rl import ContextData, ContextSettings, Normaliser, prepare
from src.evaluation.agent import as_tensor
from src.evaluation.method import Evaluation, RunSettings, method_parser, train_and_measure
from src.run.command_line import is_given, parse_args, settings
from src.run.devices import keep_memory
from src.run.errors import UserError, main_guard
from src.run.flags import positive_int
from src.run.loop import schedule_factor
from src.run.seeding import derive, torch_generator
from src.run.settings import pick, setting

UNREAD = "batch_size prior_share encoder_learning_rate reward_scale kl_weight kl_weight_max kl_target dual_steps".split()  # noqa: SIM905


@dataclasses.dataclass(frozen=True)
class HistorySettings:
    """history"""

    memory_size: int = setting(64, "k, numbers in the hidden state", positive_int)


class HistoryPolicy(nn.Module):
    """All that acts: normaliser, GRU, actor."""

    def __init__(self, normaliser, sizes, memory_size, rl):
        super().__init__()
        self.normaliser, self.size = normaliser, memory_size
        self.memory = nn.GRU(2 * sizes[0] + sizes[1] + 1, memory_size, batch_first=True)
        self.actor = Actor(sizes[0], memory_size, sizes[1], rl)

    def hidden(self, features):
        """Features of transitions (B, n, f) -> h (B, n + 1, k) before each of them and after the last."""
        return nn.functional.pad(self.memory(features)[0], (0, 0, 1, 0))


class HistoryAgent:
    """A HistoryPolicy as an Agent (src/evaluation/agent.py)."""

    def __init__(self, policy, device):
        self.policy, self.device = policy, device

    def _tensor(self, array):
        return as_tensor(array, self.device)

    @torch.inference_mode()
    def adapt(self, episodes):
        """h after all transitions of `episodes`; those beyond a row's end change nothing."""
        self.lived = None  # (1, B, k)
        for episode in episodes:
            observations = episode["observations"]
            before = torch.zeros(1, len(observations), self.policy.size, device=self.device)
            for step in range(int(episode["lengths"].max())):
                before = before if self.lived is None else self.lived
                lived = observations[:, step], episode["actions"][:, step], episode["rewards"][:, step], observations[:, step + 1]
                inside = torch.as_tensor(step < episode["lengths"], device=self.device)
                self.lived = torch.where(inside[None, :, None], self._read(*lived, before), before)

    def _read(self, observations, actions, rewards, following, before):
        features = self.policy.normaliser.features(*map(self._tensor, (observations, actions, rewards, following)))
        return self.policy.memory(features[:, None], before)[1]

    def start(self, observations):
        self.observations = observations
        empty = torch.zeros(1, len(observations), self.policy.size, device=self.device)
        self.hidden = empty if self.lived is None else self.lived

    @torch.inference_mode()
    def act(self):
        normaliser = self.policy.normaliser
        actions = self.policy.actor(normaliser.observations(self._tensor(self.observations)), self.hidden[0]).centre()
        return normaliser.played(actions).cpu().numpy()

    @torch.inference_mode()
    def observe(self, actions, rewards, next_observations):
        self.hidden = self._read(self.observations, actions, rewards, next_observations, self.hidden)
        self.observations = next_observations


class HistoryIQL:
    """A Method (src/evaluation/method.py)."""

    known: typing.ClassVar = {}  # all that acts is among the weights

    def __init__(self, data, contexts, rl, history, device, seed, rewards=None):
        self.settings, self.rl, self.device = contexts, rl, device
        normaliser = Normaliser.of(data.episodes, data.environment.action_space).to(device)
        self.generator = torch_generator(seed, "batches")
        self.data = ContextData(data.episodes, normaliser, contexts, device, self.generator, rewards)
        sizes = data.episodes.observations.shape[-1], data.episodes.actions.shape[-1]
        torch.manual_seed(derive(seed, "weights"))
        self.policy = HistoryPolicy(normaliser, sizes, history.memory_size, rl).to(device)
        shared = list(self.policy.memory.parameters())
        self.iql = IQL(self.policy.actor, (*sizes, history.memory_size), rl, device, shared)
        self.parts, self.weights = {"model": self.policy, "batches": self.generator, **self.iql.parts}, {"model": self.policy}

    def update(self, step):
        """Update number `step` (from 1) -> dict of detached losses, "loss" their sum."""
        for group in self.iql.optimizer.param_groups:
            group["lr"] = self.rl.learning_rate * schedule_factor(step - 1, self.settings.steps, 0, self.rl.lr_schedule)
        features, mask, batch = self.data.histories(self.data.draw_tasks())
        hidden = self.policy.hidden(features)
        inside = {key: values[mask][None] for key, values in batch.items()}
        losses = self.iql.step(self.iql.losses(inside, hidden[:, :-1][mask][None], hidden[:, 1:][mask][None]))
        return losses | {"loss": sum(losses.values())}

    def agent(self, warmup):
        """The current policy as a new Agent."""
        return HistoryAgent(self.policy, self.device)


def restore(saved):
    """Saved -> (HistoryPolicy, function warmup -> Agent)."""
    rl, history = saved.pick(ActorCriticSettings, HistorySettings)
    policy = saved.filled(HistoryPolicy(Normaliser.blank(saved.sizes), saved.sizes, history.memory_size, rl))
    return policy, lambda warmup: HistoryAgent(policy, saved.device)


@main_guard
def main(argv=None):
    args = parse_args(method_parser(__doc__, ContextSettings, HistorySettings, ActorCriticSettings), "baselines.iql", argv)
    if unread := [name for name in UNREAD if is_given(name, argv)] + ["rl"] * (args.rl != "iql"):
        raise UserError(f"--{unread[0]} has no effect on IQL over whole histories: leave it out")
    keep_memory()
    chosen = [pick(kind, args) for kind in (ContextSettings, ActorCriticSettings, HistorySettings)]
    run, evaluation = pick(RunSettings, args), pick(Evaluation, args)
    rewards, more = prepare(run, evaluation, *chosen[:2])
    method = (*chosen, args.device, args.seed, rewards)
    return train_and_measure("iql", run, evaluation, settings(args), args.steps, lambda data: HistoryIQL(data, *method), **more)


if __name__ == "__main__":
    main()
