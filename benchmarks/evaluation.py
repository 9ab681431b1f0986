"""Policy time of an evaluation: 25 episodes at once, 200 steps, K 20, prompt 5; the simulator is left out.

python -m benchmarks.evaluation --threads 2
"""

import numpy as np
import torch

from benchmarks.shapes import HISTORY, PROMPT, STEPS, make_arrays, make_policy, make_world_model
from benchmarks.timing import count_flop, durations, matmul_peak, record, run
from src.models.meta_dt_agent import MetaDTAgent
from src.run.devices import autocast_dtype

EPISODES = 25


def measure():
    world_model = make_world_model().eval().requires_grad_(False)
    dtype = autocast_dtype("auto", torch.device("cpu"))
    agent = MetaDTAgent(make_policy(), world_model, HISTORY, PROMPT, -30.0, dtype=dtype)
    observations, actions, rewards = (array.numpy() for array in make_arrays(EPISODES)[:3])
    lengths = np.full(EPISODES, STEPS)
    pool = [{"observations": observations, "actions": actions, "rewards": rewards, "lengths": lengths}]
    agent.adapt([])
    agent.adapt(pool)

    def episode(steps=STEPS):
        agent.start(observations[:, 0])
        for step in range(steps):
            agent.observe(agent.act(), rewards[:, step], observations[:, step + 1])

    # the context encoder's GRU is not in the count: less than one percent
    flop, peak = count_flop(episode), matmul_peak()
    seconds = durations(episode, 10.0, 5, warmup=1)
    yield record("evaluation, 25 episodes", seconds, flop, peak, unit="steps/s", aim=3_500, items=EPISODES * STEPS)


if __name__ == "__main__":
    run(__doc__, measure)
