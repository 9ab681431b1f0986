"""Behaviour cloning: an MLP imitates the training tasks' episodes, whatever the task. It neither remembers nor adapts.

python -m tests.toy.bc --env_type point_robot --data_quality medium
"""

import dataclasses

import numpy as np
import torch
from torch import nn

from src.evaluation.agent import PolicyAgent
from src.evaluation.method import Evaluation, RunSettings, method_parser, train_and_measure
from src.run.command_line import parse_args, settings
from src.run.errors import main_guard
from src.run.flags import positive_int
from src.run.loop import Optimisation
from src.run.seeding import derive, torch_generator
from src.run.settings import pick, setting


@dataclasses.dataclass(frozen=True)
class Model:
    """model"""

    width: int = setting(64, "of the hidden layers", positive_int)


class Cloning:
    """The contract of Method (src/evaluation/method.py)."""

    def __init__(self, data, run, model, optimisation):
        inside = np.arange(data.episodes.rewards.shape[1]) < data.episodes.lengths[:, None]
        self.observations = torch.from_numpy(data.episodes.observations[:, :-1][inside]).to(run.device)
        self.actions = torch.from_numpy(data.episodes.actions[inside]).to(run.device)
        self.optimisation, self.device = optimisation, run.device
        torch.manual_seed(derive(run.seed, "policy"))
        sizes = self.observations.shape[-1], self.actions.shape[-1]
        self.policy = nn.Sequential(
            nn.Linear(sizes[0], model.width), nn.ReLU(), nn.Linear(model.width, model.width), nn.ReLU(),
            nn.Linear(model.width, sizes[1]),
        ).to(run.device)  # fmt: skip
        self.optimizer = optimisation.optimizer(self.policy.parameters())
        self.generator = torch_generator(run.seed, "policy_batches")
        self.parts = {"policy": self.policy, "optimizer": self.optimizer, "generator": self.generator}
        self.weights = {"model": self.policy}

    def update(self, step):
        self.optimisation.schedule(self.optimizer, step)
        rows = torch.randint(len(self.actions), (self.optimisation.batch_size,), generator=self.generator)
        loss = (self.policy(self.observations[rows]) - self.actions[rows]).square().mean()
        self.optimisation.descend(self.optimizer, self.policy.parameters(), loss)
        return {"loss": loss.detach()}

    def agent(self, warmup):
        return PolicyAgent(self.act)

    @torch.inference_mode()
    def act(self, observations):
        return self.policy(torch.from_numpy(observations).to(self.device)).cpu().numpy()


def make_parser():
    return method_parser(__doc__, Model, Optimisation)


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "baselines.bc", argv)
    run, model, optimisation = (pick(kind, args) for kind in (RunSettings, Model, Optimisation))
    return train_and_measure(
        "bc", run, pick(Evaluation, args), settings(args), optimisation.steps,
        lambda data: Cloning(data, run, model, optimisation),
    )  # fmt: skip


if __name__ == "__main__":
    main()
