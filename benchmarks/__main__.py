"""Speed of the hot paths on this machine, each with its aim and as a share of the matmul peak measured beside it.

    python -m benchmarks --threads 2

About two minutes on two cores that nobody else uses. Writes benchmarks/results/cpu-<threads>_threads.json.
"""

import os
import time
from pathlib import Path

from benchmarks import evaluation, policy_step, preparation, scale, world_model
from benchmarks.timing import make_parser, prepare, show
from src.run.errors import main_guard
from src.run.files import write_json
from src.run.provenance import provenance

PARTS = {
    "policy_step": policy_step, "preparation": preparation, "evaluation": evaluation, "world_model": world_model, "scale": scale,
}  # fmt: skip


@main_guard
def main():
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts; nothing is written then")
    parser.add_argument("--output", help="result file (default: benchmarks/results/cpu-<threads>_threads.json)")
    args = parser.parse_args()
    prepare(args.threads)
    begun, load = time.time(), os.getloadavg()[0]
    figures = []
    for name in args.only:
        for figure in PARTS[name].measure():
            figures.append(figure)
            show(figure)
    if args.only != list(PARTS):
        return
    path = Path(args.output or Path(__file__).parent / "results" / f"cpu-{args.threads}_threads.json")
    # other programs slow a step and the peak alike, though not equally: a load above the threads makes the figures doubtful
    context = {"threads": args.threads, "load_average_before": round(load, 2), "wall_clock_s": round(time.time() - begun, 1)}
    write_json(path, {"figures": figures, **context, **provenance()})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
