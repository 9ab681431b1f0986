"""What several consecutive episodes on one task need: the Bayes-adaptive problem that BOReL and VariBAD solve.

A roll-out is K episodes of H steps; the task stays, the state is reset between them (`play`, baselines/borel/problem.py). For
K > 1 observations get one more feature, 1 on the last observation of an episode and 0 otherwise. Actions of a Box are in [−1, 1].

After an episode's end the policy is shown the true start of the next one. (The original shows the last observation and never the
start, so that its data hold transitions from one episode's end to the next one's second state, which no decoder can explain.)
With H = 3, K = 2:

    step                   0     1     2     3     4     5
    obs                    s0    s1    s2    s0'   s1'   s2'       what the policy acts on
    next_obs               s1    s2    s3*   s1'   s2'   s3'*      what encoder and decoders read; * is flag 1
    critic's next state    s1    s2    s0'   s1'   s2'   s3'*      what the policy is shown after the step
"""

import gymnasium as gym
import numpy as np


def add_flag(observations, last, episodes):
    """Append the last-step feature, one value for all rows: (..., d) -> (..., d + 1); unchanged for one episode."""
    if episodes == 1:
        return observations
    flags = np.full((*observations.shape[:-1], 1), last, dtype=observations.dtype)
    return np.concatenate([observations, flags], axis=-1)


def scale_actions(actions, space):
    """Actions (..., d) in [−1, 1] -> the environment's box, clipped to it; a discrete space's pass unchanged."""
    if not isinstance(space, gym.spaces.Box):
        return actions
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return np.clip(low + (np.asarray(actions, dtype=np.float64) + 1) / 2 * (high - low), low, high)


def unscale_actions(actions, space):
    """`scale_actions` turned round: actions in the environment's box -> [−1, 1], float32; a discrete space's pass unchanged."""
    if not isinstance(space, gym.spaces.Box):
        return actions
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return (2 * (np.asarray(actions, dtype=np.float64) - low) / (high - low) - 1).clip(-1, 1).astype(np.float32)


def draw_seed(generator):
    """The seed of an episode, from its roll-out's generator: the same in one environment and in a row of a batch."""
    return int(generator.integers(2**31))
