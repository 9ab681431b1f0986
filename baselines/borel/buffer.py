"""Storage of complete roll-outs, from which transitions or whole roll-outs are drawn."""

import torch


class RolloutBuffer:
    """The latest roll-outs of each of N tasks (or agents), in tensors that grow as they fill.

    Keys: states (T + 1, D), the row after the last step included; actions (T[, d_a]), rewards (T,), and any other (T, ...).

    Args:
        tasks: N. capacity: roll-outs kept per task; the oldest are overwritten. steps: T.
    """

    def __init__(self, tasks, capacity, steps):
        self.capacity, self.steps = capacity, steps
        self.counts = torch.zeros(tasks, dtype=torch.long)  # roll-outs ever added
        self.arrays = {}

    @classmethod
    def full(cls, arrays):
        """A buffer that holds given arrays (N, R, ...), without a copy."""
        tasks, rollouts, steps = arrays["rewards"].shape
        buffer = cls(tasks, rollouts, steps)
        buffer.arrays, buffer.counts = arrays, buffer.counts + rollouts
        return buffer

    @property
    def filled(self):
        """Roll-outs that each task holds, (N,)."""
        return self.counts.clamp(max=self.capacity)

    def add(self, tasks, arrays):
        """Append n roll-outs to each of `tasks` (A,), all different: dict of tensors (A, n, ...)."""
        tasks = torch.as_tensor(tasks)
        number = arrays["rewards"].shape[1]
        arrays = {key: values[:, -self.capacity :] for key, values in arrays.items()}
        kept = arrays["rewards"].shape[1]
        self._grow(int((self.filled[tasks] + kept).clamp(max=self.capacity).max()), arrays)
        slots = (self.counts[tasks][:, None] + torch.arange(number - kept, number)) % self.capacity
        for key, values in arrays.items():
            self.arrays[key][tasks[:, None], slots] = values
        self.counts[tasks] += number

    def _grow(self, wanted, examples):
        held = next(iter(self.arrays.values())).shape[1] if self.arrays else 0
        if wanted <= held:
            return
        size = min(self.capacity, max(wanted, 2 * held))
        for key, values in examples.items():
            larger = torch.zeros(len(self.counts), size, *values.shape[2:], dtype=values.dtype)
            if held:
                larger[:, :held] = self.arrays[key]
            self.arrays[key] = larger

    def draw(self, tasks, draws, generator):
        """Random transitions of `tasks` (A,): obs, actions, rewards, next_obs, terminated, each (A, draws, ...).

        terminated is 1 where the arrays say so: the last step of a roll-out is valued by what follows it.
        """
        held = self.arrays["rewards"].shape[1]
        limit = self.filled[tasks][:, None] * self.steps
        number = (torch.rand(len(tasks), draws, generator=generator, dtype=torch.float64) * limit).long()
        first = tasks[:, None] * held
        states, steps = first * (self.steps + 1) + number + number // self.steps, first * self.steps + number
        flat = {key: self.arrays[key].flatten(0, 2) for key in ("states", "actions", "rewards")}
        terminated = torch.zeros(number.shape)
        if "terminated" in self.arrays:
            terminated = self.arrays["terminated"].flatten(0, 2)[steps].float()
        return flat["states"][states], flat["actions"][steps], flat["rewards"][steps], flat["states"][states + 1], terminated

    def draw_rollouts(self, tasks, number, generator):
        """`number` random roll-outs of each of `tasks` (A,): dict of tensors (A · number, T, ...)."""
        chosen = (torch.rand(len(tasks), number, generator=generator, dtype=torch.float64) * self.filled[tasks][:, None]).long()
        return {key: values[tasks[:, None], chosen].flatten(0, 1) for key, values in self.arrays.items()}

    def ordered(self, task):
        """All roll-outs of one task, oldest first: dict of arrays (R, ...)."""
        count, filled = int(self.counts[task]), int(self.filled[task])
        order = torch.arange(count - filled, count) % self.capacity
        return {key: values[task, order].numpy() for key, values in self.arrays.items()}

    def state_dict(self):
        used = int(self.filled.max())
        return {"counts": self.counts.clone(), "arrays": {key: values[:, :used].clone() for key, values in self.arrays.items()}}

    def load_state_dict(self, state):
        self.counts, self.arrays = state["counts"], state["arrays"]
