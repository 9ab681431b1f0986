"""UNICORN-SS: z must tell a decoder the reward and the next state, beside FOCAL's metric loss (Li et al., NeurIPS 2024).

    python -m baselines.unicorn --env_type point_robot --data_quality replay
    python -m baselines.unicorn --metric_weight 0 ...       # UNICORN-SS-0, which uses no labels of tasks

The encoder draws a Gaussian code for every transition, squashed by tanh; z is their mean. It learns by L = L_recon + w·L_FOCAL
(eq. 10): L_recon is the negative log-likelihood of (r, s' − s) under Gaussian decoders that read (s, a, z). On test tasks z is
of the mean codes.
Which of the originals' defects are not here: the divergence of its actor-critic gave the policy no gradient and most families
ran without one; w of the paper's table, not the released files' others; z from what the agent lives, not from the test task's
recorded data. The flag of the episode's end, which never varies within an episode, is not encoded.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from baselines.actor_critic import mlp, step
from baselines.context_rl import Encoder, restore_context_rl, run_context_rl
from baselines.focal import metric_loss
from src.run.errors import main_guard
from src.run.flags import nonnegative_float, positive_int
from src.run.settings import setting

VARIANCE_RANGE = (0.1, 10.0)  # of the codes


@dataclasses.dataclass(frozen=True)
class UnicornSettings:
    """encoder"""

    code_size: int = setting(5, "k, numbers in z", positive_int)
    encoder_width: int = setting(64, "of the hidden layers of encoder and decoders", positive_int)
    encoder_layers: int = setting(2, "hidden layers of encoder and decoders", positive_int)
    metric_weight: float = setting(0.15, "w of the metric loss; 0: no labels of tasks are used", nonnegative_float)


class GaussianDecoder(nn.Module):
    """p(y|s, a, z) with independent Gaussians whose log variances lie softly within learned bounds (as in Chua et al. 2018)."""

    def __init__(self, inputs, outputs, width, layers):
        super().__init__()
        self.body = mlp(inputs, width, layers, 2 * outputs)
        self.highest, self.lowest = nn.Parameter(torch.full((outputs,), 0.5)), nn.Parameter(torch.full((outputs,), -10.0))

    def loss(self, inputs, targets, mask):
        """Mean over the masked transitions and dimensions of (y − μ)²/v + log v, and a small pull of the bounds."""
        mean, log_variance = self.body(inputs).chunk(2, -1)
        log_variance = self.highest - F.softplus(self.highest - log_variance)
        log_variance = self.lowest + F.softplus(log_variance - self.lowest)
        losses = (targets - mean).square() * (-log_variance).exp() + log_variance
        return losses[mask].mean() + 0.01 * (self.highest - self.lowest).mean()


class Unicorn:
    """The learner of `ContextRL`."""

    make_encoder = Encoder.from_settings

    def __init__(self, sizes, settings, learning_rate, data):
        self.settings, self.known, self.generator = settings, sum(sizes), data.generator  # (s, a) come first in the features
        s = settings
        self.encoder = self.make_encoder(sizes, settings).to(data.device)
        inputs, shape = self.known + s.code_size, (s.encoder_width, s.encoder_layers)
        self.decoders = nn.ModuleList(GaussianDecoder(inputs, outputs, *shape) for outputs in (1, sizes[0])).to(data.device)
        self.log_variance = nn.ParameterList([torch.zeros(s.code_size)]).to(data.device)
        parameters = [*self.encoder.body.parameters(), *self.decoders.parameters(), *self.log_variance]
        self.optimizer = torch.optim.Adam(parameters, learning_rate, fused=True)
        self.optimizers = [self.optimizer]
        self.parts = {"decoders": self.decoders, "log_variance": self.log_variance, "encoder_optimizer": self.optimizer}

    def update(self, tasks, features, mask):
        mean = self.encoder.body(features)
        deviation = self.log_variance[0].exp().clamp(*VARIANCE_RANGE).sqrt()
        noise = torch.randn(mean.shape, generator=self.generator).to(mean.device)
        codes = torch.tanh(mean + deviation * noise)
        z = self.encoder.pool(codes, mask)
        known, told = features[..., : self.known], features[..., self.known :]
        inputs = torch.cat([known, z[:, None].expand(-1, known.shape[1], -1)], -1)
        rewards, changes = told[..., :1], told[..., 1:]
        losses = {
            "reward_loss": self.decoders[0].loss(inputs, rewards, mask),
            "change_loss": self.decoders[1].loss(inputs, changes, mask),
            "metric_loss": self.settings.metric_weight * metric_loss(z, tasks),
        }
        step(self.optimizer, sum(losses.values()))
        return {name: loss.detach() for name, loss in losses.items()}, codes.detach()


def restore(saved):
    """Saved -> (policy, function warmup -> Agent)."""
    return restore_context_rl(saved, Unicorn, UnicornSettings)


@main_guard
def main(argv=None):
    return run_context_rl("unicorn", __doc__, Unicorn, UnicornSettings, argv)


if __name__ == "__main__":
    main()
