"""The same paths at full size: loading 1,000,000 transitions, and 25 episodes of Cheetah-Vel played with the simulator.

    python -m benchmarks.scale --threads 2

Loading runs in a process of its own, whose peak of resident memory is compared with the float32 size of the arrays.
"""

import gc
import tempfile
import time

import numpy as np
import torch

from benchmarks.preparation import load, resident, write_dataset
from benchmarks.shapes import HISTORY, PROMPT, STEPS, make_policy, make_world_model
from benchmarks.timing import apart, count_flop, durations, matmul_peak, record, run
from src.evaluation.evaluate import evaluate
from src.models.meta_dt_agent import MetaDTAgent
from src.run.config import CONFIG_DIR, read_env, read_yaml
from src.run.devices import autocast_dtype

EPISODES, TASKS, REPEATS = 5000, range(45, 50), 3


def once(root):
    """One loading: {"seconds", "data_mib", "peak_mib" above what the process held before}."""
    gc.collect()
    before, begun = resident("VmRSS", reset=True), time.perf_counter()
    arrays = load(root)
    seconds, peak = time.perf_counter() - begun, resident("VmHWM") - before
    return {"seconds": seconds, "data_mib": sum(array.nbytes for array in arrays) / 2**20, "peak_mib": peak}


def measure():
    peak = matmul_peak()
    with tempfile.TemporaryDirectory() as root:
        write_dataset(root, EPISODES)
        repeats = apart("benchmarks.scale", root, REPEATS)
    ratio = round(float(np.median([repeat["peak_mib"] / repeat["data_mib"] for repeat in repeats])), 2)
    yield record(
        f"loading of {EPISODES * STEPS:,} transitions", [repeat["seconds"] for repeat in repeats], 0, peak, unit="s", aim=5,
        data_mib=round(repeats[0]["data_mib"], 1), peak_to_data=ratio, aim_peak_to_data="at most 3", peak_met=ratio <= 3,
    )  # fmt: skip
    path = CONFIG_DIR / "cheetah_vel.yaml"
    env = read_env(path, read_yaml(path))
    world_model = make_world_model().eval().requires_grad_(False)
    agent = MetaDTAgent(make_policy(), world_model, HISTORY, PROMPT, -30.0, dtype=autocast_dtype("auto", torch.device("cpu")))

    def play():
        evaluate(agent, env, TASKS, 5)

    flop = count_flop(play)
    yield record("25 episodes of Cheetah-Vel, with simulator", durations(play, 5.0, 3, warmup=0), flop, peak, unit="s", aim=10)


if __name__ == "__main__":
    run(__doc__, measure, once)
