"""Stage 1: train an ordinary agent on one task, or on many side by side, and keep the whole log of its training.

    python -m baselines.borel.train_single_agent --env-type gridworld --seed 7                 # the seed picks the task
    python -m baselines.borel.train_single_agent --env-type gridworld --task-id-start 0 --task-id-end 21

All 21 gridworld tasks: 2 minutes on one core. The same command continues an interrupted run. Writes
datasets/<env_type>/log/task_<i>/ (format: data.py). Next: the other training tasks, then train_vae_offline, or
hindsight_data_collection where agents are replayed.
"""

import sys

import numpy as np
import torch

from baselines.borel.buffer import RolloutBuffer
from baselines.borel.data import data_directory, read_document, task_directory, write_task
from baselines.borel.problem import episode_returns, play, random_actions
from baselines.borel.settings import (
    VOLATILE,
    add_agent_flags,
    borel_parser,
    configured,
    data_name,
    learning_rates,
    make_agent,
    next_command,
    parse,
    resolved,
    run_folder,
)
from src.evaluation.agent import PolicyAgent
from src.run.config import TaskRange, natural, plain_name, positive_int
from src.run.directory import run_directory
from src.run.environment import batch_class
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import save_tensors, write_json
from src.run.loop import Loop
from src.run.seeding import numpy_generator, torch_generator
from src.run.settings import pick

SUMMARY = "finished.json"


def make_parser():
    parser = borel_parser(__doc__)
    tasks = parser.add_argument_group("tasks (default: the one that the seed picks, seed modulo number of tasks)")
    tasks.add_argument("--task-id-start", type=natural, help="first task id of several to train side by side")
    tasks.add_argument("--task-id-end", type=natural, help="one past the last task id")
    tasks.add_argument("--modify-init-state-dist", action="boolean", default=True, help="start episodes at random places")
    tasks.add_argument("--on-circle-init-state", action="boolean", default=True, help="False: not where the goals may be")
    tasks.add_argument("--dense-train-sparse-test", action="boolean", default=False,
                       help="train on the dense reward, keep the task's own in the log")  # fmt: skip
    agent = add_agent_flags(parser, policy="sac", batch_size=256)
    agent.add_argument("--epsilon-iters", type=positive_int, default=50, help="iterations in which DQN's ε falls from 1 to 0")
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--num-iters", type=positive_int, default=300, help="iterations of playing and learning")
    schedule.add_argument("--num-init-rollouts-pool", type=positive_int, default=50, help="roll-outs of random actions first")
    schedule.add_argument("--num-rollouts-per-iter", type=positive_int, default=2, help="roll-outs per iteration")
    schedule.add_argument("--rl-updates-per-iter", type=positive_int, default=500, help="updates per iteration")
    schedule.add_argument("--policy-buffer-size", type=positive_int, default=1_000_000, help="transitions kept per task")
    schedule.add_argument("--log-interval", type=positive_int, default=10, help="iterations between two records")
    schedule.add_argument("--save-interval", type=positive_int, default=20, help="iterations between two checkpoints")
    schedule.add_argument("--eval-deterministic", action="boolean", default=True, help="no exploration in the final evaluation")
    output = parser.add_argument_group("output")
    output.add_argument("--save-dir", type=plain_name, help="name of the data set (default: log, with the recipe's suffix)")
    output.add_argument("--save-buffer", action="boolean", default=True, help="write the log; False: train only")
    output.add_argument("--save-models", action="boolean", default=True, help="write the agents, for policy replaying")
    output.add_argument("--results-log-dir", help="published; nothing is written there: one task's agent has no result file")
    return parser


@main_guard
def main(argv=None):
    args = parse(make_parser(), "train_single_agent", argv)
    if vars(args).pop("results_log_dir"):
        print("note: nothing is written to --results-log-dir: agents of one task have no result file", file=sys.stderr)
    own = batch_class(args.problem.environment)
    if args.dense_train_sparse_test and not hasattr(own, "compute_dense_rewards"):
        raise UserError(f"--dense-train-sparse-test: {args.env_type} has no dense reward")
    args.problem.start(args.modify_init_state_dist, args.on_circle_init_state)  # refused, if at all, before anything is written
    tasks = chosen_tasks(args)
    name = data_name(args, args.save_dir)
    directory = run_folder(args, args.agent_log_dir, "single_agents", name, f"tasks_{tasks[0]}-{tasks[-1]}")
    with run_directory(directory, resolved(args), args.resume, VOLATILE):
        if not ((directory / SUMMARY).exists() and written(args, tasks, data_directory(args, name))):
            train(args, tasks, directory, data_directory(args, name))
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
        summary = read_document(directory / SUMMARY, "returns")
    returns = ", ".join(f"{value:.2f}" for value in np.mean(list(summary["returns"].values()), axis=0))
    follow = following(args, data_directory(args, name))
    print(f"{len(tasks)} tasks in {data_directory(args, name)}, mean return by episode {returns}; next: {follow}")


def following(args, data):
    """The command for the first training tasks without a log in the folder `data`, or of the next stage."""
    missing = [task for task in range(*args.env.train_tasks) if not (task_directory(data, task) / "task.json").exists()]
    if missing:
        last = next(task for task in missing if task + 1 not in missing)
        return next_command(args, "train_single_agent", "--task-id-start", str(missing[0]), "--task-id-end", str(last + 1))
    replays = configured(args, "train_vae_offline", "policy_replaying")
    return next_command(args, "hindsight_data_collection" if replays else "train_vae_offline")


def chosen_tasks(args):
    """Task ids to train."""
    if args.task_id_start is None and args.task_id_end is None:
        return [args.seed % args.problem.num_tasks]
    return list(pick(TaskRange, args).of(args.env, args.problem.environment))


def written(args, tasks, data):
    """Are all files there that later stages read? They may have been deleted since the run ended."""
    names = ["rollouts.safetensors", "task.json"] * args.save_buffer + ["agent.safetensors"] * args.save_models
    return all((task_directory(data, task) / name).exists() for task in tasks for name in names)


def train(args, tasks, directory, data):
    """Train the stack of agents, write the tasks' folders and the summary."""
    problem = args.problem
    total = args.num_init_rollouts_pool + args.num_iters * args.num_rollouts_per_iter
    log = RolloutBuffer(len(tasks), min(total, max(1, args.policy_buffer_size // problem.steps)), problem.steps)
    agent = make_agent(args, len(tasks), problem.observation_size, torch_generator(args.seed, "agents", *tasks))
    loop = Loop(
        directory, args.num_iters, args.log_interval, {"log": log, "agent": agent}, tensorboard=args.tensorboard,
        unit="iteration", save_every=args.save_interval,
    )  # fmt: skip
    if not loop.step:
        actor = random_actions(problem, numpy_generator(args.seed, "random", *tasks))
        keep(problem, log, collect(args, tasks, actor, args.num_init_rollouts_pool, "random"))
    for done in loop.steps():
        iteration = done - 1
        epsilon = max(0.0, 1 - iteration / args.epsilon_iters)
        generator = torch_generator(args.seed, "iteration", iteration, *tasks)
        played = collect(args, tasks, exploring(agent, len(tasks), generator, epsilon), args.num_rollouts_per_iter, iteration)
        keep(problem, log, played)
        losses = update(args, agent, log, generator)
        if loop.due:
            returns = episode_returns(problem, played["rewards"]).mean((0, 1))
            require_finite(float(losses["critic_loss"]), "the critic's loss", learning_rates(args))
            values = {f"return/episode_{k + 1}": value for k, value in enumerate(returns.tolist())}
            loop.record(**values, **{f"train/{key}": float(value) for key, value in losses.items()})
    write(args, tasks, agent, log, directory, data)


def collect(args, tasks, actor, count, name):
    """`count` roll-outs of every task with the start distribution of data collection: dict of arrays (P, count, T, ...)."""
    options = {"start": args.problem.start(args.modify_init_state_dist, args.on_circle_init_state)}
    if args.dense_train_sparse_test:
        options["dense"] = True
    rows = np.repeat(tasks, count)
    played = play(args.problem, rows, actor, (args.seed, "collect", name, *tasks), **options)
    return {key: values.reshape(len(tasks), count, *values.shape[1:]) for key, values in played.items()}


def keep(problem, log, played):
    """Append what was played, dict of arrays (P, n, T, ...), to the log."""
    arrays = {key: torch.from_numpy(np.ascontiguousarray(played[key])) for key in ("next_obs", "actions", "rewards")}
    last = problem.unflagged(played["next_obs"][:, :, -1:])
    arrays["states"] = torch.from_numpy(np.concatenate([played["obs"], last], 2))
    log.add(range(len(arrays["rewards"])), arrays)


def exploring(agent, agents, generator, epsilon=0.0, deterministic=False):
    """The stack as one Agent on rows that are ordered by agent."""

    def act(observations):
        stacked = torch.from_numpy(observations).unflatten(0, (agents, -1)).to(agent.device)
        return agent.act(stacked, generator, deterministic, epsilon).flatten(0, 1).cpu().numpy()

    return PolicyAgent(act)


def update(args, agent, log, generator):
    """One iteration's updates; returns the last one's losses."""
    agents = torch.arange(len(log.counts))
    for _ in range(args.rl_updates_per_iter):
        batch = log.draw(agents, args.batch_size, generator, args.bootstrap_rollout_end)
        losses = agent.update(*(values.to(agent.device) for values in batch), generator)
    return losses


def write(args, tasks, agent, log, directory, data):
    """The tasks' folders, the agents' final returns on their own task from the evaluation start, and the summary."""
    problem = args.problem
    final = exploring(agent, len(tasks), torch_generator(args.seed, "final", *tasks), deterministic=args.eval_deterministic)
    returns = episode_returns(problem, play(problem, tasks, final, (args.seed, "final", *tasks))["rewards"])
    if not np.isfinite(returns).all():
        raise UserError(f"the returns of the agents are not finite: lower {learning_rates(args)}")
    weights = agent.policy_network().state_dict()
    settings = resolved(args)
    for index, task in enumerate(tasks):
        folder = task_directory(data, task)
        if args.save_models:
            save_tensors(folder / "agent.safetensors", {name: values[[index]] for name, values in weights.items()})
        if args.save_buffer:
            arrays = log.ordered(index)
            arrays["obs"] = arrays["states"][:, :-1]
            if args.dense_train_sparse_test:
                transitions = (arrays[key] for key in ("obs", "actions", "next_obs"))
                arrays["rewards"] = problem.rewards(task, *transitions)
            description = {"seed": args.seed, "settings": settings, "agent_returns": returns[index].tolist()}
            write_task(folder, problem, task, arrays, description)
    write_json(directory / SUMMARY, {"returns": {str(task): row for task, row in zip(tasks, returns.tolist(), strict=True)}})


if __name__ == "__main__":
    main()
