"""What Generalized DT asks for (Furuta et al., 2022): a statistic Φ_t of an episode from step t to its end."""

import dataclasses

import torch
from torch import nn

from baselines.sequence import episode_tensors
from src.data.scales import clipped, scale_of
from src.models.transformer import Transformer, attention_bias
from src.run.flags import fraction, positive_int
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class Statistic:
    """statistic of the future"""

    statistic: str = setting("categorical", "what is asked for", choices=["categorical", "bidirectional"])
    bins: int = setting(30, "categorical: bins of the rewards", positive_int)
    best_share: float = setting(0.1, "categorical, zero-shot: training episodes whose histogram is asked for", fraction)
    statistic_size: int = setting(16, "bidirectional: numbers that stand for a future", positive_int)


class Categorical(nn.Module):
    """Φ_t, the histogram of the rewards r_t, r_t+1, ... of an episode as shares; nothing in it is trained."""

    def __init__(self, edges, typical):
        super().__init__()
        self.size, self.edges, self.typical = len(typical), edges, typical  # (bins - 1,), (bins,)

    @classmethod
    def of(cls, episodes, model, settings):
        """EpisodeTensors of training, Sequence, Statistic -> the statistic."""
        low, high = episodes.rewards[episodes.inside].aminmax()
        edges = torch.linspace(low.item(), high.item(), settings.bins + 1)[1:-1].to(low.device)
        made = cls(edges, edges.new_zeros(settings.bins))
        best = episodes.returns_to_go[:, 0].topk(max(1, round(settings.best_share * len(episodes.lengths)))).indices
        made.typical = (made.counts(episodes.rewards) * episodes.inside[..., None])[best].sum(1).mean(0)
        return made

    def known(self, training):
        """What it knows of the training data."""
        return {"edges": self.edges, "typical": self.typical}

    @classmethod
    def restored(cls, saved, model, settings):
        """(the statistic, what it has prepared of the training data)."""
        return cls(saved.tensor("edges"), saved.tensor("typical")), None

    def counts(self, rewards):  # (...) -> (..., bins), 1 in the bin of each reward
        return nn.functional.one_hot(torch.bucketize(rewards.contiguous(), self.edges, right=True), self.size).float()

    def prepare(self, episodes):
        """EpisodeTensors -> Φ (E, T, bins), 0 beyond an episode's end."""
        counts = self.counts(episodes.rewards) * episodes.inside[..., None]
        remaining = counts.flip(1).cumsum(1).flip(1)
        return remaining / remaining.sum(-1, keepdim=True).clamp_min(1)

    def read(self, prepared, rows, timesteps, mask=None):
        """Statistics at `timesteps` (B, L) of the episodes `rows` (B,): (B, L, size)."""
        return prepared[rows[:, None], timesteps]

    def blind(self, prepared, rewards, first):
        """What is asked for from step `first` to now where the rewards (B, t) so far are all that is known: (B, L, size)."""
        received = nn.functional.pad(self.counts(rewards).cumsum(1), (0, 0, 1, 0))[:, first:]
        remaining = (self.typical - received).clamp_min(0)
        remaining = torch.where(remaining.sum(-1, keepdim=True) > 0, remaining, self.typical)
        return remaining / remaining.sum(-1, keepdim=True)


class Bidirectional(nn.Module):
    """Reads states backwards; what it makes of s_t and those after it is the statistic of step t."""

    def __init__(self, observation_size, steps, model, settings, scale):
        super().__init__()
        self.size, self.length = settings.statistic_size, 2 * model.history_length
        self.states = nn.Linear(observation_size, model.width)
        self.timesteps = nn.Embedding(steps, model.width)
        self.norm = nn.LayerNorm(model.width)
        self.transformer = Transformer(model.width, model.layers, model.heads, model.dropout)
        self.out = nn.Linear(model.width, self.size)
        self.scale = scale  # of observations, as `scale_of` gives it

    @classmethod
    def of(cls, episodes, model, settings):
        """As Categorical.of."""
        scale = scale_of(episodes.observations[:, :-1][episodes.inside])
        return cls(episodes.observations.shape[-1], episodes.rewards.shape[1], model, settings, scale)

    def known(self, training):
        """As Categorical.known: the scale, and the episodes that `blind` reads."""
        rows = self.examples(training)
        arrays = {name: getattr(training, name)[rows] for name in ("observations", "actions", "rewards", "lengths")}
        return arrays | {"scale": torch.stack(self.scale)}

    @classmethod
    def restored(cls, saved, model, settings):
        """As Categorical.restored."""
        training = episode_tensors(saved.known, saved.device)
        return cls(saved.sizes[0], training.rewards.shape[1], model, settings, saved.tensor("scale").unbind()), training

    prepare = staticmethod(lambda episodes: episodes)

    def read(self, prepared, rows, timesteps, mask=None):
        """As Categorical.read; the window that is read begins at the first of `timesteps` that is not padding."""
        starts = timesteps[:, 0] if mask is None else timesteps.masked_fill(~mask, prepared.rewards.shape[1]).amin(1)
        window, (mean, divisor, bound) = prepared.gather(rows, starts, self.length, align_right=False), self.scale
        states = clipped((window["observations"] - mean) / divisor, bound)
        tokens = self.norm(self.states(states) + self.timesteps(window["timesteps"]))
        hidden, _ = self.transformer(tokens.flip(1), attention_bias(window["mask"].flip(1)))
        places = (timesteps - starts[:, None]).clamp_min(0)
        return self.out(hidden.flip(1))[torch.arange(len(rows), device=rows.device)[:, None], places]

    def blind(self, prepared, rewards, first):
        """As Categorical.blind: the mean over 64 training episodes, spread evenly through the data; rewards tell nothing."""
        rows = self.examples(prepared)
        timesteps = torch.arange(first, rewards.shape[1] + 1, device=rewards.device)
        timesteps = torch.minimum(timesteps, prepared.lengths[rows, None] - 1)
        return self.read(prepared, rows, timesteps).mean(0).expand(len(rewards), -1, -1)

    def examples(self, episodes):
        """Rows of 64 episodes, spread evenly."""
        return torch.linspace(0, len(episodes.lengths) - 1, 64, device=episodes.lengths.device).long()


def kind_of(asked):
    """(class of the statistic, its size)."""
    return (Categorical, asked.bins) if asked.statistic == "categorical" else (Bidirectional, asked.statistic_size)
