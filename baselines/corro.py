"""CORRO: codes of transitions by contrast with what the same (s, a) would have given on other tasks (Yuan and Lu, ICML 2022).

    python -m baselines.corro --env_type point_robot --data_quality replay

Three parts learn side by side, one step each in an update (the original: one after the other):
1. a CVAE of (r, s') given (s, a) over all training tasks (eq. 9), or noise on the reward (--negatives reward), makes the
   negatives: the query's (s, a) with another outcome, so that the code cannot live on which (s, a) a task's policy prefers;
2. the encoder, codes of length 1, by InfoNCE (eq. 6): two transitions of a task against 16 negatives of the first;
3. the actor-critic on z, a softmax-weighted sum of a context's codes, whose weights learn through the critics' loss alone.
Which of the originals' defects are not here: the CVAE saw the test tasks' data; z came from the test task's recorded data; the
actor-critic had no conservatism (IQL or BRAC here, as in later re-runs of CORRO).
"""

import dataclasses
import functools

import torch
import torch.nn.functional as F
from torch import nn

from baselines.actor_critic import mlp, step
from baselines.context_rl import Encoder, restore_context_rl, run_context_rl
from src.run.errors import main_guard
from src.run.flags import nonnegative_float, positive_float, positive_int
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class CorroSettings:
    """encoder"""

    code_size: int = setting(5, "k, numbers in a code, of length 1", positive_int)
    encoder_width: int = setting(64, "of the hidden layers of the encoder and the CVAE", positive_int)
    encoder_layers: int = setting(2, "hidden layers of the encoder", positive_int)
    queries: int = setting(64, "transitions of an update that are contrasted", positive_int)
    negatives_per_query: int = setting(16, "negatives of each", positive_int)
    negatives: str = setting("generative", "negatives by the CVAE, or by noise on the reward", choices=["generative", "reward"])
    reward_noise: float = setting(0.5, "standard deviation of that noise, in deviations of the reward", nonnegative_float)
    softmax_temperature: float = setting(0.1, "of InfoNCE", positive_float)
    kl_weight_cvae: float = setting(0.2, "factor on the CVAE's KL", nonnegative_float)


class AttentionPool(nn.Module):
    """z = Σ softmax_i(w·z_i + b) z_i over a context's codes."""

    def __init__(self, size):
        super().__init__()
        self.score = nn.Linear(size, 1)

    def forward(self, codes, mask):
        """codes (B, n, k), mask (B, n) with at least one place each -> (B, k)."""
        scores = self.score(codes)[..., 0].masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1)[..., None] * codes).sum(-2)


def info_nce(queries, keys, negatives, temperature):
    """Mean of −log softmax of ⟨q, k⟩ among itself and ⟨q, n⟩, all divided by the temperature: (B, k), (B, k), (B, N, k)."""
    positive = (queries * keys).sum(-1, keepdim=True)
    others = (negatives @ queries[..., None])[..., 0]
    scores = torch.cat([positive, others], -1) / temperature
    return -scores.log_softmax(-1)[:, 0].mean()


class CVAE(nn.Module):
    """Outcomes (r, s' − s) of (s, a) with what else decides them, the task, as a latent variable."""

    def __init__(self, known, told, size, width):
        super().__init__()
        self.size = size
        self.encoder, self.decoder = mlp(known + told, width, 1, 2 * size), mlp(size + known, width, 1, told)

    def loss(self, known, told, noise, kl_weight):
        """Squared error of the outcome, summed over reward and state (means over their dimensions), and weight · KL(q ‖ N(0,
        1))."""
        mean, log_variance = self.encoder(torch.cat([known, told], -1)).chunk(2, -1)
        latent = mean + (log_variance / 2).exp() * noise
        errors = (self.decoder(torch.cat([latent, known], -1)) - told).square()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        return errors[..., :1].mean() + errors[..., 1:].mean() + kl_weight * kl.mean()


class Corro:
    """The learner of `ContextRL`."""

    def __init__(self, sizes, settings, learning_rate, data):
        self.settings, self.data, self.known = settings, data, sum(sizes)  # (s, a) come first in the features
        s = settings
        self.encoder = self.make_encoder(sizes, settings).to(data.device)
        self.cvae = CVAE(self.known, sizes[0] + 1, s.code_size, s.encoder_width).to(data.device)
        self.optimizer = torch.optim.Adam(self.encoder.body.parameters(), learning_rate, fused=True)
        self.cvae_optimizer = torch.optim.Adam(self.cvae.parameters(), learning_rate, fused=True)
        self.optimizers = [self.optimizer, self.cvae_optimizer]
        self.parts = {"cvae": self.cvae, "encoder_optimizer": self.optimizer, "cvae_optimizer": self.cvae_optimizer}

    @staticmethod
    def make_encoder(sizes, settings):
        unit, pool = functools.partial(F.normalize, dim=-1), AttentionPool(settings.code_size)
        return Encoder(sizes, settings.code_size, settings.encoder_width, settings.encoder_layers, unit, pool)

    def update(self, tasks, features, mask):
        s, data = self.settings, self.data
        drawn = torch.randint(len(data.tasks), (s.queries,), generator=data.generator)
        pairs = data.features(data.rows(drawn, 2), drawn)  # (B, 2, f)
        known, told = pairs[..., : self.known], pairs[..., self.known :]
        losses = {}
        if s.negatives == "generative":
            losses["cvae_loss"] = self.cvae.loss(known, told, self._noise(*known.shape[:2], s.code_size), s.kl_weight_cvae)
            step(self.cvae_optimizer, losses["cvae_loss"])
        negatives = self._negatives(known[:, :1].expand(-1, s.negatives_per_query, -1), told[:, :1])
        codes = self.encoder(torch.cat([pairs, negatives], 1))
        losses["contrastive_loss"] = info_nce(codes[:, 0], codes[:, 1], codes[:, 2:], s.softmax_temperature)
        step(self.optimizer, losses["contrastive_loss"])
        with torch.no_grad():
            codes = self.encoder(features)
        return {name: loss.detach() for name, loss in losses.items()}, codes

    @torch.no_grad()
    def _negatives(self, known, told):
        """(s, a) (B, N, ·) with outcomes of other tasks; told (B, 1, ·) of the query's own."""
        if self.settings.negatives == "generative":
            latent = self._noise(*known.shape[:2], self.settings.code_size)
            return torch.cat([known, self.cvae.decoder(torch.cat([latent, known], -1))], -1)
        told = told.expand(-1, known.shape[1], -1).clone()
        told[..., 0] += self.settings.reward_noise * self._noise(*known.shape[:2])
        return torch.cat([known, told], -1)

    def _noise(self, *shape):
        return torch.randn(shape, generator=self.data.generator).to(self.data.device)


def restore(saved):
    """Saved -> (policy, function warmup -> Agent)."""
    return restore_context_rl(saved, Corro, CorroSettings)


@main_guard
def main(argv=None):
    return run_context_rl("corro", __doc__, Corro, CorroSettings, argv)


if __name__ == "__main__":
    main()
