"""What an acting agent remembers of its running episodes."""

FIRST_CAPACITY = 16


class Steps:
    """Values (B, ...) of step after step of B running episodes, in one growing tensor.

    A list of tensors would do, but for memory: small ones that stay, between the large ones that a model makes and frees at every
    step, keep the heap from being used again: gigabytes in hundreds of episodes.

    `steps[t]` is (B, ...), `steps[t:]` (B, n, ...): contiguous copies or views, not to be written to.
    """

    def __init__(self, first):
        self.values, self.length = first.new_empty(len(first), FIRST_CAPACITY, *first.shape[1:]), 0
        self.append(first)

    def append(self, value):
        """The value (B, ...) of one step more."""
        if self.length == self.values.shape[1]:
            grown = self.values.new_empty(len(value), 2 * self.length, *value.shape[1:])
            grown[:, : self.length] = self.values
            self.values = grown
        self.values[:, self.length] = value
        self.length += 1

    def __len__(self):
        return self.length

    def __getitem__(self, steps):
        return self.values[:, : self.length][:, steps].contiguous()

    def __setitem__(self, step, value):
        self.values[:, : self.length][:, step] = value
