"""The world model: a GRU encoder turns the last h transitions into a context z_t, decoders must predict reward and next state.

    step            t-2        t-1         t
                 s a r s'   s a r s'    s  ·  ·
    context z_t  └───── last h transitions, never across an episode's start; zero-padded on the left; z_0 = encoder(padding)

The running context (horizon 0, ours) reads the whole episode so far: z_t is read from the GRU's state after t transitions, z_0
from its zero state. One pass over an episode gives all its contexts, and acting costs one GRU step per time step.

Because reward and dynamics do not depend on who acted, z describes the task and not the behaviour policy (Meta-DT, section 4.1).
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from src.data.scales import clipped, statistics
from src.run.errors import UserError
from src.run.files import load_tensors, read_json
from src.run.flags import natural, positive_int
from src.run.settings import setting

CONTEXT_SIZE = 16  # z
HIDDEN_SIZE = 128  # GRU and decoders


@dataclasses.dataclass(frozen=True)
class WorldModelSettings:
    """model"""

    context_horizon: int = setting(4, "h: past transitions that z reads; 0: the whole episode (ours)", natural)
    embedding_size: int = setting(16, "width of the inputs' embeddings", positive_int)
    standardise: bool = setting(True, "standardise inputs (the official code does not)")


class Embedding(nn.Sequential):
    """Linear + ReLU, as every input of the world model passes through."""

    def __init__(self, size, width):
        super().__init__(nn.Linear(size, width), nn.ReLU())


class Decoder(nn.Sequential):
    """Two hidden layers of 128 with ReLU."""

    def __init__(self, size, outputs):
        super().__init__(
            nn.Linear(size, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, outputs),
        )


class WorldModel(nn.Module):
    """Context encoder E, reward decoder and state decoder; the normaliser of their inputs belongs to the model.

    Linear layers Xavier-uniform with zero bias, GRU orthogonal. All public methods take and give physical units.

    Args:
        observation_size, action_size: d_s, d_a.
        horizon: h, the number of past transitions that z reads; 0 means all of the episode so far.
        embedding_size: width of the embedding of each observation, action and reward.
    """

    def __init__(self, observation_size, action_size, horizon, embedding_size=16):
        super().__init__()
        self.horizon = horizon

        def embedding(size):
            return Embedding(size, embedding_size)

        self.observation_embedding = embedding(observation_size)
        self.action_embedding = embedding(action_size)
        self.reward_embedding = embedding(1)
        self.gru = nn.GRU(3 * embedding_size, HIDDEN_SIZE, batch_first=True)
        self.to_context = nn.Linear(HIDDEN_SIZE, CONTEXT_SIZE)
        self.reward_observation_embedding = embedding(observation_size)
        self.reward_action_embedding = embedding(action_size)
        self.reward_decoder = Decoder(3 * embedding_size + CONTEXT_SIZE, 1)
        self.state_observation_embedding = embedding(observation_size)
        self.state_action_embedding = embedding(action_size)
        self.state_decoder = Decoder(2 * embedding_size + CONTEXT_SIZE, observation_size)
        for name, size in {"observation": observation_size, "action": action_size, "reward": 1}.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
            self.register_buffer(f"{name}_bound", torch.full((size,), torch.inf))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.gru.named_parameters():
            nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)

    @classmethod
    def from_settings(cls, observation_size, action_size, settings):
        """The untrained model of WorldModelSettings; its normaliser does nothing yet."""
        return cls(observation_size, action_size, settings.context_horizon, settings.embedding_size)

    def set_normaliser(self, observations, actions, rewards, next_observations):
        """Standardise inputs and targets by the statistics of training transitions (N, d_s), (N, d_a), (N, 1), (N, d_s)."""
        given = {
            "observation": statistics(observations, next_observations),
            "action": statistics(actions),
            "reward": statistics(rewards),
        }
        for name, values in given.items():
            for kind, value in zip(("mean", "std", "bound"), values, strict=True):
                getattr(self, f"{name}_{kind}").copy_(value)

    def standardise(self, name, values):
        """`name`: observation, action or reward; values (..., size) -> standardised values."""
        return (values - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")

    def as_input(self, name, values):
        """As `standardise`, clipped at what the training data reached (src/data/scales.py)."""
        return clipped(self.standardise(name, values), getattr(self, f"{name}_bound"))

    def embed(self, observations, actions, rewards):
        """Transitions (..., d_s), (..., d_a), (..., 1) -> inputs of the GRU (..., 3 · embedding_size)."""
        return torch.cat(
            [
                self.observation_embedding(self.as_input("observation", observations)),
                self.action_embedding(self.as_input("action", actions)),
                self.reward_embedding(self.as_input("reward", rewards)),
            ],
            -1,
        )

    def embed_padding(self):
        """What a padded row of a window is to the GRU: the embedding of standardised zeros."""
        parts = (self.observation_embedding, self.action_embedding, self.reward_embedding)
        return torch.cat([layer(layer[0].weight.new_zeros(layer[0].in_features)) for layer in parts])

    def encode(self, observations, actions, rewards, mask):
        """Windows of transitions -> contexts.

        Args: observations (B, h, d_s), actions (B, h, d_a), rewards (B, h, 1), mask (B, h) False on the padding at the left.
        Returns: z (B, 16).
        """
        inputs = torch.where(mask[..., None], self.embed(observations, actions, rewards), self.embed_padding())
        _, hidden = self.gru(inputs)
        return self.to_context(hidden[0])

    def encode_running(self, observations, actions, rewards):
        """Contexts of all prefixes of episodes, for horizon 0.

        Args: observations (B, T, d_s), actions (B, T, d_a), rewards (B, T, 1).
        Returns: z (B, T + 1, 16); z[:, t] has read the transitions before t.
        """
        hidden, _ = self.gru(self.embed(observations, actions, rewards))
        return self.to_context(torch.cat([hidden.new_zeros(len(hidden), 1, HIDDEN_SIZE), hidden], 1))

    def contexts(self, observations, actions, rewards, mask):
        """Contexts of a window of `TransitionSampler` (see its `draw`), one row per transition to decode: (N, 16)."""
        if self.horizon:
            return self.encode(observations, actions, rewards, mask)
        return self.encode_running(observations, actions, rewards)[:, :-1][mask]

    def decode(self, observations, actions, next_observations, contexts):
        """Predictions in standardised units: rewards (B, 1) from (s, a, s', z) and next observations (B, d_s) from
        (s, a, z)."""
        observations, action = self.as_input("observation", observations), self.as_input("action", actions)
        next_observations = self.as_input("observation", next_observations)
        phi = self.reward_observation_embedding
        rewards = self.reward_decoder(
            torch.cat([phi(observations), self.reward_action_embedding(action), phi(next_observations), contexts], -1)
        )
        states = self.state_decoder(
            torch.cat([self.state_observation_embedding(observations), self.state_action_embedding(action), contexts], -1)
        )
        return rewards, states

    def losses(self, observations, actions, rewards, next_observations, contexts):
        """Mean squared errors (reward, state) of the decoders, in standardised units."""
        reward, state = self.errors(observations, actions, rewards, next_observations, contexts)
        return reward.mean(), state.mean()

    def errors(self, observations, actions, rewards, next_observations, contexts):
        """Squared errors of the decoders in standardised units: reward (B,), state (B,), the latter a mean over d_s."""
        predicted_rewards, predicted_states = self.decode(observations, actions, next_observations, contexts)
        return (
            (predicted_rewards - self.standardise("reward", rewards)).square().squeeze(-1),
            (predicted_states - self.standardise("observation", next_observations)).square().mean(-1),
        )


# ----------------------------------------------------------------------------------------- contexts of whole episodes


class RunningContexts:
    """Contexts of B running episodes, one step at a time; equal to `episode_contexts` of the same transitions.

    `current`: z of the transitions seen so far, (B, 16).
    """

    def __init__(self, model, rows):
        self.model, self.rows = model, rows
        device = model.observation_mean.device
        padding = model.embed_padding().expand(rows, -1)
        self.inputs = [padding] * model.horizon
        self.hidden = torch.zeros(1, rows, HIDDEN_SIZE, device=device)
        self.current = self._read()

    def step(self, observations, actions, rewards):
        """One more transition: (B, d_s), (B, d_a), (B,)."""
        embedded = self.model.embed(observations, actions, rewards[:, None])
        if self.model.horizon:
            self.inputs = [*self.inputs[1:], embedded]
        else:
            _, self.hidden = self.model.gru(embedded[:, None], self.hidden)
        self.current = self._read()

    def _read(self):
        hidden = self.model.gru(torch.stack(self.inputs, 1))[1] if self.model.horizon else self.hidden
        return self.model.to_context(hidden[0])


@torch.inference_mode()
def episode_contexts(model, observations, actions, rewards, chunk=4096):
    """z_t of every step of every episode.

    Args: observations (E, T, d_s) or (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T).
    Returns: contexts (E, T + 1, 16); the last one follows the whole episode.
    """
    episodes, steps = rewards.shape
    contexts = torch.empty(episodes, steps + 1, CONTEXT_SIZE, device=rewards.device)
    per_chunk = max(1, chunk // (steps + 1))
    compute = _window_contexts if model.horizon else WorldModel.encode_running
    for first in range(0, episodes, per_chunk):
        part = slice(first, first + per_chunk)
        contexts[part] = compute(model, observations[part, :steps], actions[part], rewards[part, :, None])
    return contexts


def _window_contexts(model, observations, actions, rewards):
    """As `WorldModel.encode` on every window of few episodes; embeddings and input projections are computed once per transition
    and not once per window."""
    horizon, gru, steps = model.horizon, model.gru, actions.shape[1] + 1
    padding = model.embed_padding().expand(len(actions), horizon, -1)
    inputs = torch.cat([padding, model.embed(observations, actions, rewards)], 1)  # (e, h + T, inputs)
    projected = F.linear(inputs, gru.weight_ih_l0, gru.bias_ih_l0)
    hidden = projected.new_zeros(len(inputs) * steps, HIDDEN_SIZE)
    for offset in range(horizon):  # window t holds the padded rows t ... t + h - 1
        hidden = _gru_cell(projected[:, offset : offset + steps].flatten(0, 1), hidden, gru)
    return model.to_context(hidden).view(len(inputs), steps, CONTEXT_SIZE)


def _gru_cell(projected, hidden, gru):
    """One GRU step (PyTorch's gate order r, z, n); inputs (N, 384) are multiplied by W_ih already, hidden (N, 128)."""
    reset_in, update_in, new_in = projected.chunk(3, -1)
    reset_h, update_h, new_h = F.linear(hidden, gru.weight_hh_l0, gru.bias_hh_l0).chunk(3, -1)
    reset = (reset_in + reset_h).sigmoid_()
    update = (update_in + update_h).sigmoid_()
    new = torch.addcmul(new_in, reset, new_h).tanh_()
    return torch.lerp(new, hidden, update)


@torch.inference_mode()
def prediction_errors(model, observations, actions, rewards, contexts, scale=(1.0, 1.0), chunk=4096):
    """World-model error of every transition, for the choice of the prompt (Meta-DT, section 4.2).

    Args:
        observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), contexts (E, T or T + 1, 16).
        scale: what the absolute reward error and the summed absolute state error are divided by (their training RMSE, in
            standardised units); inf leaves a head out.
    Returns: errors (E, T).
    """
    episodes, steps = rewards.shape
    errors = torch.empty(episodes, steps, device=rewards.device)
    per_chunk = max(1, chunk // steps)
    for first in range(0, episodes, per_chunk):
        part = slice(first, first + per_chunk)
        now, after = observations[part, :steps], observations[part, 1 : steps + 1]
        predicted_rewards, predicted_states = model.decode(now, actions[part], after, contexts[part, :steps])
        reward_errors = (predicted_rewards - model.standardise("reward", rewards[part, :, None])).abs().squeeze(-1)
        state_errors = (predicted_states - model.standardise("observation", after)).abs().sum(-1)
        errors[part] = reward_errors / scale[0] + state_errors / scale[1]
    return errors


def load_world_model(directory, which="best"):
    """World model saved by train_context.py, frozen, on the CPU, and its settings.

    Args: directory: the run's folder; which: "best" (on validation) or "last".
    Raises UserError when there is none or it is damaged.
    """
    config = read_json(Path(directory) / "config.json")
    tensors = load_tensors(Path(directory) / f"{which}.safetensors")
    try:
        sizes = len(tensors["observation_mean"]), len(tensors["action_mean"])
        values = {field.name: config[field.name] for field in dataclasses.fields(WorldModelSettings)}
        if not all(isinstance(value, int) and value >= 0 for value in values.values()):
            raise TypeError
        model = WorldModel.from_settings(*sizes, WorldModelSettings(**values))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError):
        raise UserError(f"{directory} holds no world model of train_context.py; train it again with --no-resume") from None
    return model.eval().requires_grad_(False), config
