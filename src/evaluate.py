"""The evaluation protocol: the only place where returns are measured, for Meta-DT and for every baseline.

zero-shot: the running episode only. few-shot(N): N warm-up episodes collected on the task by the same frozen agent, in sequence
(each may already use the pool so far), then one evaluation episode. Tasks x episodes step together as one array, and every row
has a pool of its own, so that M evaluation episodes are M independent adaptations.

An agent has `start(observations, target_returns, prompt)`, `act()`, `observe(actions, rewards, next_observations)` and, for
few-shot, `make_prompt(pool, generator, trial)`.
"""

from typing import NamedTuple

import numpy as np
import torch

from src.batch import episode_lengths, make_batch
from src.checkpoint import UserError
from src.seeding import derive, numpy_generator, torch_generator


class Exploration(NamedTuple):
    """What begins the episodes that must find the task out (ours).

    steps: how many are noisy. noise: standard deviation of Gaussian noise on the policy's actions, as a share of the action
    half-range. probe_steps: an episode without a prompt, which knows nothing, begins instead with so many `orthogonal_actions`;
    0: it is as noisy as the others. forget: the agent's history begins anew after either (`MetaDTAgent.forget`).
    """

    steps: int = 0
    noise: float = 0.0
    probe_steps: int = 0
    forget: bool = False


NO_EXPLORATION = Exploration()


def orthogonal_actions(rows, dimensions, steps, generator):
    """Full actions along the axes of a frame that every row turns at random, there and back: e1, e2, −e1, −e2, e1...

    Each step tells something that the steps before did not: two noisy actions may point the same way, and then say how the
    reward changes along one line only. In the plane, three steps show where a goal lies that is paid by its distance.
    Returns: (rows, steps, dimensions), each with a largest component of 1. generator: numpy's.
    """
    turned, triangle = np.linalg.qr(generator.standard_normal((rows, dimensions, dimensions)))
    signs = np.sign(np.diagonal(triangle, axis1=1, axis2=2))  # LAPACK chooses them, which would favour directions
    frames = (turned * signs[:, None]).swapaxes(1, 2)  # (rows, axis, d_a)
    around = np.concatenate([frames, -frames], 1)[:, np.arange(steps) % (2 * dimensions)]
    return around / np.abs(around).max(-1, keepdims=True)


def rollout(agent, batch, seeds, steps, target_returns, bounds, prompt=None, explore=NO_EXPLORATION, generator=None):
    """One episode in every row.

    Args:
        batch: environments of B rows (src/batch.py). seeds: (B,) of their resets. steps: T.
        target_returns: (B,). bounds: (low, high) of the actions, each (d_a,).
        explore: an Exploration; generator (numpy's) draws it.
    Returns: dict of observations (B, T + 1, d_s), actions (B, T, d_a), rewards (B, T), float32. Where episodes end on their own
    also terminated (B, T) bool; what follows a row's end means nothing then (rewards are 0 there).
    Raises UserError when the policy gives a number that is not finite.
    """
    low, high = bounds
    observations, actions, rewards, ended = [batch.reset(seeds)], [], [], []
    half_range = (high - low) / 2
    probing = explore.probe_steps if prompt is None else 0
    exploring = probing or explore.steps
    if probing:
        probes = (low + high) / 2 + half_range * orthogonal_actions(len(seeds), len(low), probing, generator)
    agent.start(observations[0], target_returns, prompt)
    for step in range(steps):
        if explore.forget and step == exploring > 0:
            agent.forget()
        action = probes[:, step] if step < probing else agent.act()
        if probing <= step < exploring:
            action = action + explore.noise * half_range * generator.standard_normal(action.shape)
        action = np.clip(action, low, high).astype(np.float32)
        if not np.isfinite(action).all():
            raise UserError("the policy's actions are not finite: its training diverged; lower --learning_rate and train again")
        after, reward = batch.step(action)
        agent.observe(action, reward, after)
        observations.append(after)
        actions.append(action)
        rewards.append(reward)
        if "terminated" in getattr(batch, "infos", {}):
            ended.append(batch.infos["terminated"])
            if ended[-1].all():
                break
    parts = {"observations": observations, "actions": actions, "rewards": rewards} | ({"terminated": ended} if ended else {})
    missing = steps - len(rewards)  # all rows ended early; the rounds of a pool are stacked, so they are of one length
    stacked = {key: np.stack(values, 1) for key, values in parts.items()}
    return {key: np.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2)) for key, values in stacked.items()}


def evaluate(
    agent, env, task_ids, episodes, warmup, target, seed, explore=NO_EXPLORATION, pool_max=False, keep=0, later=0, watch=None
):
    """Returns of `agent` on `task_ids`.

    Args:
        env: EnvConfig. episodes: M evaluation episodes per task. warmup: N warm-up episodes, 0 for zero-shot.
        target: target return, a number or one per task id.
        seed: of resets, noise and prompt choices; the same seed gives the same numbers.
        explore: Exploration of the episodes that must find the task out: warm-up episodes, and zero-shot ones. An evaluation
            episode with a prompt is played without it.
        pool_max: raise the target to the best return of the warm-up episodes so far.
        keep: store the paths of the first `keep` evaluation episodes of every task.
        watch: called after the evaluation episode with the rows' task ids and reset seeds and the episode as `rollout` gives it.
        later: few-shot episodes that go on after the evaluation episode, which joins the pool then; they show the adaptation.
    Returns: {"returns": (tasks, M), "lengths": (tasks, M) where episodes can end on their own, "warmup_returns": (tasks, M, N),
    "later_returns": (tasks, M, later), "trajectories"}, JSON-able lists.
    """
    rows = np.repeat(np.asarray(task_ids), episodes)
    targets = np.repeat(np.broadcast_to(np.asarray(target, dtype=np.float64), len(task_ids)), episodes)
    batch = make_batch(env, rows)
    space = env.make().action_space
    bounds = space.low, space.high
    pool, prompt = [], None
    last = warmup + later if warmup else 0
    for number in range(last + 1):
        seeds = [derive(seed, "reset", int(task), row % episodes, number) % 2**31 for row, task in enumerate(rows)]
        generator = numpy_generator(seed, "noise", number)
        exploration = explore if number < warmup or not warmup else NO_EXPLORATION
        episode = rollout(agent, batch, seeds, env.max_episode_steps, targets, bounds, prompt, exploration, generator)
        if isinstance(prompt, dict) and "carried_context" in prompt:
            episode["carried_context"] = prompt["carried_context"]  # what was tried with which return
        pool.append(episode)
        if number == warmup and watch:
            watch(rows, seeds, episode)
        if number < last:
            prompt = agent.make_prompt(pool, torch_generator(seed, "prompt", number), trial=number + 1 < warmup)
            targets = np.maximum(targets, episode["rewards"].sum(1)) if pool_max else targets
    returns = np.stack([episode["rewards"].sum(1, dtype=np.float64) for episode in pool], 1)  # (rows, N + 1 + later)
    returns = returns.reshape(len(task_ids), episodes, last + 1).round(4)
    result = {"returns": returns[:, :, warmup].tolist()}
    if env.terminates:
        lengths = episode_lengths(pool[warmup]["rewards"], pool[warmup])
        result["lengths"] = lengths.reshape(len(task_ids), episodes).tolist()
    if warmup:
        result["warmup_returns"] = returns[:, :, :warmup].tolist()
    if last > warmup:
        result["later_returns"] = returns[:, :, warmup + 1 :].tolist()
    if keep:
        result["trajectories"] = _paths(pool[: warmup + 1], task_ids, episodes, keep)
    return result


def _paths(pool, task_ids, episodes, keep):
    """Observed paths of a few rows per task: {"45": {"warmup": [N paths of row 0], "evaluation": [up to `keep` paths]}}."""
    paths = {}
    for index, task in enumerate(task_ids):
        first = index * episodes
        last = pool[-1]["observations"]
        paths[str(int(task))] = {
            "warmup": [episode["observations"][first].round(4).tolist() for episode in pool[:-1]],
            "evaluation": [last[first + row].round(4).tolist() for row in range(min(keep, episodes))],
        }
    return paths


# ------------------------------------------------------------------------------------------------ the paper's protocol


class PaperPool:
    """The official code's few-shot pool: one episode of every test task joins at each evaluation of training, across
    checkpoints, and the three best are kept. This is more experience than N warm-up episodes, hence a protocol of its own."""

    SIZE = 3

    def __init__(self):
        self.episodes = None  # dict of (tasks, n, ...) arrays

    def add(self, episode):
        """episode: dict of (tasks, ...) arrays as `rollout` gives."""
        new = {key: values[:, None] for key, values in episode.items()}
        if self.episodes is not None:
            new = {key: np.concatenate([self.episodes[key], values], 1) for key, values in new.items()}
        best = np.argsort(-new["rewards"].sum(-1), 1, kind="stable")[:, : self.SIZE]
        self.episodes = {key: values[np.arange(len(best))[:, None], best] for key, values in new.items()}

    def as_list(self, repeats):
        """The pool as a list of episodes with rows = tasks x repeats, as `make_prompt` takes it."""
        count = self.episodes["rewards"].shape[1]
        return [{key: np.repeat(values[:, n], repeats, 0) for key, values in self.episodes.items()} for n in range(count)]

    def state(self):
        """For a training state: dict of tensors, or None while empty."""
        return self.episodes and {key: torch.from_numpy(values) for key, values in self.episodes.items()}

    def restore(self, state):
        """The inverse of `state`."""
        self.episodes = state and {key: values.numpy() for key, values in state.items()}


def evaluate_paper(agent, env, task_ids, episodes, targets, seed, pool, use_pool, grow=True):
    """Returns under the official code's protocol: targets (one per task) are the best returns of the test tasks' own data, the
    prompt comes from a pool that outlives checkpoints. Arguments as in `evaluate`.

    use_pool: prompts are switched on. grow: the first episode of every task joins the pool afterwards.
    """
    rows = np.repeat(np.asarray(task_ids), episodes)
    space = env.make().action_space
    prompt = None
    if use_pool and pool.episodes is not None:
        prompt = agent.make_prompt(pool.as_list(episodes), torch_generator(seed, "prompt", 0))
    seeds = [derive(seed, "reset", int(task), row % episodes, 0) % 2**31 for row, task in enumerate(rows)]
    bounds = space.low, space.high
    episode = rollout(agent, make_batch(env, rows), seeds, env.max_episode_steps, np.repeat(targets, episodes), bounds, prompt)
    if grow:
        pool.add({key: values[::episodes] for key, values in episode.items()})
    return {"returns": episode["rewards"].sum(1, dtype=np.float64).reshape(len(task_ids), episodes).round(4).tolist()}
