"""Task families under the gymnasium interface. The ids are strings until used, so Point-Robot never imports mujoco."""

import gymnasium as gym

FAMILIES = {  # id: entry point, horizon
    "PointRobot-v0": ("envs.point_robot:PointRobotEnv", 20),
    "HalfCheetahVel-v0": ("envs.half_cheetah:HalfCheetahVelEnv", 200),
    "HalfCheetahDir-v0": ("envs.half_cheetah:HalfCheetahDirEnv", 200),
    "AntDir-v0": ("envs.ant:AntDirEnv", 200),
    "HopperRandParams-v0": ("envs.rand_params:HopperRandParamsEnv", 200),
    "WalkerRandParams-v0": ("envs.rand_params:WalkerRandParamsEnv", 200),
}

for env_id, (entry_point, horizon) in FAMILIES.items():
    gym.register(id=env_id, entry_point=entry_point, max_episode_steps=horizon)
