"""The two ways to mix tasks against MDP ambiguity: reward relabelling (RR) and policy replaying (PR).

A log of single-task agents tells the task by where its agent went. A belief trained on it reads the agent, and a policy trained
on it takes for granted what that agent knew. Mixed logs hold behaviour that does not know its task.
"""

import hashlib
import json

import numpy as np

from baselines.borel.data import KEYS, data_directory, load_rollouts, read_task, task_directory, task_stamp
from baselines.borel.settings import collect_command, data_name, next_command
from src.run.config import fraction, plain_name, positive_int
from src.run.errors import UserError
from src.run.seeding import numpy_generator

MIXED = ("half", "any")  # which episodes of a roll-out are rewritten


def add_mixing_flags(data):
    """Flags of the logs and of what is mixed; `data`: argument group of a parser."""
    data.add_argument("--data-dir", type=plain_name, help="name of the data set (default: log, with the recipe's suffix)")
    data.add_argument("--num-trajs-per-task", type=positive_int, help="the first so many roll-outs (default: all)")
    data.add_argument("--hindsight-relabelling", action="boolean", default=False, help="mix tasks by recomputed rewards (RR)")
    data.add_argument("--relabelling-fraction", type=fraction, default=1.0, help="share of the roll-outs that RR rewrites")
    data.add_argument("--relabelled-episodes", choices=MIXED, default="half",
                      help="half: RR rewrites the first half of a roll-out's episodes and PR the first one; any: both the first "
                           "u, u drawn (ours)")  # fmt: skip
    data.add_argument("--policy-replaying", action="boolean", default=False, help="mix agents by their replays (PR)")
    data.add_argument(
        "--replaying-data-dir", type=plain_name, help="name of the replays (default: replay, with the recipe's suffix)"
    )
    data.add_argument("--num-replayed-policies", type=positive_int, default=20, help="agents replayed per task")


def load_logs(args):
    """(Rollouts of the training tasks, their replays as `load_replays` gives or None).

    Raises UserError without the data, or where relabelling would rewrite none of them.
    """
    problem, tasks = args.problem, range(*args.env.train_tasks)
    directory = data_directory(args, data_name(args, args.data_dir))
    rollouts = load_rollouts(directory, problem, tasks, collect_command(args), limit=args.num_trajs_per_task)
    count = rollouts.rewards.shape[1]
    if args.hindsight_relabelling and not round(args.relabelling_fraction * count):
        given = f"--relabelling-fraction {args.relabelling_fraction:g}"
        raise UserError(f"{given} rewrites none of {count} roll-outs: raise it, or give --hindsight-relabelling False")
    if not args.policy_replaying:
        return rollouts, None
    return rollouts, load_replays(replay_directory(args), problem, tasks, next_command(args, "hindsight_data_collection"))


def replay_directory(args):
    """Where the replays lie."""
    return data_directory(args, args.replaying_data_dir or "replay" + args.suffix)


def data_stamps(args):
    """{"data": stamps of the training tasks' logs} and, where they are used, the same of the "replays".

    Raises UserError where they are missing, or not those of this problem.
    """
    problem, tasks = args.problem, range(*args.env.train_tasks)
    logs, command = data_directory(args, data_name(args, args.data_dir)), collect_command(args)
    stamps = {"data": [task_stamp(logs, problem, task, command) for task in tasks]}
    if args.policy_replaying:
        replays, command = replay_directory(args), next_command(args, "hindsight_data_collection")
        stamps["replays"] = [task_stamp(replays, problem, task, command) for task in tasks]
    return stamps


def data_digests(args):
    """What a run's settings say of the data that it reads: {"data_sha256", and "replays_sha256" where they are used}."""
    stamps = data_stamps(args)
    return {f"{name}_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest() for name, rows in stamps.items()}


def mix(args, rollouts, replays, purpose="", *epoch):
    """The logs with what --policy-replaying and --hindsight-relabelling ask for.

    The seed, `purpose` (a suffix of the generators' names) and the epoch, where one is given, decide what is drawn.
    """
    if args.policy_replaying:
        generator = numpy_generator(args.seed, f"replaying{purpose}", *epoch)
        rollouts = replay_policies(
            rollouts, args.problem, replays, args.num_replayed_policies, generator, args.relabelled_episodes
        )
    if args.hindsight_relabelling:
        generator = numpy_generator(args.seed, f"relabelling{purpose}", *epoch)
        rollouts = relabel_rewards(rollouts, args.problem, args.relabelling_fraction, generator, args.relabelled_episodes)
    return rollouts


def relabel_rewards(rollouts, problem, fraction, generator, episodes="half"):
    """Reward relabelling: move whole episodes between tasks and recompute their rewards.

    Of each task's roll-outs a `fraction`, each at most once, gets its first u episodes replaced, each by that of a random
    roll-out of a random other task, read from the data as they were; the rewards are those of the receiving task. So what
    was visited no longer tells the task. (The original draws roll-outs with replacement, which misses a third of them, and
    copies from data that it has already mixed.) Where the starts of later episodes were not recorded, donors give their first
    episode: a reward that depends on s, as Cheetah's does, could not be recomputed for the first step of another.

    Args:
        episodes: "half": u = K/2 (1 for K = 1), as published. "any": u uniform in 1..K for each roll-out (ours), so that the
            data also hold long searches; with "half" every roll-out of the second half knows its goal and walks there.

    Returns:
        new Rollouts. Raises UserError when there is only one task.
    """
    tasks, count = rollouts.rewards.shape[:2]
    if tasks < 2:
        raise UserError("reward relabelling needs two training tasks or more")
    mixed = rollouts.copy()
    for row, task in enumerate(rollouts.task_ids):
        chosen = generator.permutation(count)[: round(fraction * count)]
        many = max(1, problem.episodes // 2)
        many = np.full(len(chosen), many) if episodes == "half" else generator.integers(1, problem.episodes + 1, len(chosen))
        for episode in range(many.max(initial=0)):
            slot, receivers = episode_slot(problem, episode), chosen[many > episode]
            given = slot if rollouts.starts_recorded else episode_slot(problem, 0)
            donors = (row + generator.integers(1, tasks, len(receivers))) % tasks
            sources = generator.integers(count, size=len(receivers))
            for key in ("obs", "actions", "next_obs"):
                getattr(mixed, key)[row, receivers, slot] = getattr(rollouts, key)[donors, sources, given]
            moved = [getattr(mixed, key)[row, receivers, slot] for key in ("obs", "actions", "next_obs")]
            mixed.rewards[row, receivers, slot] = problem.rewards(task, *moved)
    return mixed


def load_replays(directory, problem, task_ids, command):
    """What hindsight_data_collection.py wrote: for each task dict of the KEYS (R', T, ...) and policies (R',), the agents.

    Raises UserError, naming `command`, when replays are missing.
    """
    replays = []
    for task in task_ids:
        arrays, document = read_task(task_directory(directory, task), problem, task, command, "policies")
        replays.append({**arrays, "policies": np.asarray(document["policies"])})
    return replays


def replay_policies(rollouts, problem, replays, num_policies, generator, episodes="half"):
    """Policy replaying: the first episodes of every roll-out become those of other tasks' agents on the same task.

    Args:
        replays: as `load_replays` gives, one for each task of `rollouts`.
        num_policies: how many of the agents, drawn per task without replacement, are used.
        episodes: "half": the first episode, as published. "any": the first u, u uniform in 1..K for each roll-out (ours), so that
            the data also hold searches that go on after an episode without success.

    Returns:
        new Rollouts.
    """
    mixed, count = rollouts.copy(), rollouts.rewards.shape[1]
    for row, replay in enumerate(replays):
        used = generator.permutation(np.unique(replay["policies"]))[:num_policies]
        pool = np.flatnonzero(np.isin(replay["policies"], used))
        sources = generator.choice(pool, size=count)
        many = np.ones(count, int) if episodes == "half" else generator.integers(1, problem.episodes + 1, count)
        for episode in range(many.max()):
            slot, receivers = episode_slot(problem, episode), np.flatnonzero(many > episode)
            for key in KEYS:
                getattr(mixed, key)[row, receivers, slot] = replay[key][sources[receivers], slot]
    return mixed


def episode_slot(problem, episode):
    """The steps of one episode of a roll-out."""
    return slice(episode * problem.horizon, (episode + 1) * problem.horizon)
