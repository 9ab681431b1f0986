"""The Bayes-optimal policy of the gridworld, exactly.

Until the goal is found the belief evolves deterministically, so the optimum is the best open-loop search tour; once
found, the goal is walked to and held. Over K episodes of H steps a goal at distance d that is first
entered at step t of episode e (from 0) is worth

    −1.5·e  −  0.1·(t − 1) + (H − t + 1)  +  (K − 1 − e)·v     with v = −0.1·(d − 1) + (H − d + 1),

and −1.5·K if it is never entered. The tours are found by dynamic programming over (cell, set of goals entered).
"""

import numpy as np

from envs.gridworld import MOVES, SIZE, cell_index
from envs.settings import family_settings
from envs.tasks import load_tasks

EPISODES, HORIZON = 4, family_settings("gridworld")["max_episode_steps"]
MISSED = -15  # an episode without the goal; values are in tenths of a reward, hence exact integers
BEAM = 3000  # states per step of the first search, whose value bounds the second


def goal_value(step):
    """Tenths earned in an episode whose goal is entered at `step` (from 1) and held."""
    return -(step - 1) + 10 * (HORIZON - step + 1)


class TourSearch:
    """Forward search over states `set of goals entered` (a bit each) + `cell` (the bits above)."""

    def __init__(self):
        goals = load_tasks("gridworld")["goal"].astype(int)
        self.count = len(goals)
        cells = np.stack(np.divmod(np.arange(SIZE * SIZE), SIZE)[::-1], axis=-1)
        self.next_cell = cell_index(np.clip(cells[None] + MOVES[:, None], 0, SIZE - 1))  # (5, 25)
        self.goal_at = np.full(SIZE * SIZE, -1)
        self.goal_at[cell_index(goals)] = np.arange(self.count)
        self.distance = np.abs(cells[:, None] - goals).sum(-1)  # (25, 21)
        self.oracle = goal_value(self.distance[0])  # v_g

    def worth(self, episode, step, goals):
        """Tenths that each of `goals` contributes over the whole roll-out if first entered now."""
        return episode * MISSED + goal_value(step) + (EPISODES - 1 - episode) * self.oracle[goals]

    def bounds(self, states, values, episode, step):
        """No continuation of these states is worth more: every goal left is entered as early as its distance allows."""
        soonest = step + self.distance
        goals = np.arange(self.count)
        never = EPISODES * MISSED
        now = np.where(soonest <= HORIZON, self.worth(episode, soonest, goals), never)
        later = self.worth(episode + 1, self.distance[0], goals) if episode + 1 < EPISODES else never
        best = np.maximum(now, later)[states >> self.count]
        entered = states[:, None] >> goals & 1
        return values + np.where(entered, 0, best).sum(-1)

    def search(self, width=None, floor=None):
        """The best tours among the `width` most promising states of each step, or all that can still reach `floor`.

        Returns:
            value in tenths, summed over the 21 goals, and actions (EPISODES, HORIZON).
        """
        states, values = np.array([0]), np.array([0])
        layers = []  # (parent, action) of every state, one entry per step
        for episode in range(EPISODES):
            origin = np.arange(len(states))
            states, values, origin = best_of_each(states & ((1 << self.count) - 1), values, origin)
            for step in range(1, HORIZON + 1):
                cells = self.next_cell[:, states >> self.count]  # (5, S)
                goals = self.goal_at[cells]
                bits = np.where(goals >= 0, 1 << np.maximum(goals, 0), 0)
                fresh = (bits & ~states) != 0
                gains = np.where(fresh, self.worth(episode, step, goals), 0)
                following = (cells << self.count) | ((states | bits) & ((1 << self.count) - 1))
                choices = np.arange(following.size)
                size = len(states)
                states, values, choices = best_of_each(following.ravel(), (values + gains).ravel(), choices)
                bounds = self.bounds(states, values, episode, step)
                keep = bounds >= floor if width is None else np.argsort(-bounds, kind="stable")[:width]
                states, values, choices = states[keep], values[keep], choices[keep]
                layers.append((origin[choices % size], choices // size))
                origin = np.arange(len(states))
        entered = (states[:, None] >> np.arange(self.count) & 1).sum(-1)
        totals = values + (self.count - entered) * EPISODES * MISSED
        row = totals.argmax()
        actions = []
        for parents, moves in reversed(layers):
            actions.append(moves[row])
            row = parents[row]
        return int(totals.max()), np.array(actions[::-1]).reshape(EPISODES, HORIZON)


def best_of_each(states, values, origins):
    """Among equal states keep the one with the highest value."""
    order = np.lexsort([-values, states])
    first = np.diff(states[order], prepend=-1) != 0
    return states[order][first], values[order][first], origins[order][first]


def optimal_tours():
    """Exact optimum: mean return per goal (sum over the episodes), and search actions (4, 15) that attain it.

    The beam search finds good tours; the second search drops only states whose bound lies below what those tours earn.
    """
    search = TourSearch()
    floor, _ = search.search(width=BEAM)
    value, actions = search.search(floor=floor)
    return value / 10 / search.count, actions
