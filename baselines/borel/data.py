"""Logs of single-task agents: files, and the two ways to mix tasks against MDP ambiguity.

datasets/<env_type>/<save_dir>/task_007/ holds rollouts.safetensors (R roll-outs of T = K·H steps: obs, next_obs (R, T, d)
with the flag, actions (R, T, d_a) in [−1, 1] or (R, T) int, rewards, terminated, truncated (R, T)), the agent that made
them in agent.safetensors, and task.json: task id, parameters in full precision, K, H, seed, settings, versions.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch

from src.checkpoint import UserError, load_tensors, provenance, read_json, save_tensors, write_json

KEYS = ("obs", "actions", "rewards", "next_obs")


@dataclasses.dataclass
class Rollouts:
    """Logs of N tasks, R roll-outs each.

    obs, next_obs (N, R, T, d), actions (N, R, T[, d_a]), rewards (N, R, T); task_ids (N,).
    starts_recorded: whether obs at the start of later episodes is the true start; converted data of the original lack it.
    """

    task_ids: np.ndarray
    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_obs: np.ndarray
    starts_recorded: bool = True

    def arrays(self):
        return {key: getattr(self, key) for key in KEYS}

    def copy(self):
        return dataclasses.replace(self, **{key: values.copy() for key, values in self.arrays().items()})

    def fingerprint(self):
        """sha256 of all numbers."""
        digest = hashlib.sha256(np.ascontiguousarray(self.task_ids))
        for values in self.arrays().values():
            digest.update(np.ascontiguousarray(values))
        return digest.hexdigest()


def data_directory(args, name):
    """The folder of a data set: <output_dir>/<main data folder>/<env_type>/<name>."""
    return Path(args.output_dir) / args.main_data_dir / args.env_type / name


def task_directory(directory, task):
    return Path(directory) / f"task_{task:03d}"


def write_task(directory, problem, task, arrays, description):
    """Write one task's folder; task.json comes last, so that a folder with it is complete.

    Args:
        arrays: dict of the KEYS, (R, T, ...).
        description: further entries of task.json.
    """
    truncated = np.zeros(arrays["rewards"].shape, dtype=bool)
    truncated[:, problem.horizon - 1 :: problem.horizon] = True
    tensors = {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in KEYS}
    tensors |= {"terminated": torch.zeros(truncated.shape, dtype=torch.bool), "truncated": torch.from_numpy(truncated)}
    save_tensors(directory / "rollouts.safetensors", tensors)
    parameters = {key: np.asarray(values[task]).tolist() for key, values in problem.tasks.items()}
    document = {
        "env_type": problem.env.env_type,
        "task_id": int(task),
        "parameters": parameters,
        "episodes": problem.episodes,
        "max_episode_steps": problem.horizon,
        "num_rollouts": len(truncated),
        "starts_recorded": True,
    }
    write_json(directory / "task.json", {**document, **description, "provenance": provenance()})


def read_task(directory, problem, task, command):
    """(arrays, document) of one task's folder. Raises UserError, naming `command` where the data are missing."""
    if not (directory / "task.json").exists():
        raise UserError(f"no data of task {task} in {directory}; make them: {command}")
    document, tensors = read_json(directory / "task.json"), load_tensors(directory / "rollouts.safetensors")
    parameters = {key: np.asarray(values[task]).tolist() for key, values in problem.tasks.items()}
    if document["parameters"] != parameters or document["env_type"] != problem.env.env_type:
        raise UserError(f"{directory} holds data of another task: {document['env_type']} {document['parameters']}")
    if (document["episodes"], document["max_episode_steps"]) != (problem.episodes, problem.horizon):
        raise UserError(
            f"{directory} holds roll-outs of {document['episodes']} episodes of {document['max_episode_steps']} steps, this "
            f"command says {problem.episodes} of {problem.horizon}: change --max-rollouts-per-task or choose other data"
        )
    arrays = {key: tensors[key].numpy() for key in KEYS}
    if not all(np.isfinite(values).all() for values in arrays.values()):
        raise UserError(f"{directory} holds numbers that are not finite; make the data again: {command}")
    return arrays, document


def load_rollouts(directory, problem, task_ids, command, limit=None):
    """The logs of `task_ids` as one Rollouts: the first R roll-outs of each, R the smallest count (or `limit`)."""
    tasks, documents = [], []
    for task in task_ids:
        arrays, document = read_task(task_directory(directory, task), problem, task, command)
        tasks.append(arrays)
        documents.append(document)
    count = min([len(arrays["rewards"]) for arrays in tasks] + ([limit] if limit else []))
    stacked = {key: np.stack([arrays[key][:count] for arrays in tasks]) for key in KEYS}
    recorded = all(document["starts_recorded"] for document in documents)
    return Rollouts(np.asarray(task_ids), **stacked, starts_recorded=recorded)


# ----------------------------------------------------------------------------------------------------- mixing of tasks


RELABELLED = ("half", "any")  # which episodes of a roll-out relabelling rewrites


def relabel_rewards(rollouts, problem, fraction, generator, episodes="half"):
    """Reward relabelling: move whole episodes between tasks and recompute their rewards.

    Of each task's roll-outs a `fraction`, each at most once, gets its first u episodes replaced, each by that of a random
    roll-out of a random other task, read from the data as they were; the rewards are those of the receiving task. So what
    was visited no longer tells the task. (The original draws roll-outs with replacement, which misses a third of them, and
    copies from data that it has already mixed.)

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
        for episode in range(many.max()):
            slot, receivers = episode_slot(problem, episode), chosen[many > episode]
            donors = (row + generator.integers(1, tasks, len(receivers))) % tasks
            sources = generator.integers(count, size=len(receivers))
            for key in ("obs", "actions", "next_obs"):
                getattr(mixed, key)[row, receivers, slot] = getattr(rollouts, key)[donors, sources, slot]
            moved = [getattr(mixed, key)[row, receivers, slot] for key in ("obs", "actions", "next_obs")]
            mixed.rewards[row, receivers, slot] = problem.rewards(task, *moved)
    return mixed


def episode_slot(problem, episode):
    """The steps of one episode of a roll-out."""
    return slice(episode * problem.horizon, (episode + 1) * problem.horizon)


def replay_policies(rollouts, problem, directory, num_policies, generator, command):
    """Policy replaying: every roll-out's first episode becomes the first one of other tasks' agents on the same task.

    Args:
        directory: the folder that hindsight_data_collection.py wrote.
        num_policies: how many of the agents, drawn per task without replacement, are used.

    Returns:
        new Rollouts. Raises UserError when replays are missing.
    """
    mixed, slot = rollouts.copy(), episode_slot(problem, 0)
    for row, task in enumerate(rollouts.task_ids):
        folder = task_directory(directory, task)
        arrays, document = read_task(folder, problem, task, command)
        policies = np.asarray(document["policies"])  # of each replayed roll-out
        known = np.unique(policies)
        used = generator.permutation(known)[:num_policies]
        pool = np.flatnonzero(np.isin(policies, used))
        sources = generator.choice(pool, size=mixed.rewards.shape[1])
        for key in KEYS:
            getattr(mixed, key)[row, :, slot] = arrays[key][sources][:, slot]
    return mixed
