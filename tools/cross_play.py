"""How well one task's expert serves the other tasks of its family: what there is to gain by knowing the task, and by trying.

    python -m tools.cross_play --env_type hopper_rand_params

Every training task's behaviour policy, of those that come with the repository, plays every training task, with its noise, as in
the data. Tells the mean return of a task's own policy, of another's, of that of the task with the nearest parameters, of the one
that serves all best, and of the best of a few others, chosen by one episode each and measured by the rest. Writes
benchmarks/results/cross_play-<env_type>.json.
"""

from pathlib import Path

import numpy as np

from src.behaviour.policies import BehaviourPolicies, task_features
from src.behaviour.store import committed_directory, find_source, load_behaviour
from src.data.qualities import choose_checkpoints
from src.evaluation.agent import PolicyAgent
from src.run.command_line import next_command, parse_args, script_parser
from src.run.errors import UserError, main_guard
from src.run.files import write_json
from src.run.flags import fraction, positive_int
from src.run.provenance import provenance
from src.run.seeding import numpy_generator, torch_generator
from tools.measure_references import play

TRIED = (1, 2, 4, 8)
CHOICES = 400  # random draws of policies to try, per task


@main_guard
def main(argv=None):
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")
    parser.add_argument("--quality", choices=["medium", "expert"], default="expert", help="which checkpoint of every policy")
    parser.add_argument("--medium_share", type=fraction, default=0.5, help="as in get_datasets.py")
    parser.add_argument("--episodes", type=positive_int, default=4, help="of every policy on every task")
    parser.add_argument("--output", help="result file (default: benchmarks/results/cross_play-<env_type>.json)")
    args = parse_args(parser, "cross_play", argv)
    environment, tasks = args.env.make(), np.arange(*args.env.train_tasks)
    if args.episodes < 2 or len(tasks) < 2:
        raise UserError("the first episode of a policy is its trial: give --episodes 2 or more, and two training tasks or more")
    if not committed_directory(args.env_type).is_dir():
        raise UserError(f"no behaviour policies of {args.env_type} come with the repository: name another family")
    returns = np.stack([play_one(args, environment, task, tasks) for task in tasks])  # (policies, tasks, episodes)
    features = task_features(environment, tasks)[tasks]
    document = {
        "env_type": args.env_type,
        "quality": args.quality,
        "tasks": tasks.tolist(),
        **figures(returns, features, numpy_generator(args.seed, "cross_play")),
        "returns": returns.mean(-1).round(2).tolist(),
        **provenance(),
    }
    path = Path(args.output or Path("benchmarks/results") / f"cross_play-{args.env_type}.json")
    write_json(path, document)
    print(", ".join(f"{name} {value}" for name, value in document.items() if isinstance(value, float)))
    print(f"written to {path}")


def play_one(args, environment, task, tasks):
    """Returns (tasks, episodes) of one task's policy."""
    command = next_command(args, "train_data_collection.py")
    source = find_source(args, "committed", command)
    curve, weights = load_behaviour(source, args.env, int(task), command)
    row = choose_checkpoints(curve, args.quality, 1, args.medium_share)[0]
    space, noise = environment.action_space, torch_generator(args.seed, "cross_play", int(task))
    chosen = {name: value[row : row + 1] for name, value in weights.items()}
    policy = BehaviourPolicies(chosen, space.low, space.high, frame=source.frame(environment, [task]))
    agent = PolicyAgent(lambda observations: policy.act(observations[None], noise)[0])
    return play(args, agent, tasks, "cross_play", args.episodes)[2]


def figures(returns, features, generator):
    """Means over the tasks, see above; returns (P, P, M) of policy p on task t, features (P, d) of the tasks."""
    count = len(returns)
    mean, own = returns.mean(-1), np.eye(count, dtype=bool)
    others = np.ma.array(mean, mask=own)
    distances = np.linalg.norm(features[:, None] - features, axis=-1) + np.where(own, np.inf, 0)
    first, rest = returns[:, :, 0], returns[:, :, 1:].mean(-1)
    tried = {size: [] for size in TRIED}
    for task in range(count):
        rivals = np.flatnonzero(np.arange(count) != task)
        for size in TRIED:
            chosen = generator.permuted(np.tile(rivals, (CHOICES, 1)), axis=1)[:, :size]
            tried[size].append(rest[chosen[np.arange(CHOICES), first[chosen, task].argmax(1)], task].mean())
    values = {
        "own_policy": mean.diagonal().mean(),
        "another_policy": others.mean(),
        "policy_of_nearest_parameters": mean[distances.argmin(0), np.arange(count)].mean(),
        "one_policy_for_all": others.mean(1).max(),
        "best_other_policy": others.max(0).mean(),
        "deviation_over_policies": others.std(0).mean(),
        "deviation_over_episodes": returns.std(-1, ddof=1).mean(),
        **{f"best_of_{size}_tried": np.mean(values) for size, values in tried.items()},
    }
    return {name: round(float(value), 1) for name, value in values.items()}


if __name__ == "__main__":
    main()
