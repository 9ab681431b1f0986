"""Meta-DT in training: the method's settings, its batches and its loss (the contract of Method, src/evaluation/method.py)."""

import dataclasses

import numpy as np
import torch

from src.data import trajectories
from src.data.relabel import with_best_of_other_tasks
from src.data.windows import BatchSampler
from src.models.load import Acting
from src.models.meta_dt import MetaDT, action_errors, masked_mean
from src.models.meta_dt_agent import build_episodes, training_errors
from src.models.world_model import episode_contexts
from src.run import distributed
from src.run.devices import autocast_dtype
from src.run.flags import fraction, natural
from src.run.seeding import derive, torch_generator
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class Imitation:
    """what is imitated (ours; the defaults are the paper's)"""

    top_share: float = setting(1.0, "this best share of each task's episodes", fraction)
    imitate: str = setting(
        "episodes", "steps: the share is of the steps at each time, by return-to-go", choices=["episodes", "steps"]
    )  # fmt: skip
    other_tasks: str = setting(
        "none", "training: the training tasks' episodes, too, paid as this task would pay", choices=["none", "training"]
    )  # fmt: skip
    true_rewards: bool = setting(False, "paid by the environment's reward function, not by a learned one (an ablation)")
    hindsight_share: float = setting(0.0, "windows that get another episode's last z", fraction)
    full_windows: bool = setting(False, "draw only windows of K steps")


@dataclasses.dataclass(frozen=True)
class Prompting:
    """prompts in training"""

    prompt_start_step: int = setting(
        20_000, "steps before prompts are switched on; where --steps is lowered its share of them", natural
    )


class ActionErrors(torch.nn.Module):
    """The errors (B, K) of a policy on a batch: what the processes of a training compute each of their own rows."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, history, prompt, dtype):
        """dtype: of the matrix products, None for float32."""
        with torch.autocast(history["actions"].device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            predicted = self.policy(history, prompt)
        return action_errors(predicted, history["actions"], self.policy.action_scale)


def own_rows(batch):
    """This process's rows of a dict of tensors (B, ...), or of None."""
    return batch and {name: distributed.share(values) for name, values in batch.items()}


class MetaDTTraining:
    """The policy with its data.

    Args:
        run: RunSettings. data: TrainingData. world_model: WorldModel, frozen, on run.device.
        model, optimisation, imitation, prompting, adaptation, exploration: their settings. prompts: train with prompts.
        rewards: Rewards, where other tasks' episodes are imitated. precision: see `autocast_dtype`.
        heads: whether the world model's reward head and state head were trained.
    """

    def __init__(
        self, run, data, world_model, *, model, optimisation, imitation, prompting, adaptation, exploration, prompts,
        rewards=None, precision="auto", heads=(True, True),
    ):  # fmt: skip
        self.run, self.world_model, self.prompts = run, world_model, prompts
        self.settings, self.optimisation, self.prompting = model, optimisation, prompting
        self.adaptation, self.exploration = adaptation, exploration
        self.action_space, self.horizon = data.environment.action_space, run.env.max_episode_steps
        self.precision, self.dtype = precision, autocast_dtype(precision, run.device)
        training = data.episodes
        if imitation.other_tasks != "none":
            training = with_best_of_other_tasks(training, rewards, imitation.top_share, imitation.imitate == "steps")
        arrays = [
            torch.from_numpy(getattr(training, name)).to(run.device) for name in ("observations", "actions", "rewards", "lengths")
        ]
        contexts = episode_contexts(world_model, *arrays[:3])
        self.error_scale = training_errors(world_model, *arrays, contexts, heads)
        self.episodes = build_episodes(world_model, *arrays, self.error_scale, adaptation.context != "none", contexts)
        self.task_ids, self.train_tasks = torch.from_numpy(training.task_ids).to(run.device), data.train_tasks
        self.sampler = BatchSampler(
            self.episodes, self.task_ids, model.history_length, model.prompt_length, world_model.horizon,
            adaptation.prompt_select, imitation.full_windows, imitation.top_share, imitation.imitate == "steps",
            imitation.hindsight_share,
        )  # fmt: skip
        best = [training.returns[training.task_ids == task].max() for task in data.train_tasks]
        self.target = float(np.mean(best)) if adaptation.target_return == "auto" else adaptation.target_return
        if model.ignore_returns:
            self.target = None
        torch.manual_seed(derive(run.seed, "policy"))
        sizes = training.observations.shape[-1], training.actions.shape[-1]
        self.policy = MetaDT.from_settings(*sizes, run.env.max_episode_steps, model, self.action_space)
        self.policy.set_normaliser(*(torch.from_numpy(values) for values in trajectories.observation_statistics(training)))
        self.policy.to(run.device)
        self.errors = distributed.parallel(ActionErrors(self.policy), some_unused=True)
        distributed.require_rows(optimisation.batch_size, "--batch_size")
        self.optimizer = optimisation.optimizer(self.policy.parameters())
        self.generator = torch_generator(run.seed, "policy_batches")
        self.parts = {"policy": self.policy, "optimizer": self.optimizer, "generator": self.generator}
        self.weights = {"model": self.policy}

    def update(self, step):
        """One gradient step."""
        self.policy.train()
        self.optimisation.schedule(self.optimizer, step)
        prompted = self.prompts and step > self.prompting.prompt_start_step
        history, prompt = self.sampler.draw(self.optimisation.batch_size, self.generator, prompted)
        errors = distributed.gathered(self.errors(own_rows(history), own_rows(prompt), self.dtype))
        loss = masked_mean(errors, history["imitated"])
        self.optimisation.descend(self.optimizer, self.policy.parameters(), loss)
        return {"loss": loss.detach()}

    def agent(self, warmup):
        """The frozen policy, ready to act."""
        return self.acting(warmup).agent(self.policy, self.world_model)

    def acting(self, warmup):
        """All that the agent needs beside the weights."""
        low, high = (torch.from_numpy(limit) for limit in (self.action_space.low, self.action_space.high))
        known = self.known_contexts() if self.adaptation.context == "tried" else None
        return Acting(
            self.settings, self.adaptation, self.exploration, self.horizon, self.target, self.error_scale, self.precision,
            self.run.seed, warmup, low, high, known,
        )  # fmt: skip

    def save(self, directory, warmup):
        """What `load_agent` reads beside the policy's weights. It stays as it was when the training began."""
        if distributed.leads() and not (directory / "agent.json").exists():
            self.acting(warmup).save(directory, self.world_model)

    def known_contexts(self):
        """(C, 16): what z says of each training task after an episode, the mean over its episodes; tasks by the mean return of
        their episodes, the best first: whose data were paid best is what is worth trying elsewhere."""
        last = self.episodes.final_contexts(torch.arange(len(self.task_ids), device=self.task_ids.device))
        returns = self.episodes.returns_to_go[:, 0]
        order = sorted(self.train_tasks, key=lambda task: -returns[self.task_ids == task].mean().item())
        return torch.stack([last[self.task_ids == task].mean(0) for task in order])
