"""Does z know the task, or whose policy acts? Nearest-centre accuracy of a world model's contexts, by who drives the episodes.

    python -m tools.probe_contexts --env_type hopper_rand_params --recipe fast --data_quality medium
    python -m tools.probe_contexts --env_type hopper_rand_params --recipe fast --data_quality cross

The centre of a training task is the mean context of half of its recorded episodes. Other episodes on the training tasks are then
assigned to the nearest centre: the other half of the recorded ones; those of each task's own expert; those of another task's
expert; those of a policy that no data hold, another task's checkpoint three quarters of the way from random to expert; and
uniform random actions. A context that knows the body names it whoever drives. Reads what stages 2 and 3 left, and writes
benchmarks/results/probe-<env_type>-<quality>.json.
"""

from pathlib import Path

import numpy as np
import torch

from src.behaviour.policies import BehaviourPolicies
from src.behaviour.store import SOURCES, find_source, load_behaviour
from src.data.qualities import choose_checkpoints
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.method import DataSettings, RunSettings, TrainingData
from src.evaluation.rollout import rollout
from src.models.load import open_world_model
from src.models.probe import EPISODE, full_contexts, random_walk
from src.run.command_line import next_command, parse_args, script_parser
from src.run.errors import UserError, main_guard
from src.run.files import write_json
from src.run.flags import positive_int
from src.run.provenance import provenance
from src.run.seeding import derive, numpy_generator, torch_generator
from src.run.settings import add_settings, pick

UNSEEN_SHARE = 0.75  # between medium (0.5) and expert


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")
    add_settings(parser, DataSettings)
    parser.add_argument("--behaviour", choices=SOURCES, default="auto", help="whose policies drive")
    parser.add_argument("--episodes", type=positive_int, default=5, help="of every policy on every task")
    parser.add_argument("--world_model", help="its folder (default: that of this environment, quality, recipe, seed)")
    parser.add_argument("--output", help="result file (default: benchmarks/results/probe-<env_type>-<quality>.json)")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "probe_contexts", argv)
    run = pick(RunSettings, args)
    data = TrainingData(run)
    model, config = open_world_model(run, args.world_model)
    if config.get("dataset_sha256") != data.sha256:
        raise UserError("the world model was trained on another version of this dataset: run train_context.py --no-resume again")
    command = next_command(run, "train_data_collection.py")
    source, tasks = find_source(run, args.behaviour, command), np.array(data.train_tasks)
    half = every_second(data.episodes.task_ids)
    centres = task_centres(summary(model, data.episodes.take(np.flatnonzero(half))), data.episodes.task_ids[half], tasks)
    moved = numpy_generator(run.seed, "probe_contexts").integers(1, max(2, len(tasks)))
    others = np.roll(tasks, moved)  # none drives its own task
    played = {
        "own expert": play(run, source, command, data.environment, tasks, tasks, args.episodes, "expert"),
        "another's expert": play(run, source, command, data.environment, tasks, others, args.episodes, "expert"),
        "unseen policy": play(run, source, command, data.environment, tasks, others, args.episodes, "medium", UNSEEN_SHARE),
        "random actions": random_walk(run.env, tasks, args.episodes, run.seed)[:-1],
    }
    owners = np.repeat(tasks, args.episodes)
    kept = summary(model, data.episodes.take(np.flatnonzero(~half)))
    accuracy = {"recorded": score(kept, data.episodes.task_ids[~half], centres)}
    accuracy |= {name: score(_mean(full_contexts(model, *episode)), owners, centres) for name, episode in played.items()}
    document = {
        "env_type": run.env_type,
        "quality": run.data_quality,
        "recipe": run.recipe,
        "seed": run.seed,
        "tasks": len(tasks),
        "chance": round(1 / len(tasks), 4),
        "accuracy": accuracy,
        "made_from": {"dataset_sha256": data.sha256},
        **provenance(),
    }
    path = Path(args.output or Path("benchmarks/results") / f"probe-{run.env_type}-{run.data_quality}.json")
    write_json(path, document)
    print(f"nearest centre of {len(tasks)} tasks: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()))
    print(f"written to {path}")


def every_second(task_ids):
    """(E,) bool: True for the first, third, … episode of every task. Raises UserError where a task has but one."""
    places = np.empty(len(task_ids), int)
    for task in np.unique(task_ids):
        own = np.flatnonzero(task_ids == task)
        if len(own) < 2:
            raise UserError(
                f"task {task} has one episode, and half of a task's episodes make its centre: give data with two or more"
            )
        places[own] = np.arange(len(own))
    return places % 2 == 0


def play(run, source, command, environment, tasks, players, episodes, quality, share=0.5):
    """The arrays EPISODE of tasks × episodes rows, task i driven by the policy of players[i] with its noise."""
    weights = []
    for player in players:
        curve, stored = load_behaviour(source, run.env, int(player), command)
        weights.append({name: value[choose_checkpoints(curve, quality, 1, share)[0]] for name, value in stored.items()})
    stacked = {name: torch.stack([one[name] for one in weights]) for name in weights[0]}
    space, noise = environment.action_space, torch_generator(run.seed, "probe_contexts", quality, int(players[0]))
    policies = BehaviourPolicies(stacked, space.low, space.high, frame=source.frame(environment, players))

    def act(observations):
        return policies.act(observations.reshape(len(tasks), episodes, -1), noise).reshape(-1, *space.shape)

    rows = np.repeat(tasks, episodes)
    seeds = [derive(run.seed, "probe_contexts", row) % 2**31 for row in range(len(rows))]
    episode = rollout(PolicyAgent(act), make_batch(run.env, rows), seeds, run.env.max_episode_steps)
    return tuple(torch.as_tensor(episode[key]) for key in EPISODE)


def summary(model, episodes):
    """Mean context (E, 16) of Trajectories."""
    arrays = (torch.from_numpy(getattr(episodes, name)) for name in EPISODE)
    return _mean(full_contexts(model, *arrays))


def _mean(contexts):
    return contexts.mean(1).double().numpy()


def task_centres(contexts, owners, tasks):
    """(ids (N,), centres (N, 16), scale (16,)): mean contexts of the tasks, and their standard deviation over all episodes."""
    centres = np.stack([contexts[owners == task].mean(0) for task in tasks])
    return tasks, centres, np.maximum(contexts.std(0), 1e-8)


def score(contexts, owners, centres):
    """Share of contexts (E, 16) whose nearest centre, in standardised coordinates, is that of their task (E,)."""
    tasks, places, scale = centres
    distances = np.linalg.norm((contexts[:, None] - places) / scale, axis=-1)
    return round(float(np.mean(tasks[distances.argmin(1)] == owners)), 4)


if __name__ == "__main__":
    main()
