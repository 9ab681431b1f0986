"""The one rule that brings numbers to a common scale.

A dimension that does not vary (by NO_SPREAD of its largest number) has no unit of its own: it is divided by 1, not by a rounding
error. Standardised inputs are clipped at what the training data reached, at CLIP at least: that changes nothing in training,
and a number that training has never seen can be large, but not a thousand times what the network knows.
"""

import torch

NO_SPREAD = 1e-5  # relative to the largest number of the dimension
CLIP = 10.0  # standard deviations
EPSILON = 1e-6  # added to every spread


def spreads(deviation, largest):
    """Standard deviations (d,) -> (d,), 1 where the dimension does not vary; largest: its largest absolute number (d,)."""
    return torch.where(deviation > NO_SPREAD * largest, deviation, torch.ones_like(deviation))


def statistics(inputs, others=None):
    """Mean, divisor and bound of the standardised values, (d,) each, of training inputs (N, d).

    others: further values (M, d) that occur as targets or as other inputs. A dimension in which they go beyond CLIP
    deviations of the inputs takes its statistics from both: one that moves in the last observation only has no spread without it.
    """
    mean, deviation, (lowest, highest) = inputs.mean(0), inputs.std(0, correction=0), inputs.aminmax(dim=0)
    if others is not None:
        low, high = others.aminmax(dim=0)
        still = deviation <= NO_SPREAD * torch.maximum(lowest.abs(), highest.abs())
        reach = torch.maximum((high - mean).abs(), (low - mean).abs())
        beyond = torch.where(still, (high > highest) | (low < lowest), reach > CLIP * (deviation + EPSILON))
        lowest, highest = torch.minimum(lowest, low), torch.maximum(highest, high)
        for column in beyond.nonzero()[:, 0].tolist():
            both = torch.cat([inputs[:, column], others[:, column]])
            mean[column], deviation[column] = both.mean(), both.std(correction=0)
    divisor = spreads(deviation, torch.maximum(lowest.abs(), highest.abs())) + EPSILON
    return mean, divisor, bounds(lowest, highest, mean, divisor)


def scale_of(values):
    """As `statistics`, of values (N, d) alone and with the deviation of a sample: mean, divisor and bound, (d,) each."""
    (lowest, highest), mean = values.aminmax(dim=0), values.mean(0)
    divisor = spreads(values.std(0), torch.maximum(lowest.abs(), highest.abs())) + EPSILON
    return mean, divisor, bounds(lowest, highest, mean, divisor)


def bounds(lowest, highest, mean, divisor):
    """How far standardised inputs may go, (d,), from the range of the training inputs."""
    reached = torch.maximum((highest - mean).abs(), (lowest - mean).abs()) / divisor
    return (1.01 * reached).clamp_min(CLIP)  # a little more, so that rounding clips nothing of the training data


def clipped(values, bound):
    """Standardised inputs (..., d) within their bounds (d,)."""
    return torch.clamp(values, -bound, bound)
