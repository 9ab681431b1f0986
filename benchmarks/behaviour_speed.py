"""How fast stages 1 and 2 are here: SAC updates, simulator steps, policy calls.

    python -m benchmarks.behaviour_speed --threads 2

Half a minute. Seconds are those of the processor (all threads of this process), so that other programs disturb little;
per row: what one core does in one second.
"""

import argparse
import os
import time

import numpy as np
import torch

from src.behaviour.policies import BehaviourPolicies
from src.behaviour.stacked_sac import StackedSAC
from src.evaluation.batch import make_batch
from src.run.config import CONFIG_DIR, num_tasks, read_env, read_yaml

FAMILIES = ("point_robot", "cheetah_vel", "cheetah_dir", "ant_dir", "hopper_rand_params", "walker_rand_params")
OBSERVATIONS, ACTIONS, HIDDEN, BATCH = 21, 6, [128, 128], 256  # Cheetah-Vel, its observation and the task


def per_second(function, seconds=1.0):
    """Calls of `function` per second of processor time, after a few to warm up."""
    for _ in range(3):
        function()
    calls, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        function()
        calls += 1
    return calls / (time.process_time() - start)


def updates(agents):
    """Updates per second and agent of a stack of agents."""
    learner = StackedSAC(
        agents, OBSERVATIONS, ACTIONS, HIDDEN, learning_rate=1e-3, gamma=0.99, tau=0.005, entropy="auto", device="cpu",
        generators=[torch.Generator().manual_seed(agent) for agent in range(agents)],
    )  # fmt: skip
    observations, following = torch.randn(2, agents, BATCH, OBSERVATIONS)
    actions, rewards = 2 * torch.rand(agents, BATCH, ACTIONS) - 1, torch.randn(agents, BATCH)

    def step():
        learner.update(observations, actions, rewards, following, torch.randn(agents, 2 * BATCH, ACTIONS))

    return agents * per_second(step)


def updates_of_stable_baselines3():
    """The same for its SAC: sampling from the replay buffer included."""
    import gymnasium as gym
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    class Shapes(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (OBSERVATIONS,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (ACTIONS,), np.float32)

    model = SAC("MlpPolicy", Shapes(), policy_kwargs={"net_arch": HIDDEN}, buffer_size=10_000, device="cpu")
    model.set_logger(Logger(None, []))
    row = np.zeros((1, OBSERVATIONS), np.float32)
    for _ in range(1000):
        model.replay_buffer.add(row, row, np.zeros((1, ACTIONS)), np.zeros(1), np.zeros(1), [{}])
    return per_second(lambda: model.train(1, BATCH))


def transitions(env, rows, threads):
    """(simulator steps, policy steps) per second with `rows` episodes side by side and two hidden layers of 128."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the MuJoCo batches
    environment = env.make()
    batch = make_batch(env, np.arange(rows) % num_tasks(environment))
    size, space, generator = environment.observation_space.shape[0], environment.action_space, np.random.default_rng(0)
    actions = generator.uniform(space.low, space.high, (20, rows, *space.shape))
    shapes = {
        "latent_pi.0": (128, size),
        "latent_pi.2": (128, 128),
        "mu": (space.shape[0], 128),
        "log_std": (space.shape[0], 128),
    }
    weights = {f"{name}.weight": torch.randn(1, *shape) / 20 for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.zeros(1, shape[0]) for name, shape in shapes.items()}
    policies = BehaviourPolicies(weights, space.low, space.high)
    observations = batch.reset(range(rows))[None]

    def episode_part():
        batch.reset(range(rows))
        for row in actions:
            batch.step(row)

    wall = time.perf_counter(), time.process_time()
    simulated = per_second(episode_part) * rows * len(actions)
    busy = (time.process_time() - wall[1]) / (time.perf_counter() - wall[0])
    return simulated, per_second(lambda: policies.act(observations, torch.Generator().manual_seed(0)), 0.3) * rows, busy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of the simulator")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| SAC, 128-128 nets, batch 256 | updates per core second |\n|---|---|")
    print(f"| stable-baselines3 | {updates_of_stable_baselines3():.0f} |")
    for agents in (1, 4):
        print(f"| ours, {agents} in a stack | {updates(agents):.0f} |")
    print(
        "\n| family, 100 rows | simulator steps per core second | policy steps per core second | cores busy |\n|---|---|---|---|"
    )
    for family in FAMILIES:
        path = CONFIG_DIR / f"{family}.yaml"
        simulated, acted, busy = transitions(read_env(path, read_yaml(path)), 100, args.threads)
        print(f"| {family} | {simulated:,.0f} | {acted:,.0f} | {busy:.1f} |")


if __name__ == "__main__":
    main()
