"""Several consecutive episodes on one task: the Bayes-adaptive problem that BOReL and VariBAD solve.

A roll-out is K episodes of H steps; the task stays, the state is reset between episodes. For K > 1 observations get one
more feature, 1 on the last observation of an episode and 0 otherwise. Box actions are given in [−1, 1] and scaled.

At an episode's end `step` returns the true start of the next episode; the old episode's last observation stands in the
infos as `next_observation`. (The original shows the last observation and never the start, so that its data hold
transitions from one episode's end to the next one's second state, which no decoder can explain.) With H = 3, K = 2:

    step                   0     1     2     3     4     5
    policy acts on         s0    s1    s2    s0'   s1'   s2'       observations as returned by reset and step
    next_observation       s1    s2    s3*   s1'   s2'   s3'*      what encoder and decoders read; * is flag 1
    critic's next state    s1    s2    s0'   s1'   s2'   s3'*      the observation that the same step returns
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


class MultiEpisodeBatch:
    """Roll-outs of K episodes over any batch of environments.

    After each step `infos` holds, beside the batch's own keys, "next_observation" (B, d + 1), "episode" (B,) int (of
    this step, from 0), "episode_end" (B,) bool and "rollout_end" (B,) bool. Nothing terminates: none stops a bootstrap.

    Args:
        batch: the batch of single episodes.
        episodes, horizon: K and H.
        action_space: the environment's, for scaling.
    """

    def __init__(self, batch, episodes, horizon, action_space):
        self.batch, self.episodes, self.horizon, self.space = batch, episodes, horizon, action_space

    def reset(self, seeds):
        """Begin roll-outs. seeds: B integers -> observations (B, d + 1) float32."""
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        self._steps = 0
        return self._begin_episode()

    def _begin_episode(self):
        return add_flag(self.batch.reset([draw_seed(generator) for generator in self._generators]), 0, self.episodes)

    def step(self, actions):
        """actions (B, d_a) in [−1, 1], or (B,) int -> observations (B, d + 1) float32, rewards (B,) float32."""
        observations, rewards = self.batch.step(scale_actions(actions, self.space))
        episode = self._steps // self.horizon
        self._steps += 1
        episode_end = self._steps % self.horizon == 0
        rollout_end = self._steps == self.episodes * self.horizon
        next_observations = add_flag(observations, episode_end, self.episodes)
        size = len(rewards)
        # taken before the reset below, so that nothing here describes the new episode's start
        self.infos = {
            **getattr(self.batch, "infos", {}),
            "next_observation": next_observations,
            "episode": np.full(size, episode),
            "episode_end": np.full(size, episode_end),
            "rollout_end": np.full(size, rollout_end),
        }
        return self._begin_episode() if episode_end and not rollout_end else next_observations, rewards


class MultiEpisodeEnv(gym.Wrapper):
    """A roll-out of K episodes as one long episode under the gymnasium interface; `truncated` is its end.

    `step`'s info carries the keys of MultiEpisodeBatch. Episodes end where the environment is truncated.

    Args:
        env: a gymnasium environment whose resets keep the task.
        episodes: K.
    """

    def __init__(self, env, episodes):
        super().__init__(env)
        self.episodes = episodes
        box = env.observation_space
        if episodes > 1:
            low, high = (np.append(bound, flag).astype(np.float32) for bound, flag in ((box.low, 0), (box.high, 1)))
            self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)
        if isinstance(env.action_space, gym.spaces.Box):
            self.action_space = gym.spaces.Box(-1, 1, env.action_space.shape, np.float32)
        self._generator = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self._episode = 0
        return self._begin_episode(options)

    def _begin_episode(self, options=None):
        observation, info = self.env.reset(seed=draw_seed(self._generator), options=options)
        return add_flag(observation, 0, self.episodes), info

    def step(self, action):
        observation, reward, _, episode_end, info = self.env.step(scale_actions(action, self.env.action_space))
        rollout_end = episode_end and self._episode == self.episodes - 1
        next_observation = add_flag(observation, episode_end, self.episodes)
        info = {
            **info,
            "next_observation": next_observation,
            "episode": self._episode,
            "episode_end": episode_end,
            "rollout_end": rollout_end,
        }
        if episode_end and not rollout_end:
            self._episode += 1
            next_observation, _ = self._begin_episode()
        return next_observation, reward, False, rollout_end, info
