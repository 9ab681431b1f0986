"""Behaviour policies on disk: the files that stage 1 leaves, and what stage 2 reads of them."""

import contextlib
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch

from src.behaviour.policies import for_task, make_frame, task_features
from src.data.origin import check_settings, check_tasks
from src.data.trajectories import task_parameters
from src.run.config import CONFIG_DIR, load_env, num_known_tasks, num_tasks
from src.run.directory import run_directory
from src.run.errors import UserError
from src.run.files import digest, load_tensors, read_json, save_tensors, write_json
from src.run.provenance import provenance as provenance_record

SOURCES = ("auto", "per_task", "multitask", "scripted", "committed")  # whose policies play, see find_source
COMMITTED = CONFIG_DIR.parent / "behaviour"
SHARED = "multitask"  # folder of the one agent that knows the task, beside the folders task_007 of single agents


# ------------------------------------------------------------------------------------------------------------ the files


def behaviour_directory(output_dir, env_type):
    """Where the behaviour policies of an environment lie: one folder task_007 per task, or one `multitask` for all."""
    return Path(output_dir) / "saves" / env_type / "behaviour"


def task_directory(output_dir, env_type, task):
    """The folder of one task's behaviour policy."""
    return behaviour_directory(output_dir, env_type) / f"task_{task:03d}"


def committed_directory(env_type):
    """Where behaviour policies that come with the repository lie, in the layout of `behaviour_directory`."""
    return COMMITTED / env_type


@dataclasses.dataclass
class History:
    """What a run has produced so far: the weights of the actor at every checkpoint, and their measured returns."""

    steps: list
    weights: dict  # name -> list of tensors
    returns: dict  # "stochastic_returns", ... -> list of lists, one number per episode

    @classmethod
    def empty(cls, *returns):
        return cls([], {}, {name: [] for name in returns})

    def add(self, step, weights, returns):
        self.steps.append(step)
        for name, value in weights.items():
            self.weights.setdefault(name, []).append(value)
        for name, values in returns.items():
            self.returns[name].append(values)

    def state_dict(self):
        return dataclasses.asdict(self)

    def load_state_dict(self, state):
        self.steps, self.weights, self.returns = state["steps"], state["weights"], state["returns"]


def write_behaviour(directory, history, random_returns, tensors=None, facts=None):
    """The files of a finished run: checkpoints.safetensors, then curve.json, whose presence means that it is finished.

    tensors, facts: further entries of the two files.
    """
    stacked = {name: torch.stack(values) for name, values in history.weights.items()}
    steps = torch.tensor(history.steps)
    save_tensors(directory / "checkpoints.safetensors", {"steps": steps, **stacked, **(tensors or {})})
    curve = {"steps": history.steps, **(facts or {}), **history.returns, "random_returns": random_returns}
    write_json(directory / "curve.json", {**curve, "provenance": provenance_record()})


def read_curve(directory, shared=False):
    """curve.json of behaviour policies: steps (C,), stochastic_returns (C, n), random_returns (n,); those of a shared agent
    have an axis of tasks before the last one, and task_ids. Raises UserError where it is no such document."""
    path = directory / "curve.json"
    mend = f"delete the folder {directory} and train its policies again"
    curve = read_json(path, "steps", "stochastic_returns", "random_returns", *["task_ids"] * shared, mend=mend)
    depths = {"steps": 1, "stochastic_returns": 2 + shared, "random_returns": 1 + shared} | ({"task_ids": 1} if shared else {})
    found = {key: _shape(curve[key], whole=key in ("steps", "task_ids")) for key in depths}
    for key, depth in depths.items():
        if len(found[key]) != depth or 0 in found[key]:
            raise UserError(f"{path}: {key} are no numbers in {depth} axes: {mend}")
    if found["steps"] != found["stochastic_returns"][:1] or (shared and found["task_ids"] != found["stochastic_returns"][1:2]):
        raise UserError(f"{path}: its returns do not fit its steps and tasks: {mend}")
    return curve


def pooled(curve):
    """The curve of a shared agent over all its tasks, as if they were one."""
    flat = [list(itertools.chain(*rows)) for rows in curve["stochastic_returns"]]
    return {**curve, "stochastic_returns": flat, "random_returns": list(itertools.chain(*curve["random_returns"]))}


def _shape(values, whole):
    """Shape of nested lists of numbers (integers where `whole`); () where they are something else."""
    try:
        array = np.asarray(values)
    except (ValueError, RecursionError, OverflowError):
        return ()
    return array.shape if array.dtype.kind in ("iu" if whole else "iuf") else ()


def is_finished(directory):
    """Whether the behaviour policies in `directory` are complete: curve.json is the last file written."""
    return all((directory / name).exists() for name in ("checkpoints.safetensors", "curve.json"))


def made_by(run, *settings):
    """Everything that weights depend on, of RunSettings and settings: config.json of a folder, compared when a run resumes."""
    facts = {"env_type": run.env_type, "entry_point": run.env.entry_point, "max_episode_steps": run.env.max_episode_steps}
    if run.env.options:
        facts["options"] = dict(run.env.options)
    for values in settings:
        facts |= dataclasses.asdict(values)
    del facts["save_seconds"]
    return {**facts, "seed": run.seed}


@contextlib.contextmanager
def open_task(run, agent, checkpoints, task):
    """Own the folder of a task (locked, same settings, same task); yields its path."""
    directory = task_directory(run.output_dir, run.env_type, task)
    volatile = () if is_finished(directory) else ("save_freq",)  # checkpoints may come more often where returns change fast
    with open_policies(run, directory, {**made_by(run, agent, checkpoints), "task_id": task}, [task], volatile):
        yield directory


@contextlib.contextmanager
def open_policies(run, directory, settings, tasks, volatile=()):
    """As `run_directory`, and with the parameters of `tasks`, which are recorded too; yields the path."""
    told = {"tasks": task_parameters(run.env.make(), tasks)}
    with run_directory(directory, settings | told, run.resume, (*volatile, *told)):
        # former versions recorded no tasks, and other machines round otherwise
        _check_origin(directory, run.env, "pass --no-resume to train them again")
        yield directory


# ----------------------------------------------------------------------------------------------- what stage 2 reads


@dataclasses.dataclass(frozen=True)
class Source:
    """Where stage 2 finds its policies: a folder with task_007 ..., or one with the shared agent, or the environment itself.

    kind: "per_task", "multitask", "scripted" (the environment's), "committed": one of the first, come with the repository.
    env: EnvConfig of the family that they were trained in, where it is not the one that is played.
    """

    directory: Path
    kind: str
    env: object = None

    @property
    def shared(self):
        return self.kind == "multitask" or (self.kind == "committed" and (self.directory / SHARED).exists())

    def frame(self, environment, task_ids):
        """What the policies of `task_ids` look through, see `make_frame`; None for agents of single tasks."""
        return make_frame(environment, task_ids) if self.shared else None

    def facts(self):
        """For a dataset's card: who acts, on what knowledge, and the SHA-256 of a shared agent's checkpoints."""
        if self.kind == "scripted":
            return {
                "actors": "the environment's scripted policy",
                "knowledge": "it is told its task, as wrongly as the levels say",
            }
        origin = "that comes with the repository" if self.kind == "committed" else f"of {self.directory.name}/ under saves/"
        if self.env:  # what they were paid in training, and so their levels, is that family's
            origin += f", trained on {self.env.env_type} (and so its levels)"
        if not self.shared:
            return {
                "actors": f"the SAC agent {origin} of each task",
                "knowledge": "every agent was trained on its own task alone",
            }
        known = read_curve(self.directory / SHARED, shared=True)["task_ids"]
        tensors = load_tensors(self.directory / SHARED / "checkpoints.safetensors")
        size = tensors["task_features"].shape[-1]
        told = f"is told its task by {size} numbers" if size else "sees the world from its task's goal and is told nothing else"
        return {
            "actors": f"one SAC agent {origin}, for all tasks",
            "knowledge": f"it {told}, and was trained on {len(known)} tasks, {min(known)} to {max(known)}",
            "policies_sha256": digest(tensors),
        }

    def tasks(self, env, environment):
        """(first, last + 1) of the tasks that a shared agent serves, none of them fresh: its own, and those that look the same to
        it. Else None."""
        if not self.shared:
            return None
        known = read_curve(self.directory / SHARED, shared=True)["task_ids"]
        if not 0 <= min(known) <= max(known) < num_tasks(environment):
            raise UserError(f"{self.directory / SHARED} holds a shared agent of another task list: train it again")
        features = task_features(environment, known)[: num_known_tasks(env, environment)]
        served = [task for task, told in enumerate(features) if task in known or np.isclose(features[known], told).all(1).any()]
        return min(served), max(served) + 1


def source_of(run, family, kind, command):
    """`find_source` of another family, by name, whose tasks, observations and actions are those of the run's: only what it pays
    may differ. Raises UserError where more does, or as `find_source`."""
    other = load_env(family, "--behaviour_of")

    def known(env):
        made = env.make()
        tasks = {key: np.asarray(values).tolist() for key, values in made.unwrapped.tasks.items()}
        return made.observation_space, made.action_space, env.max_episode_steps, tasks

    if known(run.env) != known(other):
        raise UserError(
            f"--behaviour_of {family}: its tasks, observations, actions or steps are not those of {run.env_type}: leave it out"
        )
    source = find_source(dataclasses.replace(run, env=other, env_type=family), kind, command)
    return dataclasses.replace(source, env=other)


def find_source(run, kind, command):
    """Choose the behaviour policies of an environment by `kind`, one of SOURCES; auto: those in saves/, else the environment's
    scripted ones, else the committed ones.

    Raises UserError when there are none (naming `command`, which makes them) or, with auto, two kinds in saves/.
    """
    saved, committed = behaviour_directory(run.output_dir, run.env_type), committed_directory(run.env_type)
    found = {
        "per_task": any(saved.glob("task_*")),
        "multitask": (saved / SHARED).exists(),
        "scripted": hasattr(run.env.make(), "scripted_policy"),
        "committed": is_finished(committed / SHARED) or any(committed.glob("task_*")),
    }
    if kind == "auto":
        if found["per_task"] and found["multitask"]:
            raise UserError(f"{saved} holds agents of single tasks and a shared one: choose --behaviour per_task or multitask")
        kind = next((kind for kind, exists in found.items() if exists), "auto")
    if kind == "scripted" and not found[kind]:
        raise UserError(f"{run.env_type} has no scripted policy: leave --behaviour scripted out")
    if kind == "committed" and not found[kind]:
        raise UserError(f"no behaviour policies of {run.env_type} come with the repository: leave --behaviour committed out")
    if not found.get(kind):
        words = "" if kind == "auto" else f"{kind} "
        raise UserError(f"no {words}behaviour policies in {saved}; make them: {command}")
    return Source(committed if kind == "committed" else saved, kind)


def _check_origin(directory, env, mend):
    """Raises UserError, which ends in `mend`, where the policies were trained in another environment: its settings file has the
    same name, or was changed, or its tasks were."""
    path = directory / "config.json"
    made = read_json(path, "env_type") if path.exists() else {}
    whose = f"the policies in {directory}"
    check_settings(made, env, f"{whose} were trained", f"rename the settings file, or {mend}")
    if "tasks" in made:
        told = {int(task): parameters for task, parameters in made["tasks"].items()}
        check_tasks(told, env, env.make(), whose, mend)


def load_behaviour(source, env, task, command, untrained=False):
    """(curve, weights) of one task: curve.json as a dict, and dict name -> (C, ...) of all C checkpoints.

    A shared agent reads the task's features beside the observation. For one task these are constants, which move the bias
    of the first layer: so its weights, too, are those of an actor that reads the observation alone, and its curve is the
    task's own; on a task that it was not trained on but that looks the same to it, the curve of those that it was trained on.
    untrained: a shared agent may be told of other tasks too, with that curve: how good it is there is not known before it plays.
    Raises UserError that names `command` when the task has not been trained or not to the end.
    """
    directory = source.directory / (SHARED if source.shared else f"task_{task:03d}")
    if not is_finished(directory):
        raise UserError(f"no finished behaviour policy of task {task} in {directory}; make it: {command}")
    _check_origin(directory, env, f"train them again: {command} --no-resume")
    curve, weights = read_curve(directory, source.shared), load_tensors(directory / "checkpoints.safetensors")
    steps = weights.pop("steps", torch.empty(0)).tolist()
    if steps != curve.get("steps"):
        raise UserError(f"{directory}: curve.json and checkpoints.safetensors disagree; delete the folder and run: {command}")
    if not source.shared:
        return curve, weights
    features = weights.pop("task_features")
    if features.shape[-1] == 0 and task not in curve["task_ids"]:  # one task in the agent's frame: it is as good on this one
        return pooled(curve), weights
    told = task_features(env.make(), curve["task_ids"])[task : task + 1]
    comparable = len(told) and told.shape[1] == features.shape[1]
    same = np.flatnonzero(np.isclose(features, told, atol=1e-4).all(1)).tolist() if comparable else []
    row = curve["task_ids"].index(task) if task in curve["task_ids"] else next(iter(same), None)
    if row is None and untrained and comparable:
        return pooled(curve), for_task(weights, torch.from_numpy(told[0]))
    if row is None:
        raise UserError(f"the agent in {directory} was not trained for task {task}; train it for all tasks: {command}")
    if row not in same:
        raise UserError(f"the agent in {directory} was trained for another list of tasks; train it again: {command}")
    returns = {"stochastic_returns": [row_of[row] for row_of in curve["stochastic_returns"]]}
    return {**curve, **returns, "random_returns": curve["random_returns"][row]}, for_task(weights, features[row])
