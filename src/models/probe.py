"""What a context knows: a linear probe of the task parameters from z, and its projection on two axes for a picture."""

import numpy as np
import torch

from src.data.relabel import paid_by
from src.data.scales import scale_of
from src.evaluation.agent import random_agent
from src.evaluation.batch import make_batch
from src.evaluation.rollout import rollout
from src.models.world_model import episode_contexts
from src.run.seeding import derive, numpy_generator, torch_generator

EPISODE = ("observations", "actions", "rewards", "lengths")  # what `full_contexts` reads


def task_matrix(environment, task_ids):
    """Task parameters as a matrix (N, P) float32 without constant columns; an angle becomes its cosine and sine.

    Where the environment names its `hidden_parameters`, those alone."""
    columns, tasks = [], environment.unwrapped.tasks
    for name in getattr(environment, "hidden_parameters", tasks):
        values = np.asarray(tasks[name], dtype=np.float64).reshape(len(tasks[name]), -1)
        columns += [np.cos(values), np.sin(values)] if name == "angle" else [values]
    matrix = np.concatenate(columns, 1)
    return torch.as_tensor(matrix[:, matrix.std(0) > 1e-9][np.asarray(task_ids)], dtype=torch.float32)


def random_walk(env, task_ids, episodes, seed):
    """Episodes of uniform random actions: observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T), lengths (E,), and
    their task ids (E,)."""
    rows = np.repeat(np.asarray(task_ids), episodes)
    batch = make_batch(env, rows)
    agent = random_agent(batch.action_space, numpy_generator(seed, "random_walk"))
    seeds = [derive(seed, "random_walk", row) % 2**31 for row in range(len(rows))]
    episode = rollout(agent, batch, seeds, env.max_episode_steps)
    return (*(torch.as_tensor(episode[key]) for key in EPISODE), torch.from_numpy(rows))


def full_contexts(model, observations, actions, rewards, lengths):
    """z of every step whose window is full (t >= h; t >= 4 with running contexts; at least the last one): (E, T', 16). Beyond the
    end of an episode of `lengths` (E,) steps its last z is repeated."""
    contexts = episode_contexts(model, observations, actions, rewards)
    steps = torch.arange(contexts.shape[1]).minimum(torch.as_tensor(lengths)[:, None])
    contexts = contexts.gather(1, steps[:, :, None].expand(contexts.shape))
    return contexts[:, min(model.horizon or 4, rewards.shape[1]) :]


def linear_probe(contexts, parameters, ridge=1e-3):
    """Ridge regression of parameters (E, P) from contexts (E, T, 16): weights (17, P) on standardised contexts, as a function.

    Returns: score(contexts, parameters) -> R² of the frozen probe, over all steps and parameters together; None where it is not
    defined: no episode, or all of one task.
    """
    flat = contexts.flatten(0, 1).double()
    mean, std, _ = scale_of(flat)

    def features(contexts):
        values = (contexts.flatten(0, 1).double() - mean) / std
        return torch.cat([values, torch.ones(len(values), 1, dtype=torch.float64)], 1)

    def targets(contexts, parameters):
        return parameters.double()[:, None].expand(-1, contexts.shape[1], -1).flatten(0, 1)

    x, y = features(contexts), targets(contexts, parameters)
    weights = torch.linalg.solve(x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)

    def score(contexts, parameters):
        y = targets(contexts, parameters)
        spread = (y - y.mean(0)).square().sum()
        return float(1 - (features(contexts) @ weights - y).square().sum() / spread) if spread > 1e-12 else None

    return score


def project(contexts):
    """First two principal components of contexts (N, 16): (N, 2)."""
    centred = contexts - contexts.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


@torch.inference_mode()
def diagnose(run, environment, model, held_out, unseen, true=None, points=1000):
    """Linear probes of the task parameters, and a projection of z for the picture.

    The probe is fitted on half of the held-out episodes (Trajectories) of the training tasks; it is scored on the other half, and
    on random walks in the simulator on the training tasks and on the tasks `unseen`. With `true` (EnvironmentRewards) also on the
    other half paid by those unseen tasks: its agents walk where they should not, and z must tell what is paid and not where they
    walk. No test-task data are read.
    Args: run: RunSettings. model: WorldModel on the CPU.
    Returns: {"probe": {episodes: {"r2"}}, "embedding": {"points", "task_ids", "task_parameters"}}.
    """
    arrays = [torch.from_numpy(getattr(held_out, name)) for name in EPISODE]
    contexts, parameters = full_contexts(model, *arrays), task_matrix(environment, held_out.task_ids)
    odd = torch.arange(len(contexts)) % 2 == 1
    score = linear_probe(contexts[~odd], parameters[~odd])
    probes = {"dataset": score(contexts[odd], parameters[odd])}
    for name, tasks in (("random_walk", sorted(held_out.tasks)), ("random_walk_unseen_tasks", unseen)):
        *walk, ids = random_walk(run.env, list(tasks), 10, run.seed)
        probes[name] = score(full_contexts(model, *walk), task_matrix(environment, ids))
    if true and odd.any():
        astray = paid_by(true, held_out.take(np.flatnonzero(odd)), unseen, numpy_generator(run.seed, "paid_by"))
        arrays = [torch.from_numpy(getattr(astray, name)) for name in EPISODE]
        probes["relabelled_unseen_tasks"] = score(full_contexts(model, *arrays), task_matrix(environment, astray.task_ids))
    pick = torch.randperm(contexts.shape[0] * contexts.shape[1], generator=torch_generator(run.seed, "embedding"))[:points]
    shown = held_out.task_ids[(pick // contexts.shape[1]).numpy()]
    tasks = np.unique(shown)
    parameters = task_matrix(environment, tasks).numpy().round(4).tolist()
    return {
        "probe": {name: {"r2": None if value is None else round(value, 4)} for name, value in probes.items()},
        "embedding": {
            "points": project(contexts.flatten(0, 1)[pick]).numpy().round(4).tolist(),
            "task_ids": shown.tolist(),
            "task_parameters": dict(zip(map(str, tasks.tolist()), parameters, strict=True)),
        },
    }
