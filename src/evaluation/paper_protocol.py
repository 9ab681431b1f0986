"""The official code's evaluation: its pool and its targets."""

import numpy as np
import torch

from src.evaluation.batch import make_batch
from src.evaluation.rollout import rollout
from src.run.seeding import derive, torch_generator


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
