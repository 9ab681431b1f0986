"""What a former stage left belongs to the environment that is played now, or is refused."""

import dataclasses

import numpy as np
import pytest
from helpers import point_robot

from src.data.origin import check_settings, check_tasks
from src.run.errors import UserError

ENV = dataclasses.replace(point_robot(), options=(("sign", 1), ("wind", 0.5)))
MADE = {"entry_point": ENV.entry_point, "options": dict(ENV.options), "max_episode_steps": ENV.max_episode_steps}


@pytest.mark.parametrize("made", [MADE, {}, {"entry_point": ENV.entry_point, "options": [["wind", 0.5], ["sign", 1]]}])
def test_what_is_not_recorded_is_not_compared(made):
    check_settings(made, ENV, "the dataset was made", "make it again")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (MADE | {"options": {"sign": -1, "wind": 0.5}}, r"the dataset was made with other options \(sign\): make it again"),
        (MADE | {"options": {"sign": 1, "push": 2}}, r"with other options \(push, wind\)"),
        ({"entry_point": ENV.entry_point}, r"with other options \(sign, wind\)"),  # none are left out
        (MADE | {"max_episode_steps": 5}, "with max_episode_steps 5, point_robot has 20: make it again"),
        (MADE | {"entry_point": "other:Env"}, "made in other:Env, not in envs.point_robot:PointRobotEnv: make it again"),
    ],
)
def test_other_settings_are_refused(made, message):
    with pytest.raises(UserError, match=message):
        check_settings(made, ENV, "the dataset was made", "make it again")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({3: {"goal": [1.0, 0.0]}}, r"task 3 of the dataset has goal \[1.0, 0.0\], .*make it again; .*give it a fixed seed"),
        ({3: {"goal": [1.0, 1.0, 1.0]}}, "task 3 of the dataset has goal"),  # another shape
        ({3: {"goal": 1.0}}, "task 3 of the dataset has goal"),  # which NumPy would broadcast
        ({3: {"aim": [1.0, 1.0]}}, "task 3 of the dataset is told by aim, that of point_robot by goal: make it again"),
        ({3: {}}, "is told by nothing, that of point_robot by goal"),
        ({3: {"goal": [1.0, 1.0], "wind": 0.0}}, "is told by goal, wind, that"),
        ({4: {"goal": [1.0, 1.0]}}, "task id 4 of the dataset is unknown: point_robot has tasks 0 to 3"),
    ],
)
def test_other_tasks_are_refused(told, message):
    environment = point_robot().make()
    environment.tasks = {"goal": np.ones((4, 2))}
    check_tasks({0: {"goal": [1.0, 1.000001]}}, ENV, environment, "the dataset", "make it again")
    with pytest.raises(UserError, match=message):
        check_tasks(told, ENV, environment, "the dataset", "make it again")
