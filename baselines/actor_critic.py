"""Offline actor-critics conditioned on a task code z: IQL, the default, and BRAC with a dual KL, which the papers used.

Observations are standardised, actions lie in [-1, 1], rewards are in units of their own deviation. A batch is a dict of
observations (B, N, d_s), actions (B, N, d_a), rewards (B, N), next_observations (B, N, d_s) and terminated (B, N): N
transitions of each of B tasks. Codes are (B, k), one for each task. No loss reaches the codes but the critics', and that only
where they carry a gradient (CORRO's attention).
Sources: IQL, Kostrikov et al. (ICLR 2022); BRAC, Wu et al. (2019), with the dual form of the KL as in FOCAL (Li et al., ICLR
2021).
"""

import copy
import dataclasses
import itertools

import torch
import torch.nn.functional as F
from torch import nn

from src.models.heads import ActionDistribution
from src.run.flags import nonnegative_float, positive_float, positive_fraction, positive_int, proper_fraction
from src.run.settings import setting

LOG_STD_RANGE = {False: (-5.0, 2.0), True: (-20.0, 0.0)}  # of IQL's Gaussian; of BRAC's tanh-Gaussian
LARGEST_WEIGHT = 100.0  # of an advantage-weighted action (IQL's code)


@dataclasses.dataclass(frozen=True)
class ActorCriticSettings:
    """actor-critic"""

    rl: str = setting("iql", "actor-critic underneath: IQL, or the papers' BRAC with a dual KL", choices=["iql", "brac"])
    width: int = setting(256, "of the hidden layers of actor and critics", positive_int)
    layers: int = setting(3, "hidden layers of actor and critics", positive_int)
    learning_rate: float = setting(3e-4, "of Adam, for every network", positive_float)
    lr_schedule: str = setting("constant", "cosine ends at 5 %% of it", choices=["constant", "cosine"])
    gamma: float = setting(0.99, "discount; time limits bootstrap", proper_fraction)
    tau: float = setting(0.005, "share of the target network replaced by an update", positive_fraction)
    expectile: float = setting(0.7, "IQL: of the value function", proper_fraction)
    temperature: float = setting(3.0, "IQL: β of the weights exp(β·advantage)", nonnegative_float)
    reward_scale: float = setting(5.0, "BRAC: factor on the rewards, against an entropy weight of 1", positive_float)
    kl_weight: float = setting(50.0, "BRAC: α of the divergence at the start", nonnegative_float)
    kl_weight_max: float = setting(2000.0, "BRAC: largest α", nonnegative_float)
    kl_target: float = setting(0.05, "BRAC: divergence at which α rests", nonnegative_float)
    dual_steps: int = setting(3, "BRAC: steps of the dual critic for each update", positive_int)


def mlp(inputs, width, layers, outputs):
    """Multilayer perceptron with ReLU and so many hidden layers."""
    sizes = [inputs, *[width] * layers]
    hidden = [module for a, b in itertools.pairwise(sizes) for module in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))


class Actor(nn.Module):
    """π(a|s, z): IQL's Gaussian around tanh(μ) with one deviation for all states, or (`squash`) a tanh-Gaussian."""

    def __init__(self, observation_size, code_size, action_size, settings):
        super().__init__()
        self.squash = settings.rl == "brac"
        outputs = 2 * action_size if self.squash else action_size
        self.body = mlp(observation_size + code_size, settings.width, settings.layers, outputs)
        self.log_std = None if self.squash else nn.Parameter(torch.zeros(action_size))

    def forward(self, observations, codes):
        """(..., d_s), (..., k) -> ActionDistribution of (..., d_a)."""
        mean = self.body(torch.cat([observations, codes], -1))
        low, high = LOG_STD_RANGE[self.squash]
        if self.squash:
            mean, log_std = mean.chunk(2, -1)
            return ActionDistribution(mean, log_std.clamp(low, high), True)
        return ActionDistribution(mean.tanh(), self.log_std.clamp(low, high).expand_as(mean), False)


class Twin(nn.Module):
    """Two critics Q(s, a, z): (..., d_s), (..., d_a), (..., k) -> (2, ...)."""

    def __init__(self, inputs, settings):
        super().__init__()
        self.critics = nn.ModuleList(mlp(inputs, settings.width, settings.layers, 1) for _ in range(2))

    def forward(self, *parts):
        joined = torch.cat(parts, -1)
        return torch.stack([critic(joined)[..., 0] for critic in self.critics])


def expectile_loss(difference, expectile):
    """Mean of |τ − 1(u < 0)|·u² over differences u = Q − V (IQL eq. 5)."""
    return (torch.where(difference > 0, expectile, 1 - expectile) * difference.square()).mean()


def advantage_weights(advantages, temperature):
    """min(exp(β·A), 100), by which IQL clones the recorded actions (eq. 7)."""
    return (temperature * advantages).exp().clamp(max=LARGEST_WEIGHT)


def dual_divergence(policy_scores, data_scores):
    """KL(π ‖ β) by its dual, D = E_π[1 + log g(c)] − E_β[g(c)], g = softplus, from a critic's scores c of either's actions.

    The largest D over all critics is the divergence (Nowozin et al. 2016). Elementwise.
    """
    return 1 + torch.log(F.softplus(policy_scores) + 1e-8) - F.softplus(data_scores)


class IQL:
    """Implicit Q-learning: no action outside the data is ever asked for.

    Args:
        sizes: (d_s, d_a, k). shared: parameters trained by the critics' loss beside their own. generator: not needed here.
    """

    def __init__(self, actor, sizes, settings, device, shared=(), generator=None):
        observation_size, action_size, code_size = sizes
        self.settings, self.actor = settings, actor
        self.critic = Twin(observation_size + action_size + code_size, settings).to(device)
        self.value = mlp(observation_size + code_size, settings.width, settings.layers, 1).to(device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        parameters = [*self.critic.parameters(), *self.value.parameters(), *actor.parameters(), *shared]
        self.optimizer = torch.optim.Adam(parameters, settings.learning_rate, fused=True)
        self.parts = {"critic": self.critic, "value": self.value, "target": self.target, "rl_optimizer": self.optimizer}
        self.optimizers = [self.optimizer]

    def update(self, draw, codes):
        """One step. draw: function -> a batch. codes: (B, k) -> dict of detached losses."""
        batch = draw()
        codes = codes[:, None].expand(-1, batch["rewards"].shape[1], -1)
        return self.step(self.losses(batch, codes, codes))

    def step(self, losses):
        """Down the sum of `losses`, and the target network after the critics; returns them detached."""
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        follow(self.target, self.critic, self.settings.tau)
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(self, batch, codes, next_codes):
        """IQL eqs. 5 to 7. Codes of the states (B, N, k) and of those that follow."""
        observations, actions, fixed = batch["observations"], batch["actions"], codes.detach()
        values = self.value(torch.cat([observations, fixed], -1))[..., 0]
        with torch.no_grad():
            following = self.value(torch.cat([batch["next_observations"], next_codes.detach()], -1))[..., 0]
            targets = batch["rewards"] + self.settings.gamma * (1 - batch["terminated"]) * following
            known = self.target(observations, actions, fixed).amin(0)
            weights = advantage_weights(known - values, self.settings.temperature)
        return {
            "critic_loss": (self.critic(observations, actions, codes) - targets).square().mean(),
            "value_loss": expectile_loss(known - values, self.settings.expectile),
            "policy_loss": -(weights * self.actor(observations, fixed).log_prob(actions)).mean(),
        }


class BRAC:
    """Behaviour-regularised actor-critic, the divergence from the data estimated by a dual critic c(s, a, z).

    Of the released codes' defects none is here: α ran without bounds, the gradient penalty fell on the critic's output, and the
    value penalty, a switch of two families, was taken at s for a target at s' (there is none here).
    Args as `IQL`. generator: torch.Generator (CPU), or None for torch's own.
    """

    def __init__(self, actor, sizes, settings, device, shared=(), generator=None):
        observation_size, action_size, code_size = sizes
        self.settings, self.actor, self.generator = settings, actor, generator
        inputs = observation_size + action_size + code_size
        self.critic, self.value = Twin(inputs, settings).to(device), mlp(inputs - action_size, settings.width, settings.layers, 1)
        self.value = self.value.to(device)
        self.target = copy.deepcopy(self.value).requires_grad_(False)
        self.dual = mlp(inputs, settings.width, settings.layers, 1).to(device)
        self.kl_weight = nn.Module()
        self.kl_weight.register_buffer("value", torch.tensor(settings.kl_weight, device=device))
        critics = [*self.critic.parameters(), *self.value.parameters(), *shared]
        self.critic_optimizer = torch.optim.Adam(critics, settings.learning_rate, fused=True)
        self.actor_optimizer = torch.optim.Adam(actor.parameters(), settings.learning_rate, fused=True)
        self.dual_optimizer = torch.optim.Adam(self.dual.parameters(), settings.learning_rate / 3, fused=True)
        self.optimizers = [self.critic_optimizer, self.actor_optimizer, self.dual_optimizer]
        modules = {
            "critic": self.critic,
            "value": self.value,
            "target": self.target,
            "dual": self.dual,
            "kl_weight": self.kl_weight,
        }
        names = ("critic_optimizer", "actor_optimizer", "dual_optimizer")
        self.parts = modules | dict(zip(names, self.optimizers, strict=True))

    def update(self, draw, codes):
        """One step, and `dual_steps` of the dual critic before it. draw: function -> a batch. codes: (B, k) -> dict of
        losses."""
        fixed = codes.detach()
        for _ in range(self.settings.dual_steps):
            batch = draw()
            dual_loss = self.dual_loss(batch, self._spread(fixed, batch))
            step(self.dual_optimizer, dual_loss)
        batch = draw()
        critic_loss = self.critic_loss(batch, self._spread(codes, batch))
        step(self.critic_optimizer, critic_loss)
        follow(self.target, self.value, self.settings.tau)
        policy_loss, divergence = self.policy_loss(batch, self._spread(fixed, batch))
        step(self.actor_optimizer, policy_loss)
        s = self.settings
        self.kl_weight.value += divergence - s.kl_target
        self.kl_weight.value.clamp_(0, s.kl_weight_max)
        losses = {"critic_loss": critic_loss, "policy_loss": policy_loss, "dual_loss": dual_loss, "divergence": divergence}
        return {name: loss.detach() for name, loss in losses.items()}

    def _spread(self, codes, batch):
        return codes[:, None].expand(-1, batch["rewards"].shape[1], -1)

    def _act(self, observations, codes):
        distribution = self.actor(observations, codes)
        actions = distribution.sample(self.generator)
        return distribution, actions, distribution.log_prob(actions)

    def _divergence(self, observations, policy_actions, data_actions, codes):
        policy_scores, data_scores = (
            self.dual(torch.cat([observations, actions, codes], -1))[..., 0] for actions in (policy_actions, data_actions)
        )
        return dual_divergence(policy_scores, data_scores)

    def dual_loss(self, batch, codes):
        """−D, and 5 · max(‖∇ c‖ − 1, 0)² at points between the actions of the policy and of the data."""
        observations, data_actions = batch["observations"], batch["actions"]
        with torch.no_grad():
            actions = self._act(observations, codes)[1]
            share = torch.rand(*actions.shape[:-1], 1, generator=self.generator).to(actions.device)
        between = torch.lerp(actions, data_actions, share).requires_grad_()
        scores = self.dual(torch.cat([observations, between, codes], -1))
        (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        penalty = (gradient.norm(dim=-1) - 1).clamp(min=0).square().mean()
        return -self._divergence(observations, actions, data_actions, codes).mean() + 5 * penalty

    def critic_loss(self, batch, codes):
        """Q to ρ·r + γ·V̄(s') and V to min Q(s, a) − log π(a), a ~ π: squared errors."""
        s, fixed = self.settings, codes.detach()
        with torch.no_grad():
            following = self.target(torch.cat([batch["next_observations"], fixed], -1))[..., 0]
            targets = s.reward_scale * batch["rewards"] + s.gamma * (1 - batch["terminated"]) * following
            _, actions, log_prob = self._act(batch["observations"], fixed)
            value_targets = self.critic(batch["observations"], actions, fixed).amin(0) - log_prob
        values = self.value(torch.cat([batch["observations"], fixed], -1))[..., 0]
        errors = self.critic(batch["observations"], batch["actions"], codes) - targets
        return errors.square().sum(0).mean() + (values - value_targets).square().mean()

    def policy_loss(self, batch, codes):
        """log π(a) − min Q(s, a) + α·D, and small pulls of μ and log σ to 0; also the mean of D, detached."""
        distribution, actions, log_prob = self._act(batch["observations"], codes)
        divergence = self._divergence(batch["observations"], actions, batch["actions"], codes).mean()
        q = self.critic(batch["observations"], actions, codes).amin(0)
        pull = 1e-3 * (distribution.mean.square().mean() + distribution.log_std.square().mean())
        return (log_prob - q).mean() + self.kl_weight.value * divergence + pull, divergence.detach()


def step(optimizer, loss):
    """One step of an optimiser down `loss`; gradients of parameters that it does not own are left as they are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


@torch.no_grad()
def follow(target, source, share):
    """Move a target network's parameters by `share` of the way to its source."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), share)
