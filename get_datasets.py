"""Stage 2: roll the behaviour policies out into an offline dataset, or import one that exists.

    python get_datasets.py --env_type point_robot --data_type medium
    python get_datasets.py --env_type ant_dir --data_type medium --task_id_start 0 --task_id_end 5 --capacity 20000
    python get_datasets.py --env_type ant_dir --data_type medium --import_from folder_of_official_pickles

Point-Robot, 50 tasks of 2,000 transitions: seconds. A MuJoCo family of 50 tasks of 20,000 transitions: a few minutes.
Tasks of a later range join the dataset; a task that is made again is replaced; --no-resume replaces the whole dataset.
The kinds of data:

    medium   the first checkpoint whose measured return reaches random + medium_share * (expert - random), where random
             is the return of uniform actions and expert the mean return of the last fifth of the checkpoints
    expert   the checkpoint with the highest measured return among the last fifth
    mixed    70 % of the episodes as medium, 30 % as expert; medium-expert: half and half
    replay   all checkpoints of training, an equal share of the episodes each; medium-replay: those up to that of medium
    random   uniform random actions; needs no stage 1

Policies act stochastically, as they did in training. Where stage 1 was not run, the policies that come with the repository
(behaviour/) play, for the families that have any. Writes datasets/<env_type>/<data_type>-v0, a Minari dataset; the
format is described in datasets/README.md. Next: train_context.py.
"""

import functools
import os
import sys
from pathlib import Path

from tqdm import tqdm

from src.behaviour.collect import collect_task, join_tasks, training_command
from src.behaviour.store import find_source
from src.data.importers import import_trajectories
from src.data.qualities import QUALITIES, data_name
from src.data.trajectories import dataset_directory, save
from src.run.config import fraction, natural, next_command, num_tasks, parse_args, positive_int, script_parser, task_range
from src.run.errors import UserError, main_guard
from src.run.provenance import provenance
from src.run.workers import run_pool


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")
    parser.add_argument(
        "--data_type",
        "--data_quality",
        type=data_name,
        default="medium",
        help="kind of data, see above; with --import_from any name",
    )
    parser.add_argument("--task_id_start", type=natural, help="first task id (default: the first that the policies know)")
    parser.add_argument("--task_id_end", type=natural, help="one past the last task id (default: all that they know)")
    parser.add_argument(
        "--capacity", type=positive_int, default=20_000, help="transitions per task (or somewhat more, where lengths vary)"
    )
    parser.add_argument("--medium_share", type=fraction, default=0.5, help="level of medium between random (0) and expert (1)")
    parser.add_argument(
        "--behaviour",
        choices=["auto", "per_task", "multitask", "committed"],
        default="auto",
        help="whose policies: of sac or batched_sac, of multitask_sac, or the repository's; auto: what there is",
    )
    parser.add_argument("--workers", type=positive_int, help="processes (default: one per core where it pays)")
    importing = parser.add_argument_group("import")
    importing.add_argument(
        "--import_from",
        help="folder of Meta-DT's dataset_task_<i>.pkl files; an HDF5, npz, JSON or pickle file of D4RL, d3rlpy, robomimic, "
        "stable-baselines3 or of trajectory dicts; a Minari dataset (id or folder)",
    )
    importing.add_argument("--task_id", type=natural, help="task of all episodes, where the file does not say it")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "get_datasets", argv)
    importing = args.import_from is not None
    if args.task_id is not None and not importing:
        raise UserError("--task_id has no effect without --import_from: choose tasks by --task_id_start and --task_id_end")
    if not importing and args.data_type not in QUALITIES:
        raise UserError(f"--data_type {args.data_type} is none of {', '.join(QUALITIES)}: other names are for --import_from")
    source = None
    if args.data_type != "random" and not importing:
        source = find_source(args, training_command(args))
    tasks = task_range(args, args.env.make(), source and source.tasks(args.env.make()))
    root = Path(args.output_dir) / "datasets"
    if importing:
        trajectories, facts, notes = import_trajectories(args.import_from, args.env, tasks, args.task_id)
    else:
        trajectories, facts = collect(args, tasks, source)
        notes = []
    record = {"seed": args.seed, "rule": "imported" if importing else QUALITIES[args.data_type], **facts, **provenance()}
    description = f"{args.data_type} data of {args.env.env_name}"
    joined = save(trajectories, root, args.env, args.data_type, record, description, join=args.resume)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    where = dataset_directory(root, args.env_type, args.data_type)
    single = num_tasks(args.env.make()) == 1  # nothing to infer: the world model has no use
    script = "-m baselines.online_dt" if single else "train_context.py"
    follow = next_command(args, script, "--data_type", args.data_type)
    print(
        f"{where}: {len(joined)} episodes of {len(joined.tasks)} tasks, mean return {joined.returns.mean():.4g}; next: {follow}"
    )


def collect(args, tasks, source):
    """Roll out all tasks by the policies of `source` (None: random actions); returns (Trajectories, facts to record with them).

    Raises UserError when a task fails."""
    if args.capacity < args.env.max_episode_steps:
        raise UserError(f"--capacity {args.capacity} holds no episode: give at least {args.env.max_episode_steps}")
    steps = args.env.max_episode_steps * len(tasks)  # one step of a batch is one call; a few thousand take seconds
    workers = args.workers or (1 if steps < 5000 else len(os.sched_getaffinity(0)))
    results = {}
    if source and source.kind == "committed":
        print(f"no policies in saves/: those that come with the repository play, {source.directory}", file=sys.stderr)
    with tqdm(total=len(tasks), unit="task", mininterval=0.5 if sys.stderr.isatty() else 20, dynamic_ncols=True) as bar:

        def finish(task, result):
            results[task] = result
            bar.update()

        failures = run_pool(functools.partial(collect_task, args, source), list(tasks), workers, finish)
    if failures:
        task, reason = min(failures.items())
        raise UserError(f"task {task}: {reason}" + (f" ({len(failures)} tasks failed)" if len(failures) > 1 else ""))
    trajectories, facts = join_tasks(args, results)
    return trajectories, {**facts, "policies": source.kind if source else "uniform"}


if __name__ == "__main__":
    main()
