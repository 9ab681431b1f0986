"""Statistics against numbers worked out by hand, against enumeration, and, where installed, scipy and rliable."""

from itertools import product

import numpy as np
import pytest

from src.report import statistics

SCORES = np.array([[1.0, 10.0], [3.0, 20.0], [2.0, 40.0], [6.0, 30.0]])  # 4 runs × 2 tasks; sorted 1 2 3 6 10 20 30 40


def test_score_matrix_averages_the_episodes_of_each_task():
    matrix = statistics.score_matrix([[[1, 3], [5]], [[2, 2, 5], [7, 9]]])
    np.testing.assert_array_equal(matrix, [[2, 5], [3, 8]])


def test_golden_values():
    assert statistics.mean(SCORES) == 14.0  # 112 / 8
    assert statistics.iqm(SCORES) == 9.75  # (3 + 6 + 10 + 20) / 4
    assert statistics.task_percentile(SCORES) == 7.4  # task means 3 and 25: 3 + 0.2 · 22
    assert statistics.task_percentile(SCORES, 50) == 14.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [([7], 7), ([1, 2, 9], 4), ([9, 1, 2, 3], 2.5), ([1, 2, 3, 4, 100], 3), ([0, 1, 2, 3, 4, 5, 99], 3)],
)
def test_iqm_drops_whole_scores_only(values, expected):
    assert statistics.iqm(np.array([values], dtype=float)) == expected


def test_probability_of_improvement_by_hand():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    y = np.array([[2.0, 5.0], [0.0, 9.0]])
    # task 1: pairs 1>2 no, 1>0 yes, 3>2 yes, 3>0 yes = 3/4; task 2: two ties (1/2 each), two losses = 1/4
    assert statistics.probability_of_improvement(x, y) == 0.5
    assert statistics.probability_of_improvement(y, x) == 0.5
    assert statistics.probability_of_improvement(x[:, :1], y[:, :1]) == 0.75
    assert statistics.probability_of_improvement(SCORES, SCORES[:1] - 100) == 1.0  # different numbers of runs


@pytest.mark.parametrize("statistic", [statistics.mean, statistics.iqm, statistics.task_percentile])
def test_leading_axes_are_independent(statistic):
    stack = np.stack([SCORES, SCORES[::-1] * 2, SCORES - 5])
    np.testing.assert_allclose(statistic(stack), [statistic(scores) for scores in stack])


def test_interval_by_hand():
    """Two runs, two tasks: each resample is a pair of runs and a pair of tasks, 16 in all."""
    scores = np.array([[0.0, 8.0], [2.0, 20.0]])
    values = [scores[np.ix_(runs, tasks)].mean() for runs in product((0, 1), repeat=2) for tasks in product((0, 1), repeat=2)]
    low, high = statistics.bootstrap_interval(statistics.mean, scores, repetitions=20000, confidence=0.8)
    assert low == pytest.approx(np.quantile(values, 0.1, method="inverted_cdf"))
    assert high == pytest.approx(np.quantile(values, 0.9, method="inverted_cdf"))


def test_a_run_is_resampled_whole():
    """Runs that differ alike on all tasks: the error of their mean does not shrink with the number of tasks."""
    scores = np.repeat([[-22.5], [-24.2], [-34.4]], 50, axis=1)  # three trainings, one of them worse on everything
    low, high = statistics.bootstrap_interval(statistics.mean, scores, repetitions=20000)
    means = [np.mean(runs) for runs in product((-22.5, -24.2, -34.4), repeat=3)]
    assert low == pytest.approx(min(means)) and high == pytest.approx(max(means))


def test_tasks_are_resampled():
    scores = np.array([[0.0, 100.0], [0.0, 100.0], [0.0, 100.0]])  # no variation between runs, much between tasks
    assert statistics.bootstrap_interval(statistics.mean, scores) == (0.0, 100.0)
    with pytest.raises(ValueError):
        statistics.bootstrap_interval(statistics.probability_of_improvement, scores, scores[:, :1])


def test_compared_methods_share_the_tasks_drawn():
    """x beats y by 1 on every task, however much the tasks differ: the difference has no width."""
    y = np.tile([0.0, 50.0, 300.0], (4, 1))
    gap = lambda x, y: x.mean((-2, -1)) - y.mean((-2, -1))  # noqa: E731
    assert statistics.bootstrap_interval(gap, y + 1, y) == pytest.approx((1.0, 1.0))


def test_interval_is_reproducible_and_takes_a_generator():
    first = statistics.bootstrap_interval(statistics.iqm, SCORES)
    assert first == statistics.bootstrap_interval(statistics.iqm, SCORES)
    other = statistics.bootstrap_interval(statistics.iqm, SCORES, generator=np.random.default_rng(7), repetitions=50)
    assert other != first
    narrow = statistics.bootstrap_interval(statistics.iqm, SCORES, confidence=0.5)
    assert first[0] <= narrow[0] < narrow[1] <= first[1]


def test_interval_of_a_comparison_resamples_both_sides():
    generator = np.random.default_rng(3)
    x, y = generator.normal(0.5, 1, (8, 4)), generator.normal(0, 1, (6, 4))
    low, high = statistics.bootstrap_interval(statistics.probability_of_improvement, x, y)
    assert low < statistics.probability_of_improvement(x, y) < high
    assert 0.1 < high - low < 0.6


def test_coverage_is_near_its_nominal_value():
    """Runs and tasks drawn anew each time, each with an effect of its own."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        scores = 10 + generator.normal(0, 2, (10, 1)) + generator.normal(0, 3, (1, 12)) + generator.normal(0, 1, (10, 12))
        low, high = statistics.bootstrap_interval(statistics.mean, scores, generator=generator, repetitions=400)
        hits += low <= 10 <= high
    assert 0.85 <= hits / 200 <= 0.98  # the percentile method with ten runs is known to be a little narrow


def test_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    for runs, tasks in [(1, 5), (3, 5), (5, 5), (4, 7)]:
        x, y = generator.normal(size=(runs, tasks)), generator.integers(-2, 2, (3, tasks)).astype(float)
        assert statistics.iqm(x) == pytest.approx(stats.trim_mean(x, 0.25, axis=None))
        wins = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(y.T, y[::-1].T + 1, strict=True)]
        assert statistics.probability_of_improvement(y, y + 1) == pytest.approx(np.mean(wins))


def test_agrees_with_rliable():
    metrics = pytest.importorskip("rliable.metrics")
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(6, 5)), generator.normal(size=(4, 5))
    assert statistics.iqm(x) == pytest.approx(metrics.aggregate_iqm(x))
    assert statistics.mean(x) == pytest.approx(metrics.aggregate_mean(x))
    assert statistics.probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))
