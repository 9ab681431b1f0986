"""Batch classes of the user's own: what they may do, what is refused, and that they are the environment itself."""

import sys

import gymnasium as gym
import numpy as np
import pytest

from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import successes
from src.evaluation.rollout import returns, rollout
from src.run import environment as checks
from src.run.config import EnvConfig
from src.run.errors import UserError

STEPS = 5


class LineBatch:
    """Points on a line that reach for a goal."""

    def __init__(self, tasks):
        self.goals, self.size = tasks["goal"], len(tasks["goal"])

    def reset(self, seeds):
        self.x = np.stack([np.random.default_rng(seed).uniform(-0.1, 0.1, 1) for seed in seeds]).astype(np.float32)
        self.steps, self.infos = 0, {}
        return self.x.copy()

    def step(self, actions):
        self.steps += 1
        self.x = self.x + np.float32(0.3) * actions
        self.note()
        return self.x.copy(), self.rewards()

    def note(self):
        pass

    def rewards(self):
        return -np.abs(self.x[:, 0] - self.goals).astype(np.float32)


class Line(gym.Env):
    """A batch of one row, of another class than the one on trial."""

    ends = STEPS + 1  # the step at which an episode ends on its own

    def __init__(self):
        self.tasks = {"goal": np.linspace(-1, 1, 6)}
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.task = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = (options or {}).get("task", self.task)
        self.batch = LineBatch({"goal": self.tasks["goal"][[self.task]]})
        return self.batch.reset([self.np_random])[0], {}

    def step(self, action):
        observations, rewards = self.batch.step(np.asarray(action)[None])
        steps = self.batch.steps
        return observations[0], float(rewards[0]), steps >= self.ends, steps == STEPS, {}


@pytest.fixture
def played(monkeypatch):
    """Function: methods of a LineBatch, and attributes of its Line -> one Episode of tasks 0 and 5 by the action 1."""

    def play(methods, terminates=False, **attributes):
        batch = type("Batch", (LineBatch,), methods)
        case = type("Case", (Line,), {"batch_class": batch, "__module__": __name__, **attributes})
        monkeypatch.setattr(sys.modules[__name__], "Case", case, raising=False)
        monkeypatch.setattr(checks, "_checked", set())
        env = EnvConfig("line", "Line-v0", f"{__name__}:Case", STEPS, (0, 4), (4, 6), (0, 4), terminates=terminates)
        env.make()
        return rollout(PolicyAgent(np.ones_like), make_batch(env, [0, 5]), [1, 2], STEPS)

    return play


def by_one_dict(self):
    self.infos["success"] = np.full(self.size, self.steps == 2)


def by_one_array(self):
    self.infos.setdefault("success", np.zeros(self.size))[:] = self.steps == 2


@pytest.mark.parametrize("note", [by_one_dict, by_one_array])
def test_a_batch_may_write_into_its_infos(played, note):
    episode = played({"note": note})
    np.testing.assert_array_equal(episode["infos"]["success"], [[0, 1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(successes(episode), [1, 1])


def test_an_info_under_a_name_of_the_tasks_id_is_not_recorded(played):
    episode = played({"note": lambda self: self.infos.update(Task_ID=np.zeros(self.size), speed=np.ones(self.size))})
    assert episode["infos"].keys() == {"speed"}


def test_a_batch_may_write_into_its_arrays_and_those_that_it_is_given(played):
    def reset(self, seeds):
        LineBatch.reset(self, seeds)
        return self.x

    def step(self, actions):
        actions *= np.float32(0.3)
        self.x += actions
        return self.x, self.rewards().astype(np.float64)

    ours, plain = played({"reset": reset, "step": step}), played({})
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(ours[name], plain[name])
    batch = make_batch(EnvConfig("line", "Line-v0", f"{__name__}:Case", STEPS, (0, 4), (4, 6), (0, 4)), [0])
    seen = batch.reset([0])
    assert batch.step(np.ones((1, 1), np.float32))[0][0, 0] != seen[0, 0] and batch.batch.x is not seen


def test_what_follows_an_end_is_not_paid(played):
    """Here the batch plays on, and tells the end once."""
    episode = played({"note": lambda self: self.infos.update(terminated=np.full(self.size, self.steps == 2))}, True, ends=2)
    assert episode["lengths"].tolist() == [2, 2] and not episode["rewards"][:, 2:].any() and episode["rewards"][:, :2].all()

    def some_end(self):
        self.infos = {"terminated": (self.goals < 0) & (self.steps >= 4)}  # later than the steps that are compared

    episode = played({"note": some_end}, True)
    assert episode["lengths"].tolist() == [4, 5] and (episode["rewards"] == 0).sum() == 1
    np.testing.assert_allclose(returns(episode)[0], episode["rewards"][0, :4].sum(), rtol=1e-6)
    np.testing.assert_array_equal(episode["observations"][0, 5], episode["observations"][0, 4])


def late(name, change):
    """A method that changes what LineBatch gives from step 4 on, when all has been looked at that is looked at beforehand."""
    plain = getattr(LineBatch, name)

    def method(self, *args):
        given = plain(self, *args)
        return change(given) if getattr(self, "steps", 0) >= 4 else given

    return {name: method}


def infos(make):
    def note(self):
        self.infos = make(self)

    return {"note": note}


def fail(given):
    raise KeyError("late")


REFUSED = {
    "what fails": (late("rewards", fail), r"its batch_class fails \(test_stepping.py, line \d+: KeyError: 'late'\)"),
    "another shape": (late("step", lambda given: (np.eye(2), given[1])), r"observation of shape \(2, 2\), .* says \(2, 1\)"),
    "an observation that is not finite": (late("step", lambda given: (given[0] * np.nan, given[1])), "at step 4 that is not fin"),
    "a reward that is not finite": (late("rewards", lambda given: given * np.nan), "a reward at step 4 that is not one finite"),
    "rewards in a column": (late("rewards", lambda given: given[:, None]), r"rewards of shape \(2, 1\), not \(2,\)"),
    "one reward": (late("rewards", lambda given: given[0]), "a reward at step 4 that is not one finite number"),
    "a step of three": (late("step", lambda given: (*given, {})), "must return .observations, rewards. from step"),
    "an info that goes": (infos(lambda self: {"heat": np.ones(self.size)} if self.steps < 4 else {}), "otherwise at step 4"),
    "an info of another name": (infos(lambda self: {"ab"[self.steps > 3]: np.ones(self.size)}), "'a' otherwise at step 4"),
    "no dictionary": (infos(lambda self: None), "its batch_class must keep its infos in a dictionary"),
    "success of two axes": (infos(lambda self: {"success": np.zeros((self.size, 1))}), "infos..success.. as 0 or 1 in every row"),
    "success in fractions": (infos(lambda self: {"success": np.full(self.size, 0.5)}), "infos..success.. as 0 or 1 in every row"),
    "success that is not a number": (infos(lambda self: {"success": np.full(self.size, np.nan)}), "infos..success.. as 0 or 1"),
    "an end": (infos(lambda self: {"terminated": np.ones(self.size)}), "reports infos..terminated..: write terminates: true"),
    "other rewards": ({"rewards": lambda self: LineBatch.rewards(self) + 10}, "other rewards .* in task 0 at step 1; make both"),
    "rewards of one task": ({"rewards": lambda self: -np.abs(self.x[:, 0] - self.goals[0])}, "other rewards .* in task 5 at"),
    "other starts": ({"reset": lambda self, seeds: LineBatch.reset(self, [7] * len(seeds))}, "other observations .* at step 0"),
    "one row that is none": ({"rewards": lambda self: np.squeeze(LineBatch.rewards(self))}, "not one finite number"),
    "seeds of 32 bits": ({"reset": lambda self, seeds: LineBatch.reset(self, list(map(np.random.RandomState, seeds)))},
                         r"ValueError: Seed must be between 0 and 2\*\*32 - 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_a_batch_may_not_do_is_named_in_one_line(played, case):
    methods, message = case
    with pytest.raises(UserError, match=message) as error:
        played(methods)
    assert "test_stepping:Case" in str(error.value) and "\n" not in str(error.value)


def test_a_batch_must_tell_ends_that_are_announced(played):
    with pytest.raises(
        UserError, match=r"must report infos\[.terminated.\] \(B,\), since the settings file says terminates: true"
    ):
        played({}, True, ends=2)
    tell = {"note": lambda self: self.infos.update(terminated=np.full(self.size, self.steps >= 3))}
    with pytest.raises(UserError, match=r"gives other ends than the environment alone, .*: 0, not 1, in task 0 at step 2"):
        played(tell, True, ends=2)


def test_roundings_and_randomness_are_no_disagreement(played, capsys):
    played({"rewards": lambda self: (LineBatch.rewards(self) * (1 + 1e-5)).astype(np.float32)})
    assert not capsys.readouterr().err

    def reset(self, *, seed=None, options=None):
        return Line.reset(self, options=options)

    played({"rewards": lambda self: LineBatch.rewards(self) + 10}, reset=reset)
    assert "another episode each time that it is reset by the same seed" in capsys.readouterr().err
