"""Generalized Decision Transformer (Furuta et al., 2022): what is asked for is a statistic of the future, not its return.

    python -m baselines.generalized_dt --env_type point_robot --data_quality replay
    python -m baselines.generalized_dt --env_type point_robot --data_quality replay --statistic bidirectional

categorical: the histogram of the rewards from step t to the episode's end. bidirectional: what a second transformer, which reads
backwards, makes of the states from t on; the action loss trains both. Few-shot asks for the statistics of the best warm-up
episode, step by step; zero-shot for the best training episodes' histogram less the rewards received, or the mean statistic.

Left out of the original: a reader whose outputs are not turned back, so that a step saw its past (here 2 K states are read, each
of the first K positions gets itself and K or more after it); targets flipped along the wrong axis; imitating held-out episodes.
"""

import functools

import torch
from torch import nn

from baselines.future_statistics import Statistic, kind_of
from baselines.sequence import (
    Cloning,
    WindowAgent,
    Windowed,
    best_episode,
    blank_policy,
    cloning_loss,
    make_policy,
    make_sampler,
    run_method,
)
from src.run.errors import main_guard
from src.run.loop import Optimisation


class StatisticAgent(WindowAgent):
    """Asks for the statistics of the best episode so far, else for typical ones. training: `prepare` of the training data."""

    def __init__(self, policy, history_length, statistic, training):
        super().__init__(policy, history_length, target=0.0)
        self.statistic, self.training = statistic, training

    def adapt(self, episodes):
        super().adapt(episodes)
        self.donor = best_episode(episodes, self.device) if episodes else None
        self.prepared = self.donor and self.statistic.prepare(self.donor)

    def conditions(self, first):
        if self.donor is None:
            return {"conditions": self.statistic.blind(self.training, self.rewards[:-1], first)}  # (B, t), where t may be 0
        timesteps = torch.arange(first, len(self.observations), device=self.device)
        timesteps = torch.minimum(timesteps, self.donor.lengths[:, None] - 1)
        return {"conditions": self.statistic.read(self.prepared, torch.arange(len(timesteps), device=self.device), timesteps)}


def build(data, run, model, asked, optimisation):
    """TrainingData, RunSettings, Windowed, Statistic, Optimisation -> Method."""
    sampler = make_sampler(data, run, model)
    kind, size = kind_of(asked)
    policy = make_policy(data, run, model, condition_size=size)
    statistic = kind.of(sampler.episodes, model, asked).to(run.device)
    training = statistic.prepare(sampler.episodes)

    def loss(generator):
        history, _ = sampler.draw(optimisation.batch_size, generator, with_prompt=False)
        conditions = statistic.read(training, history["episodes"], history["timesteps"], history["mask"])
        return cloning_loss(policy, history | {"conditions": conditions})

    agent = functools.partial(StatisticAgent, policy, model.history_length, statistic, training)
    both = nn.ModuleDict({"policy": policy, "statistic": statistic})
    return Cloning(both, run.seed, optimisation, loss, agent, statistic.known(sampler.episodes))


def restore(saved):
    """Saved -> (module, function warmup -> Agent)."""
    model, asked = saved.pick(Windowed, Statistic)
    kind, size = kind_of(asked)
    statistic, training = kind.restored(saved, model, asked)
    policy = blank_policy(saved.sizes, saved.horizon, model, condition_size=size)
    both = saved.filled(nn.ModuleDict({"policy": policy, "statistic": statistic}))
    return both, lambda warmup: StatisticAgent(policy, model.history_length, statistic, training)


@main_guard
def main(argv=None):
    def options(run, evaluation, model, asked, optimisation):
        return {"variant": {"statistic": asked.statistic} if asked.statistic != "categorical" else {}, "folder": asked.statistic}

    return run_method("generalized_dt", __doc__, build, (Windowed, Statistic, Optimisation), argv, options)


if __name__ == "__main__":
    main()
