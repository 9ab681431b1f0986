"""Spreads: dimensions that stand still, that move only at the end, or that go where training never was."""

import dataclasses
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import random_steps, tiny_policy, tiny_world_model

from baselines import ad
from baselines.context_rl import Normaliser
from baselines.future_statistics import Bidirectional
from baselines.online_dt.policy import ModelSettings, Policy
from src.data.scales import CLIP, clipped, spreads, statistics
from src.data.trajectories import Trajectories, observation_statistics
from src.data.windows import EpisodeTensors
from src.models.meta_dt import MetaDT
from src.models.reward_model import RewardModel
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


# every other network that is fed standardised numbers: its answer to a dimension that stood still in training


def still(constant=3.0):
    """Episodes whose first dimension and whose rewards stand still, the last observation among them."""
    t = dataset(constant)
    t.observations[:, -1, 0] = constant
    t.rewards[:] = constant
    return t


def tensors(t, first=None):
    """EpisodeTensors of Trajectories, with another number in their first dimension."""
    observations = torch.from_numpy(t.observations.copy())
    if first is not None:
        observations[..., 0] = first
    return EpisodeTensors(observations, *(torch.from_numpy(a) for a in (t.actions, t.rewards)), torch.from_numpy(t.lengths))


def normalised(t):
    normaliser = Normaliser.of(t, gym.spaces.Box(-0.1, 0.1, (2,), np.float32))
    return lambda x: normaliser.observations(tensors(t, x).observations)


def features(t):
    """Of a step from what is known to x, paid x."""
    normaliser, known = Normaliser.of(t, gym.spaces.Box(-0.1, 0.1, (2,), np.float32)), tensors(t)
    return lambda x: normaliser.features(
        known.observations[:, :-1], known.actions, torch.full_like(known.rewards, x), tensors(t, x).observations[:, 1:]
    )


def distilled(t):
    scale = ad.scale_of(torch.from_numpy(t.rewards).reshape(-1, 1))
    return lambda x: ad.scaled(torch.full((3,), x), scale)


def statistic(t):
    model = types.SimpleNamespace(history_length=5, width=16, layers=1, heads=2, dropout=0.0)
    reader = Bidirectional.of(tensors(t), model, types.SimpleNamespace(statistic_size=4)).eval()
    return lambda x: reader.read(tensors(t, x), torch.arange(2), torch.tensor([[0, 1, 2]] * 2))


def rewards(t):
    inputs = torch.from_numpy(t.observations).flatten(0, 1)
    model = RewardModel(2, 3).eval()
    model.set_normaliser(inputs, normal(len(inputs)))
    return lambda x: model(tensors(t, x).observations.flatten(0, 1), model.embedding.weight[:1])


def online(t):
    settings = ModelSettings(K=4, embed_dim=16, n_layer=1, n_head=2)
    policy = Policy(2, 2, settings, 20).eval()
    policy.set_scales(*observation_statistics(t), np.full(2, -0.1, np.float32), np.full(2, 0.1, np.float32))

    def act(x):
        steps = random_steps(2, 4)
        steps["observations"][..., 0] = x
        return policy(steps)

    return act


@pytest.mark.parametrize("network", [normalised, features, distilled, statistic, rewards, online])
def test_every_other_network_bears_a_dimension_that_stood_still(network):
    torch.manual_seed(0)
    answer = network(still())
    with torch.inference_mode():
        known, near, far, further = (answer(x) for x in (3.0, 3.001, 1e6, 1e7))
    assert (near - known).abs().max() < 0.05  # not a thousand deviations
    assert torch.equal(far, further) and not torch.equal(far, known)  # both lie at the bound
