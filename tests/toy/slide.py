"""A family as a newcomer would write it: one class, nothing of ours imported. A block slides on a line towards a hidden mark."""

import gymnasium as gym
import numpy as np


class SlideEnv(gym.Env):
    """Observation: position and velocity. Action: push in [-1, 1]. Reward: minus the distance to the task's mark. 6 steps."""

    def __init__(self):
        self.tasks = {"mark": np.linspace(-1, 1, 8)}
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.task = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = (options or {}).get("task", self.task)
        self.steps = 0
        self.state = self.np_random.uniform(-0.1, 0.1, 2)
        return self.state.astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        self.state[1] += 0.3 * float(np.clip(action, -1, 1)[0])
        self.state[0] += self.state[1]
        reward = -abs(self.state[0] - self.tasks["mark"][self.task])
        return self.state.astype(np.float32), reward, False, self.steps >= 6, {}
