"""Meta-DT: a decision transformer whose state tokens carry the context z, preceded by a prompt segment of the same task.

    prompt (k steps)                 history (K steps)
    R̂* s* a*  R̂* s* a*  ...          R̂ (s,z) a   R̂ (s,z) a   ...   R̂ (s,z) → action a_t is read from the state token

Three tokens per step; prompt and history have embeddings of their own (Meta-DT, section 4.3; the released code's 3k + 3K tokens).
With `--ignore_returns True` (ours) no return is asked for: two tokens per step, (s,z) and a. With `--window_time True` (ours) the
history's time steps are counted from the beginning of the window: a policy that reads z needs no clock, and each of T embeddings
is seen so rarely that it is mostly noise.
"""

import dataclasses

import numpy as np
import torch
from torch import nn

from src.data.scales import EPSILON, clipped
from src.models.transformer import Transformer, attention_bias
from src.models.world_model import CONTEXT_SIZE
from src.run.flags import positive_float, positive_int, proper_fraction
from src.run.settings import setting

STATE_EMBEDDING = 16  # width of the state's own embedding before z is joined to it


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """model"""

    width: int = setting(128, "of the transformer", positive_int)
    layers: int = setting(3, "transformer blocks", positive_int)
    heads: int = setting(1, "attention heads", positive_int)
    dropout: float = setting(0.1, "on inputs, attention weights and residual branches", proper_fraction)
    history_length: int = setting(20, "K: steps of history", positive_int)
    prompt_length: int = setting(5, "k: steps of the prompt", positive_int)
    return_scale: float = setting(500.0, "c: returns-to-go are divided by it", positive_float)
    rescale_actions: bool = setting(False, "tanh head times the action bounds (ours)")
    ignore_returns: bool = setting(False, "ask for no return: the policy reads z, states and actions (ours)")
    window_time: bool = setting(False, "count the history's time steps within the window, not the episode (ours)")


class StepEmbedding(nn.Module):
    """(R̂, s, z, a, time step) -> three tokens per step in the order return, state, action; without R̂ two.

    Args:
        with_context: the state token is Linear(concat[Linear(s), z]) when True, Linear(s) otherwise.
        condition_size: numbers that the first token of a step reads; 1 for the return-to-go, 0 for no such token.
    """

    def __init__(self, observation_size, action_size, max_steps, width, with_context, condition_size=1):
        super().__init__()
        self.with_context = with_context
        self.returns = nn.Linear(condition_size, width) if condition_size else None
        if with_context:
            self.observations = nn.Linear(observation_size, STATE_EMBEDDING)
            self.states = nn.Linear(STATE_EMBEDDING + CONTEXT_SIZE, width)
        else:
            self.states = nn.Linear(observation_size, width)
        self.actions = nn.Linear(action_size, width)
        self.timesteps = nn.Embedding(max_steps, width)

    def forward(self, returns_to_go, observations, contexts, actions, timesteps):
        """(B, L, condition_size), (B, L, d_s), (B, L, 16), (B, L, d_a), (B, L) -> tokens (B, 3 L or 2 L, D)."""
        states = self.states(torch.cat([self.observations(observations), contexts], -1) if self.with_context else observations)
        asked = [] if self.returns is None else [self.returns(returns_to_go)]
        tokens = torch.stack([*asked, states, self.actions(actions)], 2)  # (B, L, 3 or 2, D)
        return (tokens + self.timesteps(timesteps)[:, :, None]).flatten(1, 2)


class MetaDT(nn.Module):
    """The policy. Inputs in physical units; observations are standardised and returns-to-go scaled inside.

    Args:
        observation_size, action_size: d_s, d_a.
        max_steps: T, entries of the time-step tables.
        return_scale: c; returns-to-go are divided by it.
        width, layers, heads, dropout: of the transformer.
        action_scale: (d_a,) bounds that the tanh head is multiplied with; None keeps the paper's unscaled tanh.
        context, prompted: False leaves z out of the history's state tokens, and the prompt's embeddings out of the model. Without
            z this is Prompt-DT, without both the Decision Transformer.
        condition_size: steps carry `conditions` (B, L, condition_size), which stand in the place of the return-to-go (baselines);
            0: nothing does.
        window_time: the history's time steps are counted from the first step of the window.
    """

    def __init__(
        self, observation_size, action_size, max_steps, return_scale, width=128, layers=3, heads=1, dropout=0.1,
        action_scale=None, context=True, prompted=True, condition_size=None, window_time=False,
    ):  # fmt: skip
        super().__init__()
        self.window_time = window_time
        self.return_scale = return_scale
        self.condition_size = condition_size
        sizes = observation_size, action_size, max_steps, width
        numbers = 1 if condition_size is None else condition_size
        self.tokens_per_step = 3 if numbers else 2
        self.history = StepEmbedding(*sizes, context, numbers)
        self.prompt = StepEmbedding(*sizes, with_context=False, condition_size=numbers) if prompted else None
        self.embed_ln = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, dropout)
        self.head = nn.Linear(width, action_size)
        self.register_buffer("observation_mean", torch.zeros(observation_size))
        self.register_buffer("observation_std", torch.ones(observation_size))
        self.register_buffer("observation_bound", torch.full((observation_size,), torch.inf))
        self.register_buffer(
            "action_scale", torch.ones(action_size) if action_scale is None else torch.as_tensor(action_scale).float()
        )

    @classmethod
    def from_settings(cls, observation_size, action_size, max_steps, settings, action_space):
        """The untrained policy of ModelSettings. action_space: a bounded Box."""
        scale = np.maximum(np.abs(action_space.low), np.abs(action_space.high)) if settings.rescale_actions else None
        return cls(
            observation_size, action_size, max_steps, settings.return_scale, settings.width, settings.layers, settings.heads,
            settings.dropout, scale, condition_size=0 if settings.ignore_returns else None, window_time=settings.window_time,
        )  # fmt: skip

    def set_normaliser(self, mean, std, bound=None):
        """Statistics (d_s,) of the observations of the training tasks, as `observation_statistics` gives them."""
        self.observation_mean.copy_(mean)
        self.observation_std.copy_(std)
        if bound is not None:
            self.observation_bound.copy_(bound)

    def _tokens(self, embedding, steps):
        """steps: dict with returns_to_go (B, L), observations, contexts, actions, timesteps -> tokens (B, 3 L or 2 L, D)."""
        tokens = embedding(
            steps["conditions"] if self.condition_size else steps["returns_to_go"][..., None] / self.return_scale,
            clipped((steps["observations"] - self.observation_mean) / (self.observation_std + EPSILON), self.observation_bound),
            steps["contexts"] if embedding.with_context else None,
            steps["actions"] / self.action_scale,
            _places(steps) if self.window_time and embedding is self.history else steps["timesteps"],
        )
        return self.embed_ln(tokens) if embedding is self.history else tokens  # as Prompt-DT and the official code

    def forward(self, history, prompt=None):
        """Actions of every history position.

        Args:
            history, prompt: dicts of tensors with leading axes (B, K) and (B, k): returns_to_go, observations, contexts, actions,
                timesteps, mask (False on the padding).
        Returns: actions (B, K, d_a). Position t sees R̂, s, z up to t and the actions before t.
        """
        tokens, mask = self._tokens(self.history, history), history["mask"]
        first = 0
        if prompt is not None:
            first = self.tokens_per_step * prompt["mask"].shape[1]
            tokens = torch.cat([self._tokens(self.prompt, prompt), tokens], 1)
            mask = torch.cat([prompt["mask"], mask], 1)
        bias = attention_bias(self.by_token(mask))
        states = slice(first + self.tokens_per_step - 2, None, self.tokens_per_step)
        hidden, _ = self.transformer(tokens, bias, readout=states)
        return self.read_actions(hidden)

    def read_actions(self, hidden):
        """Hidden states (..., D) at state tokens -> actions (..., d_a)."""
        return torch.tanh(self.head(hidden)).float() * self.action_scale

    def history_tokens(self, steps):
        """Tokens (B, 3 L or 2 L, D) of history steps as `forward` takes them, for who keeps keys and values himself."""
        return self._tokens(self.history, steps)

    def by_token(self, mask):
        """A mask (B, L) of steps -> of their tokens."""
        return mask.repeat_interleave(self.tokens_per_step, 1)

    def encode_prompt(self, prompt):
        """Keys and values of a prompt in every block, and its mask: computed once, reused by `act` for the whole episode."""
        tokens = self._tokens(self.prompt, prompt)
        mask = self.by_token(prompt["mask"])
        _, caches = self.transformer(tokens, attention_bias(mask))
        return caches, mask

    def act(self, history, encoded_prompt=None):
        """The action at the last step of a history, (B, d_a); the last entry of `actions` is a placeholder.

        Args: history as in `forward`, not padded where it has no mask; encoded_prompt from `encode_prompt`.
        """
        tokens = self._tokens(self.history, history)[:, :-1]  # the last action token comes after what is read out
        length = tokens.shape[1]
        mask = self.by_token(history["mask"])[:, :-1] if "mask" in history else tokens.new_ones(1, length).bool()
        bias = attention_bias(mask)
        past = None
        if encoded_prompt is not None:
            past, prompt_mask = encoded_prompt
            hidden_prompt = torch.zeros(prompt_mask.shape, device=tokens.device).masked_fill_(~prompt_mask, -torch.inf)
            bias = torch.cat([hidden_prompt[:, None].expand(-1, length, -1), bias.expand(len(tokens), -1, -1)], 2)
        hidden, _ = self.transformer(tokens, bias, readout=slice(length - 1, None), past=past)
        return self.read_actions(hidden[:, 0])


def _places(steps):
    """Places (B or 1, L) of a history's steps within their window: 0 at the first that is not padding."""
    if "mask" in steps:
        return (steps["mask"].cumsum(1) - 1).clamp_min(0)
    return torch.arange(steps["observations"].shape[1], device=steps["observations"].device)[None]


def action_loss(predicted, actions, mask, scale):
    """What `MetaDT.forward` predicted against actions (B, K, d_a), averaged over the positions of mask (B, K) -> scalar; see
    `action_errors`."""
    return masked_mean(action_errors(predicted, actions, scale), mask)


def masked_mean(errors, mask):
    """Mean of errors (B, K) over the True positions of mask (B, K)."""
    return (errors * mask).sum() / mask.sum()


def action_errors(predicted, actions, scale):
    """Squared errors (B, K) of what `MetaDT.forward` predicted of actions (B, K, d_a), in units of the action scale, means over
    action dimensions."""
    return ((predicted - actions) / scale).square().mean(-1)
