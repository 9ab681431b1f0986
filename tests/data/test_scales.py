"""Spreads: dimensions that stand still, that move only at the end, or that go where training never was."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import random_steps, tiny_policy, tiny_world_model

from src.data.scales import CLIP, clipped, spreads, statistics
from src.data.trajectories import Trajectories, observation_statistics
from src.models.meta_dt import MetaDT
from src.models.world_model import WorldModel


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ordinary_dimensions_keep_their_deviation_bit_for_bit():
    values, after = 5 + 3 * normal(500, 4), 5 + 3 * normal(500, 4, seed=1)
    mean, divisor, bound = statistics(values, after)
    assert torch.equal(mean, values.mean(0)) and torch.equal(divisor, values.std(0, correction=0) + 1e-6)
    assert torch.equal(clipped((values - mean) / divisor, bound), (values - mean) / divisor)
    assert bound.tolist() == [CLIP] * 4


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_dimension_without_spread_is_divided_by_one(scale):
    deviation = scale * torch.tensor([0.0, 1e-7, 0.5])
    assert spreads(deviation, torch.full((3,), scale)).tolist() == [1, 1, deviation[2]]
    assert spreads(torch.zeros(1), torch.zeros(1)).tolist() == [1]


def test_a_dimension_that_moves_only_at_the_end_has_the_spread_of_all():
    values, after = normal(1000, 3), normal(1000, 3, seed=1)
    values[:, 0] = 2
    values[:, 1] = 1e-4 * normal(1000, seed=2)
    after[:, :2] = values[:, :2]
    after[::20, :2] = 5.0
    mean, divisor, bound = statistics(values, after)
    reached = (torch.cat([values, after]) - mean) / divisor
    assert reached.abs().max() < CLIP and reached.square().mean(0)[:2].tolist() == pytest.approx([1, 1], rel=1e-3)
    assert torch.equal(divisor[2], values[:, 2].std(correction=0) + 1e-6)
    rare = after.clone()
    rare[20:, :2] = values[20:, :2]
    mean, divisor, bound = statistics(values, rare)
    reached = (torch.cat([values, rare]) - mean) / divisor
    assert torch.equal(clipped(reached, bound), reached)  # what training saw is never clipped


def test_the_world_model_bears_what_stands_still_and_what_ends_elsewhere():
    rewards, observations, after = normal(400, 1), normal(400, 3), normal(400, 3, seed=1)
    observations[:, 0], after[:, 0] = 1, 1
    observations[:, 1], after[:, 1] = 0, 0
    after[::20, 1] = 3.0
    model = tiny_world_model(3, 2)
    model.set_normaliser(observations, normal(400, 2), rewards, after)
    assert model.standardise("observation", after).abs().max() < 20
    near, far = observations.clone(), observations.clone()
    near[:, 0], far[:, 0] = 1.001, 1e9
    for moved, largest in ((near, 0.002), (far, CLIP)):
        found = model.as_input("observation", moved)
        assert (found - model.as_input("observation", observations)).abs().max() <= largest


def test_without_a_normaliser_nothing_is_clipped():
    """The official code does not standardise: its inputs are as they are."""
    model, far = WorldModel(3, 2, 4), torch.tensor([[1e3, -1e5, 11.0]])
    assert torch.equal(model.as_input("observation", far), far)
    policy, steps = MetaDT(2, 2, 20, 10.0, width=16, layers=1, heads=2).eval(), random_steps(1, 4)
    steps["observations"][..., 0] = 50.0
    near = dict(steps, observations=steps["observations"].clamp(max=10.0))
    assert not torch.equal(policy(steps), policy(near))


def dataset(constant):
    observations = np.random.default_rng(0).normal(size=(4, 21, 2)).astype(np.float32)
    observations[..., 0] = constant
    observations[:, -1, 0] = 7  # where no action is chosen
    return Trajectories(
        observations, np.zeros((4, 20, 2), np.float32), np.zeros((4, 20), np.float32), np.full(4, 20), np.zeros(4)
    )


def test_a_policy_bears_a_dimension_that_stood_still():
    policy = tiny_policy()
    for constant in (0, 0.3, 1e4):
        policy.set_normaliser(*(torch.from_numpy(values) for values in observation_statistics(dataset(constant))))
        assert policy.observation_std[0] == 1 and policy.observation_mean[0] == pytest.approx(constant)
        steps = random_steps(2, 4)
        steps["observations"][..., 0] = constant
        before = policy(steps)
        steps["observations"][..., 0] = constant + 0.001 * max(constant, 1)
        assert (policy(steps) - before).abs().max() < 0.05 * max(constant, 1) ** 0.5
        steps["observations"][..., 0], other = constant + 1e6, dict(steps)
        other["observations"] = steps["observations"].clone()
        other["observations"][..., 0] = constant + 1e7
        assert torch.equal(policy(steps), policy(other))  # both lie at the bound


def test_a_dimension_that_goes_far_in_training_may_go_there():
    t = dataset(0)
    t.observations[0, 3, 0] = 100
    t = dataclasses.replace(t, observations=np.concatenate([t.observations] * 10), actions=np.concatenate([t.actions] * 10),
                            rewards=np.concatenate([t.rewards] * 10), lengths=np.full(40, 20), task_ids=np.zeros(40))  # fmt: skip
    mean, std, bound = observation_statistics(t)
    assert (100 - mean[0]) / (std[0] + 1e-6) < bound[0] and bound[1] == CLIP
