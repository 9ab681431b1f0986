"""A stochastic action head, and the temperature that keeps its entropy at a target (Online Decision Transformer).

Actions are scaled to [-1, 1] here. With squashing a = tanh(u), u ~ N(μ, σ²) per dimension, and

    log π(a) = Σ_d log N(u_d; μ_d, σ_d) − log(1 − tanh² u_d),    log(1 − tanh² u) = 2 (log 2 − u − softplus(−2 u))

Without it a = u, which may leave the bounds.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

LOG_STD_RANGE = (-5.0, 2.0)  # of the official code
MARGIN = 1e-6  # actions are moved this far inside the bounds before atanh, which is infinite on them
TEMPERATURE_RANGE = (1e-6, 1e2)  # in few dimensions such multipliers are known to explode


class ActionDistribution:
    """Independent Gaussians per action dimension, squashed or not.

    Args:
        mean, log_std: (..., d_a) of the Gaussian before squashing.
        squash: whether actions are tanh of the Gaussian.
    """

    def __init__(self, mean, log_std, squash):
        self.mean, self.log_std, self.squash = mean, log_std, squash

    def log_prob(self, actions):
        """Log density (...,) of actions (..., d_a) in [-1, 1]; those on the bounds are moved inside by 1e-6."""
        if not self.squash:
            return self._gaussian(actions).sum(-1)
        before = torch.atanh(actions.clamp(MARGIN - 1, 1 - MARGIN))
        return (self._gaussian(before) - log_jacobian(before)).sum(-1)

    def _gaussian(self, values):
        return -0.5 * ((values - self.mean) * torch.exp(-self.log_std)).square() - self.log_std - 0.5 * math.log(2 * math.pi)

    def entropy(self, samples=1, generator=None):
        """Differential entropy (...,), differentiable in mean and log_std.

        The Gaussian's part is exact; with squashing the expectation of the Jacobian, which has no closed form, is the mean over
        `samples` reparameterised draws. generator: torch.Generator of any device; the draws are made there.
        """
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        if not self.squash:
            return entropy
        return entropy + log_jacobian(self._draw((samples, *self.mean.shape), generator)).sum(-1).mean(0)

    def _draw(self, shape, generator, scale=1.0):
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(shape, generator=generator, device=device)
        return self.mean + scale * self.log_std.exp() * noise.to(self.mean.device)

    def sample(self, generator=None, scale=1.0):
        """Actions (..., d_a). scale: factor on σ."""
        values = self._draw(self.mean.shape, generator, scale)
        return values.tanh() if self.squash else values

    def centre(self):
        """The mean action tanh(μ), or μ: (..., d_a)."""
        return self.mean.tanh() if self.squash else self.mean


def log_jacobian(before):
    """log(1 − tanh²(u)) elementwise, without cancellation for large |u|."""
    return 2 * (math.log(2) - before - F.softplus(-2 * before))


class GaussianHead(nn.Module):
    """Hidden states (..., D) -> ActionDistribution of (..., d_a); orthogonal weights, zero biases (official code)."""

    def __init__(self, width, action_size, squash):
        super().__init__()
        self.squash = squash
        self.mean, self.log_std = nn.Linear(width, action_size), nn.Linear(width, action_size)
        for layer in (self.mean, self.log_std):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden):
        low, high = LOG_STD_RANGE
        log_std = low + 0.5 * (high - low) * (torch.tanh(self.log_std(hidden)) + 1)
        return ActionDistribution(self.mean(hidden), log_std, self.squash)


class Temperature(nn.Module):
    """λ = exp(ν), the multiplier of the constraint "entropy H ≥ target": ν minimises exp(ν) (H − target).

    λ falls while H is above the target and rises while it is below. λ and the state of its optimiser (Adam) are one state dict.

    Args:
        initial: λ at the start. target: in nats, or None for a λ that stays where it is. learning_rate: of Adam.
    """

    def __init__(self, initial, target, learning_rate=1e-4):
        super().__init__()
        self.target = target
        self.log_value = nn.Parameter(torch.tensor(math.log(initial)))
        self.optimizer = torch.optim.Adam([self.log_value], lr=learning_rate)

    @property
    def value(self):
        """λ without gradient, a tensor."""
        return self.log_value.detach().exp()

    def update(self, entropy):
        """One step towards the target, given the current entropy (a tensor, detached here)."""
        if self.target is None:
            return
        self.optimizer.zero_grad()
        (self.log_value.exp() * (entropy.detach() - self.target)).backward()
        self.optimizer.step()
        low, high = TEMPERATURE_RANGE
        self.log_value.data.clamp_(math.log(low), math.log(high))

    def get_extra_state(self):
        return self.optimizer.state_dict()

    def set_extra_state(self, state):
        rate = self.optimizer.param_groups[0]["lr"]  # each phase has its own
        self.optimizer.load_state_dict(state)
        self.optimizer.param_groups[0]["lr"] = rate
