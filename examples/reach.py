"""An environment of one's own with the common ones of the parts that envs/base.py lists; nothing of ours is imported. See
docs/own_environment.md. Left out: scripted_policy, reference_levels, infer_tasks, task_frame and compute_success.

A point with momentum reaches for a goal on a circle that it is not told. Observation: position and velocity (4). Action: push
(2). Reward: minus the distance to the goal, minus the friction that the floor takes, which the observation does not tell.
"""

import gymnasium as gym
import numpy as np

FRICTION = 0.1


def physics(states, actions):
    """states (..., 4), actions (..., 2) -> next states (..., 4), heat lost to the floor (...)."""
    position, velocity = states[..., :2], states[..., 2:]
    faster = velocity + 0.2 * np.clip(actions, -1, 1)
    heat = FRICTION * (faster**2).sum(-1)
    slower = (1 - FRICTION) * faster
    return np.concatenate([position + 0.2 * slower, slower], -1), heat


def rewards_of(states, heat, goals):
    """states (..., 4) reached, heat (...), goals (..., 2) -> rewards (...,) float32."""
    return (-np.linalg.norm(states[..., :2] - goals, axis=-1) - heat).astype(np.float32)


class ReachBatch:
    """Many episodes as one array. tasks: "goal" (B, 2), a row per episode. Its numbers are those of ReachEnv."""

    def __init__(self, tasks):
        self.goals = tasks["goal"]

    def reset(self, seeds=None):
        """seeds (B,) -> observations (B, 4) float32."""
        seeds = [None] * len(self.goals) if seeds is None else seeds
        starts = [np.random.default_rng(seed).uniform(-0.05, 0.05, 2) for seed in seeds]
        self.states = np.concatenate([starts, np.zeros((len(starts), 2))], -1).astype(np.float32)
        self.infos = {}
        return self.states.copy()

    def step(self, actions):
        """actions (B, 2) -> observations (B, 4) float32, rewards (B,) float32; infos: key -> (B,)."""
        states, heat = physics(self.states, actions)
        self.states, self.infos = states.astype(np.float32), {"heat": heat}
        return self.states.copy(), rewards_of(self.states, heat, self.goals)


class ReachEnv(gym.Env):
    """One episode at a time."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # steps per second  # noqa: RUF012
    batch_class = ReachBatch
    info_keys = ("heat",)  # what compute_rewards needs beside the transition; recorded with the data
    hidden_parameters = ("goal",)  # what an agent has to infer; here all that `tasks` holds, as by default
    simulator = "reach 1"  # another version of the physics makes other data

    def __init__(self, render_mode=None, max_episode_steps=15):
        self.render_mode, self.max_episode_steps = render_mode, max_episode_steps
        angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 20)
        self.tasks = {"goal": np.stack([np.cos(angles), np.sin(angles)], -1)}  # (20, 2): row i is task i
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.task = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = int((options or {}).get("task", self.task))  # later resets keep the task
        self.steps = 0
        self.batch = ReachBatch({"goal": self.tasks["goal"][[self.task]]})
        return self.batch.reset([self.np_random if seed is None else seed])[0], {}

    def step(self, action):
        observations, rewards = self.batch.step(np.asarray(action)[None])
        self.steps += 1
        truncated = self.steps == self.max_episode_steps  # exactly then; `terminated` stays False: episodes have one length
        return observations[0], float(rewards[0]), False, truncated, {"heat": float(self.batch.infos["heat"][0])}

    def render(self):
        """(height, width, 3) uint8: the point (white) and its goal (red) in [-1.5, 1.5]²."""
        picture = np.zeros((60, 60, 3), np.uint8)
        for place, colour in ((self.tasks["goal"][self.task], (255, 0, 0)), (self.batch.states[0, :2], (255, 255, 255))):
            column, row = (np.clip((place + 1.5) * 20, 1, 58)).astype(int)
            picture[60 - row - 2 : 60 - row + 1, column - 1 : column + 2] = colour
        return picture

    @staticmethod
    def compute_rewards(observations, actions, next_observations, tasks, infos=None):
        """Rewards that other tasks would pay for the same transitions: arrays (..., d) and tasks["goal"] (..., 2) -> (...,)."""
        if infos is None:
            raise ValueError("these rewards need the recorded info heat")
        return rewards_of(np.asarray(next_observations), infos["heat"], tasks["goal"])

    @staticmethod
    def task_features(tasks):
        """What a behaviour agent that knows its task is told: (20, 2); here the parameters themselves, as by default."""
        return tasks["goal"]

    @staticmethod
    def reference_policies(tasks, train_ids):
        """Levels to hold returns against: name -> function (observations (B, 4), task ids (B,)) -> actions (B, 2)."""
        blind = tasks["goal"][list(train_ids)].mean(0)
        return {
            "trivial": lambda observations, task_ids: np.zeros((len(observations), 2)),
            "task_blind": lambda observations, task_ids: blind - observations[:, :2] - observations[:, 2:],
            "best_known": lambda observations, task_ids: tasks["goal"][task_ids] - observations[:, :2] - observations[:, 2:],
        }
