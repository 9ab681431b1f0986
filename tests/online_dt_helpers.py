"""What the tests of the Online Decision Transformer share."""

import torch

from src.run.seeding import torch_generator


def episodes(lengths, seed=0):
    """Trajectories of the given lengths as tensors, padded with numbers that nothing may read."""
    generator, steps = torch_generator(seed, "episodes"), max(lengths)
    observations = torch.randn(len(lengths), steps + 1, 2, generator=generator)
    actions = torch.rand(len(lengths), steps, 1, generator=generator) * 2 - 1
    rewards = torch.randn(len(lengths), steps, generator=generator)
    for row, length in enumerate(lengths):
        observations[row, length + 1 :], actions[row, length:], rewards[row, length:] = 1e9, 1e9, 1e9
    return observations, actions, rewards, torch.tensor(lengths)
