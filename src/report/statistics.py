"""Means, interquartile means and intervals over (runs × tasks) score matrices; numpy only.

A score matrix has one row per run (seed) and one column per task; every statistic also takes leading axes, so that all
bootstrap resamples are evaluated in one call. The definitions are those of Agarwal et al., "Deep Reinforcement Learning
at the Edge of the Statistical Precipice" (NeurIPS 2021), and of its package rliable, with which the tests compare them.
"""

import math

import numpy as np


def score_matrix(runs_returns):
    """Mean return of each run on each task.

    Args:
        runs_returns: per run, per task, the returns of its evaluation episodes (their numbers may differ).
    Returns:
        (runs, tasks) float64.
    """
    return np.array([[np.mean(episodes) for episodes in returns] for returns in runs_returns], dtype=np.float64)


def mean(scores):
    """(..., runs, tasks) -> (...)."""
    return np.asarray(scores).mean((-2, -1))


def iqm(scores):
    """Interquartile mean: the mean of the middle half of all run-task scores, (..., runs, tasks) -> (...).

    Of n scores, ⌊n/4⌋ are dropped at either end, as in rliable and scipy.stats.trim_mean(x, 0.25); a score on the edge
    of the middle half counts in full, not by a fraction.
    """
    scores = np.asarray(scores)
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1))
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def task_percentile(scores, percent=20):
    """Percentile over tasks of the run-averaged scores, (..., runs, tasks) -> (...); a low one shows the hard tasks."""
    return np.percentile(np.asarray(scores).mean(-2), percent, axis=-1)


def probability_of_improvement(x, y):
    """Probability that a run of x beats a run of y on a task, averaged over tasks; ties count one half.

    x (..., runs of x, tasks), y (..., runs of y, tasks) -> (...). Per task this is the Mann-Whitney U statistic divided
    by the number of pairs.
    """
    x, y = np.asarray(x)[..., :, None, :], np.asarray(y)[..., None, :, :]
    return ((x > y).mean((-3, -2)) + 0.5 * (x == y).mean((-3, -2))).mean(-1)


def mean_difference(x, y):
    """How far the mean of x (..., runs, tasks) is above that of y -> (...)."""
    return mean(x) - mean(y)


def bootstrap_interval(statistic, *scores, generator=None, repetitions=2000, confidence=0.95):
    """Two-way percentile bootstrap: whole runs and whole tasks are resampled with replacement.

    A run is one training, which serves all tasks: its scores rise and fall together, so runs are drawn whole and not task by task
    (as rliable does, for benchmarks that train on every task anew). Tasks are drawn too, so the interval speaks of other seeds
    and other tasks. Matrices that are compared share their tasks.

    Args:
        statistic: function of the score matrices that accepts leading axes (any of this module).
        scores: one or more matrices (runs, tasks) with one number of tasks; the runs of each are resampled on their own.
        generator: np.random.Generator; by default a fresh one of seed 0, so that equal data give equal intervals.
    Returns:
        (low, high) floats.
    Raises:
        ValueError: the matrices have different numbers of tasks.
    """
    generator = generator or np.random.default_rng(0)
    scores = [np.asarray(matrix, dtype=np.float64) for matrix in scores]
    (count,) = {matrix.shape[1] for matrix in scores}
    tasks = generator.integers(count, size=(repetitions, 1, count))
    drawn = []
    for matrix in scores:
        runs = generator.integers(len(matrix), size=(repetitions, len(matrix), 1))
        drawn.append(matrix[runs, tasks])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(statistic(*drawn), [tail, 100 - tail])
    return float(low), float(high)


def decimals(values, usual):
    """Decimals for numbers of one kind: the usual ones, where the largest is below 0.1 as many as show two digits of it."""
    largest = max((abs(float(value)) for value in values), default=0.0)
    return 1 - math.floor(math.log10(largest)) if 0 < largest < 0.1 else usual
