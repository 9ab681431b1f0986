"""DQN and SAC for P agents of one shape side by side: the single-task agents are a stack, the meta-agent a stack of one.

Stacking is what makes the single-task stage cheap: networks this small cost the same overhead for one task as for twenty.
Losses are means over an agent's batch and sums over the agents, and Adam works per number, so no agent feels the others.
Sources: DQN (Mnih et al. 2015) with Polyak averaging, SAC (Haarnoja et al. 2018), CQL (Kumar et al. 2020).
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

LOG_STD_BOUNDS = (-20, 2)
HIDDEN_BIAS, LAST_LAYER, LAST_LAYER_OF_POLICY = 0.1, 3e-3, 1e-3  # initial values as in rlkit


class StackedMLP(nn.Module):
    """P multilayer perceptrons with ReLU: (P, B, sizes[0]) -> (P, B, sizes[-1])."""

    def __init__(self, agents, sizes, generator, last=LAST_LAYER):
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()

        def uniform(bound, *shape):
            return nn.Parameter((2 * torch.rand(agents, *shape, generator=generator) - 1) * bound)

        for inputs, outputs in itertools.pairwise(sizes[:-1]):
            self.weights.append(uniform(inputs**-0.5, inputs, outputs))
            self.biases.append(nn.Parameter(torch.full((agents, 1, outputs), HIDDEN_BIAS)))
        self.weights.append(uniform(last, *sizes[-2:]))
        self.biases.append(uniform(last, 1, sizes[-1]))

    def forward(self, x):
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if layer else x, weight)
        return x


class Agent:
    """What DQN and SAC share: Adam, target networks, saving.

    Args:
        network, target: modules of the same shape; the target begins as a copy of the network.
        gamma, tau: discount, share of the target replaced per update.
        clip_grad_value: largest absolute gradient, None for no limit.
    """

    def __init__(self, network, target, gamma, tau, clip_grad_value):
        self.network, self.target = network, target
        self.gamma, self.tau, self.clip_grad_value = gamma, tau, clip_grad_value
        self.target.load_state_dict(self.network.state_dict())
        self.target.requires_grad_(False)

    @property
    def device(self):
        return next(self.network.parameters()).device

    def _step(self, optimizer, loss, parameters):
        # `grad` and not `backward`: a policy's loss runs through critics, whose gradients it must not touch
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.clip_grad_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_grad_value)
        optimizer.step()

    @torch.no_grad()
    def _follow(self):
        torch._foreach_lerp_(list(self.target.parameters()), list(self.network.parameters()), self.tau)

    def modules(self):
        """Networks and optimisers by name: all that a checkpoint holds."""
        return {"network": self.network, "target": self.target, "optimizer": self.optimizer}

    def optimizers(self):
        return [module for module in self.modules().values() if isinstance(module, torch.optim.Optimizer)]

    def state_dict(self):
        return {name: module.state_dict() for name, module in self.modules().items()}

    def load_state_dict(self, state):
        for name, module in self.modules().items():
            module.load_state_dict(state[name])


class DQN(Agent):
    """Q-learning with discrete actions; double: the network chooses the next action that its target values (van Hasselt 2016)."""

    def __init__(
        self, agents, observation_size, action_size, hidden, generator, gamma, tau, critic_lr, clip_grad_value=None, device="cpu",
        double=False,
    ):  # fmt: skip
        sizes = [observation_size, *hidden, action_size]
        network, target = (StackedMLP(agents, sizes, generator).to(device) for _ in range(2))
        super().__init__(network, target, gamma, tau, clip_grad_value)
        self.double = double
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=critic_lr, fused=True)

    def policy_network(self):
        """The network that `act` needs."""
        return self.network

    def update(self, obs, actions, rewards, next_obs, terminated, generator=None):
        """One step of Adam. obs, next_obs (P, B, d); actions (P, B) int; rewards, terminated (P, B) -> losses."""
        with torch.no_grad():
            values = self.target(next_obs)
            best = values.gather(-1, self.network(next_obs).argmax(-1, keepdim=True))[..., 0] if self.double else values.amax(-1)
            targets = rewards + self.gamma * (1 - terminated) * best
        values = self.network(obs).gather(-1, actions[..., None])[..., 0]
        loss = F.mse_loss(values, targets, reduction="none").mean(1).sum()
        self._step(self.optimizer, loss, self.parameters)
        self._follow()
        return {"critic_loss": loss.detach() / len(obs), "mean_q": values.detach().mean()}

    @torch.inference_mode()
    def act(self, obs, generator=None, deterministic=True, epsilon=0.0):
        """Greedy actions (P, B); not deterministic: random ones with probability `epsilon`."""
        actions = self.network(obs).argmax(-1)
        if deterministic:
            return actions
        explore = torch.rand(actions.shape, generator=generator) < epsilon
        count = self.network.biases[-1].shape[-1]
        return torch.where(explore, torch.randint(count, actions.shape, generator=generator), actions.cpu())


class SAC(Agent):
    """Soft actor-critic with two critics and a tanh-Gaussian policy, optionally with the CQL regulariser.

    Args:
        alpha: weight of the entropy; with `automatic_alpha` its initial value, tuned towards an entropy of −d_a.
        cql: weight of the conservative term, 0 for none.
    """

    CQL_SAMPLES = 10

    def __init__(
        self, agents, observation_size, action_size, hidden, generator, gamma, tau, critic_lr, actor_lr, alpha,
        automatic_alpha=False, cql=0.0, clip_grad_value=None, device="cpu",
    ):  # fmt: skip
        sizes = [observation_size + action_size, *hidden, 1]
        network, target = (StackedMLP(2 * agents, sizes, generator).to(device) for _ in range(2))
        super().__init__(network, target, gamma, tau, clip_grad_value)
        self.action_size, self.cql, self.automatic_alpha = action_size, cql, automatic_alpha
        sizes = [observation_size, *hidden, 2 * action_size]
        self.policy = StackedMLP(agents, sizes, generator, LAST_LAYER_OF_POLICY).to(device)
        self.entropy_weight = EntropyWeight(agents, alpha).to(device)
        self.critic_parameters, self.policy_parameters = list(network.parameters()), list(self.policy.parameters())
        self.optimizer = torch.optim.Adam(self.critic_parameters, lr=critic_lr, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy_parameters, lr=actor_lr, fused=True)
        self.alpha_optimizer = torch.optim.Adam(self.entropy_weight.parameters(), lr=actor_lr)

    def policy_network(self):
        """See DQN."""
        return self.policy

    def modules(self):
        own = {"policy": self.policy, "policy_optimizer": self.policy_optimizer}
        tuning = {"entropy_weight": self.entropy_weight, "alpha_optimizer": self.alpha_optimizer}
        return {**super().modules(), **own, **tuning}

    def critics(self, network, obs, actions):
        """Values of both critics (2, P, B) of obs (P, B, d) and actions (P, B, d_a)."""
        inputs = torch.cat([obs, actions], -1)
        return network(torch.cat([inputs, inputs])).unflatten(0, (2, -1))[..., 0]

    def sample(self, obs, generator):
        """Actions (P, B, d_a) drawn from the policy and their log density (P, B)."""
        mean, log_std = self.policy(obs).chunk(2, -1)
        log_std = log_std.clamp(*LOG_STD_BOUNDS)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        before = mean + log_std.exp() * noise
        # log of 1 − tanh², in a form that does not lose digits
        squash = 2 * (math.log(2) - before - F.softplus(-2 * before))
        log_density = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - squash).sum(-1)
        return before.tanh(), log_density

    def update(self, obs, actions, rewards, next_obs, terminated, generator):
        """Critics, then policy (through the new critics), then the entropy weight. Shapes as for DQN, actions (P, B, d_a)."""
        alpha = self.entropy_weight.value()
        with torch.no_grad():
            next_actions, log_density = self.sample(next_obs, generator)
            following = self.critics(self.target, next_obs, next_actions).amin(0) - alpha * log_density
            targets = rewards + self.gamma * (1 - terminated) * following
        values = self.critics(self.network, obs, actions)
        critic_loss = F.mse_loss(values, targets.expand_as(values), reduction="none").mean(2).sum()
        losses = {"critic_loss": critic_loss.detach() / len(obs), "mean_q": values.detach().mean()}
        if self.cql:
            conservative = self.conservative_term(obs, values, generator)
            critic_loss = critic_loss + self.cql * conservative.mean(2).sum()
            losses["cql_loss"] = conservative.detach().mean()
        self._step(self.optimizer, critic_loss, self.critic_parameters)

        drawn, log_density = self.sample(obs, generator)
        worst = self.critics(self.network, obs, drawn).amin(0)
        policy_loss = (alpha * log_density - worst).mean(1).sum()
        self._step(self.policy_optimizer, policy_loss, self.policy_parameters)
        losses["policy_loss"] = policy_loss.detach() / len(obs)

        if self.automatic_alpha:
            lack = log_density.detach().mean(1, keepdim=True) - self.action_size  # of entropy, the target being −d_a
            alpha_loss = -(self.entropy_weight.logarithm * lack).sum()
            self._step(self.alpha_optimizer, alpha_loss, list(self.entropy_weight.parameters()))
            losses["alpha_loss"] = alpha_loss.detach() / len(obs)
        losses["alpha"] = self.entropy_weight.value().mean()
        self._follow()
        return losses

    def conservative_term(self, obs, values, generator):
        """log Σ_a exp Q(s, a) − Q(s, a of the data), (2, P, B), the sum estimated from 10 uniform and 10 policy actions.

        Importance sampling: each sample counts exp(Q) / density, that is exp(Q − log density). The mean over the samples
        differs from the sum by a constant, which has no gradient.
        """
        count = self.CQL_SAMPLES
        repeated = obs.repeat_interleave(count, 1)  # (P, B · count, d)
        shape = (*repeated.shape[:2], self.action_size)
        uniform = (2 * torch.rand(shape, generator=generator) - 1).to(obs.device)
        with torch.no_grad():
            drawn, log_density = self.sample(repeated, generator)
        weighted = [
            self.critics(self.network, repeated, uniform) + self.action_size * math.log(2),
            self.critics(self.network, repeated, drawn) - log_density,
        ]
        weighted = torch.cat([part.unflatten(-1, (-1, count)) for part in weighted], -1)  # (2, P, B, 2 · count)
        return weighted.logsumexp(-1) - values

    @torch.inference_mode()
    def act(self, obs, generator=None, deterministic=True, epsilon=0.0):
        """Actions in [−1, 1], (P, B, d_a): the tanh of the mean, or drawn from the policy."""
        if deterministic:
            return self.policy(obs).chunk(2, -1)[0].tanh()
        return self.sample(obs, generator)[0]


class EntropyWeight(nn.Module):
    """α of every agent, as its logarithm (P, 1)."""

    def __init__(self, agents, alpha):
        super().__init__()
        self.logarithm = nn.Parameter(torch.full((agents, 1), math.log(alpha) if alpha > 0 else -math.inf))

    def value(self):
        """(P, 1), without gradient."""
        return self.logarithm.detach().exp()
