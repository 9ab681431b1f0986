"""Behaviour policies by stable-baselines3's SAC: one agent per task, in segments that a killed run repeats exactly."""

import dataclasses

import numpy as np
import torch

from src.behaviour.measure import measure, measure_random
from src.behaviour.store import History, is_finished, open_task, read_curve, write_behaviour
from src.run.files import load_state, save_state
from src.run.logger import Logger
from src.run.seeding import derive

BUFFER_KEYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


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
        curve = read_curve(directory)
    return {"return": np.mean(curve["stochastic_returns"][-1]), "random": np.mean(curve["random_returns"])}


def _train(args, task, directory, report):
    model = _make_model(args, task)
    history = History.empty("stochastic_returns", "deterministic_returns")
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
        one = {name: value[None] for name, value in weights.items()}
        returns = {
            "stochastic_returns": measure(args, [task], step, one)[0].tolist(),
            "deterministic_returns": measure(args, [task], step, one, deterministic=True)[0].tolist(),
        }
        history.add(step, weights, returns)
        save_state(state_file, {**_snapshot(model), "history": dataclasses.asdict(history)})
        losses = {f"train/{name}": model.logger.name_to_value.get(f"train/{name}") for name in ("actor_loss", "critic_loss")}
        log.log(step, {**{f"eval/{name}": float(np.mean(values)) for name, values in returns.items()}, **losses})
        report(step - start)
    log.close()
    write_behaviour(directory, history, measure_random(args, task))


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


def _snapshot(model):
    """All that the next segment depends on, as tensors and plain numbers."""
    buffer = model.replay_buffer
    return {
        "num_timesteps": model.num_timesteps,
        "policy": model.policy.state_dict(),
        "actor_optimizer": model.actor.optimizer.state_dict(),
        "critic_optimizer": model.critic.optimizer.state_dict(),
        "entropy": _entropy_state(model),
        "buffer": {key: torch.from_numpy(getattr(buffer, key)[: buffer.size()]) for key in BUFFER_KEYS},
        "position": buffer.pos,
        "full": buffer.full,
    }


def _entropy_state(model):
    """Weight of the entropy bonus and its optimiser where it is learned, else None."""
    if model.ent_coef_optimizer is None:
        return None
    return {"logarithm": model.log_ent_coef.detach().clone(), "optimizer": model.ent_coef_optimizer.state_dict()}


def _restore(model, state):
    """Put a snapshot back into the model; returns its history."""
    model.num_timesteps = state["num_timesteps"]
    model.policy.load_state_dict(state["policy"])
    model.actor.optimizer.load_state_dict(state["actor_optimizer"])
    model.critic.optimizer.load_state_dict(state["critic_optimizer"])
    if state.get("entropy"):
        model.log_ent_coef.data.copy_(state["entropy"]["logarithm"])
        model.ent_coef_optimizer.load_state_dict(state["entropy"]["optimizer"])
    for key, values in state["buffer"].items():
        getattr(model.replay_buffer, key)[: len(values)] = values.numpy()
    model.replay_buffer.pos, model.replay_buffer.full = state["position"], state["full"]
    return state["history"]
