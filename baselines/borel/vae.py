"""The belief over tasks: a GRU encoder and decoders of reward and next state, trained together as a variational auto-encoder.

The belief after t transitions is q_t = N(μ_t, diag σ_t²); q_0, the prior, is what the heads say of the empty memory. The
memory is kept across the K episodes. A roll-out of T transitions has T + 1 beliefs:

    belief        q_0     q_1     q_2   ...   q_T
    has read       –     (a_0, s_1, r_0)  and (a_1, s_2, r_1) ...        s_1, s_2: `next_obs`

Loss of one roll-out, summed over t = 0..T and over all T decoded transitions i, past and future, and averaged over roll-outs:

    Σ_t Σ_i [ ℓ_r(z_t; s_i, a_i, s_{i+1}, r_i) + ‖ŝ(z_t, s_i, a_i) − s_{i+1}‖² ]  +  β Σ_t KL(q_t ‖ q_{t−1}),   q_{−1} = N(0, I)

This is the one reduction used here. The original averages over i for single-head decoders and sums for the multi-head
one, so its β of 0.05 is 0.05·T here for the former and 0.05 for the latter. Where only some t or i are drawn, sums are
scaled up to remain unbiased. Source: VariBAD (Zintgraf et al., ICLR 2020) and BOReL (Dorfman et al., NeurIPS 2021).
"""

import dataclasses
import itertools

import torch
import torch.nn.functional as F
from torch import nn

from src.run.flags import natural, nonnegative_float, positive_float, positive_int
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class BeliefSettings:
    """belief model"""

    task_embedding_size: int = setting(5, "dimensions of the latent", positive_int)
    aggregator_hidden_size: int = setting(128, "units of the GRU", positive_int)
    layers_before_aggregator: tuple = setting((), "layers between embeddings and GRU", positive_int, nargs="*")
    layers_after_aggregator: tuple = setting((), "layers between GRU and latent", positive_int, nargs="*")
    action_embedding_size: int = setting(16, "0: the encoder does not read actions", natural)
    state_embedding_size: int = setting(32, "0: the encoder does not read states", natural)
    reward_embedding_size: int = setting(16, "0: the encoder does not read rewards", natural)
    reward_decoder_layers: tuple = setting((32, 32), "widths", positive_int, nargs="+")
    rew_pred_type: str = setting(
        "deterministic", "squared error, or the probability that the reward is 1", choices=["deterministic", "bernoulli"]
    )
    multihead_for_reward: bool = setting(False, "one output per cell (gridworld)")
    input_prev_state: bool = setting(False, "the reward decoder reads s")
    input_action: bool = setting(False, "the reward decoder reads a")
    input_next_state: bool = setting(True, "the reward decoder reads s'")
    decode_state: bool = setting(False, "decode s' too: tasks differ in their dynamics")
    predict_change: bool = setting(False, "with --decode-state: s' − s (ours)")
    state_decoder_layers: tuple = setting((32, 32), "widths", positive_int, nargs="+")
    decode_task: bool = setting(False, "decode the task's parameters too")
    disable_decoder: bool = setting(False, "do not decode rewards")
    disable_stochasticity_in_latent: bool = setting(False, "decode μ, not a sample")
    learn_prior: bool = setting(False, "learn q_{−1} instead of N(0, I)")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """loss of the belief model"""

    vae_lr: float = setting(3e-4, "learning rate of Adam", positive_float)
    vae_batch_num_rollouts_per_task: int = setting(8, "roll-outs per task in an update", positive_int)
    kl_weight: float = setting(0.05, "β where all terms are sums; see vae.py", nonnegative_float)
    kl_to_gauss_prior: bool = setting(False, "KL to N(0, I) at every step")
    rew_loss_coeff: float = setting(1.0, "weight of the reward loss", nonnegative_float)
    state_loss_coeff: float = setting(1.0, "weight of the state loss", nonnegative_float)
    vae_batch_num_elbo_terms: int | None = setting(None, "beliefs per roll-out that decode (default: all)", positive_int)
    num_decoded_transitions: int | None = setting(None, "transitions decoded per roll-out (default: all)", positive_int)
    decode_only_past: bool = setting(False, "do not decode what is still to come")


def layers(sizes, final=None):
    """Linear and ReLU from each size to the next, then a linear layer to `final` where that is given."""
    modules = []
    for inputs, outputs in itertools.pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    if final is not None:
        modules.append(nn.Linear(sizes[-1], final))
    return nn.Sequential(*modules)


class Encoder(nn.Module):
    """(a, s', r) of each step -> beliefs. An embedding of size 0 drops its input."""

    def __init__(self, config):
        super().__init__()
        inputs = {"action": config["action_size"], "state": config["observation_size"], "reward": 1}
        sizes = {name: config[f"{name}_embedding_size"] for name in inputs}
        self.embeddings = nn.ModuleDict({name: layers([inputs[name], size]) for name, size in sizes.items() if size})
        before = [sum(sizes.values()), *config["layers_before_aggregator"]]
        self.before = layers(before)
        self.gru = nn.GRU(before[-1], config["aggregator_hidden_size"])
        for name, parameter in self.gru.named_parameters():
            nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)
        after = [config["aggregator_hidden_size"], *config["layers_after_aggregator"]]
        self.after = layers(after)
        self.mean, self.log_var = (nn.Linear(after[-1], config["task_embedding_size"]) for _ in range(2))

    def heads(self, hidden):
        """Memory (..., hidden size) -> mean and log variance (..., L)."""
        features = self.after(hidden)
        return self.mean(features), self.log_var(features)

    def memory(self, actions, next_obs, rewards, hidden=None):
        """The memory after each step. Arrays are time-major: (T, B, d_a), (T, B, d), (T, B, 1) -> (T, B, hidden size).

        hidden: the memory before the first step, (B, hidden size); None for the empty one.
        """
        inputs = {"action": actions, "state": next_obs, "reward": rewards}
        embedded = torch.cat([embed(inputs[name]) for name, embed in self.embeddings.items()], -1)
        return self.gru(self.before(embedded), None if hidden is None else hidden[None].contiguous())[0]

    def forward(self, actions, next_obs, rewards):
        """Batch-major roll-outs (B, T, ...) -> means and log variances (B, T + 1, L), the prior first."""
        memory = self.memory(actions.transpose(0, 1), next_obs.transpose(0, 1), rewards.transpose(0, 1)[..., None])
        memory = torch.cat([torch.zeros_like(memory[:1]), memory])
        mean, log_var = self.heads(memory)
        return mean.transpose(0, 1), log_var.transpose(0, 1)

    def empty(self, rows):
        """The memory before the first step (rows, hidden size)."""
        return torch.zeros(rows, self.gru.hidden_size, device=self.mean.weight.device)


class PairDecoder(nn.Module):
    """A perceptron on [z_t, embedded transition i] for all pairs (t, i): (B, n, L) and inputs (B, m, ·) -> (B, n, m, out).

    Its first layer is computed for the n latents and the m transitions apart and then added: the same function as on the
    concatenation at a fraction of the work.
    """

    def __init__(self, config, inputs, sizes, outputs):
        super().__init__()
        self.inputs = inputs  # among "next_obs", "obs", "actions"
        state, action = config["state_embedding_size"], config["action_embedding_size"]
        self.state = layers([config["observation_size"], state])  # shared by s and s'
        if "actions" in inputs:
            self.action = layers([config["action_size"], action])
        embedded = sum(action if name == "actions" else state for name in inputs)
        self.of_latent = nn.Linear(config["task_embedding_size"], sizes[0], bias=False)
        self.of_transition = nn.Linear(embedded, sizes[0])
        self.rest = nn.Sequential(nn.ReLU(), layers(sizes, outputs))

    def forward(self, latents, transitions):
        parts = [(self.action if name == "actions" else self.state)(transitions[name]) for name in self.inputs]
        first = self.of_latent(latents)[:, :, None] + self.of_transition(torch.cat(parts, -1))[:, None]
        return self.rest(first)

    def elementwise(self, latents, transitions):
        """The same for one latent per transition: (..., L) and (..., ·) -> (..., out)."""
        parts = [(self.action if name == "actions" else self.state)(transitions[name]) for name in self.inputs]
        return self.rest(self.of_latent(latents) + self.of_transition(torch.cat(parts, -1)))


class BeliefModel(nn.Module):
    """Encoder and decoders.

    Args:
        config: dict of observation_size (with the flag), flagged, action_size, discrete, task_embedding_size L,
            aggregator_hidden_size, {action,state,reward}_embedding_size, layers_{before,after}_aggregator,
            reward_decoder_layers, rew_pred_type, num_heads (0: single head), reward_decoder_inputs, decode_reward,
            decode_state, predict_change (s' − s in place of s'), state_decoder_layers, decode_task, task_size, learn_prior,
            stochastic, and the two rewards `reward_values` = (r where the goal is not reached, 1) that a Bernoulli decoder
            tells apart.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        latent, sizes = config["task_embedding_size"], config["reward_decoder_layers"]
        if config["decode_reward"]:
            if config["num_heads"]:
                self.reward_decoder = layers([latent, *sizes], config["num_heads"])
            else:
                self.reward_decoder = PairDecoder(config, config["reward_decoder_inputs"], sizes, 1)
        if config["decode_state"]:
            self.target_size = config["observation_size"] - config["flagged"]  # the flag tells nothing of the task
            self.state_decoder = PairDecoder(config, ("obs", "actions"), config["state_decoder_layers"], self.target_size)
        if config["decode_task"]:
            self.task_decoder = layers([latent, *sizes], config["task_size"])
        if config["learn_prior"]:
            self.prior = nn.Parameter(torch.zeros(2, latent))

    @property
    def bernoulli(self):
        return self.config["rew_pred_type"] == "bernoulli"

    def features(self, actions):
        """Actions as networks read them: discrete ones (...,) as one-hot vectors, others as they are; float32."""
        return F.one_hot(actions.long(), self.config["action_size"]).float() if self.config["discrete"] else actions

    def beliefs(self, actions, next_obs, rewards):
        """Beliefs along roll-outs: actions (B, T[, d_a]), next_obs (B, T, d), rewards (B, T) -> μ, log σ² (B, T + 1, L)."""
        return self.encoder(self.features(actions), next_obs, rewards)

    def sample(self, mean, log_var, generator):
        """z ~ N(μ, σ²), reparametrised; μ itself where the latent is not stochastic."""
        if not self.config["stochastic"]:
            return mean
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        return mean + noise * (0.5 * log_var).exp()

    def kl(self, mean, log_var, to_gauss_prior=False):
        """KL(q_t ‖ q_{t−1}) for t = 0..T, (B, T + 1); to_gauss_prior: KL(q_t ‖ N(0, I))."""
        first = self.prior if self.config["learn_prior"] else mean.new_zeros(2, mean.shape[-1])
        first = first[:, None, None].expand(-1, len(mean), 1, -1)
        if to_gauss_prior:
            mean_before, log_var_before = (part.expand_as(mean) for part in first)
        else:
            mean_before = torch.cat([first[0], mean[:, :-1]], 1)
            log_var_before = torch.cat([first[1], log_var[:, :-1]], 1)
        return gaussian_kl(mean, log_var, mean_before, log_var_before)

    def loss(self, batch, settings, generator):
        """The loss and its parts.

        Args:
            batch: dict of obs (B, T, d), actions (B, T[, d_a]), rewards (B, T), next_obs (B, T, d); heads (B, T) for a
                multi-head decoder; tasks (B, task size) where the task is decoded; decodable (T,) float, 0 where obs is
                not what the environment was in (see data.py), or absent.
            settings: LossSettings. generator: torch.Generator.

        Returns:
            loss (), dict of its parts (), each averaged over roll-outs, before their weights.
        """
        mean, log_var = self.beliefs(batch["actions"], batch["next_obs"], batch["rewards"])
        kl = self.kl(mean, log_var, settings.kl_to_gauss_prior)
        beliefs, scale = choose(len(kl), kl.shape[1], settings.vae_batch_num_elbo_terms, generator)
        transitions, transition_scale = choose(
            len(kl), kl.shape[1] - 1, None if settings.decode_only_past else settings.num_decoded_transitions, generator
        )
        beliefs, transitions = beliefs.to(mean.device), transitions.to(mean.device)
        mean, log_var = take(mean, beliefs), take(log_var, beliefs)
        latents = self.sample(mean, log_var, generator)  # (B, n, L)
        chosen = {key: take(values, transitions) for key, values in batch.items() if key not in ("tasks", "decodable")}
        weights = transition_scale * torch.ones_like(chosen["rewards"])[:, None]  # (B, 1 or n, m)
        if settings.decode_only_past:
            weights = weights * (transitions[:, None] < beliefs[:, :, None])
        without_obs = weights
        if "decodable" in batch:
            weights = weights * batch["decodable"][transitions][:, None]

        parts = {}
        if self.config["decode_reward"]:
            reads_obs = not self.config["num_heads"] and "obs" in self.reward_decoder.inputs
            parts["reward_loss"] = self.reward_loss(latents, chosen, weights if reads_obs else without_obs)
        if self.config["decode_state"]:
            parts["state_loss"] = self.state_loss(latents, chosen, weights)
        if self.config["decode_task"]:
            errors = self.task_decoder(latents) - batch["tasks"][:, None]
            parts["task_loss"] = (errors**2).sum((1, 2)).mean()
        parts = {name: scale * value for name, value in parts.items()}
        parts["kl_loss"] = kl.sum(1).mean()  # of all beliefs: they are at hand
        factors = {"kl_loss": settings.kl_weight, "reward_loss": settings.rew_loss_coeff, "state_loss": settings.state_loss_coeff}
        return sum(factors.get(name, 1) * value for name, value in parts.items()), parts

    def reward_loss(self, latents, chosen, weights):
        """Latents (B, n, L), transitions (B, m, ·), weights (B, 1 or n, m) -> sum over t and i, mean over roll-outs."""
        rewards = chosen["rewards"]
        if self.config["num_heads"]:
            # Only how often each cell paid and did not pay matters: no (n × m) table of predictions is needed.
            hit = (rewards == 1).float()[:, None] * weights
            cells = chosen["heads"][:, None].expand(*weights.shape)
            empty = weights.new_zeros(*weights.shape[:2], self.config["num_heads"])
            hits, all_visits = empty.scatter_add(2, cells, hit), empty.scatter_add(2, cells, weights)
            logits = self.reward_decoder(latents)  # (B, n, heads)
            loss = all_visits * F.softplus(logits) - hits * logits
            return loss.sum((1, 2)).mean()
        predictions = self.reward_decoder(latents, chosen)[..., 0]  # (B, n, m)
        if self.bernoulli:
            loss = F.softplus(predictions) - (rewards == 1).float()[:, None] * predictions
        else:
            loss = (predictions - rewards[:, None]) ** 2
        return (loss * weights).sum((1, 2)).mean()

    def state_loss(self, latents, chosen, weights):
        """As `reward_loss`, for the next state without the flag, or its change."""
        targets = chosen["next_obs"] - chosen["obs"] if self.config["predict_change"] else chosen["next_obs"]
        errors = self.state_decoder(latents, chosen) - targets[:, None, :, : self.target_size]
        return ((errors**2).sum(-1) * weights).sum((1, 2)).mean()

    def predict_rewards(self, latents, transitions):
        """Expected rewards (...,) under latents (..., L). transitions: dict of obs, next_obs (..., d), actions, heads (...,)."""
        if self.config["num_heads"]:
            heads = transitions["heads"][..., None].expand(*latents.shape[:-1], 1)
            predictions = self.reward_decoder(latents).gather(-1, heads)[..., 0]
        else:
            predictions = self.reward_decoder.elementwise(latents, transitions)[..., 0]
        if not self.bernoulli:
            return predictions
        miss, hit = self.config["reward_values"]
        return miss + (hit - miss) * predictions.sigmoid()

    def predict_states(self, latents, transitions):
        """Expected next states without the flag (..., d), arguments as for `predict_rewards`."""
        decoded = self.state_decoder.elementwise(latents, transitions)
        return transitions["obs"][..., : self.target_size] + decoded if self.config["predict_change"] else decoded


def gaussian_kl(mean, log_var, mean_before, log_var_before):
    """KL(N(μ, σ²) ‖ N(μ', σ'²)) of diagonal Gaussians given by means and log variances (..., L) -> (...,)."""
    ratio = ((log_var - log_var_before).exp() + (mean - mean_before) ** 2 / log_var_before.exp()).sum(-1)
    return 0.5 * (ratio - (log_var - log_var_before).sum(-1) - mean.shape[-1])


def choose(rows, count, wanted, generator):
    """Numbers below `count` for each row, `wanted` different ones or all: (rows, n), and the factor count / n."""
    if wanted is None or wanted >= count:
        return torch.arange(count).expand(rows, -1), 1.0
    return torch.rand(rows, count, generator=generator).argsort(1)[:, :wanted], count / wanted


def take(values, index):
    """values (B, N, ...) at index (B, n) -> (B, n, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def task_spread(means):
    """Share of the variance of the final μ that lies between tasks, in [0, 1]; means (N tasks, R roll-outs, L).

    Near 0 the belief says nothing of the task: the latent has collapsed, or was never needed.
    """
    between = means.mean(1).var(0, unbiased=False).sum()
    total = means.flatten(0, 1).var(0, unbiased=False).sum()
    return float(between / total.clamp(min=1e-12))
