"""Choice of the self-guided prompt segment: pure functions of world-model errors (Meta-DT, section 4.2)."""

import torch

SELECTIONS = ("argmax", "sample", "random", "last")


def segment_scores(errors, length):
    """Sum of the errors of the `length` steps from every start: (E, T) -> (E, T - length + 1)."""
    return errors.unfold(1, length, 1).sum(-1)


def choose_starts(errors, lengths, length, horizon, select, generator):
    """Start of the prompt segment of each episode.

    Args:
        errors: (E, T) world-model errors; what lies beyond an episode's length is ignored.
        lengths: (E,) steps of each episode.
        length: k, steps of the segment.
        horizon: h; starts below it are skipped (their contexts are padded) where the episode is long enough for others.
        select: argmax (the segment with the largest error: the paper), sample (in proportion to the error: the official code),
            random (uniform: the ablation) or last.
        generator: torch.Generator of sample and random.
    Returns: starts (E,) int64. An episode shorter than k starts at 0; the caller masks what it lacks.
    """
    errors = pad_right(errors, length)
    scores = segment_scores(errors, length)
    starts = torch.arange(scores.shape[1], device=errors.device)
    highest = (lengths - length).clamp_min(0)[:, None]
    lowest = torch.where(highest >= horizon, horizon, 0)
    valid = (starts >= lowest) & (starts <= highest)
    if select == "argmax":
        return scores.masked_fill(~valid, -torch.inf).argmax(1)
    if select == "last":
        return highest[:, 0]
    weights = scores.clamp_min(0) if select == "sample" else torch.ones_like(scores)
    weights = weights * valid
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, valid.float())  # all errors zero: uniform
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def pad_right(values, length):
    """Zeros at the end so that the second axis has at least `length` entries."""
    missing = length - values.shape[1]
    return values if missing <= 0 else torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], 1)
