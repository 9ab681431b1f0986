"""What a training task is worth from a state on, and how good a recorded action was: advantages for stage 4's imitation.

    V(s, t, w)      w: a learned embedding of the task
    A(s, a, s') = r + γ V(s', t + 1) − V(s, t)

V is the expectile of what the recorded actions lead to (IQL's value, Kostrikov et al., 2022, whose Q is not needed where the
simulator answers an action always alike): nearly the best of them, never an action that nobody took. With a Rewards every transition
is learned under every task.
"""

import dataclasses

import numpy as np
import torch
from torch import nn

from src.data.scales import clipped, statistics
from src.models.reward_model import one_thread
from src.run.devices import schedule_factor
from src.run.errors import UserError
from src.run.seeding import derive, torch_generator

EMBEDDING_SIZE, WIDTH = 8, 128
STEPS, BATCH, LEARNING_RATE, EMBEDDING_LEARNING_RATE = 8000, 512, 2e-3, 2e-2
EXPECTILE, DISCOUNT, AVERAGING = 0.8, 0.99, 0.02


class ValueModel(nn.Module):
    """Args: observation_size: d_s. horizon: T. tasks: K."""

    def __init__(self, observation_size, horizon, tasks):
        super().__init__()
        self.horizon = horizon
        self.embedding = nn.Embedding(tasks, EMBEDDING_SIZE)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.state = nn.Linear(observation_size + 1, WIDTH)
        self.task = nn.Linear(EMBEDDING_SIZE, WIDTH, bias=False)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
        self.register_buffer("mean", torch.zeros(observation_size))
        self.register_buffer("std", torch.ones(observation_size))
        self.register_buffer("bound", torch.full((observation_size,), torch.inf))

    def forward(self, observations, times, tasks):
        """Observations (N, d_s), time steps (N,) and rows of tasks (N,) -> values (N,), 0 from the last step's end on."""
        states = clipped((observations - self.mean) / self.std, self.bound)
        states = torch.cat([states, times[:, None] / self.horizon], -1)
        return self.body(self.state(states) + self.task(self.embedding(tasks)))[..., 0]


def train_values(episodes, rewards, seed):
    """(ValueModel, task ids, scale of its rewards) of Trajectories of the training tasks. rewards: Rewards, or None: own tasks alone."""
    with one_thread():
        task_ids, rows = np.unique(episodes.task_ids, return_inverse=True)
        horizon, generator = episodes.rewards.shape[1], torch_generator(seed, "value_batches")
        inside = np.arange(horizon) < episodes.lengths[:, None]
        where = np.argwhere(inside)
        observations = torch.from_numpy(episodes.observations)
        scale = float(episodes.rewards[inside].std()) or 1.0
        torch.manual_seed(derive(seed, "value_model"))
        model, target = (ValueModel(observations.shape[-1], horizon, len(task_ids)) for _ in range(2))
        for buffer, value in zip((model.mean, model.std, model.bound), statistics(observations[:, :-1][torch.from_numpy(inside)]), strict=True):
            buffer.copy_(value)
        target.load_state_dict(model.state_dict())
        rest = [p for p in model.parameters() if p is not model.embedding.weight]
        optimizer = torch.optim.Adam([{"params": rest}, {"params": [model.embedding.weight]}], fused=True)
        for step in range(STEPS):
            factor = schedule_factor(step, STEPS, STEPS // 20, "cosine")
            for group, rate in zip(optimizer.param_groups, (LEARNING_RATE, EMBEDDING_LEARNING_RATE), strict=True):
                group["lr"] = rate * factor
            episode, time = where[torch.randint(len(where), (BATCH,), generator=generator).numpy()].T
            if rewards is None:
                tasks, paid = rows[episode], episodes.rewards[episode, time]
            else:
                tasks = torch.randint(len(task_ids), (BATCH,), generator=generator).numpy()
                arrays = episodes.observations[episode, time], episodes.actions[episode, time], episodes.observations[episode, time + 1]
                paid = rewards(*arrays, {k: v[episode, time] for k, v in episodes.infos.items()}, task_ids[tasks])
            tasks, times = torch.from_numpy(tasks), torch.from_numpy(time)
            goes_on = torch.from_numpy(time + 1 < episodes.lengths[episode])
            with torch.no_grad():
                after = target(observations[episode, time + 1], times + 1, tasks)
                aim = torch.from_numpy(paid) / scale + DISCOUNT * after * goes_on
            error = aim - model(observations[episode, time], times, tasks)
            loss = (torch.where(error > 0, EXPECTILE, 1 - EXPECTILE) * error.square()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, AVERAGING)
        if not np.isfinite(loss.item()):
            raise UserError("the value model's loss became infinite: look for extreme values in the dataset")
        return model.requires_grad_(False), task_ids, scale


def advantages(model, scale, episodes, rewards, task):
    """(E, T) of Trajectories whose rewards (E, T) are those of the task in row `task`; -inf beyond the end."""
    horizon = episodes.rewards.shape[1]
    inside = np.arange(horizon) < episodes.lengths[:, None]
    found = np.full(inside.shape, -np.inf, np.float32)
    times = torch.arange(horizon + 1).expand(len(episodes), -1)
    with one_thread(), torch.inference_mode():
        flat = torch.from_numpy(episodes.observations).flatten(0, 1)
        rows = torch.full((len(flat),), int(task))
        values = torch.cat([model(*part) for part in zip(flat.split(1 << 14), times.flatten().split(1 << 14), rows.split(1 << 14), strict=True)])
        values = values.reshape(len(episodes), horizon + 1).numpy()
    after = values[:, 1:] * (np.arange(1, horizon + 1) < episodes.lengths[:, None])
    found[inside] = (rewards / scale + DISCOUNT * after - values[:, :-1])[inside]
    return found


def with_best_steps(episodes, rewards, share, model, task_ids, scale):
    """Trajectories with, for each task, those of other tasks that hold one of its best steps by advantage, so many for each time;
    and the advantages (E, T) of all. rewards: Rewards, or None: own episodes alone."""
    inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
    paid_on = rewards.on(episodes) if rewards else None
    own_values, parts, values = np.empty(inside.shape, np.float32), [], []
    for row, task in enumerate(task_ids):
        own = episodes.task_ids == task
        own_values[own] = advantages(model, scale, episodes.take(np.flatnonzero(own)), episodes.rewards[own], row)
        if rewards is None:
            continue
        others = np.flatnonzero(~own)
        relabelled = paid_on(task)[others]
        moved = episodes.take(others)
        found = advantages(model, scale, moved, relabelled, row)
        count = int(np.ceil(share * own.sum()))
        best = np.argpartition(-found, count - 1, axis=0)[:count]
        chosen = np.unique(best[np.take_along_axis(found, best, 0) > -np.inf])
        parts.append(dataclasses.replace(moved.take(chosen), rewards=relabelled[chosen], task_ids=np.full(len(chosen), task)))
        values.append(found[chosen])
    joined = {
        name: np.concatenate([getattr(part, name) for part in (episodes, *parts)])
        for name in ("observations", "actions", "rewards", "lengths", "task_ids")
    }
    infos = {key: np.concatenate([part.infos[key] for part in (episodes, *parts)]) for key in episodes.infos}
    return dataclasses.replace(episodes, **joined, infos=infos), np.concatenate([own_values, *values])
