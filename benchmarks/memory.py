"""Peak memory of stages 3 and 4 on 2,000,000 transitions of Cheetah-Vel, as a multiple of the dataset's arrays.

    python -m benchmarks.memory

Random numbers in the dataset's place, tiny networks and a few steps: what counts is how often the data lie in memory. Each stage is
run by its own script as a user runs it, on the full dataset and on one of 100 episodes, whose peak is what Python, torch
and the networks take; the difference is the data's. A few minutes and 2 GiB of memory and disk; Linux only.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.preparation import ENVIRONMENT, QUALITY, write_dataset
from benchmarks.shapes import ACTION, OBSERVATION, STEPS

EPISODES, FEW = 10_000, 100
AIM = 3.0
ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "train_context": ["--steps", "4", "--eval_every", "4"],
    "train_meta_dt": ["--steps", "4", "--eval_every", "4", "--zero_shot", "True"],
}


def peak_mib(script, root, *flags):
    """Largest resident memory of a script, MiB. Raises CalledProcessError where it fails."""
    base = ["--env_type", ENVIRONMENT, "--data_type", QUALITY, "--recipe", "debug", "--output_dir", root, "--no-tensorboard"]
    command = [sys.executable, f"{script}.py", *base, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss / 1024


def measure():
    """Yields (stage, peak of few episodes, peak of all, MiB of the dataset's arrays)."""
    numbers = (STEPS + 1) * OBSERVATION + STEPS * (ACTION + 1)
    with tempfile.TemporaryDirectory() as folder:
        roots = {episodes: str(Path(folder, str(episodes))) for episodes in (FEW, EPISODES)}
        for episodes, root in roots.items():
            write_dataset(Path(root, "datasets"), episodes)
        for script, flags in STAGES.items():
            yield script, *(peak_mib(script, root, *flags) for root in roots.values()), 4 * EPISODES * numbers / 2**20


def main():
    for script, few, full, data in measure():
        ratio = (full - few) / data
        print(f"{script}: {full:.0f} MiB at most, {few:.0f} MiB of them without the data ({data:.0f} MiB): the data {ratio:.2f} times "
              f"(aim: at most {AIM:g}); peak / dataset {full / data:.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
