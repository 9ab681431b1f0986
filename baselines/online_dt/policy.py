"""The policies, and how they act.

    R̂ s a   R̂ s a   ...   R̂ s → the distribution of action a_t is read from the state token

Three tokens per step and a LayerNorm, then the shared GPT-2 stack. Behaviour cloning reads the last K states with an MLP.
"""

import dataclasses
import itertools

import numpy as np
import torch
from torch import nn

from src.data.scales import EPSILON, clipped
from src.evaluation.agent import as_tensor
from src.models.heads import GaussianHead
from src.models.transformer import Transformer, attention_bias
from src.run.flags import positive_float, positive_int, proper_fraction
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """model"""

    model_type: str = setting("dt", "decision transformer or behaviour cloning", choices=["dt", "bc"])
    stochastic: bool = setting(False, "Gaussian policy; otherwise deterministic, squared error")
    stochastic_tanh: bool = setting(False, "squash the Gaussian by tanh")
    remove_pos_embs: bool = setting(False, "no embedding of the time step")
    K: int = setting(20, "time steps of a training window", positive_int)
    embed_dim: int = setting(128, "width of the transformer", positive_int)
    n_layer: int = setting(3, "blocks (bc: hidden layers)", positive_int)
    n_head: int = setting(1, "attention heads", positive_int)
    dropout: float = setting(0.1, "on input, attention weights and residual branches", proper_fraction)
    return_scale: float = setting(1000.0, "returns-to-go are divided by it", positive_float)
    bfloat16: bool = setting(False, "run the transformer blocks in bfloat16")


class DecisionTransformer(nn.Module):
    """(R̂, s, a) windows -> hidden states at the state tokens.

    Args:
        observation_size, action_size: d_s, d_a. width, layers, heads, dropout: of the stack.
        max_steps: entries of the time-step table; None for no positional embedding.
        bfloat16: run the stack (not the embeddings) in bfloat16.
    """

    def __init__(self, observation_size, action_size, width, layers, heads, dropout, max_steps, bfloat16):
        super().__init__()
        self.bfloat16 = bfloat16
        self.returns, self.states = nn.Linear(1, width), nn.Linear(observation_size, width)
        self.actions = nn.Linear(action_size, width)
        self.timesteps = nn.Embedding(max_steps, width) if max_steps else None
        self.norm = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, dropout)

    def forward(self, returns, observations, actions, timesteps, mask, last=False):
        """Scaled inputs (B, L, 1), (B, L, d_s), (B, L, d_a), (B, L), mask (B, L) -> (B, L, D), or (B, 1, D) of the last step."""
        tokens = torch.stack([self.returns(returns), self.states(observations), self.actions(actions)], 2)  # (B, L, 3, D)
        if self.timesteps is not None:
            tokens = tokens + self.timesteps(timesteps)[:, :, None]
        tokens = self.norm(tokens.flatten(1, 2))[:, :-1]  # nothing is read after the last action
        bias = attention_bias(mask.repeat_interleave(3, 1)[:, :-1])
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.transformer(tokens, bias, readout=slice(-1, None) if last else slice(1, None, 3))[0]


class BehaviourCloning(nn.Module):
    """The last K states, zeros before the first one -> hidden state (B, 1, D) of an MLP with ReLU."""

    def __init__(self, observation_size, history, width, layers, dropout):
        super().__init__()
        self.history = history
        sizes = [history * observation_size, *[width] * layers]
        modules = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(*(module for group in modules for module in group))

    def forward(self, returns, observations, actions, timesteps, mask, last=True):
        states = observations * mask[..., None]
        missing = self.history - states.shape[1]
        return self.layers(nn.functional.pad(states, (0, 0, missing, 0)).flatten(1))[:, None]


class Policy(nn.Module):
    """A body and a head. Inputs and actions in physical units; all scaling happens inside.

    Args:
        observation_size, action_size: d_s, d_a. settings: ModelSettings. max_steps: T.
    """

    def __init__(self, observation_size, action_size, settings, max_steps):
        super().__init__()
        s, width, layers, dropout = settings, settings.embed_dim, settings.n_layer, settings.dropout
        if s.model_type == "bc":
            self.body = BehaviourCloning(observation_size, s.K, width, layers, dropout)
        else:
            table = None if s.remove_pos_embs else max_steps
            sizes = observation_size, action_size
            self.body = DecisionTransformer(*sizes, width, layers, s.n_head, dropout, table, s.bfloat16)
        self.stochastic, self.return_scale = s.stochastic, s.return_scale
        if self.stochastic:
            self.head = GaussianHead(width, action_size, s.stochastic_tanh)
        else:
            self.head = nn.Sequential(nn.Linear(width, action_size), nn.Tanh())
        for name, size, value in (("observation_mean", observation_size, 0), ("observation_std", observation_size, 1),
                                  ("observation_bound", observation_size, torch.inf),
                                  ("action_centre", action_size, 0), ("action_range", action_size, 1)):  # fmt: skip
            self.register_buffer(name, torch.full((size,), float(value)))

    def set_scales(self, mean, std, bound, low, high):
        """Statistics (d_s,) of the offline observations (`observation_statistics`), bounds (d_a,) of the actions; frozen then."""
        self.observation_mean.copy_(torch.as_tensor(mean))
        self.observation_std.copy_(torch.as_tensor(std) + EPSILON)
        self.observation_bound.copy_(torch.as_tensor(bound))
        self.action_centre.copy_(torch.as_tensor((low + high) / 2))
        self.action_range.copy_(torch.as_tensor((high - low) / 2))

    def forward(self, window, last=False):
        """What the head makes of a window, a dict as `EpisodeTensors.gather` gives.

        Returns an ActionDistribution or actions (..., d_a), scaled to [-1, 1], with leading axes (B, L), or (B, 1) for the last
        step only (behaviour cloning knows only that).
        """
        hidden = self.body(
            window["returns_to_go"][..., None] / self.return_scale,
            clipped((window["observations"] - self.observation_mean) / self.observation_std, self.observation_bound),
            self.scaled(window["actions"]),
            window["timesteps"],
            window["mask"],
            last,
        )
        return self.head(hidden.float())

    def scaled(self, actions):
        """Physical actions (..., d_a) -> [-1, 1]."""
        return (actions - self.action_centre) / self.action_range

    def targets(self, window):
        """The actions that `forward` predicts (N, d_a), scaled, and the mask (B, L or 1) that selects its N valid rows."""
        cut = slice(-1, None) if isinstance(self.body, BehaviourCloning) else slice(None)
        mask = window["mask"][:, cut]
        return self.scaled(window["actions"][:, cut][mask]), mask

    def act(self, window, generator=None, scale=1.0):
        """Physical actions (B, d_a) at the last step: a sample, σ times `scale`, where a generator is given, else the mean."""
        result = self(window, last=True)
        if self.stochastic:
            result = result.sample(generator, scale) if generator is not None else result.centre()
        return result[:, 0] * self.action_range + self.action_centre


class Agent:
    """A policy as an Agent (src/evaluation/agent.py); it knows one task and adapts to none.

    Args:
        policy: Policy. target: target return. context: steps that it sees (behaviour cloning sees K).
        generator: torch.Generator (CPU) to sample actions; None plays the mean action.
        scale: factor on σ of the samples.
        spend: whether received rewards are subtracted from the return-to-go (not with delayed rewards).
        noise: (d_a,) deviation of Gaussian noise on the actions, drawn by noise_generator (numpy's); None: no noise.
    """

    def __init__(self, policy, target, context, generator=None, scale=1.0, spend=True, noise=None, noise_generator=None):
        self.target, self.noise, self.noise_generator = target, noise, noise_generator
        self.policy, self.generator, self.scale, self.spend = policy.eval(), generator, scale, spend
        self.context = policy.body.history if isinstance(policy.body, BehaviourCloning) else context
        self.device = policy.action_range.device

    def adapt(self, episodes):
        """Nothing: there is one task."""

    def start(self, observations):
        """Begin B episodes: observations (B, d_s)."""
        self.step = 0
        self.observations, self.actions = [self._tensor(observations)], [self._tensor(observations).new_zeros(
            len(observations), len(self.policy.action_range))]  # fmt: skip
        self.returns_to_go = [self._tensor(np.full(len(observations), self.target))]

    @torch.inference_mode()
    def act(self):
        """Actions (B, d_a), numpy; without squashing they may leave the bounds."""
        first = max(0, self.step + 1 - self.context)
        window = {
            "returns_to_go": torch.stack(self.returns_to_go, 1),
            "observations": torch.stack(self.observations, 1),
            "actions": torch.stack(self.actions, 1),  # the last one is a placeholder that nothing reads
            "timesteps": torch.arange(first, self.step + 1, device=self.device)[None],
            "mask": torch.ones(1, self.step + 1 - first, dtype=torch.bool, device=self.device),
        }
        actions = self.policy.act(window, self.generator, self.scale).cpu().numpy()
        if self.noise is not None:
            actions = actions + self.noise * self.noise_generator.standard_normal(actions.shape)
        return actions

    def observe(self, actions, rewards, next_observations):
        """What the environment answered: actions as they were played (B, d_a), rewards (B,), next observations (B, d_s)."""
        self.step += 1
        self.actions[-1:] = [self._tensor(actions), torch.zeros_like(self.actions[0])]
        self.observations.append(self._tensor(next_observations))
        self.returns_to_go.append(self.returns_to_go[-1] - (self._tensor(rewards) if self.spend else 0))
        for values in (self.observations, self.actions, self.returns_to_go):
            del values[: -self.context]

    def _tensor(self, values):
        return as_tensor(values, self.device)
