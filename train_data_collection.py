"""Stage 1: train behaviour policies and keep the checkpoints of their training.

    python train_data_collection.py --env_type point_robot
    python train_data_collection.py --env_type cheetah_vel --recipe fast
    python train_data_collection.py --env_type ant_dir --algo batched_sac --device cuda
    python train_data_collection.py --env_type ant_dir --save_freq 4000 --task_id_start 0 --task_id_end 5

Three algorithms:

    sac            stable-baselines3, one agent per task; tasks are spread over the cores
    batched_sac    the same agents and the same files, several at a time as stacked tensors: three times as fast on a CPU,
                   all tasks at once on a GPU
    multitask_sac  one agent that is told the task and learns every transition for other tasks too: a family in minutes. It
                   learns the training tasks, where --task_id_start and --task_id_end say no others

Families with a scripted policy (Meta-World) need none of them: `--algo scripted`, their default, says so and trains nothing.

Point-Robot, 50 tasks of 2,000 steps, on one core: 15 minutes with sac, 4 with batched_sac, 2 with the small nets of --recipe
fast. A MuJoCo task of 500,000 steps: 70 and 22 minutes on one core. A MuJoCo family by `--recipe fast` (multitask_sac):
docs/large_runs.md has the minutes of each. The same command continues an interrupted run and retries what failed.
Writes saves/<env_type>/behaviour/; the format is described in saves/README.md. Next: get_datasets.py.
"""

import dataclasses
import functools
import sys

import numpy as np

from src.behaviour.batched_sac import train_group
from src.behaviour.multitask_sac import train_family
from src.behaviour.sac import train_task
from src.behaviour.settings import AgentSettings, Checkpoints, SharedSettings
from src.behaviour.store import behaviour_directory, is_finished, open_task
from src.evaluation.method import RunSettings
from src.run.command_line import TaskRange, next_command, parse_args, script_parser
from src.run.errors import UserError, main_guard
from src.run.flags import positive_int
from src.run.logger import progress_bar
from src.run.settings import add_settings, pick, setting
from src.run.workers import run_pool, usable


@dataclasses.dataclass(frozen=True)
class Processes:
    """processes"""

    workers: int | None = setting(None, "processes, one per core at most (the default); multitask_sac is one", positive_int)
    group_size: int | None = setting(
        None, "tasks in one stack of batched_sac (default: 4 on a CPU, all on a GPU)", positive_int
    )  # fmt: skip


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")  # these networks are too small for a GPU to pay
    add_settings(parser, TaskRange, AgentSettings, SharedSettings, Checkpoints, Processes)
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "train_data_collection", argv)
    run, chosen, processes = pick(RunSettings, args), pick(TaskRange, args), pick(Processes, args)
    if args.algo == "scripted":
        return needs_no_training(run, chosen)
    agent, shared, checkpoints = pick(AgentSettings, args), pick(SharedSettings, args), pick(Checkpoints, args)
    tasks = chosen.of(run.env, run.env.make(), run.env.train_tasks if agent.algo == "multitask_sac" else None)
    check(run, agent)
    failures = {}
    if agent.algo == "multitask_sac":
        returns = [train_family(run, agent, shared, checkpoints, tasks)]
    else:
        returns, failures = train_each(run, agent, checkpoints, processes, tasks)
    for task, reason in sorted(failures.items()):
        print(f"task {task} failed: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(tasks)} tasks failed; the same command tries them again", file=sys.stderr)
        sys.exit(1)
    where = behaviour_directory(run.output_dir, run.env_type)
    measured = ""
    if returns:
        level, random = (np.mean([result[key] for result in returns]) for key in ("return", "random"))
        measured = f", mean return {level:.4g} (random actions {random:.4g})"
    follow = next_command(run, "get_datasets.py", "--data_type", "medium", *chosen.words())
    print(f"behaviour policies of {len(tasks)} tasks in {where}{measured}; next: {follow}")


def needs_no_training(run, chosen):
    """One line that says so, and what follows. Raises UserError where the family has no scripted policy."""
    environment = run.env.make()
    chosen.of(run.env, environment)
    if not hasattr(environment, "scripted_policy"):
        raise UserError(f"{run.env_type} has no scripted policy: choose another --algo")
    follow = next_command(run, "get_datasets.py", "--data_type", "medium", *chosen.words())
    print(f"{run.env_type} needs no training: its scripted policy makes the data (--algo sac trains); next: {follow}")


def check(run, agent):
    """Settings that contradict each other or the environment. Raises UserError."""
    if agent.algo == "sac" and agent.updates_per_step != 1:
        raise UserError("--updates_per_step: sac makes one update per step; give --algo batched_sac for another number")
    if agent.learning_starts >= agent.num_steps:
        print(
            f"note: all {agent.num_steps} steps are random ones (--learning_starts {agent.learning_starts}): nothing is learned",
            file=sys.stderr,
        )
    if run.env.terminates and agent.algo != "sac":
        raise UserError(f"episodes of {run.env_type} end on their own, which --algo {agent.algo} does not know: use --algo sac")


def train_each(run, agent, checkpoints, processes, tasks):
    """Train an agent per task; returns (means of those that were trained, {task: reason} of the failed ones)."""
    finished = find_finished(run, agent, checkpoints, tasks)
    if finished:
        print(f"{len(finished)} of {len(tasks)} tasks are finished already", file=sys.stderr)
    batched = agent.algo == "batched_sac"
    size = (processes.group_size or (4 if run.device.type == "cpu" else len(tasks))) if batched else 1
    # groups are cut from the whole range, so that an interrupted run finds the same ones again
    groups = [tuple(tasks[first : first + size]) for first in range(0, len(tasks), size)]
    groups = [group for group in groups if not finished.issuperset(group)]
    workers = usable(processes.workers)
    total = sum(task not in finished for group in groups for task in group) * agent.num_steps
    returns, failures = [], {}
    with progress_bar(total, "step") as bar:

        def finish(group, result):
            returns.append(result)
            bar.set_postfix_str(f"task {group[0]}: return {result['return']:.4g}, random {result['random']:.4g}")

        if groups:
            train = functools.partial(train_group if batched else train_single, run, agent, checkpoints)
            failures = run_pool(train, groups, workers, finish, bar.update)
    return returns, {task: reason for group, reason in failures.items() for task in group if task not in finished}


def train_single(run, agent, checkpoints, group, report):
    """The only task of `group` with stable-baselines3."""
    return train_task(run, agent, checkpoints, group[0], report)


def find_finished(run, agent, checkpoints, tasks):
    """The tasks that are complete. Raises UserError when the settings of any differ from those of its former run."""
    finished = set()
    for task in tasks:
        with open_task(run, agent, checkpoints, task) as directory:
            if is_finished(directory):
                finished.add(task)
    return finished


if __name__ == "__main__":
    main()
