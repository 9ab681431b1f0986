"""Recorded episodes of the test task that are shown to an agent in the place of its own."""

import numpy as np
import pytest
from helpers import namespace, point_robot

from src.data.trajectories import Trajectories
from src.evaluation.shown import ShownProtocol
from src.run.errors import UserError


class Watching:
    """An Agent that stands still and keeps what it is adapted to."""

    def adapt(self, episodes):
        self.episodes = episodes

    def start(self, observations):
        self.rows = len(observations)

    def act(self):
        return np.zeros((self.rows, 2), np.float32)

    def observe(self, *_):
        pass


def recorded(tasks):
    """Three episodes of each task, whose rewards are 10 × the task plus the number of the episode."""
    ids = np.repeat(tasks, 3)
    rewards = (10 * ids + np.tile([0, 1, 2], len(tasks)))[:, None] * np.ones((1, 20), np.float32)
    count = len(ids)
    arrays = np.zeros((count, 21, 2), np.float32), np.zeros((count, 20, 2), np.float32), rewards.astype(np.float32)
    return Trajectories(*arrays, np.full(count, 20), ids)


def protocol(tasks, seed=0):
    run, evaluation = (
        namespace(env=point_robot(), seed=seed),
        namespace(eval_episodes=30, curve_episodes=2, later_episodes=2, fresh=False),
    )
    return ShownProtocol(run, evaluation, [46, 47], "recorded_context", recorded(tasks), 2)


def test_every_row_is_shown_episodes_of_its_own_task():
    agent = Watching()
    result = protocol([45, 46, 47]).final(agent, 0)
    first, second = (episode["rewards"][:, 0] for episode in agent.episodes)
    assert [*first // 10] == [*second // 10] == [46] * 30 + [47] * 30
    assert {*first % 10} == {*second % 10} == {0, 1, 2} and (first != second).any()
    assert np.shape(result["returns"]) == (2, 30) and not {"warmup_returns", "later_returns"} & result.keys()
    again, other = Watching(), Watching()
    protocol([45, 46, 47]).final(again, 0)
    protocol([45, 46, 47], seed=1).final(other, 0)
    assert (again.episodes[0]["rewards"] == agent.episodes[0]["rewards"]).all()
    assert (other.episodes[0]["rewards"] != agent.episodes[0]["rewards"]).any()


def test_a_test_task_without_data_is_refused():
    with pytest.raises(UserError, match="test task 47 has no recorded episodes"):
        protocol([45, 46])
