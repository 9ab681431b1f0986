"""Keep trained behaviour policies in the repository, so that get_datasets.py needs no stage 1.

    python -m tools.export_behaviour --env_type cheetah_vel --keep 20
    python -m tools.export_behaviour --env_type gym_hopper --keep 40 --eval_episodes 100

Reads the shared agent of saves/<env_type>/behaviour/multitask, or the agents of single tasks where there is none, and writes
behaviour/<env_type> in the same format with fewer checkpoints: the first, the last, and others spread evenly over training
steps and changes of the mean return alike, so that the levels between random and expert stay. Of the returns of a task by one
checkpoint the mean is kept. --eval_episodes measures
agents of single tasks again, where those of training were too few to tell the levels apart.
"""

import dataclasses

import numpy as np
import torch

from src.behaviour.measure import measure, measure_random
from src.behaviour.store import SHARED, behaviour_directory, committed_directory, is_finished, read_curve
from src.evaluation.method import RunSettings
from src.run.command_line import next_command, parse_args, script_parser
from src.run.errors import UserError, main_guard
from src.run.files import load_tensors, read_json, save_tensors, write_json
from src.run.flags import positive_int
from src.run.provenance import provenance
from src.run.settings import pick


def make_parser():
    parser = script_parser(__doc__)
    parser.add_argument("--keep", type=positive_int, default=20, help="checkpoints to keep of each agent, 45 to 140 kB each")
    parser.add_argument(
        "--eval_episodes", type=positive_int, help="measure the checkpoints again by so many episodes (default: as in training)"
    )
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "export_behaviour", argv)
    saved = behaviour_directory(args.output_dir, args.env_type)
    folders = [saved / SHARED] if (saved / SHARED).exists() else sorted(saved.glob("task_*"))
    if not folders or not all(map(is_finished, folders)):
        raise UserError(
            f"no finished behaviour policies in {saved}; train them: {next_command(args, 'train_data_collection.py')}"
        )
    if args.eval_episodes and folders[0].name == SHARED:
        raise UserError(f"--eval_episodes measures agents of single tasks, {folders[0]} is a shared one: leave it out")
    for folder in folders:
        keep(args, folder, committed_directory(args.env_type) / folder.name)


def keep(args, source, target):
    """Copy --keep checkpoints of an agent, measured again with --eval_episodes."""
    curve, tensors = read_curve(source, source.name == SHARED), load_tensors(source / "checkpoints.safetensors")
    config, count = read_json(source / "config.json"), args.keep
    if args.eval_episodes:
        config["eval_episodes"] = args.eval_episodes
        curve |= {**measured(args, config, tensors), "provenance_of_returns": provenance()}
    returns = np.array(curve["stochastic_returns"]).reshape(len(curve["steps"]), -1).mean(1)
    rows = choose(returns, count)
    kept = {name: values if name == "task_features" else values[torch.from_numpy(rows)] for name, values in tensors.items()}
    save_tensors(target / "checkpoints.safetensors", kept)
    write_json(target / "config.json", config)
    write_json(target / "curve.json", compact(curve, rows))
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {len(rows)} of {len(returns)} checkpoints, {size / 1e6:.1f} MB; commit it")


def compact(curve, rows):
    """curve.json of the checkpoints `rows`: one return per checkpoint and task, the mean over the episodes."""

    def means(returns):
        return np.mean(returns, axis=-1, keepdims=True).tolist()

    kept = {key: value for key, value in curve.items() if key != "deterministic_returns"}
    kept["steps"] = [curve["steps"][row] for row in rows]
    kept["stochastic_returns"] = means([curve["stochastic_returns"][row] for row in rows])
    return {**kept, "random_returns": means(curve["random_returns"])}


def measured(args, config, tensors):
    """Returns of every checkpoint of a single task's agent, as stage 1 with these --eval_episodes would have measured them."""
    run, episodes = dataclasses.replace(pick(RunSettings, args), seed=config["seed"]), args.eval_episodes
    task, weights = config["task_id"], {name: values for name, values in tensors.items() if name != "steps"}
    returns = {"stochastic_returns": [], "deterministic_returns": [], "random_returns": measure_random(run, task, episodes)}
    for row, step in enumerate(tensors["steps"].tolist()):
        one = {name: values[row : row + 1] for name, values in weights.items()}
        returns["stochastic_returns"].append(measure(run, [task], step, one, episodes)[0].tolist())
        returns["deterministic_returns"].append(measure(run, [task], step, one, episodes, deterministic=True)[0].tolist())
    return returns


def choose(returns, keep):
    """Indices of at most `keep` of the C checkpoints with mean `returns` (C,), first and last among them; all, where there are no
    more."""
    if keep >= len(returns):
        return np.arange(len(returns))
    change = np.abs(np.diff(returns))
    steps = change / max(change.sum(), 1e-12) + 1 / max(len(change), 1)
    place = np.concatenate([[0], np.cumsum(steps)])
    wanted = np.linspace(0, place[-1], keep) if keep > 1 else place[-1:]
    return np.unique(np.abs(place[None] - wanted[:, None]).argmin(1))


if __name__ == "__main__":
    main()
