"""What acts: every method, ours or compared, is an Agent."""

from typing import Protocol

import numpy as np
import torch
from gymnasium.spaces import Discrete

from src.run.errors import UserError
from src.run.stepping import blamed


class Agent(Protocol):
    """Acts in B rows at once; every row is an adaptation of its own, to a task of its own.

    Before every episode `adapt` is called with all episodes that the rows have lived on their tasks so far, then `start`; after
    every `act` comes `observe`. One that adapts to some of these episodes alone has `accepted_episodes`, (B, n) bool: which.
    """

    def adapt(self, episodes):
        """episodes: list of Episodes of B rows as `rollout` gives them, oldest first; [] knows nothing yet (zero-shot).

        Prompts, target returns, beliefs and tried contexts: all of it is decided here.
        """

    def start(self, observations):
        """An episode begins. observations: (B, d_s) float32."""

    def act(self):
        """Actions (B, d_a) for the current step; the roll-out clips them to the bounds."""

    def observe(self, actions, rewards, next_observations):
        """What the environment answered: actions as they were played (B, d_a), rewards (B,), next observations (B, d_s)."""


def as_tensor(values, device):
    """What the environment answered, an array, as float32 on the device."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=device)


def as_played(actions, space):
    """Actions (..., d_a) as an environment gets them: within the bounds of a Box, float32; of a Discrete space (...,) int64."""
    if isinstance(space, Discrete):
        return np.clip(actions, 0, space.n - 1).astype(np.int64)
    return np.clip(actions, space.low, space.high).astype(np.float32)


class PolicyAgent:
    """A policy that neither remembers nor adapts, as an Agent. policy: function observations (B, d_s) -> actions (B, d_a)."""

    def __init__(self, policy):
        self.policy = policy

    def adapt(self, episodes):
        pass

    def start(self, observations):
        self.observations = observations

    def act(self):
        return self.policy(self.observations)

    def observe(self, actions, rewards, next_observations):
        self.observations = next_observations


def hook_actions(what, space, policy, *arguments):
    """Actions (B, d_a) of a policy that the environment gives, policy(observations (B, d_s), ...), in a Box `space`.

    what: how an error names it. Raises UserError where it fails, or gives no finite number for each action of each row.
    """
    with blamed(f"{what} fails"):
        actions = np.asarray(policy(*arguments))
    expected = len(arguments[0]), *space.shape
    if actions.shape != expected or actions.dtype.kind not in "biuf":
        raise UserError(f"{what} gives an array of shape {actions.shape}, {actions.dtype}, for actions {expected}: mend it")
    if not np.isfinite(actions).all():
        raise UserError(f"{what} gives actions that are not finite: mend it")
    return actions


def random_agent(space, generator):
    """Uniform random actions of a bounded Box. generator: numpy's."""
    return PolicyAgent(
        lambda observations: generator.uniform(space.low, space.high, (len(observations), *space.shape)).astype(np.float32)
    )


class GymnasiumAgent:
    """An Agent in one gymnasium environment: it remembers the episodes that it lives on a task, and adapts to them.

    agent: an Agent. action_space: a bounded Box, or Discrete. lived: its finished episodes on this task.
    """

    def __init__(self, agent, action_space):
        self.agent, self.action_space = agent, action_space
        self.new_task()

    def new_task(self):
        """Another task begins with the next episode: those so far are forgotten, the last one among them."""
        self.lived, self.running = [], None

    def start(self, observation):
        """An episode begins; observation (d_s,), as `env.reset` gives it. The one before, if there was one, is adapted to."""
        if self.running and self.running["rewards"]:
            episode = {key: np.asarray(values, np.float32)[None] for key, values in self.running.items()}
            self.lived.append(episode | {"infos": {}, "lengths": np.array([len(self.running["rewards"])])})
        observation = np.asarray(observation, np.float32)
        self.running = {"observations": [observation], "actions": [], "rewards": []}
        self.agent.adapt(self._equally_long())
        self.agent.start(observation[None])

    def act(self):
        """The action for `env.step`: (d_a,) within the bounds, or a number of a Discrete space."""
        self.action = as_played(self.agent.act()[0], self.action_space)
        return self.action

    def observe(self, reward, observation):
        """What `env.step` answered: a number, (d_s,)."""
        observation = np.asarray(observation, np.float32)
        for key, value in (("observations", observation), ("actions", self.action), ("rewards", reward)):
            self.running[key].append(value)
        self.agent.observe(self.action[None], np.float32([reward]), observation[None])

    def _equally_long(self):
        """The lived episodes padded to the longest, as those of `rollout` are."""
        longest = max((episode["rewards"].shape[1] for episode in self.lived), default=0)

        def padded(values, steps):
            return np.pad(values, [(0, 0), (0, steps - values.shape[1]), *[(0, 0)] * (values.ndim - 2)])

        keys = ("observations", "actions", "rewards")
        return [
            episode | {key: padded(episode[key], longest + (key == "observations")) for key in keys} for episode in self.lived
        ]
