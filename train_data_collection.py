"""Stage 1: train one SAC agent per task and keep the checkpoints of its training.

    python train_data_collection.py --env_type point_robot
    python train_data_collection.py --env_type ant_dir --save_freq 4000 --task_id_start 0 --task_id_end 5

Point-Robot, 50 tasks of 2,000 steps: about 15 minutes on one core. A MuJoCo task of 500,000 steps: about 70 minutes on
one core; tasks are spread over the cores. The same command continues an interrupted run and retries what failed.
Writes saves/<env_type>/behaviour/task_<i>/; the format is described in saves/README.md. Next: get_datasets.py.
"""

import functools
import os
import sys

import numpy as np
from tqdm import tqdm

from src.checkpoint import main_guard
from src.config import (
    fraction,
    natural,
    next_command,
    nonnegative_float,
    parse_args,
    positive_float,
    positive_int,
    script_parser,
    task_range,
)
from src.pool import run_pool
from src.sac import behaviour_directory, is_finished, open_task, train_task


def entropy_coefficient(value):
    """'auto', or a number of at least 0."""
    return value if value == "auto" else nonnegative_float(value)


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")  # these networks are too small for a GPU to pay
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--task_id_start", type=natural, help="first task id (default: the first)")
    tasks.add_argument("--task_id_end", type=natural, help="one past the last task id (default: all tasks)")
    tasks.add_argument("--workers", type=positive_int, help="processes (default: one per core)")
    agent = parser.add_argument_group("agent (defaults: the paper's)")
    agent.add_argument("--algo", choices=["sac"], default="sac", help="reinforcement learning algorithm")
    agent.add_argument("--num_steps", type=positive_int, default=500_000, help="environment steps per task")
    agent.add_argument("--learning_starts", type=natural, default=2000, help="uniform random steps before the first update")
    agent.add_argument("--buffer_size", type=positive_int, default=10_000, help="transitions in the replay buffer")
    agent.add_argument("--batch_size", type=positive_int, default=256, help="transitions per update; one update per step")
    agent.add_argument("--learning_rate", type=positive_float, default=3e-4, help="of Adam, for actor and critics")
    agent.add_argument("--gamma", type=fraction, default=0.99, help="discount; an episode's end at the horizon bootstraps")
    agent.add_argument("--tau", type=fraction, default=0.005, help="share of the critic that its target takes over per update")
    agent.add_argument(
        "--entropy_coefficient", type=entropy_coefficient, default=0.2,
        help="weight of the entropy bonus: fixed, or 'auto' to learn it (target: minus the number of actions)",
    )  # fmt: skip
    agent.add_argument("--hidden_sizes", type=positive_int, nargs="+", default=[128, 128], help="widths of the ReLU layers")
    output = parser.add_argument_group("checkpoints")
    output.add_argument("--save_freq", type=positive_int, default=10_000, help="steps between two checkpoints")
    output.add_argument("--eval_episodes", type=positive_int, default=10, help="episodes that measure each checkpoint")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "train_data_collection", argv)
    tasks = task_range(args, args.env.make())
    pending, finished = find_pending(args, tasks)
    if finished:
        print(f"{len(finished)} of {len(tasks)} tasks are finished already", file=sys.stderr)
    failures, returns = train(args, pending) if pending else ({}, [])
    for task, reason in sorted(failures.items()):
        print(f"task {task} failed: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(tasks)} tasks failed; the same command tries them again", file=sys.stderr)
        sys.exit(1)
    where = behaviour_directory(args.output_dir, args.env_type)
    measured = ""
    if returns:
        level, random = (np.mean([result[key] for result in returns]) for key in ("return", "random"))
        measured = f", mean return {level:.4g} (random actions {random:.4g})"
    follow = next_command(args, "get_datasets.py", "--data_type", "medium", keep=("task_id_start", "task_id_end"))
    print(f"behaviour policies of {len(tasks)} tasks in {where}{measured}; next: {follow}")


def find_pending(args, tasks):
    """Split the tasks into those to train and those that are complete. Raises UserError when the settings differ."""
    pending, finished = [], []
    for task in tasks:
        with open_task(args, task) as directory:
            (finished if is_finished(directory) else pending).append(task)
    return pending, finished


def train(args, tasks):
    """Train all the tasks; returns ({task: reason} of the failed ones, means of the others)."""
    workers = args.workers or len(os.sched_getaffinity(0))
    returns = []
    interval = 0.5 if sys.stderr.isatty() else 20
    with tqdm(total=len(tasks) * args.num_steps, unit="step", mininterval=interval, dynamic_ncols=True) as bar:

        def finish(task, result):
            returns.append(result)
            bar.set_postfix_str(f"task {task}: return {result['return']:.4g}, random {result['random']:.4g}")

        failures = run_pool(functools.partial(train_task, args), tasks, workers, finish, bar.update)
    return failures, returns


if __name__ == "__main__":
    main()
