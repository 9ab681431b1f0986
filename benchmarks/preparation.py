"""Preparation of 100,000 transitions: from the dataset file to arrays, contexts, world-model errors and returns-to-go.

    python -m benchmarks.preparation --threads 2

Each repeat is a process of its own, so that its peak of resident memory is its own. Time and memory start after the imports
and a first small product; the arrays of the dataset are subtracted from the memory, contexts and all else are not.
"""

import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.shapes import STEPS, make_arrays, make_world_model
from benchmarks.timing import apart, count_flop, matmul_peak, record, run
from src.data import trajectories
from src.models.meta_dt_agent import build_episodes
from src.run.config import CONFIG_DIR, read_env, read_yaml

ENVIRONMENT, QUALITY = "cheetah_vel", "random"
EPISODES, TASKS, REPEATS = 500, 50, 5
MIB_AIM = 100


def write_dataset(root, episodes=EPISODES):
    """Episodes of random numbers as a dataset of Cheetah-Vel."""
    path = CONFIG_DIR / f"{ENVIRONMENT}.yaml"
    env = read_env(path, read_yaml(path))
    observations, actions, rewards, lengths = (array.numpy() for array in make_arrays(episodes))
    tasks = np.repeat(np.arange(TASKS), episodes // TASKS)
    parameters = trajectories.task_parameters(env.make(), range(TASKS))
    dataset = trajectories.Trajectories(observations, actions, rewards, lengths, tasks, parameters)
    trajectories.save(dataset, root, env, QUALITY, {"seed": 0})


def load(root):
    """The dataset's tensors: observations, actions, rewards, lengths."""
    dataset = trajectories.load(root, ENVIRONMENT, QUALITY)
    return [torch.from_numpy(getattr(dataset, name)) for name in ("observations", "actions", "rewards", "lengths")]


def once(root):
    """One repeat: {"seconds", "load_seconds", "data_mib", "peak_mib" above what the process held before}."""
    world_model = make_world_model().eval().requires_grad_(False)
    build_episodes(world_model, *make_arrays(1), (1.0, 1.0))  # starts the threads
    gc.collect()
    before = resident("VmRSS", reset=True)
    begun = time.perf_counter()
    arrays = load(root)
    loaded = time.perf_counter()
    episodes = build_episodes(world_model, *arrays, (1.0, 1.0))
    seconds = time.perf_counter() - begun
    peak = resident("VmHWM") - before
    data = sum(array.nbytes for array in arrays) / 2**20
    assert episodes.contexts.isfinite().all()
    return {"seconds": seconds, "load_seconds": loaded - begun, "data_mib": data, "peak_mib": peak}


def resident(key, reset=False):
    """MiB of resident memory, now (VmRSS) or at most (VmHWM) since the last reset. Linux only."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure():
    with tempfile.TemporaryDirectory() as root:
        write_dataset(root)
        arrays, world_model = load(root), make_world_model().eval().requires_grad_(False)
        flop, peak = count_flop(lambda: build_episodes(world_model, *arrays, (1.0, 1.0))), matmul_peak()
        repeats = apart("benchmarks.preparation", root, REPEATS)
    seconds, loads, above = (
        [values(repeat) for repeat in repeats]
        for values in (lambda r: r["seconds"], lambda r: r["load_seconds"], lambda r: r["peak_mib"] - r["data_mib"])
    )
    mib = round(float(np.median(above)), 1)
    yield record(
        f"preparation of {EPISODES * STEPS:,} transitions", seconds, flop, peak, unit="s", aim=1.6,
        load_s=round(float(np.median(loads)), 3), data_mib=round(repeats[0]["data_mib"], 1),
        peak_mib_above_data=mib, aim_mib=f"at most {MIB_AIM}", mib_met=mib <= MIB_AIM,
    )  # fmt: skip


if __name__ == "__main__":
    run(__doc__, measure, once)
