"""What begins the episodes that must find the task out (ours): an Agent that wraps another."""

import dataclasses
import functools

import numpy as np

from src.run.flags import natural
from src.run.seeding import numpy_generator
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class Exploration:
    """exploration (ours)"""

    explore: str = setting(
        "none", "beginning of warm-up episodes, and of those that know nothing; probe: the first by full actions at right angles",
        choices=["none", "noise", "probe"],
    )  # fmt: skip
    explore_steps: int = setting(0, "for so many noisy steps", natural)


class ExploringAgent:
    """Begins episodes with actions that tell the task, then lets `agent` play as if the episode began there.

    Gaussian noise as large as half the actions' range for `steps` steps; with `probe` the first episode, which knows nothing,
    begins instead with d_a + 1 `orthogonal_actions`. The agent sees what happens, and forgets it as history (`forget`): no
    episode of the data begins so. What its context learned stays.

    Args:
        agent: an Agent with `forget()`. action_space: a bounded Box. steps, probe: as above.
        warmup: N; episodes from number N on are played without exploration. 0: all of them explore (zero-shot).
        generator: function, number of the episode -> numpy generator that draws the exploration.
    """

    def __init__(self, agent, action_space, steps, probe, warmup, generator):
        self.agent, self.steps, self.probe, self.warmup, self.generator_of = agent, steps, probe, warmup, generator
        self.low, self.high = action_space.low, action_space.high
        self.half_range = (self.high - self.low) / 2

    def adapt(self, episodes):
        self.number = len(episodes)
        self.agent.adapt(episodes)

    def start(self, observations):
        self.time, self.generator = 0, self.generator_of(self.number)
        self.probing = len(self.low) + 1 if self.probe and self.number == 0 else 0
        explores = self.number < self.warmup or not self.warmup
        self.exploring = (self.probing or self.steps) if explores else 0
        if self.probing:
            frames = orthogonal_actions(len(observations), len(self.low), self.probing, self.generator)
            self.probes = (self.low + self.high) / 2 + self.half_range * frames
        self.agent.start(observations)

    def act(self):
        if self.time == self.exploring > 0:
            self.agent.forget()
        if self.time < self.probing:
            return self.probes[:, self.time]
        actions = self.agent.act()
        if self.time < self.exploring:
            actions = actions + self.half_range * self.generator.standard_normal(actions.shape)
        return actions

    def observe(self, actions, rewards, next_observations):
        self.time += 1
        self.agent.observe(actions, rewards, next_observations)


def exploring(agent, settings, action_space, warmup, seed):
    """`agent` as the Exploration `settings` say."""
    if settings.explore == "none":
        return agent
    draw = functools.partial(numpy_generator, seed, "noise")
    return ExploringAgent(agent, action_space, settings.explore_steps, settings.explore == "probe", warmup, draw)


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
