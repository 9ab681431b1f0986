"""Stage 1b, policy replaying: run every saved single-task agent in every training task.

    python -m baselines.borel.hindsight_data_collection --env-type escape_room

For tasks that differ in their dynamics, where rewards cannot simply be recomputed. Agents act stochastically, from the
start distribution of data collection. Escape room, 60 × 60 × 10 roll-outs: 12 seconds on one core. The same command
continues an interrupted run. Writes datasets/<env_type>/replay/task_<i>/, whose task.json says in "policies" which
agent played each roll-out. Next: train_vae_offline --policy-replaying True.
"""

import argparse

import numpy as np
import torch
from tqdm import tqdm

from baselines.borel.data import data_directory, read_document, task_directory, write_task
from baselines.borel.problem import play
from baselines.borel.settings import (
    borel_parser,
    collect_command,
    data_name,
    dependent_run,
    make_agent,
    next_command,
    parse,
    resolved,
    run_folder,
)
from baselines.borel.train_single_agent import exploring
from src.run.config import fraction, plain_name, positive_int
from src.run.errors import UserError, main_guard
from src.run.files import MAKE_AGAIN, digest, load_tensors
from src.run.seeding import torch_generator

AGENT_KEYS = ("policy", "hidden_layers", "gamma", "soft_target_tau", "critic_lr", "actor_lr", "entropy_alpha",
              "automatic_entropy_tuning", "clip_grad_value")  # fmt: skip


def make_parser():
    parser = borel_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir", type=plain_name, help="name of the data set with the agents (default: log, with the recipe's suffix)"
    )
    data.add_argument(
        "--replaying-data-dir", type=plain_name, help="name of the replays (default: replay, with the recipe's suffix)"
    )
    data.add_argument("--num-rollouts", type=positive_int, default=10, help="roll-outs of each agent in each task")
    data.add_argument("--epsilon", type=fraction, default=0.1, help="share of random actions of DQN agents")
    data.add_argument("--modify-init-state-dist", action="boolean", default=True, help="start episodes at random places")
    data.add_argument("--on-circle-init-state", action="boolean", default=True, help="False: not where the goals may be")
    return parser


@main_guard
def main(argv=None):
    args = parse(make_parser(), "hindsight_data_collection", argv)
    args.problem.start(args.modify_init_state_dist, args.on_circle_init_state)  # refused, if at all, before anything is written
    name = args.replaying_data_dir or "replay" + args.suffix
    target = data_directory(args, name)
    tasks = range(*args.env.train_tasks)
    agents = load_agents(args, tasks)
    made_from = {"agents_sha256": digest(agents.policy_network().state_dict())}
    directory = run_folder(args, args.agent_log_dir, "replaying", name)
    with dependent_run(args, directory, resolved(args), made_from, elsewhere=target):
        for task in tqdm(tasks, unit="task", dynamic_ncols=True):
            folder = task_directory(target, task)
            if not (args.resume and (folder / "task.json").exists()):
                replay(args, agents, tasks, task, folder)
    follow = next_command(args, "train_vae_offline", "--policy-replaying", "True")
    print(f"{len(tasks)} agents replayed in each of {len(tasks)} tasks, in {target}; next: {follow}")


def load_agents(args, tasks):
    """The last agents of all training tasks as one stack. Raises UserError where one is missing."""
    source, weights, settings = data_directory(args, data_name(args, args.data_dir)), [], []
    for task in tasks:
        folder = task_directory(source, task)
        if not (folder / "agent.safetensors").exists():
            raise UserError(f"no agent of task {task} in {folder}; train it with --save-models True: {collect_command(args)}")
        weights.append(load_tensors(folder / "agent.safetensors"))
        document = read_document(folder / "task.json", "episodes", "settings")
        if document["episodes"] != args.problem.episodes:  # they may observe another number of values
            raise UserError(
                f"{folder} holds an agent of {document['episodes']} episodes, this command says {args.problem.episodes}: "
                "change --max-rollouts-per-task or choose other data"
            )
        settings.append(document["settings"])
    shapes = {str(entry["hidden_layers"]) for entry in settings}
    if len(shapes) > 1:
        raise UserError(f"the agents in {source} have different hidden layers: {', '.join(sorted(shapes))}")
    settings = {key: settings[0][key] for key in AGENT_KEYS} | {"double_dqn": False}  # which only learning would ask
    trained = argparse.Namespace(**{**vars(args), **settings})
    agents = make_agent(trained, len(weights), args.problem.observation_size, torch_generator(0))
    try:
        stacked = {name: torch.cat([entry[name] for entry in weights]) for name in weights[0]}
        agents.policy_network().load_state_dict(stacked)
    except (KeyError, RuntimeError):
        raise UserError(f"the agents in {source} are not those that their task.json tell of: {MAKE_AGAIN}") from None
    return agents


def replay(args, agents, tasks, task, folder):
    """All agents in one task: R = agents × num_rollouts roll-outs, ordered by agent."""
    problem, count = args.problem, len(tasks)
    actor = exploring(agents, count, torch_generator(args.seed, "replay", task), args.epsilon)
    options = {"start": problem.start(args.modify_init_state_dist, args.on_circle_init_state)}
    rows = np.full(count * args.num_rollouts, task)
    played = play(problem, rows, actor, (args.seed, "replay", task), **options)
    policies = np.repeat(tasks, args.num_rollouts).tolist()
    write_task(folder, problem, task, played, {"seed": args.seed, "policies": policies})


if __name__ == "__main__":
    main()
