"""Named random generators: every consumer of randomness derives its own from the run's seed, so that none disturbs another."""

import zlib

import numpy as np
import torch


def derive(seed, *names):
    """A 63-bit seed that is a pure function of `seed` and the names (strings or integers)."""
    words = [seed, *(zlib.crc32(str(name).encode()) for name in names)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def numpy_generator(seed, *names):
    """np.random.Generator of the consumer called `names`."""
    return np.random.default_rng(derive(seed, *names))


def torch_generator(seed, *names):
    """torch.Generator (CPU) of the consumer called `names`."""
    return torch.Generator().manual_seed(derive(seed, *names))
