"""Behaviour policies: stable-baselines3's SAC, one agent per task, in segments that a killed run repeats exactly."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import torch

from src.batch import make_batch, rollout
from src.checkpoint import (
    UserError,
    load_state,
    load_tensors,
    provenance,
    read_json,
    run_directory,
    save_state,
    save_tensors,
    write_json,
)
from src.logger import Logger
from src.seeding import derive, numpy_generator, torch_generator

BUFFER_KEYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


# --------------------------------------------------------------------------------------------------------- the policies


class BehaviourPolicies:
    """P SAC actors of one shape as stacked weights, so that all of them act in one batched product.

    Args:
        weights: dict "latent_pi.0.weight" ... "mu.weight", "log_std.weight" -> (P, ...): stable-baselines3's names.
        low, high: (da,) bounds of the actions.
    """

    def __init__(self, weights, low, high, device="cpu"):
        self.device = device
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
            generator: torch.Generator (CPU) of the noise; not needed for deterministic actions.
        Returns (P, B, da) float32.
        """
        x = torch.as_tensor(observations, device=self.device)
        for weight, bias in self.hidden:
            x = torch.baddbmm(bias, x, weight).relu()  # (P, B, width)
        actions = torch.baddbmm(self.mu[1], x, self.mu[0])
        if not deterministic:
            std = torch.baddbmm(self.log_std[1], x, self.log_std[0]).clamp(-20, 2).exp()
            actions = actions + std * torch.randn(actions.shape, generator=generator).to(self.device)
        scaled = torch.tanh(actions).cpu().numpy()
        return np.clip(self.low + 0.5 * (scaled + 1.0) * (self.high - self.low), self.low, self.high)


def evaluate(env, task, act, episodes, *names):
    """Undiscounted returns (episodes,) of a policy on one task; `names` seed the resets."""
    batch = make_batch(env, [task] * episodes)
    seeds = [derive(*names, "reset", episode) for episode in range(episodes)]
    return rollout(env, batch, act, seeds)[2].sum(1, dtype=np.float64)


def uniform_actions(space, generator):
    """The random policy: function observations (B, d) -> actions (B, da), uniform in the bounds of the Box `space`."""
    return lambda observations: generator.uniform(space.low, space.high, (len(observations), *space.shape))


# ------------------------------------------------------------------------------------------------------------ the files


def behaviour_directory(output_dir, env_type):
    """Where the behaviour policies of an environment lie; one folder task_007 per task inside."""
    return Path(output_dir) / "saves" / env_type / "behaviour"


def task_directory(output_dir, env_type, task):
    """The folder of one task's behaviour policy."""
    return behaviour_directory(output_dir, env_type) / f"task_{task:03d}"


def load_behaviour(output_dir, env_type, task, command):
    """(curve, weights) of a finished task: curve.json as a dict, and dict name -> (C, ...) of all C checkpoints.

    Raises UserError that names `command` when the task has not been trained or not to the end.
    """
    directory = task_directory(output_dir, env_type, task)
    if not (directory / "curve.json").exists():
        raise UserError(f"no finished behaviour policy of task {task} in {directory}; make it: {command}")
    curve, weights = read_json(directory / "curve.json"), load_tensors(directory / "checkpoints.safetensors")
    steps = weights.pop("steps", torch.empty(0)).tolist()
    if steps != curve.get("steps"):
        raise UserError(f"{directory}: curve.json and checkpoints.safetensors disagree; delete the folder and run: {command}")
    return curve, weights


# ------------------------------------------------------------------------------------------------------------- training


def task_settings(args, task):
    """Everything that the weights of a task depend on: config.json of its folder, compared when a run resumes."""
    keys = ("num_steps", "save_freq", "learning_starts", "buffer_size", "batch_size", "learning_rate", "gamma", "tau",
            "entropy_coefficient", "hidden_sizes", "eval_episodes", "algo", "seed")  # fmt: skip
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
    with run_directory(directory, task_settings(args, task), args.resume):
        yield directory


def is_finished(directory):
    """Whether the behaviour policy in `directory` is complete: curve.json is the last file written."""
    return (directory / "curve.json").exists()


@dataclasses.dataclass
class History:
    """What a run has produced so far: the weights of the actor at every checkpoint, and their measured returns."""

    steps: list
    weights: dict  # name -> list of tensors
    returns: dict  # "stochastic_returns", "deterministic_returns" -> list of lists, one number per episode

    @classmethod
    def empty(cls):
        return cls([], {}, {"stochastic_returns": [], "deterministic_returns": []})

    def add(self, step, weights, returns):
        self.steps.append(step)
        for name, value in weights.items():
            self.weights.setdefault(name, []).append(value)
        for name, values in returns.items():
            self.returns[name].append(values)


def train_task(args, task, report):
    """Train the SAC agent of one task, in segments of save_freq steps, and write its checkpoints and return curve.

    Every segment starts a fresh episode and reseeds all that stable-baselines3 draws from with a function of (seed,
    task, step). So a checkpoint need not hold the state of any generator or simulator, and a run that was killed
    repeats the segment exactly. `report(steps)` is called after each segment. The result is in the files; returns the
    means {"return": last checkpoint, "random": uniform actions}.
    """
    with open_task(args, task) as directory:
        if not is_finished(directory):
            _train(args, task, directory, report)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
        curve = read_json(directory / "curve.json")
    return {"return": np.mean(curve["stochastic_returns"][-1]), "random": np.mean(curve["random_returns"])}


def _train(args, task, directory, report):
    model = _make_model(args, task)
    history = History.empty()
    state_file = directory / "state.pt"
    if state_file.exists():
        history = History(**_restore(model, load_state(state_file)))
        report(model.num_timesteps)
    log = Logger(directory, args.num_steps, model.num_timesteps, tensorboard=args.tensorboard, bar=False)
    while model.num_timesteps < args.num_steps:
        start = model.num_timesteps
        _run_segment(model, min(args.save_freq, args.num_steps - start), args, task)
        step = model.num_timesteps
        # rounded to half precision before the evaluation: what is measured is what is stored
        weights = {name: value.cpu().half() for name, value in model.actor.state_dict().items()}
        returns = _measure(args, task, step, weights)
        history.add(step, weights, returns)
        save_state(state_file, {**_snapshot(model), "history": dataclasses.asdict(history)})
        losses = {f"train/{name}": model.logger.name_to_value.get(f"train/{name}") for name in ("actor_loss", "critic_loss")}
        log.log(step, {**{f"eval/{name}": float(np.mean(values)) for name, values in returns.items()}, **losses})
        report(step - start)
    log.close()
    stacked = {name: torch.stack(values) for name, values in history.weights.items()}
    save_tensors(directory / "checkpoints.safetensors", {"steps": torch.tensor(history.steps), **stacked})
    random = uniform_actions(args.env.make().action_space, numpy_generator(args.seed, "random", task))
    returns = evaluate(args.env, task, random, max(args.eval_episodes, 10), args.seed, "random", task)
    curve = {"steps": history.steps, **history.returns, "random_returns": returns.tolist()}
    write_json(directory / "curve.json", {**curve, "provenance": provenance()})


def _make_model(args, task):
    from stable_baselines3 import SAC  # seconds of import, which nothing but training needs
    from stable_baselines3.common.logger import Logger as NoLogger

    environment = args.env.make()
    environment.reset(options={"task": task})
    model = SAC(
        "MlpPolicy",
        environment,
        learning_rate=args.learning_rate,
        buffer_size=args.buffer_size,
        learning_starts=args.learning_starts,
        batch_size=args.batch_size,
        tau=args.tau,
        gamma=args.gamma,
        ent_coef=args.entropy_coefficient,
        policy_kwargs={"net_arch": args.hidden_sizes},
        device=args.device,
        seed=derive(args.seed, "sac", task, "init") % 2**32,
    )
    model.set_logger(NoLogger(None, []))
    return model


def _run_segment(model, steps, args, task):
    model.set_random_seed(derive(args.seed, "sac", task, model.num_timesteps) % 2**32)
    model.env.set_options({"task": task})
    model._last_obs = None  # makes `learn` reset the environment
    model.learn(steps, reset_num_timesteps=False, log_interval=None)


def _measure(args, task, step, weights):
    space = args.env.make().action_space
    policies = BehaviourPolicies({name: value[None] for name, value in weights.items()}, space.low, space.high)
    noise = torch_generator(args.seed, "evaluate", task, step)

    def returns(deterministic):
        def act(observations):
            return policies.act(observations[None], noise, deterministic)[0]

        return evaluate(args.env, task, act, args.eval_episodes, args.seed, "evaluate", task, step).tolist()

    return {"stochastic_returns": returns(False), "deterministic_returns": returns(True)}


def _snapshot(model):
    """All that the next segment depends on, as tensors and plain numbers."""
    buffer = model.replay_buffer
    return {
        "num_timesteps": model.num_timesteps,
        "policy": model.policy.state_dict(),
        "actor_optimizer": model.actor.optimizer.state_dict(),
        "critic_optimizer": model.critic.optimizer.state_dict(),
        **_temperature(model),
        "buffer": {key: torch.from_numpy(getattr(buffer, key)[: buffer.size()]) for key in BUFFER_KEYS},
        "position": buffer.pos,
        "full": buffer.full,
    }


def _temperature(model):
    """The state of a learned entropy coefficient; nothing where it is fixed."""
    if model.ent_coef_optimizer is None:
        return {}
    return {"log_ent_coef": model.log_ent_coef.detach(), "ent_coef_optimizer": model.ent_coef_optimizer.state_dict()}


def _restore(model, state):
    """Put a snapshot back into the model; returns its history."""
    model.num_timesteps = state["num_timesteps"]
    model.policy.load_state_dict(state["policy"])
    model.actor.optimizer.load_state_dict(state["actor_optimizer"])
    model.critic.optimizer.load_state_dict(state["critic_optimizer"])
    if model.ent_coef_optimizer is not None:
        model.log_ent_coef.data.copy_(state["log_ent_coef"])
        model.ent_coef_optimizer.load_state_dict(state["ent_coef_optimizer"])
    for key, values in state["buffer"].items():
        getattr(model.replay_buffer, key)[: len(values)] = values.numpy()
    model.replay_buffer.pos, model.replay_buffer.full = state["position"], state["full"]
    return state["history"]
