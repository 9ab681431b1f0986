"""How good the recorded episodes of the training tasks are for the test tasks: what imitation of whole episodes can reach.

    python -m benchmarks.imitation_ceiling --env_type cheetah_vel --qualities medium replay

Every recorded episode of every training task is paid as each test task would pay it, by the environment's own function; only
families whose tasks differ in their rewards have one. Of each test task: the best of these episodes, and the mean of the best
ones, as many as `fast` imitates of a task (30 %). No method is told any of this. A policy may still earn more: it can put parts
of episodes together, and play without their noise. Writes benchmarks/results/imitation_ceiling-<env_type>.json.
"""

from pathlib import Path

import numpy as np

from src.data.qualities import data_name
from src.data.relabel import EnvironmentRewards
from src.evaluation.method import RunSettings, TrainingData
from src.run.command_line import parse_args, script_parser
from src.run.errors import main_guard
from src.run.files import write_json
from src.run.flags import positive_fraction
from src.run.provenance import provenance
from src.run.settings import pick


@main_guard
def main(argv=None):
    parser = script_parser(__doc__)
    parser.add_argument("--qualities", type=data_name, nargs="+", default=["medium", "replay"], help="datasets")
    parser.add_argument(
        "--share", type=positive_fraction, default=0.3, help="of the episodes of a task: so many are the best ones"
    )
    parser.add_argument("--output", help="result file (default: see above)")
    args = parse_args(parser, "imitation_ceiling", argv)
    rows = []
    for quality in args.qualities:
        data = TrainingData(pick(RunSettings, args, data_quality=quality))
        best, several = ceiling(EnvironmentRewards(data.environment, data.episodes), data.episodes, data.test_tasks, args.share)
        row = {"quality": quality, "share": args.share, "tasks": data.test_tasks}
        rows.append(row | {"best": best.tolist(), "best_ones": several.tolist(), "dataset_sha256": data.sha256})
        print(f"{quality}: the best episode of each test task {best.mean():.4g}, its best ones {several.mean():.4g}")
    path = Path(args.output or Path(__file__).parent / "results" / f"imitation_ceiling-{args.env_type}.json")
    write_json(path, {"env_type": args.env_type, "rows": rows, **provenance()})
    print(f"written to {path}")


def ceiling(rewards, episodes, tasks, share):
    """Of each of `tasks` the return of the best of Trajectories as a Rewards pays it, and the mean of the best ones: (K,), (K,).

    share: of the mean number of episodes per task; so many are the best ones.
    """
    paid_on = rewards.on(episodes)
    number = max(1, round(share * len(episodes) / len(np.unique(episodes.task_ids))))
    returns = np.stack([np.sort(paid_on(task).sum(1, dtype=np.float64))[::-1] for task in tasks])
    return returns[:, 0], returns[:, :number].mean(1)


if __name__ == "__main__":
    main()
