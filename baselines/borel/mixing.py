"""The two ways to mix tasks against MDP ambiguity: reward relabelling (RR) and policy replaying (PR).

A log of single-task agents tells the task by where its agent went. A belief trained on it reads the agent, and a policy trained
on it takes for granted what that agent knew. Mixed logs hold behaviour that does not know its task.
"""

import dataclasses
import hashlib
import json

import numpy as np

from baselines.borel.data import load_rollouts, read_task, task_directory, task_stamp
from baselines.borel.settings import collect_command, next_command
from src.run.errors import UserError
from src.run.flags import plain_name, positive_int
from src.run.seeding import numpy_generator
from src.run.settings import setting

REPLAYED_POLICIES = 20  # agents per task


@dataclasses.dataclass(frozen=True)
class Mixing:
    """data"""

    data_dir: str | None = setting(None, "name of the data set (default: log, with the recipe's suffix)", plain_name)
    num_trajs_per_task: int | None = setting(None, "the first so many roll-outs (default: all)", positive_int)
    hindsight_relabelling: bool = setting(False, "mix tasks by recomputed rewards (RR)")
    relabelled_episodes: str = setting(
        "half", "RR rewrites the first half of a roll-out's episodes, PR the first one; any: both the first u, u drawn (ours)",
        choices=["half", "any"],
    )  # fmt: skip
    policy_replaying: bool = setting(False, "mix agents by their replays (PR)")
    replaying_data_dir: str | None = setting(None, "name of the replays (default: replay, with the recipe's suffix)", plain_name)


def load_logs(run, mixing):
    """(Rollouts of the training tasks, their replays as `load_replays` gives or None).

    Raises UserError without the data, or where they cannot be relabelled.
    """
    problem, tasks = run.problem, range(*run.env.train_tasks)
    if mixing.hindsight_relabelling:  # before much is read
        problem.require_rewards(problem.recorded)
    rollouts = load_rollouts(run.logs, problem, tasks, collect_command(run), limit=mixing.num_trajs_per_task)
    if mixing.hindsight_relabelling:
        problem.require_rewards(rollouts.infos)
    if not mixing.policy_replaying:
        return rollouts, None
    return rollouts, load_replays(run.replays, problem, tasks, next_command(run, "hindsight_data_collection"))


def data_stamps(run, mixing):
    """{"data": stamps of the training tasks' logs} and, where they are used, the same of the "replays".

    Raises UserError where they are missing, or not those of this problem.
    """
    problem, tasks, command = run.problem, range(*run.env.train_tasks), collect_command(run)
    stamps = {"data": [task_stamp(run.logs, problem, task, command) for task in tasks]}
    if mixing.policy_replaying:
        command = next_command(run, "hindsight_data_collection")
        stamps["replays"] = [task_stamp(run.replays, problem, task, command) for task in tasks]
    return stamps


def data_digests(run, mixing):
    """What a run's settings say of the data that it reads: {"data_sha256", and "replays_sha256" where they are used}."""
    stamps = data_stamps(run, mixing)
    return {f"{name}_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest() for name, rows in stamps.items()}


def mix(run, mixing, rollouts, replays, purpose="", *epoch):
    """The logs with what --policy-replaying and --hindsight-relabelling ask for.

    The seed, `purpose` (a suffix of the generators' names) and the epoch, where one is given, decide what is drawn.
    """
    if mixing.policy_replaying:
        generator = numpy_generator(run.seed, f"replaying{purpose}", *epoch)
        rollouts = replay_policies(rollouts, run.problem, replays, REPLAYED_POLICIES, generator, mixing.relabelled_episodes)
    if mixing.hindsight_relabelling:
        generator = numpy_generator(run.seed, f"relabelling{purpose}", *epoch)
        rollouts = relabel_rewards(rollouts, run.problem, generator, mixing.relabelled_episodes)
    return rollouts


def relabel_rewards(rollouts, problem, generator, episodes="half"):
    """Reward relabelling: move whole episodes between tasks and recompute their rewards.

    Each of a task's roll-outs gets its first u episodes replaced, once, each by that of a random roll-out of a random other task,
    read from the data as they were; the rewards are those of the receiving task. So what was visited no longer tells the task.
    (The original draws roll-outs with replacement, which misses a third of them, and copies from data that it has already
    mixed.) Where the starts of later episodes were not recorded, donors give their first episode: a reward that depends on s, as
    Cheetah's does, could not be recomputed for the first step of another.

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
        chosen = generator.permutation(count)
        many = max(1, problem.episodes // 2)
        many = np.full(count, many) if episodes == "half" else generator.integers(1, problem.episodes + 1, count)
        for episode in range(many.max(initial=0)):
            slot, receivers = episode_slot(problem, episode), chosen[many > episode]
            given = slot if rollouts.starts_recorded else episode_slot(problem, 0)
            donors = (row + generator.integers(1, tasks, len(receivers))) % tasks
            sources = generator.integers(count, size=len(receivers))
            into, source = mixed.everything(), rollouts.everything()
            for key in into.keys() - {"rewards"}:
                into[key][row, receivers, slot] = source[key][donors, sources, given]
            moved = {key: values[row, receivers, slot] for key, values in into.items() if key != "rewards"}
            infos = {key: moved.pop(key) for key in rollouts.infos}
            mixed.rewards[row, receivers, slot] = problem.rewards(task, **moved, infos=infos)
    return mixed


def load_replays(directory, problem, task_ids, command):
    """What hindsight_data_collection.py wrote: for each task dict of the arrays (R', T, ...) and policies (R',), the agents.

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
            for key, values in mixed.everything().items():
                values[row, receivers, slot] = replay[key][sources[receivers], slot]
    return mixed


def episode_slot(problem, episode):
    """The steps of one episode of a roll-out."""
    return slice(episode * problem.horizon, (episode + 1) * problem.horizon)
