"""Peak memory of stages 3 and 4 on 2,000,000 transitions of Cheetah-Vel, as a multiple of the dataset's arrays; and of an
agent that plays many episodes.

    python -m benchmarks.memory

Random numbers stand in the dataset's place, networks are tiny and steps few: what counts is how often the data lie in memory.
Each stage is run by its own script, as a user runs it, on the whole dataset and on one of 500 episodes. The peak of the latter is
what Python, torch and the networks take; the difference is the data's. An agent's memory is told at the start of an episode and
at its end: it must not grow with the steps. Some minutes, 2 GiB of memory and disk; Linux only.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.preparation import ENVIRONMENT, QUALITY
from benchmarks.shapes import ACTION, OBSERVATION, STEPS

EPISODES, FEW = 10_000, 500
AIM = 3.0
ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "train_context": ["--steps", "4", "--eval_every", "4", "--validation_share", "0.1"],
    "train_meta_dt": ["--steps", "4", "--eval_every", "4"],
}
WRITE = "import sys; from benchmarks.preparation import write_dataset as w; w(sys.argv[1], int(sys.argv[2]))"
# the peak of a process that was forked begins at that of its parent, so a script tells its own
RUN = """
import runpy, sys
from benchmarks.preparation import resident
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(resident("VmHWM"))
"""

PLAY = """
import sys
from benchmarks.evaluation import make_episode
from benchmarks.preparation import resident
episode = make_episode(int(sys.argv[1]), None)
for steps in map(int, sys.argv[2:]):
    episode(steps)
    print(resident("VmHWM"))
"""


def python(code, *words):
    """Output of a process with `code`. Raises CalledProcessError where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure():
    """Yields (stage, peak of few episodes, peak of all, MiB of the dataset's arrays)."""
    numbers = (STEPS + 1) * OBSERVATION + STEPS * (ACTION + 1)
    base = ["--env_type", ENVIRONMENT, "--data_type", QUALITY, "--recipe", "debug", "--no-tensorboard", "--output_dir"]
    with tempfile.TemporaryDirectory() as folder:
        roots = {episodes: Path(folder, str(episodes)) for episodes in (FEW, EPISODES)}
        for episodes, root in roots.items():
            python(WRITE, root / "datasets", episodes)
        for script, flags in STAGES.items():
            lines = [python(RUN, f"{script}.py", *base, root, *flags).splitlines() for root in roots.values()]
            yield script, *(float(line[-1]) for line in lines), 4 * EPISODES * numbers / 2**20


def played(rows=100, few=20):
    """MiB at most of an agent in `rows` episodes: while it plays the first `few` steps, and all STEPS."""
    return tuple(map(float, python(PLAY, rows, few, STEPS).split()))


def main():
    first, last = played()
    print(f"an agent in 100 episodes: peak {last:.0f} MiB in {STEPS} steps, {first:.0f} MiB in 20", flush=True)
    for script, few, full, data in measure():
        ratio = (full - few) / (1 - FEW / EPISODES) / data
        print(f"{script}: peak {full:.0f} MiB, {few:.0f} MiB with {FEW} episodes; the data ({data:.0f} MiB) take "
              f"{ratio:.2f} times their size (aim: at most {AIM:g})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
