"""stable-baselines3's agents: what breaks the contract, or their training, ends in one line."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ROOT

from src.behaviour.sac import CheckedEnvironment, SegmentedSAC
from src.behaviour.settings import AgentSettings
from src.run.config import read_env, read_yaml
from src.run.errors import UserError
from tests.toy.slide import SlideEnv

TOY = ROOT / "tests" / "toy" / "slide.yaml"
change = None  # what `Late` makes of its fourth step


class Late(gym.Wrapper):
    """The toy, whose steps are as they should be while they are looked at first."""

    def __init__(self):
        super().__init__(SlideEnv())
        self.tasks = self.env.tasks

    def step(self, action):
        result = self.env.step(action)
        return change(*result) if change and self.env.steps == 4 else result


def late_env():
    return read_env(TOY, read_yaml(TOY) | {"entry_point": f"{__name__}:Late"})


def learner(**settings):
    run = SimpleNamespace(env=late_env(), seed=0, device=torch.device("cpu"))
    small = {"learning_starts": 2, "batch_size": 4, "buffer_size": 50, "hidden_sizes": (4,)}
    return SegmentedSAC(run, AgentSettings(**small | settings), 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda o, *rest: (o[:1], *rest), r"returned an observation of shape \(1,\), its observation_space says \(2,\)"),
        (lambda o, *rest: (o * np.nan, *rest), "an observation at step 4 that is not finite"),
        (lambda o, r, *rest: (o, np.inf, *rest), "a reward at step 4 that is not one finite number"),
        (lambda o, r, end, *rest: (o, r, True, *rest), "terminated at step 4; episodes have a fixed length"),
        (lambda *_: {}[0], r"step fails \(test_sac.py, line \d+: KeyError: 0\)"),
    ],
)
def test_a_step_that_breaks_the_contract_late(monkeypatch, broken, message):
    model = learner(learning_starts=100)
    monkeypatch.setattr(f"{__name__}.change", broken)
    with pytest.raises(UserError, match=message):
        model.learn(10)


@pytest.mark.parametrize(
    ("settings", "scale"), [({"learning_rate": 1e300}, 1), ({"learning_rate": 1e30}, 1), ({"learning_starts": 0}, 1e38)]
)
def test_a_training_that_breaks_down(monkeypatch, settings, scale):
    monkeypatch.setattr(f"{__name__}.change", lambda o, *rest: (np.float32(scale) * o / np.abs(o).max(), *rest))
    with pytest.raises(UserError, match=r"training of task 1 broke down .*: lower --learning_rate, or look for extreme values"):
        learner(**settings).learn(30)


def test_a_checked_environment_is_the_environment():
    """Its generator goes on from one reset to the next, and later resets keep the task."""
    checked, plain = CheckedEnvironment(late_env(), 0), SlideEnv()
    for told in ({"seed": 3, "options": {"task": 5}}, {"seed": None}, {"seed": None}):
        assert np.array_equal(checked.reset(**told)[0], plain.reset(**told)[0])
        for step in range(6):
            ours, theirs = (environment.step(np.array([0.5])) for environment in (checked, plain))
            assert np.array_equal(ours[0], theirs[0]) and ours[1:4] == (np.float32(theirs[1]), False, step == 5)
