"""Replay memory of SAC: one table per agent, oldest row replaced first, read by one gather per batch."""

import numpy as np
import torch


class Replay:
    """P tables of the same length, one row per transition.

    Args:
        agents: P. capacity: rows per agent.
        columns: dict name -> width; a row is their concatenation.
    """

    def __init__(self, agents, capacity, columns, device="cpu"):
        self.columns, self.capacity = columns, capacity
        self.rows = torch.empty(agents, capacity, sum(columns.values()), device=device)
        self.size, self.position = 0, 0

    def add(self, *parts):
        """Append n transitions per agent; parts: one array (P, n, width) per column, in their order; n <= capacity."""
        rows = torch.from_numpy(np.concatenate(parts, -1, dtype=np.float32)).to(self.rows.device)
        count = rows.shape[1]
        before_end = min(count, self.capacity - self.position)
        self.rows[:, self.position : self.position + before_end] = rows[:, :before_end]
        self.rows[:, : count - before_end] = rows[:, before_end:]
        self.position = (self.position + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def sample(self, uniform):
        """Rows drawn with replacement.

        uniform: (P, B) numbers in [0, 1), one per row to draw -> dict name -> (P, B, width).
        """
        index = (uniform * self.size).long().clamp_(max=self.size - 1)  # rounding may reach `size`
        index += self.capacity * torch.arange(len(self.rows), device=index.device)[:, None]
        drawn = self.rows.view(-1, self.rows.shape[2]).index_select(0, index.view(-1)).view(*index.shape, -1)
        return dict(zip(self.columns, drawn.split(list(self.columns.values()), -1), strict=True))

    def state_dict(self):
        return {"rows": self.rows[:, : self.size].clone(), "size": self.size, "position": self.position}

    def load_state_dict(self, state):
        self.rows[:, : state["size"]] = state["rows"]
        self.size, self.position = state["size"], state["position"]
