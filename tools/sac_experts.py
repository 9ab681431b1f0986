"""How far stable-baselines3's SAC comes, one agent per task: its curves beside the reference levels of the same tasks.

    python train_data_collection.py --env_type hopper_rand_params --recipe single_task --task_id_start 45 --task_id_end 50
    python -m tools.sac_experts --env_type hopper_rand_params

Reads the finished agents under saves/<env_type>/behaviour and writes benchmarks/results/sac-<env_type>.json.
"""

from pathlib import Path

import numpy as np

from src.behaviour.store import behaviour_directory, is_finished, read_curve
from src.evaluation.references import reference_levels
from src.run.command_line import parse_args, script_parser
from src.run.errors import UserError, main_guard
from src.run.files import read_json, write_json
from src.run.provenance import provenance


@main_guard
def main(argv=None):
    parser = script_parser(__doc__)
    parser.add_argument("--output", help="result file (default: benchmarks/results/sac-<env_type>.json)")
    args = parse_args(parser, "sac_experts", argv)
    saved = behaviour_directory(args.output_dir, args.env_type)
    folders = [folder for folder in sorted(saved.glob("task_*")) if is_finished(folder)]
    if not folders:
        raise UserError(f"no finished agents of single tasks in {saved}; train them with train_data_collection.py --algo sac")
    curves = {str(int(folder.name.removeprefix("task_"))): read_curve(folder) for folder in folders}
    levels = reference_levels(args.env, args.env.make(), [int(task) for task in curves])
    settings = read_json(folders[0] / "config.json")
    document = {
        "env_type": args.env_type,
        "curves": {
            task: {
                "steps": curve["steps"],
                **{key: rounded(curve[key]) for key in ("stochastic_returns", "deterministic_returns")},
            }
            for task, curve in curves.items()
        },
        "random": {task: float(np.mean(curve["random_returns"])) for task, curve in curves.items()},
        **{name: dict(zip(curves, values, strict=True)) for name, values in levels.items() if values},
        "trained": {"config": settings, "provenance": {task: curve["provenance"] for task, curve in curves.items()}},
        **provenance(),
    }
    path = Path(args.output or Path("benchmarks/results") / f"sac-{args.env_type}.json")
    write_json(path, document)
    for task, curve in document["curves"].items():
        beside = "".join(f", {name} {document[name][task]:.4g}" for name in levels if name in document)
        print(f"task {task}: return {curve['stochastic_returns'][-1]:.4g}{beside}")
    print(f"written to {path}")


def rounded(returns):
    """Mean return of each checkpoint's episodes."""
    return [round(float(np.mean(values)), 2) for values in returns]


if __name__ == "__main__":
    main()
