"""Stage 1b, policy replaying: run every saved single-task agent in every training task.

    python -m baselines.borel.hindsight_data_collection --env-type escape_room

For tasks that differ in their dynamics, where rewards cannot simply be recomputed. Agents act stochastically, from the
start distribution of data collection. Escape room, 60 × 60 × 10 roll-outs: 12 seconds on one core. The same command
continues an interrupted run. Writes datasets/<env_type>/replay/task_<i>/, whose task.json says in "policies" which
agent played each roll-out. Next: train_vae_offline --policy-replaying True.
"""

import argparse
import dataclasses

import numpy as np
import torch
from tqdm import tqdm

from baselines.borel.data import task_directory, write_task
from baselines.borel.problem import play
from baselines.borel.settings import (
    AgentSettings,
    Starts,
    borel_parser,
    collect_command,
    dependent_run,
    next_command,
    parse,
)
from baselines.borel.train_single_agent import exploring
from src.run.errors import UserError, main_guard
from src.run.files import MAKE_AGAIN, digest, load_tensors, read_json
from src.run.flags import plain_name, positive_int
from src.run.seeding import torch_generator
from src.run.settings import pick, setting

EPSILON = 0.1  # share of random actions of DQN agents


@dataclasses.dataclass(frozen=True)
class Replaying:
    """data"""

    data_dir: str | None = setting(
        None, "name of the data set with the agents (default: log, with the recipe's suffix)", plain_name
    )
    replaying_data_dir: str | None = setting(None, "name of the replays (default: replay, with the recipe's suffix)", plain_name)
    num_rollouts: int = setting(10, "roll-outs of each agent in each task", positive_int)


SETTINGS = (Replaying, Starts)


def make_parser():
    return borel_parser(__doc__, SETTINGS)


@main_guard
def main(argv=None):
    run, replaying, starts = parse(make_parser(), "hindsight_data_collection", SETTINGS, argv)
    start = starts.of(run.problem)  # refused, if at all, before anything is written
    tasks = range(*run.env.train_tasks)
    agents = load_agents(run, tasks)
    made_from = {"agents_sha256": digest(agents.policy_network().state_dict())}
    directory = run.directory(run.agent_log_dir, "replaying", run.replays_name)
    with dependent_run(run, directory, made_from, elsewhere=run.replays):
        for task in tqdm(tasks, unit="task", dynamic_ncols=True):
            folder = task_directory(run.replays, task)
            if not (run.resume and (folder / "task.json").exists()):
                replay(run, agents, tasks, task, replaying.num_rollouts, start, folder)
    follow = next_command(run, "train_vae_offline", "--policy-replaying", "True")
    print(f"{len(tasks)} agents replayed in each of {len(tasks)} tasks, in {run.replays}; next: {follow}")


def load_agents(run, tasks):
    """The last agents of `tasks` as one stack. Raises UserError where one is missing."""
    weights, settings = [], []
    for task in tasks:
        folder = task_directory(run.logs, task)
        if not (folder / "agent.safetensors").exists():
            raise UserError(f"no agent of task {task} in {folder}; train it with --save-models True: {collect_command(run)}")
        weights.append(load_tensors(folder / "agent.safetensors"))
        document = read_json(folder / "task.json", "episodes", "settings")
        if document["episodes"] != run.problem.episodes:  # they may observe another number of values
            raise UserError(
                f"{folder} holds an agent of {document['episodes']} episodes, this command says {run.problem.episodes}: "
                "change --max-rollouts-per-task or choose other data"
            )
        settings.append(document["settings"])
    shapes = {str(entry["hidden_layers"]) for entry in settings}
    if len(shapes) > 1:
        raise UserError(f"the agents in {run.logs} have different hidden layers: {', '.join(sorted(shapes))}")
    trained = pick(AgentSettings, argparse.Namespace(**settings[0]))
    agents = trained.make(len(weights), run.problem, run.problem.observation_size, torch_generator(0), run.device)
    try:
        stacked = {name: torch.cat([entry[name] for entry in weights]) for name in weights[0]}
        agents.policy_network().load_state_dict(stacked)
    except (KeyError, RuntimeError):
        raise UserError(f"the agents in {run.logs} are not those that their task.json tell of: {MAKE_AGAIN}") from None
    return agents


def replay(run, agents, tasks, task, rollouts, start, folder):
    """All agents in one task, so many `rollouts` each from the start distribution `start`, ordered by agent."""
    actor = exploring(agents, len(tasks), torch_generator(run.seed, "replay", task), EPSILON)
    played = play(run.problem, np.full(len(tasks) * rollouts, task), actor, (run.seed, "replay", task), start=start)
    write_task(folder, run.problem, task, played, {"seed": run.seed, "policies": np.repeat(tasks, rollouts).tolist()})


if __name__ == "__main__":
    main()
