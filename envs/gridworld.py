"""Gridworld (GridNavi): an agent on a 5×5 grid looks for a goal cell that it cannot see.

Observation: (x, y). Actions: 0 stay, 1 up (y+1), 2 right (x+1), 3 down, 4 left; walls stop the agent. Reward on the
cell that is entered: +1 on the goal, −0.1 elsewhere. 15 steps, never terminates. A task is one of the 21 cells outside
the 2×2 corner at the start (0, 0); collecting: the start is uniform over the cells that are not the goal.
Source: the gridworld of BOReL (Dorfman et al., NeurIPS 2021) and VariBAD, played for 4 episodes per task.
"""

import gymnasium as gym
import numpy as np

from envs.base import TaskBatch, TaskEnv
from envs.tasks import load_tasks

SIZE = 5
GOAL_REWARD, STEP_REWARD = 1.0, -0.1
MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])


def cell_index(observations):
    """Observations (..., 2 or more) -> index 5·y + x of the cell, (...,) int: the head of the reward decoder."""
    cells = np.asarray(observations).astype(int)
    return SIZE * cells[..., 1] + cells[..., 0]


def moves_towards(targets, observations, generator=None):
    """One step towards target cells (B, 2) -> actions (B,) int, 0 on the target.

    With a generator the axis is drawn uniformly among those not yet aligned, without one x comes first.
    """
    dx, dy = (targets - observations[:, :2]).T
    x_first = True if generator is None else generator.random(len(dx)) < 0.5
    along_x = (dx != 0) & (x_first | (dy == 0))
    return np.where(along_x, np.where(dx > 0, 2, 4), np.where(dy > 0, 1, np.where(dy < 0, 3, 0)))


class GridworldBatch(TaskBatch):
    """Rows of gridworlds. tasks: "goal" (B, 2). start: "fixed" at (0, 0), or "uniform" over all cells but the goal."""

    observation_space = gym.spaces.Box(0, SIZE - 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(len(MOVES))
    starts = ("fixed", "uniform")

    def draw_start(self, generator, row):
        cell = generator.integers(SIZE * SIZE - 1)
        y, x = divmod(cell + (cell >= cell_index(self.tasks["goal"][row])), SIZE)
        return x, y

    def transition(self, actions):
        return np.clip(self.states + MOVES[actions], 0, SIZE - 1)

    @staticmethod
    def compute_success(next_observations, tasks):
        return (np.asarray(next_observations)[..., :2] == tasks["goal"]).all(-1)

    @staticmethod
    def compute_rewards(observations, actions, next_observations, tasks, infos=None):
        success = GridworldBatch.compute_success(next_observations, tasks)
        return np.where(success, GOAL_REWARD, STEP_REWARD).astype(np.float32)


class GridworldEnv(TaskEnv):
    """The gridworld under the gymnasium interface."""

    env_type = "gridworld"
    batch_class = GridworldBatch
    num_cells = SIZE * SIZE
    cell_index = staticmethod(cell_index)
    compute_rewards = staticmethod(GridworldBatch.compute_rewards)
    compute_success = staticmethod(GridworldBatch.compute_success)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial stays; task_blind walks to the commonest training goal, of several the one nearest to the start, and
        stays: no policy that ignores rewards does better when goals are equally likely; best_known walks to the goal.
        """
        goals, counts = np.unique(env_tasks["goal"][np.asarray(train_ids)], axis=0, return_counts=True)
        target = goals[np.lexsort([goals.sum(-1), -counts])[0]]
        return {
            "trivial": lambda observations, task_ids: np.zeros(len(observations), dtype=int),
            "task_blind": lambda observations, task_ids: moves_towards(target, observations),
            "best_known": lambda observations, task_ids: moves_towards(env_tasks["goal"][task_ids], observations),
        }


class GoalBelief:
    """The exact belief over the 21 goals in B rows: uniform over `possible` (B, 21) bool, columns as in the task list.

    A cell entered without reward leaves the set, entering the goal collapses it.
    """

    def __init__(self, size):
        self.goals = load_tasks("gridworld")["goal"]
        self.possible = np.ones((size, len(self.goals)), dtype=bool)

    def update(self, next_observations, rewards):
        """next_observations (B, 2 or more), rewards (B,)."""
        here = (next_observations[:, None, :2] == self.goals).all(-1)
        found = (np.asarray(rewards) == GOAL_REWARD)[:, None]
        self.possible &= np.where(found, here, ~here)

    def reward(self):
        """Expected reward (B,) of entering one of the n goals that are still possible: (1 + r_no·(n − 1)) / n."""
        count = self.possible.sum(-1)
        return (GOAL_REWARD + STEP_REWARD * (count - 1)) / count

    def draw(self, generator):
        """Index of a goal drawn uniformly from those still possible in each row, (B,)."""
        return np.where(self.possible, generator.random(self.possible.shape), -1).argmax(-1)
