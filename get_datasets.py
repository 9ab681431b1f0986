"""Stage 2: roll the behaviour policies out into an offline dataset, or import one that exists.

    python get_datasets.py --env_type point_robot --data_type medium
    python get_datasets.py --env_type ant_dir --data_type medium --task_id_start 0 --task_id_end 5 --capacity 20000
    python get_datasets.py --env_type ant_dir --data_type medium --import_from folder_of_official_pickles

Point-Robot, 50 tasks of 4,000 transitions: seconds. A MuJoCo family of 50 tasks of 20,000 transitions: a few minutes.
Tasks of a later range join the dataset; a task that is made again is replaced; --no-resume replaces the whole dataset.
The kinds of data:

    medium   the first checkpoint whose measured return reaches random + medium_share * (expert - random), where random
             is the return of uniform actions and expert the mean return of the last fifth of the checkpoints
    expert   the checkpoint with the highest measured return among the last fifth
    mixed    70 % of the episodes as medium, 30 % as expert; medium-expert: half and half
    replay   all checkpoints of training, an equal share of the episodes each; medium-replay: those up to that of medium
    cross    half of the episodes as expert, each of the others as the expert of another training task: for families whose
             dynamics differ, so that z learns the body and not whose policy drives it
    random   uniform random actions; needs no stage 1

Policies act stochastically, as they did in training. Where stage 1 was not run, a family's scripted policy plays (Meta-World), or
the policies that come with the repository (behaviour/). One agent for all tasks (multitask_sac) plays the tasks that it knows,
which are mostly the training tasks. A scripted policy is told its task:

    medium   wrong about it by --goal_error, acting with --action_noise
    expert   right, noise 0.1
    replay   from wrong (0.3 m) and wild (noise 1) to expert, evenly over the episodes; medium-replay: to medium
    cross    half of the episodes as expert, each of the others told another training task

Writes datasets/<env_type>/<data_type>-v0, a Minari dataset with a card (README.md) that says who acted, on what knowledge; the
format is described in datasets/README.md. Next: train_context.py.
"""

import dataclasses
import functools
import sys
from pathlib import Path

from src.behaviour.collect import Collection, collect_task, join_tasks
from src.behaviour.scripted import RULES
from src.behaviour.store import SOURCES, find_source, source_of
from src.data.importers import import_trajectories
from src.data.qualities import QUALITIES, data_name
from src.data.trajectories import dataset_directory, save
from src.evaluation.method import RunSettings
from src.run.command_line import TaskRange, is_given, next_command, parse_args, script_parser
from src.run.config import num_tasks
from src.run.errors import UserError, main_guard
from src.run.flags import natural, positive_int
from src.run.logger import progress_bar
from src.run.provenance import provenance
from src.run.settings import add_settings, pick, setting
from src.run.workers import run_pool, usable


@dataclasses.dataclass(frozen=True)
class Data:
    """data"""

    data_type: str = setting(
        "medium", "kind of data, see above; with --import_from any name", data_name, flags=("--data_quality",)
    )  # fmt: skip
    behaviour: str = setting(
        "auto", "whose policies: of sac or batched_sac, of multitask_sac, scripted, the repository's; auto: what there is",
        choices=SOURCES,
    )  # fmt: skip
    behaviour_of: str | None = setting(
        None, "family whose policies play: it has the same tasks, observations and actions, and may pay otherwise"
    )  # fmt: skip
    workers: int | None = setting(None, "processes, one per core at most (default: where it pays)", positive_int)


@dataclasses.dataclass(frozen=True)
class Import:
    """import"""

    import_from: str | None = setting(
        None, "folder of Meta-DT's dataset_task_<i>.pkl files; an HDF5, npz, JSON or pickle file of D4RL, d3rlpy, robomimic, "
        "stable-baselines3 or of trajectory dicts; a Minari dataset (id or folder)",
    )  # fmt: skip
    task_id: int | None = setting(None, "task of all episodes, where the file does not say it", natural)
    import_prompts: bool = setting(
        False, "of that folder the dataset_task_prompt<i>.pkl, the trajectories that official prompts are cut from"
    )  # fmt: skip


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")
    add_settings(parser, Data, TaskRange, Collection, Import)
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "get_datasets", argv)
    data, chosen, collection, imported = (pick(kind, args) for kind in (Data, TaskRange, Collection, Import))
    run, environment = pick(RunSettings, args, data_quality=data.data_type), args.env.make()
    players = chosen.with_training(run.env) if data.data_type == "cross" else chosen  # other tasks' experts play, too
    importing, command = imported.import_from is not None, next_command(run, "train_data_collection.py", *players.words())
    if imported.task_id is not None and not importing:
        raise UserError("--task_id has no effect without --import_from: choose tasks by --task_id_start and --task_id_end")
    if imported.import_prompts and not importing:
        raise UserError("--import_prompts has no effect without --import_from: name the folder of dataset_task_prompt<i>.pkl")
    if not importing and data.data_type not in QUALITIES:
        raise UserError(f"--data_type {data.data_type} is none of {', '.join(QUALITIES)}: other names are for --import_from")
    if is_given("behaviour_of", argv) and (importing or data.data_type == "random"):
        raise UserError("--behaviour_of has no effect on random or imported data: leave it out")
    source = None
    if data.data_type != "random" and not importing:
        if data.behaviour_of is None:
            source = find_source(run, data.behaviour, command)
        else:
            theirs = dataclasses.replace(run, env_type=data.behaviour_of, config=None)
            command = next_command(theirs, "train_data_collection.py", *players.words())
            source = source_of(run, data.behaviour_of, data.behaviour, command)
    tasks = chosen.of(run.env, environment, source and source.tasks(run.env, environment))
    root = Path(run.output_dir) / "datasets"
    if importing:
        trajectories, facts, notes = import_trajectories(
            imported.import_from, run.env, tasks, imported.task_id, imported.import_prompts
        )
    else:
        trajectories, facts = collect(run, collection, tasks, source, command, data.workers)
        notes = []
    record = {"seed": run.seed, "rule": "imported" if importing else QUALITIES[data.data_type], **facts, **provenance()}
    description = f"{data.data_type} data of {run.env.env_name}"
    joined = save(trajectories, root, run.env, data.data_type, record, description, join=run.resume)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    where = dataset_directory(root, run.env_type, data.data_type)
    single = num_tasks(environment) == 1  # nothing to infer: the world model has no use
    follow = next_command(run, "-m baselines.online_dt" if single else "train_context.py", "--data_type", data.data_type)
    print(
        f"{where}: {len(joined)} episodes of {len(joined.tasks)} tasks, mean return {joined.returns.mean():.4g}; next: {follow}"
    )


def collect(run, collection, tasks, source, command, workers=None):
    """Roll out all tasks by the policies of `source` (None: random actions); returns (Trajectories, facts to record with them).

    Raises UserError when a task fails."""
    if collection.capacity < run.env.max_episode_steps:
        raise UserError(f"--capacity {collection.capacity} holds no episode: give at least {run.env.max_episode_steps}")
    steps = run.env.max_episode_steps * len(tasks)  # one step of a batch is one call; a few thousand take seconds
    workers = workers or (1 if steps < 5000 else usable())
    results = {}
    if source and source.kind == "committed":
        print(f"no policies in saves/: those that come with the repository play, {source.directory}", file=sys.stderr)
    with progress_bar(len(tasks), "task") as bar:

        def finish(task, result):
            results[task] = result
            bar.update()

        roll_out = functools.partial(collect_task, run, collection, source, command)
        failures = run_pool(roll_out, list(tasks), workers, finish)
    if failures:
        task, reason = min(failures.items())
        raise UserError(f"task {task}: {reason}" + (f" ({len(failures)} tasks failed)" if len(failures) > 1 else ""))
    trajectories, facts = join_tasks(run.env, results)
    actors = source.facts() if source else {"actors": "uniform random actions", "knowledge": "nothing"}
    scripted = source and source.kind == "scripted"
    rule = {"rule": RULES[run.data_quality]} if scripted else {"medium_share": collection.medium_share}
    return trajectories, {**rule, **facts, "policies": source.kind if source else "uniform", **actors}


if __name__ == "__main__":
    main()
