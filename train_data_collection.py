"""Stage 1: train behaviour policies and keep the checkpoints of their training.

    python train_data_collection.py --env_type point_robot
    python train_data_collection.py --env_type cheetah_vel --recipe fast
    python train_data_collection.py --env_type ant_dir --algo batched_sac --device cuda
    python train_data_collection.py --env_type ant_dir --save_freq 4000 --task_id_start 0 --task_id_end 5

Three algorithms:

    sac            stable-baselines3, one agent per task; tasks are spread over the cores
    batched_sac    the same agents and the same files, several at a time as stacked tensors: three times as fast on a CPU,
                   all tasks at once on a GPU
    multitask_sac  one agent that is told the task and learns every transition for other tasks too: a family in minutes

Point-Robot, 50 tasks of 2,000 steps, on one core: 15 minutes with sac, 4 with batched_sac. A MuJoCo task of 500,000
steps: 70 and 22 minutes on one core. A MuJoCo family by `--recipe fast` (multitask_sac): docs/large_runs.md has the
minutes of each. The same command continues an interrupted run and retries what failed.
Writes saves/<env_type>/behaviour/; the format is described in saves/README.md. Next: get_datasets.py.
"""

import argparse
import functools
import os
import sys

import numpy as np
from tqdm import tqdm

from src.behaviour.batched_sac import train_group
from src.behaviour.multitask_sac import train_family
from src.behaviour.sac import train_task
from src.behaviour.store import behaviour_directory, is_finished, open_task
from src.run.config import (
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
from src.run.errors import UserError, main_guard
from src.run.workers import run_pool

PER_TASK = " per task (multitask_sac: over all tasks)"


def entropy(value):
    """'auto' or a number of at least 0."""
    try:
        return value if value == "auto" else nonnegative_float(value)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{value!r} is not auto or a number of at least 0") from None


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")  # these networks are too small for a GPU to pay
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--task_id_start", type=natural, help="first task id (default: the first; multitask_sac: of training)")
    tasks.add_argument("--task_id_end", type=natural, help="one past the last (default: all tasks; multitask_sac: of training)")
    tasks.add_argument("--workers", type=positive_int, help="processes (default: one per core); multitask_sac is one")
    agent = parser.add_argument_group("agent (defaults: the paper's)")
    agent.add_argument("--algo", choices=["sac", "batched_sac", "multitask_sac"], default="sac", help="see above")
    agent.add_argument("--num_steps", type=positive_int, default=500_000, help=f"environment steps{PER_TASK}")
    agent.add_argument("--learning_starts", type=natural, default=2000, help=f"uniform random steps at first{PER_TASK}")
    agent.add_argument("--buffer_size", type=positive_int, default=10_000, help=f"transitions in the replay buffer{PER_TASK}")
    agent.add_argument("--batch_size", type=positive_int, default=256, help="transitions per update")
    agent.add_argument("--updates_per_step", type=positive_float, default=1.0, help="updates per environment step; sac: 1")
    agent.add_argument("--learning_rate", type=positive_float, default=3e-4, help="of Adam, for actor and critics")
    agent.add_argument("--gamma", type=fraction, default=0.99, help="discount; an episode's end at the horizon bootstraps")
    agent.add_argument("--tau", type=fraction, default=0.005, help="share of the critic that its target takes over per update")
    agent.add_argument(
        "--entropy_coefficient", type=entropy, default=0.2, help="fixed weight of the entropy bonus, or auto: learn it"
    )
    agent.add_argument("--hidden_sizes", type=positive_int, nargs="+", default=[128, 128], help="widths of the ReLU layers")
    group = parser.add_argument_group("batched_sac")
    group.add_argument("--group_size", type=positive_int, help="tasks in one stack (default: 4 on a CPU, all on a GPU)")
    shared = parser.add_argument_group("multitask_sac")
    shared.add_argument("--num_envs", type=positive_int, default=10, help="tasks whose episodes are played side by side")
    shared.add_argument("--relabel_share", type=fraction, default=0.5, help="share of a batch moved to other tasks' rewards")
    shared.add_argument(
        "--decay_share", type=fraction, default=0.0, help="last part of training, in which the learning rate falls to 0"
    )
    output = parser.add_argument_group("checkpoints")
    output.add_argument(
        "--save_freq",
        type=positive_int,
        default=10_000,
        help="steps between two checkpoints; an interrupted run of sac may go on with others",
    )
    output.add_argument(
        "--save_seconds",
        type=nonnegative_float,
        default=60.0,
        help="seconds between two saves of the training state, which a kill costs at most; sac saves at every checkpoint",
    )
    output.add_argument("--eval_episodes", type=positive_int, default=10, help="episodes that measure each checkpoint")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "train_data_collection", argv)
    tasks = task_range(args, args.env.make(), args.env.train_tasks if args.algo == "multitask_sac" else None)
    if args.algo == "sac" and args.updates_per_step != 1:
        raise UserError("--updates_per_step: sac makes one update per step; give --algo batched_sac for another number")
    if args.learning_starts >= args.num_steps:
        print(f"note: all {args.num_steps} steps are random ones (--learning_starts {args.learning_starts}): nothing is learned",
              file=sys.stderr)  # fmt: skip
    if args.env.terminates and args.algo != "sac":
        raise UserError(f"episodes of {args.env_type} end on their own, which --algo {args.algo} does not know: use --algo sac")
    failures, returns = train_shared(args, tasks) if args.algo == "multitask_sac" else train_each(args, tasks)
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


def train_shared(args, tasks):
    """Train one agent for all the tasks; returns (no failures, its means)."""
    return {}, [train_family(args, tasks)]


def train_each(args, tasks):
    """Train an agent per task; returns ({task: reason} of the failed ones, means of the others)."""
    finished = find_finished(args, tasks)
    if finished:
        print(f"{len(finished)} of {len(tasks)} tasks are finished already", file=sys.stderr)
    size = 1 if args.algo == "sac" else args.group_size or (4 if args.device.type == "cpu" else len(tasks))
    # groups are cut from the whole range, so that an interrupted run finds the same ones again
    groups = [tuple(tasks[first : first + size]) for first in range(0, len(tasks), size)]
    groups = [group for group in groups if not finished.issuperset(group)]
    workers = args.workers or len(os.sched_getaffinity(0))
    total = sum(task not in finished for group in groups for task in group) * args.num_steps
    returns, failures = [], {}
    interval = 0.5 if sys.stderr.isatty() else 20
    with tqdm(total=total, unit="step", mininterval=interval, dynamic_ncols=True) as bar:

        def finish(group, result):
            returns.append(result)
            bar.set_postfix_str(f"task {group[0]}: return {result['return']:.4g}, random {result['random']:.4g}")

        if groups:
            train = train_group if args.algo == "batched_sac" else train_single
            failures = run_pool(functools.partial(train, args), groups, workers, finish, bar.update)
    return {task: reason for group, reason in failures.items() for task in group if task not in finished}, returns


def train_single(args, group, report):
    """The only task of `group` with stable-baselines3."""
    return train_task(args, group[0], report)


def find_finished(args, tasks):
    """The tasks that are complete. Raises UserError when the settings of any differ from those of its former run."""
    finished = set()
    for task in tasks:
        with open_task(args, task) as directory:
            if is_finished(directory):
                finished.add(task)
    return finished


if __name__ == "__main__":
    main()
