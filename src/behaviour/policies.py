"""Behaviour policies: many SAC actors that act in one batched product."""

import numpy as np
import torch

from src.run.errors import UserError
from src.run.stepping import blamed

FIRST_LAYER = "latent_pi.0"


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
        actions = to_bounds(torch.tanh(actions).cpu().numpy(), self.low, self.high)
        return actions if self.frame is None else self._through(self.frame.act, actions)

    @staticmethod
    def _through(translate, values):
        """`translate`, which takes a row per policy, for values (P, B, d)."""
        return np.stack([translate(column) for column in np.asarray(values).swapaxes(0, 1)], 1)


def make_frame(environment, task_ids):
    """What a shared agent looks through, a row for each of `task_ids`; None where the family has no `task_frame`."""
    if not hasattr(environment, "task_frame"):
        return None
    return environment.task_frame({key: values[np.asarray(task_ids)] for key, values in environment.unwrapped.tasks.items()})


def _noise(shape, generator):
    if isinstance(generator, list):
        return torch.stack([torch.randn(shape[1:], generator=one) for one in generator])
    return torch.randn(shape, generator=generator)


def to_bounds(actions, low, high):
    """Actions in [-1, 1] (..., da), as the networks give them, -> within the bounds of the environment."""
    return np.clip(low + 0.5 * (actions + 1.0) * (high - low), low, high)


def uniform_actions(space, generator):
    """The random policy: function observations (B, d) -> actions (B, da), uniform in the bounds of the Box `space`."""
    return lambda observations: generator.uniform(space.low, space.high, (len(observations), *space.shape))


def task_features(environment, known, tasks=None):
    """(num_tasks, k) float32: what a shared agent is told about each task, or about `tasks` (parameter -> (num_tasks, ...)).

    The environment's own `task_features(tasks) -> (num_tasks, k)` where it has one (an angle is better told as cosine and
    sine), else its task parameters side by side. Standardised over the tasks `known` that the agent is trained on; columns that
    are the same for all of these are left out. Nothing (k = 0) where the agent looks through a `task_frame`.
    """
    table = environment.unwrapped.tasks
    tasks = table if tasks is None else tasks
    if hasattr(environment, "task_frame"):
        return np.zeros((len(next(iter(tasks.values()))), 0), np.float32)

    def columns_of(parameters):
        if not hasattr(environment, "task_features"):
            return np.concatenate([parameters[name].reshape(len(parameters[name]), -1) for name in table], 1)
        with blamed(f"{type(environment).__name__}.task_features fails"):
            columns = np.asarray(environment.task_features(parameters), np.float64)
        if columns.ndim != 2 or len(columns) != len(next(iter(parameters.values()))) or not np.isfinite(columns).all():
            raise UserError(f"task_features gives shape {columns.shape}: a row of finite numbers per task is expected")
        return columns

    trained = columns_of(table)[list(known)]
    mean, deviation = trained.mean(0), trained.std(0)
    told = deviation > 1e-8
    return ((columns_of(tasks) - mean)[:, told] / deviation[told]).astype(np.float32)


def for_task(weights, features):
    """Weights (..., out, d + k) of a shared actor -> those of the actor (..., out, d) of the task with `features` (k,)."""
    matrix = weights[f"{FIRST_LAYER}.weight"].float()
    size = matrix.shape[-1] - len(features)
    bias = weights[f"{FIRST_LAYER}.bias"].float() + matrix[..., size:] @ features
    return {**weights, f"{FIRST_LAYER}.weight": matrix[..., :size].contiguous(), f"{FIRST_LAYER}.bias": bias}
