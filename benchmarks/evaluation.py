"""Policy time of an evaluation: 1 episode and 25 at once, 200 steps, K 20, prompt 5; the simulator is left out.

python -m benchmarks.evaluation --threads 1

The reference acts as the official code does: one episode after the other, at every step the context of the last transitions, and
transformers.GPT2Model in float32 over the prompt and a full window.
"""

import importlib.util
import statistics

import numpy as np
import torch

from benchmarks.policy_step import around_gpt2
from benchmarks.shapes import HISTORY, HORIZON, PROMPT, STEPS, make_arrays, make_episodes, make_policy, make_world_model
from benchmarks.timing import count_flop, durations, matmul_peak, record, run
from src.data.windows import BatchSampler
from src.models.meta_dt_agent import MetaDTAgent
from src.run.devices import autocast_dtype
from src.run.seeding import torch_generator


def make_episode(rows, dtype):
    """The function that plays a few-shot episode in `rows` rows."""
    world_model = make_world_model().eval().requires_grad_(False)
    agent = MetaDTAgent(make_policy().eval(), world_model, HISTORY, PROMPT, -30.0, dtype=dtype)
    observations, actions, rewards = (array.numpy() for array in make_arrays(rows)[:3])
    lengths = np.full(rows, STEPS)
    pool = [{"observations": observations, "actions": actions, "rewards": rewards, "lengths": lengths}]
    agent.adapt([])
    agent.adapt(pool)

    def episode(steps=STEPS):
        agent.start(observations[:, 0])
        for step in range(steps):
            agent.observe(agent.act(), rewards[:, step], observations[:, step + 1])

    return episode


def make_reference():
    """The function that plays one episode as the official code does."""
    policy, world_model = make_policy().eval(), make_world_model().eval()
    gpt2, forward = around_gpt2(policy)
    gpt2.eval()
    sampler = BatchSampler(make_episodes(5), torch.arange(5), HISTORY, PROMPT, HORIZON, "argmax", full_windows=True)
    history, prompt = sampler.draw(1, torch_generator(0, "benchmark"), True)
    observations, actions, rewards = (array[:, :HORIZON] for array in make_arrays(1)[:3])
    past = observations, actions, rewards[..., None], torch.ones(1, HORIZON, dtype=torch.bool)

    @torch.inference_mode()
    def episode(steps=STEPS):
        for _ in range(steps):
            world_model.encode(*past)
            forward(history, prompt)

    return episode


def measure():
    chosen, seconds = autocast_dtype("auto", torch.device("cpu")), {}
    if importlib.util.find_spec("transformers"):
        reference = make_reference()
        one = statistics.median(durations(reference, 5.0, 5, warmup=1))
        yield record("evaluation, 1 episode of GPT2Model in float32", [one] * 2, count_flop(reference), matmul_peak(), unit="s")
    for rows, dtype in ((1, None), (1, chosen), (25, None), (25, chosen)):
        if (rows, dtype) in seconds:
            continue
        episode = make_episode(rows, dtype)
        # the context encoder's GRU is not in the count: less than one percent
        flop, peak = count_flop(episode), matmul_peak()
        seconds[rows, dtype] = durations(episode, 5.0, 5, warmup=1)
        name = f"evaluation, {rows} episode{'s' * (rows > 1)}{'' if dtype is chosen else ', float32'}"
        aim = 3_500 if (rows, dtype) == (25, chosen) else None
        figure = record(name, seconds[rows, dtype], flop, peak, unit="steps/s", aim=aim, items=rows * STEPS)
        if importlib.util.find_spec("transformers"):
            figure["times_the_reference"] = round(rows * one / statistics.median(seconds[rows, dtype]), 2)
        yield figure


if __name__ == "__main__":
    run(__doc__, measure)
