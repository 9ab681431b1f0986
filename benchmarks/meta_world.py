"""Meta-World: steps per second of our rows beside the library's own step, in the same process, by its CPU time.

python -m benchmarks.meta_world --sets reach push door-lock

Rewards are included on both sides, policies are not: random actions, the best of a few blocks each, in turns, so that other
programs slow both alike. Then a task's data by the scripted policy, as get_datasets.py makes them. Writes
benchmarks/results/meta_world.json.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np

from envs.meta_world import SETS, HiddenGoalEnv, library
from src.behaviour.scripted import scripted
from src.run.devices import use_threads
from src.run.errors import main_guard
from src.run.files import write_json
from src.run.provenance import provenance

ROWS, STEPS = 20, 200


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["reach"], help="task sets")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of each kind, of which the best counts")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "meta_world.json"), help="result file")
    args = parser.parse_args(argv)
    use_threads(1)
    load, figures = os.getloadavg()[0], {}
    for name in args.sets:
        figures[name] = figure = measure(name, args.blocks)
        ours, theirs = (1e6 / figure[f"{key}_steps_per_s"] for key in ("lean", "library"))
        print(f"{name}: {figure['lean_steps_per_s']} steps/s of one core, {ours:.0f} us a step; library {theirs:.0f} us, "
              f"{theirs / ours:.2f} times as long; data by the scripted policy {figure['data_steps_per_s']} steps/s")  # fmt: skip
    write_json(Path(args.output), {"sets": figures, "rows": ROWS, "load_average_before": round(load, 2), **provenance()})
    print(f"written to {args.output}")


def measure(name, blocks):
    """Steps per second of CPU time: of rows, of the library's step, of rows with the scripted policy and its noise."""
    env, generator = HiddenGoalEnv(name), np.random.default_rng(0)
    batch = env.batch_class({key: values[:ROWS] for key, values in env.tasks.items()})
    actions = generator.uniform(-1, 1, (STEPS, ROWS, 4)).astype(np.float32)
    single = library().env_dict.ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
    single._set_task_called, single._freeze_rand_vec, single._last_rand_vec = True, True, env.tasks["vector"][0]
    act, _ = scripted(env, "expert", np.zeros(ROWS, int), (0, 0), generator)

    def lean():
        batch.reset()
        return clocked(lambda: [batch.step(row) for row in actions])

    def by_library():
        single.reset()
        return clocked(lambda: [single.step(row[0]) for row in actions]) * ROWS

    def data():
        observations = batch.reset()

        def episode():
            seen = observations
            for _ in range(STEPS):
                seen, _ = batch.step(act(seen))

        return clocked(episode)

    seconds = np.array([[lean(), by_library(), data()] for _ in range(blocks)]).min(0)
    rates = (ROWS * STEPS / seconds).round(-1).astype(int).tolist()
    return dict(zip(("lean_steps_per_s", "library_steps_per_s", "data_steps_per_s"), rates, strict=True))


def clocked(function):
    begun = time.process_time()
    function()
    return time.process_time() - begun


if __name__ == "__main__":
    main_guard(main)()
