"""Models and made-up data of the shapes that the figures are about: Cheetah-Vel."""

import torch

from src.data.windows import EpisodeTensors
from src.models.meta_dt import MetaDT
from src.models.world_model import CONTEXT_SIZE, WorldModel

OBSERVATION, ACTION, STEPS = 20, 6, 200
HISTORY, PROMPT, HORIZON = 20, 5, 4  # K, k, h
BATCH, WIDTH = 128, 128


def make_policy():
    return MetaDT(OBSERVATION, ACTION, STEPS, return_scale=500.0, width=WIDTH)


def make_world_model(horizon=HORIZON):
    return WorldModel(OBSERVATION, ACTION, horizon)


def make_arrays(episodes):
    """observations (E, T + 1, d_s), actions (E, T, d_a) in [-1, 1], rewards (E, T), lengths (E,)."""
    observations, rewards = torch.randn(episodes, STEPS + 1, OBSERVATION), -torch.rand(episodes, STEPS)
    actions = torch.rand(episodes, STEPS, ACTION) * 2 - 1
    return observations, actions, rewards, torch.full((episodes,), STEPS)


def make_episodes(episodes):
    """EpisodeTensors with contexts and errors drawn at random."""
    contexts, errors = torch.randn(episodes, STEPS + 1, CONTEXT_SIZE), torch.rand(episodes, STEPS)
    return EpisodeTensors(*make_arrays(episodes), contexts, errors)
