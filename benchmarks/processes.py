"""Training steps of one global batch in one process and in two, as torchrun starts them, a thread each.

    python -m benchmarks.processes

A ratio of 2 is perfect; what is missing are the collectives, the batch that each process draws whole, and, where the cores share
memory or other programs run, the machine. Prints a table; nothing is written.
"""

import json
import os
import socket
import statistics
import subprocess
import sys

import torch

from benchmarks.shapes import BATCH, HISTORY, HORIZON, PROMPT, STEPS, make_arrays, make_episodes, make_policy, make_world_model
from benchmarks.timing import durations
from src.data.transitions import TransitionSampler
from src.data.windows import BatchSampler
from src.models.meta_dt import masked_mean
from src.models.meta_dt_training import ActionErrors, own_rows
from src.models.world_model_training import DecodingErrors, losses
from src.run import distributed
from src.run.devices import keep_memory
from src.run.loop import Optimisation
from src.run.seeding import torch_generator

EPISODES, TASKS = 450, 45
SETTINGS = Optimisation()


def policy_step(batch):
    """The function that makes one update of the policy."""
    policy, generator = make_policy(), torch_generator(0, "benchmark")
    tasks = torch.arange(EPISODES) % TASKS
    sampler = BatchSampler(make_episodes(EPISODES), tasks, HISTORY, PROMPT, HORIZON, "argmax", full_windows=False)
    errors, optimizer = (
        distributed.parallel(ActionErrors(policy), some_unused=True),
        SETTINGS.optimizer(policy.parameters()),
    )

    def step():
        history, prompt = sampler.draw(batch, generator, True)
        found = distributed.gathered(errors(own_rows(history), own_rows(prompt), None))
        SETTINGS.descend(optimizer, policy.parameters(), masked_mean(found, history["mask"]))

    return step


def world_model_step(horizon, batch):
    """The function that makes one update of the world model."""
    model, generator = make_world_model(horizon), torch_generator(0, "benchmark")
    sampler = TransitionSampler(*make_arrays(EPISODES), torch.arange(EPISODES) % TASKS, horizon)
    errors, optimizer = distributed.parallel(DecodingErrors(model)), SETTINGS.optimizer(model.parameters())

    def step():
        reward, state = losses(errors, sampler.draw(batch, generator), torch.device("cpu"))
        SETTINGS.descend(optimizer, model.parameters(), reward + state)

    return step


STEPS_OF = {
    f"policy, batch {BATCH}": lambda: policy_step(BATCH),
    f"policy, batch {4 * BATCH}": lambda: policy_step(4 * BATCH),
    f"world model, batch {4 * BATCH}": lambda: world_model_step(HORIZON, 4 * BATCH),
    "world model, 16 whole episodes": lambda: world_model_step(0, 16 * STEPS),
}


def seconds(repeats=15):
    """{name: median of one update} in this process, among the others."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    distributed.join(torch.device("cpu"))
    # as many repeats in every process: each one is a meeting of all
    return {name: statistics.median(durations(make(), 0, repeats)) for name, make in STEPS_OF.items()}


def measured(count):
    """`seconds` of the first of `count` processes."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(any_port.getsockname()[1]), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "benchmarks.processes", "--once"]
    started = [
        subprocess.Popen(command, env={**os.environ, **address, "RANK": str(number)}, stdout=subprocess.PIPE, text=True)
        for number in range(count)
    ]
    told = [process.communicate()[0] for process in started]
    return json.loads(told[0])


def main():
    if sys.argv[1:] == ["--once"]:
        print(json.dumps(seconds()))
        return
    print(f"load average before: {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores\n")
    print("| step | 1 process | 2 processes | ratio |\n|---|---|---|---|")
    one, two = measured(1), measured(2)
    for name in STEPS_OF:
        print(f"| {name} | {1e3 * one[name]:.1f} ms | {1e3 * two[name]:.1f} ms | {one[name] / two[name]:.2f} |")


if __name__ == "__main__":
    main()
