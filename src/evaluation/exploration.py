"""What begins the episodes that must find the task out."""

from typing import NamedTuple

import numpy as np


class Exploration(NamedTuple):
    """What begins the episodes that must find the task out (ours).

    steps: how many are noisy. noise: standard deviation of Gaussian noise on the policy's actions, as a share of the action
    half-range. probe_steps: an episode without a prompt, which knows nothing, begins instead with so many `orthogonal_actions`;
    0: it is as noisy as the others. forget: the agent's history begins anew after either (`MetaDTAgent.forget`).
    """

    steps: int = 0
    noise: float = 0.0
    probe_steps: int = 0
    forget: bool = False


NO_EXPLORATION = Exploration()


def orthogonal_actions(rows, dimensions, steps, generator):
    """Full actions along the axes of a frame that every row turns at random, there and back: e1, e2, −e1, −e2, e1...

    Each step tells something that the steps before did not: two noisy actions may point the same way, and then say how the
    reward changes along one line only. In the plane, three steps show where a goal lies that is paid by its distance.
    Returns: (rows, steps, dimensions), each with a largest component of 1. generator: numpy's.
    """
    turned, triangle = np.linalg.qr(generator.standard_normal((rows, dimensions, dimensions)))
    signs = np.sign(np.diagonal(triangle, axis1=1, axis2=2))  # LAPACK chooses them, which would favour directions
    frames = (turned * signs[:, None]).swapaxes(1, 2)  # (rows, axis, d_a)
    around = np.concatenate([frames, -frames], 1)[:, np.arange(steps) % (2 * dimensions)]
    return around / np.abs(around).max(-1, keepdims=True)
