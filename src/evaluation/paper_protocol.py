"""The official code's evaluation: its pool and its targets."""

import numpy as np
import torch

from src.evaluation.batch import make_batch
from src.evaluation.rollout import returns, rollout
from src.run.errors import UserError
from src.run.seeding import derive


class PaperPool:
    """The official code's few-shot pool: one episode of every test task joins at each evaluation of training, across
    checkpoints, and the three best are kept. This is more experience than N warm-up episodes, hence a protocol of its own."""

    SIZE = 3
    KEYS = ("observations", "actions", "rewards", "lengths")

    def __init__(self):
        self.episodes = None  # dict of (tasks, n, ...) arrays

    def add(self, episode):
        """episode: an Episode with a row per task."""
        new = {key: episode[key][:, None] for key in self.KEYS}
        if self.episodes is not None:
            new = {key: np.concatenate([self.episodes[key], values], 1) for key, values in new.items()}
        best = np.argsort(-new["rewards"].sum(-1), 1, kind="stable")[:, : self.SIZE]
        self.episodes = {key: values[np.arange(len(best))[:, None], best] for key, values in new.items()}

    def as_list(self, repeats):
        """The pool as a list of Episodes with rows = tasks x repeats, as an agent adapts to them."""
        if self.episodes is None:
            return []
        count = self.episodes["rewards"].shape[1]
        return [{key: np.repeat(values[:, n], repeats, 0) for key, values in self.episodes.items()} for n in range(count)]

    def state_dict(self):
        return {key: torch.from_numpy(values) for key, values in (self.episodes or {}).items()}

    def load_state_dict(self, state):
        self.episodes = {key: values.numpy() for key, values in state.items()} or None


class PaperProtocol:
    """Stands in the place of `StrictProtocol` (src/evaluation/method.py) for an agent with a `target`: the best returns of the
    test tasks' own data, and with `prompts` a pool of test episodes that outlives checkpoints.

    Raises UserError where a test task has no data.
    """

    name = "paper"

    def __init__(self, run, evaluation, data, prompts):
        self.run, self.evaluation, self.test_tasks, self.prompts = run, evaluation, data.test_tasks, prompts
        self.final_tasks = self.test_tasks
        self.targets = best_returns(data.dataset, self.test_tasks)
        self.pool = PaperPool()
        self.parts = {"pool": self.pool} if prompts else {}

    def curve(self, agent, warmup):
        """Result of the test tasks during training; the first episode of every task joins the pool afterwards."""
        result, episode = self._play(agent, self.evaluation.curve_episodes, warmup > 0)
        if self.prompts:
            self.pool.add({key: episode[key][:: self.evaluation.curve_episodes] for key in PaperPool.KEYS})
        return result

    def final(self, agent, warmup, keep=0, watch=None):
        """Result of the trained policy; the pool stays as it is. Nothing is kept or watched: these rows have no pictures."""
        return self._play(agent, self.evaluation.eval_episodes, self.prompts)[0]

    def _play(self, agent, episodes, use_pool):
        rows = np.repeat(np.asarray(self.test_tasks), episodes)
        agent.target = np.repeat(self.targets, episodes)
        agent.adapt(self.pool.as_list(episodes) if use_pool else [])
        seeds = [derive(self.run.seed, "reset", int(task), row % episodes, 0) % 2**31 for row, task in enumerate(rows)]
        episode = rollout(agent, make_batch(self.run.env, rows), seeds, self.run.env.max_episode_steps)
        return {"returns": returns(episode).reshape(len(self.test_tasks), episodes).tolist()}, episode


def best_returns(dataset, tasks):
    """Best return in each task's own data: the target of the paper's protocol, which leaks test-task data. Raises UserError."""
    missing = [task for task in tasks if task not in dataset.tasks]
    if missing:
        raise UserError(f"--protocol paper takes targets from the data of the test tasks, and task {missing[0]} has none")
    return [float(dataset.returns[dataset.task_ids == task].max()) for task in tasks]
