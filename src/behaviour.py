"""Behaviour policies: acting with many at once, measuring them, and the files that stage 1 leaves for stage 2."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import torch

from src.batch import make_batch, rollout
from src.checkpoint import UserError, load_tensors, read_json, run_directory, save_tensors, write_json
from src.checkpoint import provenance as provenance_record
from src.config import CONFIG_DIR
from src.seeding import derive, numpy_generator, torch_generator

SHARED = "multitask"  # folder of the one agent that knows the task, beside the folders task_007 of single agents
FIRST_LAYER = "latent_pi.0"


# --------------------------------------------------------------------------------------------------------- the policies


class BehaviourPolicies:
    """P SAC actors of one shape as stacked weights, so that all of them act in one batched product.

    Args:
        weights: dict "latent_pi.0.weight" ... "mu.weight", "log_std.weight" -> (P, ...): stable-baselines3's names.
        low, high: (da,) bounds of the actions.
        frame: what the policies look through, with a row for every policy (an environment's `task_frame`), or None.
    """

    def __init__(self, weights, low, high, device="cpu", frame=None):
        self.device, self.frame = device, frame
        weights = {name: value.to(device, torch.float32) for name, value in weights.items()}
        layers = sorted({int(name.split(".")[1]) for name in weights if name.startswith("latent_pi")})
        self.hidden = [
            (weights[f"latent_pi.{i}.weight"].mT, weights[f"latent_pi.{i}.bias"][:, None]) for i in layers
        ]  # fmt: skip
        self.mu, self.log_std = ((weights[f"{head}.weight"].mT, weights[f"{head}.bias"][:, None]) for head in ("mu", "log_std"))
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)

    @torch.inference_mode()
    def act(self, observations, generator=None, deterministic=False):
        """Actions as stable-baselines3's `predict` gives them: tanh of a Gaussian, rescaled to the bounds.

        Args:
            observations: (P, B, d) float32, row p for policy p.
            generator: torch.Generator (CPU) of the noise, or one for each policy; not needed for deterministic actions.
        Returns (P, B, da) float32.
        """
        if self.frame is not None:
            observations = self._through(self.frame.observe, observations)
        x = torch.as_tensor(observations, device=self.device)
        for weight, bias in self.hidden:
            x = torch.baddbmm(bias, x, weight).relu()  # (P, B, width)
        actions = torch.baddbmm(self.mu[1], x, self.mu[0])
        if not deterministic:
            std = torch.baddbmm(self.log_std[1], x, self.log_std[0]).clamp(-20, 2).exp()
            actions = actions + std * _noise(actions.shape, generator).to(self.device)
        actions = unscale(torch.tanh(actions).cpu().numpy(), self.low, self.high)
        return actions if self.frame is None else self._through(self.frame.act, actions)

    @staticmethod
    def _through(translate, values):
        """`translate`, which takes a row per policy, for values (P, B, d)."""
        return np.stack([translate(column) for column in np.asarray(values).swapaxes(0, 1)], 1)


def make_frame(environment, task_ids):
    """What a shared agent looks through, a row for each of `task_ids`; None where the family has no `task_frame`."""
    environment = environment.unwrapped
    if not hasattr(environment, "task_frame"):
        return None
    return environment.task_frame({key: values[np.asarray(task_ids)] for key, values in environment.tasks.items()})


def _noise(shape, generator):
    if isinstance(generator, list):
        return torch.stack([torch.randn(shape[1:], generator=one) for one in generator])
    return torch.randn(shape, generator=generator)


def unscale(actions, low, high):
    """Actions in [-1, 1] (..., da), as the networks give them, -> within the bounds of the environment."""
    return np.clip(low + 0.5 * (actions + 1.0) * (high - low), low, high)


def uniform_actions(space, generator):
    """The random policy: function observations (B, d) -> actions (B, da), uniform in the bounds of the Box `space`."""
    return lambda observations: generator.uniform(space.low, space.high, (len(observations), *space.shape))


# --------------------------------------------------------------------------------------------------------- measuring


def evaluate(env, task, act, episodes, *names):
    """Undiscounted returns (episodes,) of a policy on one task; `names` seed the resets."""
    batch = make_batch(env, [task] * episodes)
    seeds = [derive(*names, "reset", episode) for episode in range(episodes)]
    return rollout(env, batch, act, seeds)[2].sum(1, dtype=np.float64)


def measure(args, tasks, step, weights, deterministic=False, frame=None):
    """Undiscounted returns (P, eval_episodes) of P policies, each on its own task, all episodes played side by side.

    weights: dict name -> (P, ...). The draws of a policy depend on (seed, task, step) alone, not on the other policies.
    """
    space = args.env.make().action_space
    noise = [torch_generator(args.seed, "evaluate", task, step) for task in tasks]
    policies = BehaviourPolicies(weights, space.low, space.high, args.device, frame)
    episodes = args.eval_episodes

    def act(observations):
        grid = observations.reshape(len(tasks), episodes, -1)
        return policies.act(grid, noise, deterministic).reshape(len(observations), *space.shape)

    batch = make_batch(args.env, np.repeat(tasks, episodes))
    seeds = [derive(args.seed, "evaluate", task, step, "reset", episode) for task in tasks for episode in range(episodes)]
    returns = rollout(args.env, batch, act, seeds)[2].sum(1, dtype=np.float64)
    return returns.reshape(len(tasks), episodes)


def measure_random(args, task):
    """Undiscounted returns of uniform random actions on one task, a list of at least ten."""
    random = uniform_actions(args.env.make().action_space, numpy_generator(args.seed, "random", task))
    return evaluate(args.env, task, random, max(args.eval_episodes, 10), args.seed, "random", task).tolist()


# ------------------------------------------------------------------------------------------------------------ the files


def behaviour_directory(output_dir, env_type):
    """Where the behaviour policies of an environment lie: one folder task_007 per task, or one `multitask` for all."""
    return Path(output_dir) / "saves" / env_type / "behaviour"


def task_directory(output_dir, env_type, task):
    """The folder of one task's behaviour policy."""
    return behaviour_directory(output_dir, env_type) / f"task_{task:03d}"


def committed_directory(env_type):
    """Where behaviour policies that come with the repository lie, in the layout of `behaviour_directory`."""
    return CONFIG_DIR / "behaviour" / env_type


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


def write_behaviour(directory, history, random_returns, tensors=None, facts=None):
    """The files of a finished run: checkpoints.safetensors, then curve.json, whose presence means that it is finished.

    tensors, facts: further entries of the two files.
    """
    stacked = {name: torch.stack(values) for name, values in history.weights.items()}
    steps = torch.tensor(history.steps)
    save_tensors(directory / "checkpoints.safetensors", {"steps": steps, **stacked, **(tensors or {})})
    curve = {"steps": history.steps, **(facts or {}), **history.returns, "random_returns": random_returns}
    write_json(directory / "curve.json", {**curve, "provenance": provenance_record()})


def is_finished(directory):
    """Whether the behaviour policies in `directory` are complete: curve.json is the last file written."""
    return all((directory / name).exists() for name in ("checkpoints.safetensors", "curve.json"))


def task_settings(args, task):
    """Everything that the weights of a task depend on: config.json of its folder, compared when a run resumes."""
    keys = ["num_steps", "save_freq", "learning_starts", "buffer_size", "batch_size", "learning_rate", "gamma", "tau",
            "entropy_coefficient", "hidden_sizes", "eval_episodes", "algo", "seed"]  # fmt: skip
    keys += ["updates_per_step"] if args.algo != "sac" else []
    return {
        "env_type": args.env_type,
        "entry_point": args.env.entry_point,
        "max_episode_steps": args.env.max_episode_steps,
        "task_id": task,
        **{key: getattr(args, key) for key in keys},
    }


@contextlib.contextmanager
def open_task(args, task):
    """Own the folder of a task (locked, same settings); yields its path."""
    directory = task_directory(args.output_dir, args.env_type, task)
    volatile = () if is_finished(directory) else ("save_freq",)  # checkpoints may come more often where returns change fast
    with run_directory(directory, task_settings(args, task), args.resume, volatile):
        yield directory


# ----------------------------------------------------------------------------------------------- what stage 2 reads


@dataclasses.dataclass(frozen=True)
class Source:
    """Where stage 2 finds its policies: a folder with task_007 ..., or one with the shared agent."""

    directory: Path
    kind: str  # "per_task", "multitask", or "committed": either of them, come with the repository

    @property
    def shared(self):
        return self.kind == "multitask" or (self.kind == "committed" and (self.directory / SHARED).exists())


def find_source(args, command):
    """Choose the behaviour policies of an environment by --behaviour; auto: those in saves/, else the committed ones.

    Raises UserError when there are none (naming `command`, which makes them) or, with auto, two kinds in saves/.
    """
    saved, committed = behaviour_directory(args.output_dir, args.env_type), committed_directory(args.env_type)
    found = {
        "per_task": any(saved.glob("task_*")),
        "multitask": (saved / SHARED).exists(),
        "committed": is_finished(committed / SHARED) or any(committed.glob("task_*")),
    }
    kind = args.behaviour
    if kind == "auto":
        if found["per_task"] and found["multitask"]:
            raise UserError(f"{saved} holds agents of single tasks and a shared one: choose --behaviour per_task or multitask")
        kind = next((kind for kind, exists in found.items() if exists), "auto")
    if kind == "committed" and not found[kind]:
        raise UserError(f"no behaviour policies of {args.env_type} come with the repository: leave --behaviour committed out")
    if not found.get(kind):
        words = "" if kind == "auto" else f"{kind} "
        raise UserError(f"no {words}behaviour policies in {saved}; make them: {command}")
    return Source(committed if kind == "committed" else saved, kind)


def load_behaviour(source, env, task, command):
    """(curve, weights) of one task: curve.json as a dict, and dict name -> (C, ...) of all C checkpoints.

    A shared agent reads the task's features beside the observation. For one task these are constants, which move the bias
    of the first layer: so its weights, too, are those of an actor that reads the observation alone, and its curve is the
    task's own. Raises UserError that names `command` when the task has not been trained or not to the end.
    """
    directory = source.directory / (SHARED if source.shared else f"task_{task:03d}")
    if not is_finished(directory):
        raise UserError(f"no finished behaviour policy of task {task} in {directory}; make it: {command}")
    curve, weights = read_json(directory / "curve.json"), load_tensors(directory / "checkpoints.safetensors")
    steps = weights.pop("steps", torch.empty(0)).tolist()
    if steps != curve.get("steps"):
        raise UserError(f"{directory}: curve.json and checkpoints.safetensors disagree; delete the folder and run: {command}")
    if not source.shared:
        return curve, weights
    if task not in curve["task_ids"]:
        raise UserError(f"the agent in {directory} was not trained for task {task}; train it for all tasks: {command}")
    features = weights.pop("task_features")
    row = curve["task_ids"].index(task)
    if not np.allclose(features[row], task_features(env.make(), curve["task_ids"])[task], atol=1e-4):
        raise UserError(f"the agent in {directory} was trained for another list of tasks; train it again: {command}")
    returns = {"stochastic_returns": [row_of[row] for row_of in curve["stochastic_returns"]]}
    return {**curve, **returns, "random_returns": curve["random_returns"][row]}, for_task(weights, features[row])


# ------------------------------------------------------------------------------------------------------ the shared agent


def task_features(environment, known):
    """(num_tasks, k) float32: what a shared agent is told about each task.

    The environment's own `task_features(tasks) -> (num_tasks, k)` where it has one (an angle is better told as cosine and
    sine), else its task parameters side by side. Standardised over the tasks `known` that the agent is trained on; columns that
    are the same for all of these are left out. Nothing (k = 0) where the agent looks through a `task_frame`.
    """
    environment = environment.unwrapped
    if hasattr(environment, "task_frame"):
        return np.zeros((len(next(iter(environment.tasks.values()))), 0), np.float32)
    if hasattr(environment, "task_features"):
        columns = np.asarray(environment.task_features(environment.tasks), np.float64)
    else:
        columns = np.concatenate([values.reshape(len(values), -1) for values in environment.tasks.values()], 1)
    mean, deviation = columns[list(known)].mean(0), columns[list(known)].std(0)
    told = deviation > 1e-8
    return ((columns - mean)[:, told] / deviation[told]).astype(np.float32)


def for_task(weights, features):
    """Weights (..., out, d + k) of a shared actor -> those of the actor (..., out, d) of the task with `features` (k,)."""
    matrix = weights[f"{FIRST_LAYER}.weight"].float()
    size = matrix.shape[-1] - len(features)
    bias = weights[f"{FIRST_LAYER}.bias"].float() + matrix[..., size:] @ features
    return {**weights, f"{FIRST_LAYER}.weight": matrix[..., :size].contiguous(), f"{FIRST_LAYER}.bias": bias}
