"""Soft actor-critic on stacked tensors: the agents of P tasks, or a single one, updated by the same batched products.

The equations are those of stable-baselines3's SAC, whose update a test repeats. The gradients are written out by hand:
these networks are so small that recording a graph would cost as much as the arithmetic.
"""

import itertools
import math

import torch

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
SQUASH_EPSILON = 1e-6  # keeps the logarithm in the tanh's change of variables finite
LOG_2PI = math.log(2 * math.pi)


class StackedMLP:
    """N networks of one shape with ReLU between the layers.

    All parameters are views of one flat tensor, and all gradients of its `.grad`, so that an optimiser step and the
    moving average of a target network are one operation each.

    Args:
        count: N. sizes: widths (inputs, hidden ..., outputs).
    """

    def __init__(self, count, sizes, device="cpu"):
        shapes = [shape for i, o in itertools.pairwise(sizes) for shape in ((count, o, i), (count, 1, o))]
        self.flat = torch.zeros(sum(map(math.prod, shapes)), device=device)
        self.flat.grad = torch.zeros_like(self.flat)
        pieces, gradients = ([*_split(tensor, shapes)] for tensor in (self.flat, self.flat.grad))
        self.weights, self.biases = pieces[::2], pieces[1::2]  # (N, out, in), (N, 1, out)
        self.weight_gradients, self.bias_gradients = gradients[::2], gradients[1::2]

    def initialise(self, network, generator):
        """torch.nn.Linear's start for one of the N networks: uniform within 1 / sqrt(inputs)."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = weight.shape[2] ** -0.5
            for values in (weight[network], bias[network]):
                values.copy_((2 * torch.rand(values.shape, generator=generator) - 1) * bound)

    def forward(self, x):
        """x (N, B, inputs) -> [x, activations of the hidden layers ..., outputs (N, B, outputs)]."""
        activations = [x]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.baddbmm(bias, x, weight.mT)
            activations.append(x)
            if len(activations) <= len(self.weights):
                x.relu_()
        return activations

    def backward(self, activations, gradient, parameters=True, first_input=None):
        """Backpropagate `gradient` (N, B, outputs) through what `forward` returned.

        Args:
            parameters: write the gradients of the parameters (they replace the former ones).
            first_input: return the gradient of the inputs from this one on, (N, B, inputs - first_input).
        """
        for layer in reversed(range(len(self.weights))):
            if parameters:
                torch.bmm(gradient.mT, activations[layer], out=self.weight_gradients[layer])
                torch.sum(gradient, 1, keepdim=True, out=self.bias_gradients[layer])
            if layer > 0:
                gradient = torch.bmm(gradient, self.weights[layer])
                gradient = torch.ops.aten.threshold_backward(gradient, activations[layer], 0)
        return None if first_input is None else torch.bmm(gradient, self.weights[0][:, :, first_input:])


def _split(flat, shapes):
    start = 0
    for shape in shapes:
        size = math.prod(shape)
        yield flat[start : start + size].view(shape)
        start += size


class StackedSAC:
    """P agents: squashed Gaussian actor, twin critics, targets, and Adam's moments.

    Args:
        agents: P. observation_size, action_size: d, da. hidden: widths of the hidden layers.
        entropy: fixed weight of the entropy bonus, or "auto" to learn one per agent that holds an entropy of -da.
        generators: P torch.Generator (CPU), for the start of each agent.
    """

    def __init__(self, agents, observation_size, action_size, hidden, *, learning_rate, gamma, tau, entropy, generators, device):
        self.agents, self.observation_size, self.action_size = agents, observation_size, action_size
        self.gamma, self.tau, self.device = gamma, tau, device
        inputs = observation_size + action_size
        self.actor = StackedMLP(agents, (observation_size, *hidden, 2 * action_size), device)  # mean, log std
        self.critics = StackedMLP(2 * agents, (inputs, *hidden, 1), device)  # network 2p + k: critic k of agent p
        self.targets = StackedMLP(2 * agents, (inputs, *hidden, 1), device)
        for agent, generator in enumerate(generators):
            self.actor.initialise(agent, generator)
            self.critics.initialise(2 * agent, generator)
            self.critics.initialise(2 * agent + 1, generator)
        self.targets.flat.copy_(self.critics.flat)
        self.learned = entropy == "auto"
        self.log_alpha = torch.full((agents, 1), 0.0 if self.learned else math.log(max(entropy, 1e-300)), device=device)
        self.log_alpha.grad = torch.zeros_like(self.log_alpha)
        trained = {"actor": self.actor.flat, "critics": self.critics.flat}
        trained |= {"log_alpha": self.log_alpha} if self.learned else {}
        self.optimizers = {name: torch.optim.Adam([tensor], lr=learning_rate, fused=True) for name, tensor in trained.items()}

    def set_learning_rate(self, learning_rate):
        """Of all later updates."""
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = learning_rate

    @torch.no_grad()
    def act(self, observations, noise):
        """observations (P, B, d), standard normal noise (P, B, da) -> actions in [-1, 1], (P, B, da)."""
        mean, log_std = self.actor.forward(observations)[-1].chunk(2, -1)
        return torch.tanh(mean + log_std.clamp_(LOG_STD_MIN, LOG_STD_MAX).exp_() * noise)

    @torch.no_grad()
    def update(self, observations, actions, rewards, next_observations, noise, goes_on=None):
        """One gradient step of all agents: critics, then actor, then targets. Returns what `losses` reads.

        Args:
            observations, next_observations: (P, B, d). actions: (P, B, da) in [-1, 1]. rewards: (P, B).
            noise: (P, 2 B, da) standard normal, for the actions at the observations, then at the next observations.
            goes_on: (P, B), 0 where an episode ended and nothing is paid any more, else 1; None: everywhere 1.
        """
        size = rewards.shape[1]
        alpha = self.log_alpha.exp()
        activations = self.actor.forward(torch.cat([observations, next_observations], 1))
        mean, raw_log_std = activations[-1].chunk(2, -1)
        log_std = raw_log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        deviation = log_std.exp() * noise
        sampled = torch.tanh(mean + deviation)  # (P, 2 B, da)
        slope = 1 - sampled.square()  # of the tanh
        log_prob = -(0.5 * noise.square() + log_std + torch.log(slope + SQUASH_EPSILON) + 0.5 * LOG_2PI).sum(-1)
        if self.learned:
            torch.mean(log_prob[:, :size] - self.action_size, 1, keepdim=True, out=self.log_alpha.grad).neg_()
            self.optimizers["log_alpha"].step()

        next_values = self._values(self.targets, next_observations, sampled[:, size:])[-1].view(-1, 2, size).amin(1)
        worth = next_values - alpha * log_prob[:, size:]
        wanted = rewards + self.gamma * (worth if goes_on is None else worth * goes_on)
        values = self._values(self.critics, observations, actions)
        errors = values[-1].view(-1, 2, size) - wanted[:, None]  # loss: half their mean square, summed over the twins
        self.critics.backward(values, (errors / size).view(-1, size, 1))
        self.optimizers["critics"].step()

        # loss of the actor: mean of alpha * log_prob - min(values)
        sampled, slope = sampled[:, :size], slope[:, :size]
        values = self._values(self.critics, observations, sampled)
        first, second = values[-1].view(-1, 2, size).unbind(1)
        lower = torch.stack([first <= second, first > second], 1).to(first.dtype)
        gradient = (
            self.critics.backward(values, lower.view(-1, size, 1), parameters=False, first_input=self.observation_size)
            .view(-1, 2, size, self.action_size)
            .sum(1)
        )  # of min(values) by the actions
        weight = alpha[:, None]
        gradient = (2 * weight * sampled / (slope + SQUASH_EPSILON) - gradient) * slope  # by the Gaussian's sample
        spread = gradient * deviation[:, :size] - weight
        raw_log_std = raw_log_std[:, :size]
        spread = spread * ((raw_log_std >= LOG_STD_MIN) & (raw_log_std <= LOG_STD_MAX))
        self.actor.backward([part[:, :size] for part in activations], torch.cat([gradient, spread], -1) / size)
        self.optimizers["actor"].step()
        self.targets.flat.lerp_(self.critics.flat, self.tau)
        return errors, log_prob

    def _values(self, critics, observations, actions):
        pairs = torch.cat([observations, actions], -1)
        return critics.forward(pairs[:, None].expand(-1, 2, -1, -1).reshape(2 * len(pairs), *pairs.shape[1:]))

    def losses(self, errors, log_prob):
        """Means for the log, from what `update` returned: loss of the critics, entropy and its weight, over the agents."""
        return {
            "train/critic_loss": errors.square().mean().item(),
            "train/entropy": -log_prob.mean().item(),
            "train/entropy_coefficient": self.log_alpha.exp().mean().item(),
        }

    def actor_weights(self):
        """The actors in stable-baselines3's names, half precision: what is stored, measured and played."""
        weights = {}
        for layer, (weight, bias) in enumerate(zip(self.actor.weights, self.actor.biases, strict=True)):
            if layer < len(self.actor.weights) - 1:
                weights[f"latent_pi.{2 * layer}.weight"], weights[f"latent_pi.{2 * layer}.bias"] = weight, bias[:, 0]
            else:
                for name, rows in (("mu", slice(self.action_size)), ("log_std", slice(self.action_size, None))):
                    weights[f"{name}.weight"], weights[f"{name}.bias"] = weight[:, rows], bias[:, 0, rows]
        return {name: value.cpu().half() for name, value in weights.items()}

    def state_dict(self):
        """All that later updates depend on."""
        tensors = {"actor": self.actor.flat, "critics": self.critics.flat, "targets": self.targets.flat}
        tensors["log_alpha"] = self.log_alpha
        return {
            "tensors": {name: tensor.clone() for name, tensor in tensors.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state):
        """Go on from a `state_dict`."""
        for name, values in state["tensors"].items():
            (self.log_alpha if name == "log_alpha" else getattr(self, name).flat).copy_(values)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
