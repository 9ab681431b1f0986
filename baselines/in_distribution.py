"""IDAQ's adaptation: which of its own episodes an agent takes as context (Wang et al., ICML 2023). It knows nothing of networks.

Of N warm-up episodes the first ones are the reference stage: each plays a hypothesis, the z of a training task's data, the
farthest of C drawn ones from all that were played. Then each plays the belief, z of the accepted episodes: the best one of
the reference stage, and each later one that is more in-distribution (its Q lower) than all before it. The evaluated episode plays
the z of the best. Where Q is not the return, the bar of the reference stage stays, and the evaluated episode plays the belief.
With a deterministic encoder the belief is one point, and the paper's C draws of it are one: `--belief_noise` draws around it.
"""

import dataclasses

import torch
import torch.nn.functional as F

from src.run.errors import UserError
from src.run.flags import nonnegative_float, positive_int
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class AdaptationSettings:
    """adaptation"""

    quantifier: str = setting("return", "Q: what tells episodes like the data", choices=["return", "error", "disagreement"])
    reference_episodes: int = setting(2, "warm-up episodes on hypotheses, fewer than --warmup_episodes", positive_int)
    candidates: int = setting(5, "C: draws of which the farthest from all that were played is played", positive_int)
    belief_noise: float = setting(0.0, "deviation of draws around the belief", nonnegative_float)
    rejection: str = setting("keep", "what a rejected episode does to the belief", choices=["keep", "fall_back"])
    adaptation: str = setting("idaq", "reference: no inference; plain: FOCAL's", choices=["idaq", "reference", "plain"])


class InDistributionAgent:
    """The adaptation, an Agent around one that can `hold` a z and `infer` it.

    Args:
        agent: with hold(z (B, k)), and infer(episodes, accepted (B, n) bool, fallback (B, k)) -> z (B, k). bank: (K, k)
            hypotheses. score: function (Episode, z it was played on) -> (B,). settings: AdaptationSettings. warmup: N.
    `accepted`: (B, n), which of the episodes lived are the context; `accepted_episodes` is the same as a NumPy array.
    """

    def __init__(self, agent, bank, score, settings, warmup, generator):
        self.agent, self.bank, self.score, self.settings = agent, bank, score, settings
        self.warmup, self.generator = warmup, generator
        self.act, self.observe = agent.act, agent.observe

    @property
    def accepted_episodes(self):
        return self.accepted.cpu().numpy()

    def adapt(self, episodes):
        self.episodes = episodes
        if not episodes:
            self.used = []
        elif len(episodes) <= self.warmup:
            self._judge(self.score(episodes[-1], self.used[-1]))

    def _judge(self, score):
        """Take in the score (B,) of the last episode: what the context and the best z are from now on."""
        if not torch.isfinite(score).all():
            raise UserError("the score of a warm-up episode is not finite: train again with a lower --learning_rate")
        z, number = self.used[-1], len(self.used)
        reference = number <= self.settings.reference_episodes
        if number == 1:
            self.best, self.best_z, self.hypothesis = torch.full_like(score, -torch.inf), z, z
            self.accepted = self.before = torch.zeros(len(score), 0, dtype=torch.bool, device=score.device)
        better = score > self.best
        last = torch.arange(number, device=score.device) == number - 1
        known, before = F.pad(self.accepted, (0, 1)), F.pad(self.before, (0, 1))
        rejected = before if self.settings.rejection == "fall_back" and not reference else known
        self.before = torch.where(better[:, None], torch.zeros_like(known) if reference else known, before)
        self.accepted = torch.where(better[:, None], last if reference else known | last, rejected)
        if reference:
            self.hypothesis = torch.where(better[:, None], z, self.hypothesis)
        if reference or self.settings.quantifier == "return":
            self.best, self.best_z = torch.where(better, score, self.best), torch.where(better[:, None], z, self.best_z)

    def start(self, observations):
        z = self._choose(len(observations))
        self.used.append(z)
        self.agent.hold(z)
        self.agent.start(observations)

    def _choose(self, rows):
        """z (B, k) of the next episode."""
        s, number = self.settings, len(self.episodes)
        inferred = s.adaptation == "idaq" and (number < self.warmup or s.quantifier != "return")
        if number < s.reference_episodes:
            drawn = torch.randint(len(self.bank), (rows, s.candidates), generator=self.generator).to(self.bank.device)
            return farthest(self.bank[drawn], self.used)
        if not inferred:
            return self.best_z
        belief = self.agent.infer(self.episodes[: self.accepted.shape[1]], self.accepted, self.hypothesis)
        if not s.belief_noise or number >= self.warmup:
            return belief
        noise = torch.randn(rows, s.candidates, belief.shape[-1], generator=self.generator).to(belief.device)
        return farthest(belief[:, None] + s.belief_noise * noise, self.used)


def farthest(candidates, used):
    """Of candidates (B, C, k) those (B, k) whose distance to the nearest of `used` (list of (B, k)) is largest; the first one
    while nothing was used."""
    if not used:
        return candidates[:, 0]
    distances = torch.cdist(candidates, torch.stack(used, 1)).amin(-1)  # (B, C)
    return candidates[torch.arange(len(candidates)), distances.argmax(1)]
