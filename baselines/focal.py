"""FOCAL: codes of one task are drawn together and codes of different tasks pushed apart (Li, Yang and Luo, ICLR 2021).

    python -m baselines.focal --env_type point_robot --data_quality replay

The encoder is an MLP over transitions whose mean code is z; it learns by the metric loss alone (eq. 13), and the actor-critic
takes z as given. Which of the originals' defects are not here: z comes from what the agent lives on a test task, not from that
task's recorded data; see baselines/actor_critic.py for those of the released BRAC.
"""

import dataclasses

import torch

from baselines.actor_critic import step
from baselines.context_rl import Encoder, restore_context_rl, run_context_rl
from src.run.errors import main_guard
from src.run.flags import nonnegative_float, positive_int
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class FocalSettings:
    """encoder"""

    code_size: int = setting(20, "k, numbers in z", positive_int)
    encoder_width: int = setting(200, "of the hidden layers of the encoder", positive_int)
    encoder_layers: int = setting(3, "hidden layers of the encoder", positive_int)
    metric_weight: float = setting(10.0, "factor on the metric loss", nonnegative_float)


def metric_loss(z, tasks):
    """FOCAL's distance metric loss over all pairs of z (B, k) with their tasks (B,).

    With d the mean squared difference over dimensions: mean of sqrt(d + 1e-3) over pairs of one task, plus mean of 1 / (d +
    0.1) over pairs of different tasks. The paper's eq. 13 has d itself for the former and β/(dⁿᐟ² + ε) for the latter; this is
    its released form.
    """
    first, second = torch.triu_indices(len(z), len(z), 1, device=z.device)
    distances = (z[first] - z[second]).square().mean(-1)
    same = (tasks[first.cpu()] == tasks[second.cpu()]).to(z.device, z.dtype)
    together = ((distances + 1e-3).sqrt() * same).sum() / (same.sum() + 1e-3)
    apart = ((1 - same) / (distances + 0.1)).sum() / ((1 - same).sum() + 1e-3)
    return together + apart


class Focal:
    """The learner of `ContextRL`."""

    make_encoder = Encoder.from_settings

    def __init__(self, sizes, settings, learning_rate, data):
        self.settings = settings
        self.encoder = self.make_encoder(sizes, settings).to(data.device)
        self.optimizer = torch.optim.Adam(self.encoder.body.parameters(), learning_rate, fused=True)
        self.optimizers, self.parts = [self.optimizer], {"encoder_optimizer": self.optimizer}

    def update(self, tasks, features, mask):
        codes = self.encoder(features)
        loss = self.settings.metric_weight * metric_loss(self.encoder.pool(codes, mask), tasks)
        step(self.optimizer, loss)
        return {"metric_loss": loss.detach()}, codes.detach()


def restore(saved):
    """Saved -> (policy, function warmup -> Agent)."""
    return restore_context_rl(saved, Focal, FocalSettings)


@main_guard
def main(argv=None):
    return run_context_rl("focal", __doc__, Focal, FocalSettings, argv)


if __name__ == "__main__":
    main()
