"""What a second thread gives a training step, with the cores idle and with a busy one.

    python -m benchmarks.threads

One minute. A ratio above 1 says that two threads are faster than one; two runs side by side, a thread each, are a ratio of 2.
The default of --threads follows from it.
"""

import multiprocessing
import os
import statistics
import time

import torch

from benchmarks.policy_step import make_step as policy_step
from benchmarks.shapes import HORIZON, STEPS, make_policy
from benchmarks.timing import durations
from benchmarks.world_model import make_step as world_model_step
from src.run.devices import autocast_dtype


def steps():
    """{name: function that makes one update}."""
    policy, precision = make_policy(), autocast_dtype("auto", torch.device("cpu"))
    return {
        "policy, batch 128": policy_step(policy, list(policy.parameters()), policy, precision),
        "policy, batch 32": policy_step(policy, list(policy.parameters()), policy, precision, batch=32),
        "world model, batch 128": world_model_step(HORIZON, 128),
        "world model, 16 whole episodes": world_model_step(0, 16 * STEPS),
    }


def seconds(step, threads, budget=2.0):
    """Median of one update."""
    torch.set_num_threads(threads)
    return statistics.median(durations(step, budget, 3, 1))


def spin():
    """Keep one core busy."""
    while True:
        pass


def main():
    print(f"load average before: {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores\n")
    print("| step | 1 thread | 2 threads | ratio | ratio beside a busy process |\n|---|---|---|---|---|")
    for name, step in steps().items():
        one, two = (seconds(step, threads) for threads in (1, 2))
        other = multiprocessing.Process(target=spin, daemon=True)
        other.start()
        time.sleep(0.1)
        busy = [seconds(step, threads) for threads in (1, 2)]
        other.kill()
        other.join()
        print(f"| {name} | {1e3 * one:.1f} ms | {1e3 * two:.1f} ms | {one / two:.2f} | {busy[0] / busy[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
