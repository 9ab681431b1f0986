"""Stage 1: train an ordinary agent on one task, or on many side by side, and keep the whole log of its training.

    python -m baselines.borel.train_single_agent --env-type gridworld --seed 7                 # the seed picks the task
    python -m baselines.borel.train_single_agent --env-type gridworld --task-id-start 0 --task-id-end 21

All 21 gridworld tasks: 2 minutes on one core. The same command continues an interrupted run. Writes
datasets/<env_type>/log/task_<i>/ (format: data.py). Next: the other training tasks, then train_vae_offline, or
hindsight_data_collection where agents are replayed.
"""

import dataclasses
import sys

import numpy as np
import torch

from baselines.borel.buffer import RolloutBuffer
from baselines.borel.data import task_directory, write_task
from baselines.borel.problem import episode_returns, play, random_actions
from baselines.borel.settings import VOLATILE, AgentSettings, Starts, borel_parser, configured, next_command, parse
from src.evaluation.agent import PolicyAgent
from src.run.command_line import TaskRange
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import read_json, save_tensors, write_json
from src.run.flags import plain_name, positive_int
from src.run.loop import Loop
from src.run.seeding import numpy_generator, torch_generator
from src.run.settings import setting
from src.run.stepping import batch_class

SUMMARY = "finished.json"


@dataclasses.dataclass(frozen=True)
class Tasks(TaskRange):
    """tasks (default: the one that the seed picks, seed modulo number of tasks)"""


@dataclasses.dataclass(frozen=True)
class Collection:
    """schedule and data"""

    dense_train_sparse_test: bool = setting(False, "train on the dense reward, keep the task's own in the log")
    epsilon_iters: int = setting(50, "iterations in which DQN's ε falls from 1 to 0", positive_int)
    num_iters: int = setting(300, "iterations of playing and learning", positive_int)
    num_init_rollouts_pool: int = setting(50, "roll-outs of random actions first", positive_int)
    num_rollouts_per_iter: int = setting(2, "roll-outs per iteration", positive_int)
    rl_updates_per_iter: int = setting(500, "updates per iteration", positive_int)
    policy_buffer_size: int = setting(1_000_000, "transitions kept per task", positive_int)
    log_interval: int = setting(10, "iterations between two records", positive_int)
    save_interval: int = setting(20, "iterations between two checkpoints", positive_int)
    eval_deterministic: bool = setting(True, "no exploration in the final evaluation")
    save_dir: str | None = setting(None, "name of the data set (default: log, with the recipe's suffix)", plain_name)
    save_buffer: bool = setting(True, "write the log; False: train only")
    save_models: bool = setting(True, "write the agents, for policy replaying")
    results_log_dir: str | None = setting(None, "published; nothing is written there: one task's agent has no result file")


SETTINGS = (Tasks, Starts, AgentSettings, Collection)


def make_parser():
    return borel_parser(__doc__, SETTINGS)


@main_guard
def main(argv=None):
    run, tasks, starts, agent, collection = parse(
        make_parser(), "train_single_agent", SETTINGS, argv, unsaved=("results_log_dir",)
    )
    if collection.results_log_dir:
        print("note: nothing is written to --results-log-dir: agents of one task have no result file", file=sys.stderr)
    options = {"start": starts.of(run.problem)}  # refused, if at all, before anything is written
    if collection.dense_train_sparse_test:
        if not hasattr(batch_class(run.problem.environment), "compute_dense_rewards"):
            raise UserError(f"--dense-train-sparse-test: {run.env_type} has no dense reward")
        options["dense"] = True
    tasks = chosen_tasks(run, tasks)
    directory = run.directory(run.agent_log_dir, "single_agents", run.logs_name, f"tasks_{tasks[0]}-{tasks[-1]}")
    with run_directory(directory, run.saved, run.resume, VOLATILE):
        if not ((directory / SUMMARY).exists() and written(collection, tasks, run.logs)):
            train(run, agent, collection, tasks, options, directory)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
        summary = read_json(directory / SUMMARY, "returns")
    returns = ", ".join(f"{value:.2f}" for value in np.mean(list(summary["returns"].values()), axis=0))
    print(f"{len(tasks)} tasks in {run.logs}, mean return by episode {returns}; next: {following(run)}")


def following(run):
    """The command for the first training tasks without a log, or of the next stage."""
    missing = [task for task in range(*run.env.train_tasks) if not (task_directory(run.logs, task) / "task.json").exists()]
    if missing:
        last = next(task for task in missing if task + 1 not in missing)
        return next_command(run, "train_single_agent", "--task-id-start", str(missing[0]), "--task-id-end", str(last + 1))
    replays = configured(run, "train_vae_offline", "policy_replaying")
    return next_command(run, "hindsight_data_collection" if replays else "train_vae_offline")


def chosen_tasks(run, tasks):
    """Task ids to train."""
    if tasks.task_id_start is None and tasks.task_id_end is None:
        return [run.seed % run.problem.num_tasks]
    return list(tasks.of(run.env, run.problem.environment))


def written(collection, tasks, data):
    """Are all files there that later stages read? They may have been deleted since the run ended."""
    names = ["rollouts.safetensors", "task.json"] * collection.save_buffer + ["agent.safetensors"] * collection.save_models
    return all((task_directory(data, task) / name).exists() for task in tasks for name in names)


def train(run, settings, collection, tasks, options, directory):
    """Train the stack of agents (AgentSettings), write the tasks' folders and the summary. options: of `Problem.batch`."""
    problem, played_first = run.problem, collection.num_init_rollouts_pool
    total = played_first + collection.num_iters * collection.num_rollouts_per_iter
    log = RolloutBuffer(len(tasks), min(total, max(1, collection.policy_buffer_size // problem.steps)), problem.steps)
    generator = torch_generator(run.seed, "agents", *tasks)
    agent = settings.make(len(tasks), problem, problem.observation_size, generator, run.device)
    loop = Loop(
        directory, collection.num_iters, collection.log_interval, {"log": log, "agent": agent}, tensorboard=run.tensorboard,
        unit="iteration", save_every=collection.save_interval,
    )  # fmt: skip

    def collect(actor, count, name):
        """`count` roll-outs of every task: dict of arrays (P, count, T, ...)."""
        played = play(problem, np.repeat(tasks, count), actor, (run.seed, "collect", name, *tasks), **options)
        return {key: values.reshape(len(tasks), count, *values.shape[1:]) for key, values in played.items()}

    if not loop.step:
        actor = random_actions(problem, numpy_generator(run.seed, "random", *tasks))
        keep(problem, log, collect(actor, played_first, "random"))
    for done in loop.steps():
        iteration = done - 1
        epsilon = max(0.0, 1 - iteration / collection.epsilon_iters)
        generator = torch_generator(run.seed, "iteration", iteration, *tasks)
        actor = exploring(agent, len(tasks), generator, epsilon)
        played = collect(actor, collection.num_rollouts_per_iter, iteration)
        keep(problem, log, played)
        for _ in range(collection.rl_updates_per_iter):
            batch = log.draw(torch.arange(len(tasks)), settings.batch_size, generator)
            losses = agent.update(*(values.to(agent.device) for values in batch), generator)
        if loop.due:
            returns = episode_returns(problem, played["rewards"]).mean((0, 1))
            require_finite(float(losses["critic_loss"]), "the critic's loss", settings.learning_rates)
            values = {f"return/episode_{k + 1}": value for k, value in enumerate(returns.tolist())}
            loop.record(**values, **{f"train/{key}": float(value) for key, value in losses.items()})
    write(run, settings, collection, tasks, agent, log, directory)


def keep(problem, log, played):
    """Append what was played, dict of arrays (P, n, T, ...), to the log."""
    kept = ("next_obs", "actions", "rewards", *problem.recorded)
    arrays = {key: torch.from_numpy(np.ascontiguousarray(played[key])) for key in kept}
    last = problem.unflagged(played["next_obs"][:, :, -1:])
    arrays["states"] = torch.from_numpy(np.concatenate([played["obs"], last], 2))
    log.add(range(len(arrays["rewards"])), arrays)


def exploring(agent, agents, generator, epsilon=0.0, deterministic=False):
    """The stack as one Agent on rows that are ordered by agent."""

    def act(observations):
        stacked = torch.from_numpy(observations).unflatten(0, (agents, -1)).to(agent.device)
        return agent.act(stacked, generator, deterministic, epsilon).flatten(0, 1).cpu().numpy()

    return PolicyAgent(act)


def write(run, settings, collection, tasks, agent, log, directory):
    """The tasks' folders, the agents' final returns on their own task from the evaluation start, and the summary."""
    problem, generator = run.problem, torch_generator(run.seed, "final", *tasks)
    final = exploring(agent, len(tasks), generator, deterministic=collection.eval_deterministic)
    returns = episode_returns(problem, play(problem, tasks, final, (run.seed, "final", *tasks))["rewards"])
    if not np.isfinite(returns).all():
        raise UserError(f"the returns of the agents are not finite: lower {settings.learning_rates}")
    weights = agent.policy_network().state_dict()
    for index, task in enumerate(tasks):
        folder = task_directory(run.logs, task)
        if collection.save_models:
            save_tensors(folder / "agent.safetensors", {name: values[[index]] for name, values in weights.items()})
        if collection.save_buffer:
            arrays = log.ordered(index)
            arrays["obs"] = arrays["states"][:, :-1]
            if collection.dense_train_sparse_test:
                transitions = (arrays[key] for key in ("obs", "actions", "next_obs"))
                arrays["rewards"] = problem.rewards(task, *transitions, arrays)
            description = {"seed": run.seed, "settings": run.saved, "agent_returns": returns[index].tolist()}
            write_task(folder, problem, task, arrays, description)
    write_json(directory / SUMMARY, {"returns": {str(task): row for task, row in zip(tasks, returns.tolist(), strict=True)}})


if __name__ == "__main__":
    main()
