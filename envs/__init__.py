"""Task families under the gymnasium interface. The entry points are strings until used, so Point-Robot never imports mujoco."""

import contextlib

import gymnasium as gym
import yaml

from envs.settings import all_families

with contextlib.suppress(yaml.YAMLError, KeyError, TypeError):  # a broken settings file: the scripts say where
    for env_name, values in all_families().items():
        if env_name not in gym.registry:  # Hopper-v5 is gymnasium's own, and ours equals it
            gym.register(
                id=env_name,
                entry_point=values["entry_point"],
                max_episode_steps=values["max_episode_steps"],
                kwargs=values.get("options") or {},
            )
