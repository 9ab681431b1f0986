"""Whether torch.compile pays for the training steps of the policy and the world model.

    python -m benchmarks.compiled --threads 1

Needs a C++ compiler; about five minutes, most of them compiling. A ratio above 1 says that the compiled step is faster. Both
steps of a pair alternate, so another program slows them alike. Writes benchmarks/results/compiled-<threads>_threads.json.
"""

import statistics
import time
from pathlib import Path

import torch

from benchmarks.policy_step import make_step as policy_step
from benchmarks.shapes import HORIZON, STEPS, make_policy
from benchmarks.timing import make_parser, matmul_peak, prepare
from benchmarks.world_model import make_step as world_model_step
from src.run.devices import autocast_dtype
from src.run.errors import main_guard
from src.run.files import write_json
from src.run.provenance import provenance

SECONDS, LEAST = 20.0, 10  # of each pair; pairs


def pairs():
    """{name: (update, the same update compiled)}."""
    policy, precision = make_policy(), autocast_dtype("auto", torch.device("cpu"))

    def policy_update(forward):
        return policy_step(forward, list(policy.parameters()), policy, precision)

    sizes = {"world model, batch 128": (HORIZON, 128), "world model, 16 whole episodes": (0, 16 * STEPS)}
    return {"policy, batch 128": (policy_update(policy), policy_update(torch.compile(policy)))} | {
        name: (world_model_step(*size), world_model_step(*size, torch.compile)) for name, size in sizes.items()
    }


def timed(update):
    begun = time.perf_counter()
    update()
    return time.perf_counter() - begun


def measure(plain, compiled):
    """Medians of both in seconds, seconds until the compiled one has run once, and the median of the ratios of neighbours."""
    first = timed(compiled)
    for update in (plain, compiled):
        timed(update)
    seconds, end = [], time.perf_counter() + SECONDS
    while len(seconds) < LEAST or time.perf_counter() < end:
        seconds.append((timed(plain), timed(compiled)))
    ratio = statistics.median(before / after for before, after in seconds)
    plain_s, compiled_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {"ratio": ratio, "plain_s": plain_s, "compiled_s": compiled_s, "compiling_s": first, "repeats": len(seconds)}


@main_guard
def main(argv=None):
    args = make_parser(__doc__).parse_args(argv)
    prepare(args.threads)
    figures = {}
    for name, pair in pairs().items():
        figures[name] = {key: float(f"{value:.4g}") for key, value in measure(*pair).items()}
        print(name, figures[name], flush=True)
    peak = {name: float(f"{value / 1e9:.4g}") for name, value in matmul_peak().items()}
    path = Path(__file__).parent / "results" / f"compiled-{args.threads}_threads.json"
    write_json(path, {"figures": figures, "threads": args.threads, "peak_gflop_per_s": peak, **provenance()})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
