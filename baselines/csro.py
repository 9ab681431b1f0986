"""CSRO: FOCAL, whose codes are kept from telling what the behaviour policy did (Gao et al., NeurIPS 2023).

    python -m baselines.csro --env_type point_robot --data_quality replay

Two terms train the encoder: FOCAL's metric loss (the paper's max term), and a bound from above (CLUB, Cheng et al. 2020) of the
mutual information between a transition's code and its (s, a), by a variational q(z|s, a) (the min term, eq. 6). When an agent
is to live N warm-up episodes, the first ⌈N/2⌉ of them take uniform actions, so that its first context is no prior's ("non-prior
collection").
Which of the originals' defects are not here: the meta-batch is drawn with replacement, or no two contexts were of one task and
nothing was drawn together; the bound's pairs are summed in closed form, not in n² memory; the variance of q is not squeezed
through a tanh; exploration counts as the N warm-up episodes. See baselines/actor_critic.py for BRAC's.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

from baselines.actor_critic import mlp, step
from baselines.context_rl import Encoder, restore_context_rl, run_context_rl
from baselines.focal import FocalSettings, metric_loss
from src.run.errors import main_guard
from src.run.flags import nonnegative_float
from src.run.seeding import numpy_generator
from src.run.settings import setting

SMALLEST_VARIANCE = 0.05  # of q; codes lie in [-1, 1]


@dataclasses.dataclass(frozen=True)
class CsroSettings(FocalSettings):
    """encoder"""

    information_weight: float = setting(
        25.0, "λ, factor on the bound of the information between code and (s, a)", nonnegative_float
    )
    non_prior: bool = setting(True, "uniform actions in the first half of the warm-up episodes")


class Csro:
    """The learner of `ContextRL`."""

    make_encoder = Encoder.from_settings

    def __init__(self, sizes, settings, learning_rate, data):
        self.settings, self.known = settings, sum(sizes)  # (s, a) come first in the features
        s = settings
        self.encoder = self.make_encoder(sizes, settings).to(data.device)
        self.variational = mlp(self.known, s.encoder_width, s.encoder_layers, 2 * s.code_size).to(data.device)
        self.optimizer = torch.optim.Adam(self.encoder.body.parameters(), learning_rate, fused=True)
        self.variational_optimizer = torch.optim.Adam(self.variational.parameters(), learning_rate, fused=True)
        self.optimizers = [self.optimizer, self.variational_optimizer]
        self.parts = {
            "variational": self.variational,
            "encoder_optimizer": self.optimizer,
            "variational_optimizer": self.variational_optimizer,
        }

    def update(self, tasks, features, mask):
        codes = self.encoder(features)
        fit = variational_loss(codes.detach(), *self._guess(features), mask)
        step(self.variational_optimizer, fit)
        mean, variance = (part.detach() for part in self._guess(features))
        metric = self.settings.metric_weight * metric_loss(self.encoder.pool(codes, mask), tasks)
        information = information_bound(codes, mean, variance, mask)
        step(self.optimizer, metric + self.settings.information_weight * information)
        losses = {"metric_loss": metric, "variational_loss": fit, "information": information}
        return {name: loss.detach() for name, loss in losses.items()}, codes.detach()

    def _guess(self, features):
        """Mean and variance (B, n, k) of q(z|s, a)."""
        mean, raw = self.variational(features[..., : self.known]).chunk(2, -1)
        return mean.tanh(), F.softplus(raw) + SMALLEST_VARIANCE

    @staticmethod
    def extended(agent, settings, known, warmup, space, seed):
        """`agent`, whose first half of `warmup` episodes are explored at random."""
        explored = math.ceil(warmup / 2) if settings.non_prior else 0
        return NonPriorAgent(agent, explored, space, numpy_generator(seed, "non_prior"))


def variational_loss(codes, mean, variance, mask):
    """Mean of (z − m)²/(2v) + ½ log v over the transitions of the contexts and dimensions: −log q(z|s, a), up to a constant."""
    losses = (codes - mean).square() / (2 * variance) + variance.log() / 2
    return losses[mask].mean()


def information_bound(codes, mean, variance, mask):
    """CLUB: mean_i[−(z_i − m_i)²/v_i] − mean_ij[−(z_j − m_i)²/v_i], i and j transitions of one context, means also over
    dimensions.

    codes, mean, variance (B, n, k), mask (B, n). The mean over j is in closed form: (z̄ − m_i)² + Var z.
    """
    weights = mask[..., None].to(codes.dtype) / mask.sum(-1)[:, None, None]
    centre = (weights * codes).sum(1, keepdim=True)
    spread = (weights * (codes - centre).square()).sum(1, keepdim=True)
    differences = (centre - mean).square() + spread - (codes - mean).square()
    return (weights * differences / variance).sum(1).mean()


class NonPriorAgent:
    """An Agent that takes uniform actions while fewer than `explored` episodes have been lived."""

    def __init__(self, agent, explored, space, generator):
        self.inner, self.explored, self.space, self.generator = agent, explored, space, generator
        self.start, self.observe = agent.start, agent.observe

    def adapt(self, episodes):
        self.random = len(episodes) < self.explored
        self.inner.adapt(episodes)

    def act(self):
        actions = self.inner.act()
        return self.generator.uniform(self.space.low, self.space.high, actions.shape) if self.random else actions


def restore(saved):
    """Saved -> (policy, function warmup -> Agent)."""
    return restore_context_rl(saved, Csro, CsroSettings)


@main_guard
def main(argv=None):
    return run_context_rl("csro", __doc__, Csro, CsroSettings, argv)


if __name__ == "__main__":
    main()
