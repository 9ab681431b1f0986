"""IDAQ: FOCAL, which adapts by those of its own episodes that look like its data (Wang et al., ICML 2023).

    python -m baselines.idaq --env_type point_robot --data_quality replay --warmup_episodes 19 --reference_episodes 10
    python -m baselines.idaq ... --eval_only --adaptation reference      # the same policy, the best hypothesis without inference
    python -m baselines.idaq ... --eval_only --adaptation plain          # FOCAL's own way: all episodes are context
    python -m baselines.idaq run_point.sh                                # published commands: baselines/idaq_published.py

A policy that acts on a wrong z makes episodes that no encoder has seen; baselines/in_distribution.py picks those that are of use.
Q, how far an episode is from the data, is minus its return (the paper's best; it supposes data of good policies), or error or
disagreement of an ensemble of decoders under the z that it was played on. In its first episode (zero-shot) this is FOCAL.
Defects not here: a rejected episode costs the belief (`--rejection fall_back` does it); a reference stage as long as the budget
(refused); the ensemble's first member learns no transitions; disagreement over time, not over members; time limits end a task.
"""

import dataclasses
import functools
import itertools

import torch
from torch import nn

from baselines.actor_critic import step
from baselines.context_rl import read_flags, restore_context_rl, run_context_rl
from baselines.focal import Focal, FocalSettings
from baselines.idaq_published import our_words
from baselines.in_distribution import AdaptationSettings, InDistributionAgent
from src.evaluation.rollout import returns
from src.run.errors import UserError, main_guard
from src.run.flags import positive_int
from src.run.seeding import torch_generator
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class IdaqSettings(FocalSettings, AdaptationSettings):
    """encoder and adaptation"""

    ensemble: int = setting(4, "decoders of the quantifiers error and disagreement", positive_int)


class Ensemble(nn.Module):
    """M decoders (s, a, z) -> (r, s' − s), one hidden layer stack each, computed together."""

    def __init__(self, members, inputs, outputs, width, layers):
        super().__init__()
        sizes = [inputs, *[width] * layers, outputs]
        self.weights = nn.ParameterList((torch.rand(members, n, k) * 2 - 1) / n**0.5 for n, k in itertools.pairwise(sizes))
        self.offsets = nn.ParameterList(torch.zeros(members, 1, columns) for columns in sizes[1:])

    def forward(self, inputs):
        """(n, inputs) or (M, n, inputs) -> (M, n, outputs)."""
        hidden = inputs.expand(len(self.weights[0]), *inputs.shape[-2:])
        for number, (weight, offset) in enumerate(zip(self.weights, self.offsets, strict=True)):
            hidden = torch.baddbmm(offset, hidden.relu() if number else hidden, weight)
        return hidden


class Idaq(Focal):
    """The learner of `ContextRL`: FOCAL's, and where the quantifier needs them the decoders."""

    variants = ("quantifier",)
    measured = ("reference_episodes", "candidates", "belief_noise", "rejection", "adaptation")

    def __init__(self, sizes, settings, learning_rate, data):
        super().__init__(sizes, settings, learning_rate, data)
        self.data, self.known, self.decoders = data, sum(sizes), make_decoders(sizes, settings)
        if self.decoders is not None:
            self.decoders.to(data.device)
            self.decoder_optimizer = torch.optim.Adam(self.decoders.parameters(), learning_rate, fused=True)
            self.optimizers = [*self.optimizers, self.decoder_optimizer]
            self.parts = {**self.parts, "decoders": self.decoders, "decoder_optimizer": self.decoder_optimizer}

    def update(self, tasks, features, mask):
        losses, codes = super().update(tasks, features, mask)
        if self.decoders is not None:  # each member on transitions of its own
            z = self.encoder.pool(codes, mask)[:, None].expand(-1, features.shape[1], -1)[mask]
            known, told = features[mask].split([self.known, features.shape[-1] - self.known], -1)
            chosen = torch.randint(len(z), (self.settings.ensemble, len(z)), generator=self.data.generator).to(z.device)
            loss = (self.decoders(torch.cat([known, z], -1)[chosen]) - told[chosen]).square().mean()
            step(self.decoder_optimizer, loss)
            losses["decoder_loss"] = loss.detach()
        return losses, codes

    @torch.inference_mode()
    def bank(self):
        """z (K, k) of each training task: of transitions all over its recorded data, as many as a context in training holds."""
        share = torch.linspace(0, 1, self.data.settings.context_size, dtype=torch.float64)
        rows = self.data.task_row[:, None] + (share * (self.data.task_size[:, None] - 1)).long()
        codes = self.encoder(self.data.features(rows, torch.arange(len(self.data.tasks))))
        return self.encoder.pool(codes, torch.ones(rows.shape, dtype=torch.bool, device=codes.device))

    def kept(self):
        """What acting needs beside the policy: the bank, and the decoders where there are some."""
        decoders = {} if self.decoders is None else self.decoders.state_dict()
        return {"bank": self.bank(), **{f"decoders.{name}": value for name, value in decoders.items()}}

    @staticmethod
    def extended(agent, settings, known, warmup, space, seed):
        """`agent`, which adapts by some of its `warmup` episodes. known: of `kept`. Raises UserError."""
        if not warmup or settings.adaptation == "plain":
            return agent
        if settings.reference_episodes >= warmup:
            raise UserError(f"--reference_episodes {settings.reference_episodes}: give fewer than --warmup_episodes {warmup}")
        normaliser = agent.policy.normaliser
        with torch.device("meta"):  # the tensors below take the place of what is made here
            decoders = make_decoders((len(normaliser.observation_mean), len(normaliser.action_centre)), settings)
        if decoders is not None:
            decoders.load_state_dict({name: known[f"decoders.{name}"] for name in decoders.state_dict()}, assign=True)
        scored = functools.partial(score, decoders, settings.quantifier, agent)
        return InDistributionAgent(agent, known["bank"], scored, settings, warmup, torch_generator(seed, "idaq"))


def make_decoders(sizes, settings):
    """The untrained Ensemble for transitions of sizes (d_s, d_a), or None where Q is the return. Raises UserError."""
    if settings.quantifier == "return":
        return None
    if settings.quantifier == "disagreement" and settings.ensemble < 2:
        raise UserError("--quantifier disagreement: one decoder agrees with itself, give --ensemble 2 or more")
    inputs, outputs = sum(sizes) + settings.code_size, 1 + sizes[0]
    return Ensemble(settings.ensemble, inputs, outputs, settings.encoder_width, settings.encoder_layers)


@torch.inference_mode()
def score(decoders, quantifier, agent, episode, z):
    """−Q (B,) of an Episode that was played on z (B, k): higher is more in-distribution. decoders: of `make_decoders`."""
    if quantifier == "return":
        return torch.from_numpy(returns(episode)).to(z)
    features, mask = agent.features(episode)
    outputs = agent.policy.normaliser.observation_mean.shape[0] + 1
    known, told = features.split([features.shape[-1] - outputs, outputs], -1)
    inputs = torch.cat([known, z[:, None].expand(-1, known.shape[1], -1)], -1)
    guess = decoders(inputs.flatten(0, 1)).unflatten(1, inputs.shape[:2])  # (M, B, T, 1 + d_s)
    error = (guess - told).square() if quantifier == "error" else guess.var(0, unbiased=False)[None]
    per_step = (error[..., 0] + error[..., 1:].mean(-1)).mean(0)
    return -((per_step if quantifier == "error" else per_step.sqrt()) * mask).sum(-1) / mask.sum(-1)


def restore(saved):
    """Saved -> (policy, function warmup -> Agent)."""
    return restore_context_rl(saved, Idaq, IdaqSettings)


@main_guard
def main(argv=None):
    words = our_words(argv, lambda words: read_flags("idaq", __doc__, IdaqSettings, words, notes=False))
    return None if words is None else run_context_rl("idaq", __doc__, Idaq, IdaqSettings, words)


if __name__ == "__main__":
    main()
