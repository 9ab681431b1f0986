"""Logs of single-task agents as files.

datasets/<env_type>/<save_dir>/task_007/ holds rollouts.safetensors (R roll-outs of T = K·H steps: obs, next_obs (R, T, d)
with the flag, actions (R, T, d_a) in [−1, 1] or (R, T) int, rewards, terminated, truncated (R, T)), the agent that made
them in agent.safetensors, and task.json: task id, parameters in full precision, K, H, seed, settings, versions, and the sha256
of the roll-outs.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch

from src.run.errors import UserError
from src.run.files import MAKE_AGAIN, digest, load_tensors, read_json, save_tensors, write_json
from src.run.provenance import provenance
from src.run.seeding import derive

KEYS = ("obs", "actions", "rewards", "next_obs")
DOCUMENT = ("env_type", "parameters", "episodes", "max_episode_steps", "num_rollouts", "starts_recorded")  # task.json


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
        "sha256": digest(tensors),
    }
    write_json(directory / "task.json", {**document, **description, "provenance": provenance()})


def read_document(path, *keys):
    """A JSON object that has `keys`. Raises UserError where the file holds something else."""
    document = read_json(path)
    missing = [key for key in keys if key not in document] if isinstance(document, dict) else keys
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: {MAKE_AGAIN}")
    return document


def task_document(directory, problem, task, command, *keys):
    """The task.json of one task's folder; keys: further entries that it must have.

    Raises UserError where the data are missing (`command` makes them), of another task, or of other K or H.
    """
    if not (directory / "task.json").exists():
        raise UserError(f"no data of task {task} in {directory}; make them: {command}")
    document = read_document(directory / "task.json", *DOCUMENT, *keys)
    parameters = {key: np.asarray(values[task]).tolist() for key, values in problem.tasks.items()}
    if document["parameters"] != parameters or document["env_type"] != problem.env.env_type:
        raise UserError(f"{directory} holds data of another task: {document['env_type']} {document['parameters']}")
    if (document["episodes"], document["max_episode_steps"]) != (problem.episodes, problem.horizon):
        raise UserError(
            f"{directory} holds roll-outs of {document['episodes']} episodes of {document['max_episode_steps']} steps, this "
            f"command says {problem.episodes} of {problem.horizon}: change --max-rollouts-per-task or choose other data"
        )
    return document


def task_stamp(directory, problem, task, command):
    """What tells a task's data from others without reading them: their digest. Raises UserError as `task_document`.

    Data from before digests were recorded are told by their size and settings.
    """
    document = task_document(task_directory(directory, task), problem, task, command)
    if "sha256" in document:
        return [task, document["sha256"]]
    stamp = [task, document["num_rollouts"], document.get("seed"), derive(0, str(document.get("settings")))]
    return [*stamp, document["dataset_sha256"]] if "dataset_sha256" in document else stamp


def read_task(directory, problem, task, command, *keys):
    """(arrays, document) of one task's folder; keys: further entries that task.json must have.

    Raises UserError as `task_document`, and where the roll-outs are missing or damaged.
    """
    document = task_document(directory, problem, task, command, *keys)
    tensors = load_tensors(directory / "rollouts.safetensors")
    if not tensors.keys() >= set(KEYS):
        raise UserError(f"{directory / 'rollouts.safetensors'} holds no roll-outs; make the data again: {command}")
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
