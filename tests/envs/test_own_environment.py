"""An environment of the user's own: the example of the documentation, what is refused, and that no wrapper is left out."""

import dataclasses
import importlib
import re
import shutil
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import yaml
from helpers import ROOT, SCRIPTS, assert_refused, shell

from envs import base
from envs.point_robot import PointRobotEnv
from src.behaviour.collect import join_tasks
from src.behaviour.policies import make_frame, task_features
from src.behaviour.scripted import scripted
from src.behaviour.store import Source, load_behaviour
from src.data.relabel import EnvironmentRewards
from src.data.trajectories import Trajectories, load
from src.evaluation import references
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import EnvironmentLoop, make_batch
from src.evaluation.rollout import rollout
from src.run import environment as checks
from src.run.command_line import parse_args
from src.run.config import is_published, read_env, read_yaml
from src.run.errors import UserError
from src.run.stepping import recorded_infos

EXAMPLE = ROOT / "examples" / "reach.yaml"


def example_env():
    return read_env(EXAMPLE, read_yaml(EXAMPLE))


def settings_of(entry_point, **more):
    """EnvConfig of the example with another entry point."""
    return read_env(EXAMPLE, read_yaml(EXAMPLE) | {"entry_point": entry_point} | more)


def play(env, batch, policy, seeds):
    """One episode per row. policy: function observations (B, d_s) -> actions (B, d_a)."""
    return rollout(PolicyAgent(policy), batch, seeds, env.max_episode_steps)


# ------------------------------------------------------------------------------------------------------------- the example


@pytest.mark.long
def test_the_example_runs_through_all_scripts_from_a_folder_of_its_own(tmp_path):
    """Its module lies beside the settings file, in a folder that Python does not know."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("reach.yaml", "reach.py"):
        shutil.copy(EXAMPLE.with_name(name), folder)
    flags = ["--config", folder / "reach.yaml", "--recipe", "debug", "--output_dir", tmp_path / "out", "--no-tensorboard"]
    model = tmp_path / "out/saves/reach/random/context+debug-decode_relabelled/seed_0"
    more = {"get_datasets": ["--task_id_end", 20], "train_context": ["--decode", "relabelled"],
            "train_meta_dt": ["--world_model", model, "--other_tasks", "training", "--render", tmp_path / "a.gif"]}  # fmt: skip
    for script in SCRIPTS:
        data = [] if script == "train_data_collection" else ["--data_type", "random"]
        done = shell(script, *flags, *data, *more.get(script, []))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.gif").stat().st_size > 0
    assert list((tmp_path / "out" / "results").rglob("*.json"))
    page = (ROOT / "docs" / "own_environment.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    trained = next((tmp_path / "out" / "saves").rglob("agent.json")).parent
    lines = re.sub(r'load_agent\(".*?"\)', "load_agent(trained)", lines).replace("examples", str(folder))
    names = {"trained": trained}
    exec(lines, names)
    assert names["episode"] == 3 and names["truncated"]


def test_the_examples_batch_is_its_environment():
    env = example_env()
    rows, seeds = np.array([3, 3, 17]), np.array([5, 6, 7])
    actions = np.random.default_rng(0).uniform(-1, 1, (env.max_episode_steps, 3, 2)).astype(np.float32)
    played, looped = [], EnvironmentLoop(env, rows)
    looped.action_space = env.make().action_space
    for batch in (make_batch(env, rows), looped):
        following = iter(actions)
        played.append(play(env, batch, lambda observations, following=following: next(following), seeds))
    ours, theirs = played
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_allclose(ours["infos"]["heat"], theirs["infos"]["heat"], rtol=1e-6)
    tasks = {"goal": env.make().tasks["goal"][rows][:, None]}
    seen = ours["observations"]
    again = env.make().compute_rewards(seen[:, :-1], ours["actions"], seen[:, 1:], tasks, ours["infos"])
    np.testing.assert_allclose(again, ours["rewards"], atol=1e-6)
    with pytest.raises(ValueError, match="need the recorded info heat"):
        env.make().compute_rewards(seen[:, :-1], ours["actions"], seen[:, 1:], tasks)


def test_page_and_example_name_every_optional_part():
    """envs/base.py has the list. The page's table holds all of it; what the example has not, its first lines name."""
    listed = base.__doc__.split("and may offer")[1].split("Our families")[0]
    parts = set(re.findall(r"^    (\w+)[ (]", listed, re.MULTILINE))
    assert len(parts) == 14 and {"compute_success", "render_mode", "infer_tasks"} < parts
    table = (ROOT / "docs" / "own_environment.md").read_text().split("| part |")[1].split("\n\n")[0]
    names = set(re.findall(r"`(\w+)", "".join(line.split(" | ")[0] for line in table.splitlines())))
    assert not parts - names
    environment = example_env().make()
    left_out = re.search(r"Left out: (.*?)\.", sys.modules["reach"].__doc__)[1]
    assert {part for part in parts if not hasattr(environment, part)} == set(re.split(r", | and ", left_out))


def test_the_horizon_is_that_of_the_settings_file():
    env = settings_of("reach:ReachEnv", max_episode_steps=4)
    environment = env.make()
    environment.reset(seed=0, options={"task": 2})
    assert [environment.step(np.zeros(2))[3] for _ in range(4)] == [False, False, False, True]


# ----------------------------------------------------------------------------------------------------------------- wrappers


def scaled():
    """The example, paid ten times as much."""
    import reach

    return gym.wrappers.TransformReward(reach.ReachEnv(max_episode_steps=15), lambda reward: 10 * reward)


def test_a_wrapper_is_played_and_nothing_inside_it_is_used():
    example_env()  # makes the module importable
    wrapped, plain = settings_of(f"{__name__}:scaled"), example_env()
    seeds, zeros = np.array([1, 2]), lambda observations: np.zeros((2, 2))
    ours, theirs = (play(env, make_batch(env, [0, 5]), zeros, seeds)["rewards"] for env in (wrapped, plain))
    np.testing.assert_allclose(ours, 10 * theirs, rtol=1e-6)
    environment = wrapped.make()
    assert checks.batch_class(environment) is None and checks.batch_class(plain.make()) is not None
    with pytest.raises(UserError, match=r"needs TransformReward\.compute_rewards, which it lacks"):
        EnvironmentRewards(environment, None)
    assert make_frame(environment, [0]) is None
    assert task_features(environment, range(16)).shape == (20, 2)  # the parameters themselves


def halved():
    """Point-Robot, paid half as much."""
    return gym.wrappers.TransformReward(PointRobotEnv(), lambda reward: reward / 2)


def test_a_wrapped_family_of_ours_pays_what_its_wrapper_says():
    path = ROOT / "configs" / "point_robot.yaml"
    document = read_yaml(path)
    wrapped, plain = read_env(path, document | {"entry_point": f"{__name__}:halved"}), read_env(path, document)
    ours, theirs = (play(env, make_batch(env, [4]), lambda o: 0 * o + 0.05, [0])["rewards"] for env in (wrapped, plain))
    np.testing.assert_allclose(ours, theirs / 2, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------- what cannot be used


CODE = (ROOT / "tests" / "toy" / "slide.py").read_text()
TASKS = '{"mark": np.linspace(-1, 1, 8)}'
END = "self.steps >= 6, {}"
BOX = "gym.spaces.Box(-1, 1, (1,), np.float32)"
SEEN = "gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)"
REFUSED = {
    "parameter called task": (TASKS, '{"task": np.linspace(-1, 1, 8)}', "a task parameter is named 'task'"),
    "parameter with a slash": (TASKS, '{"a/b": np.linspace(-1, 1, 8)}', "'a/b' has no usable name"),
    "parameter of text": (TASKS, '{"mark": np.array(list("abcdefgh"))}', "'mark' is no array of numbers"),
    "parameter in a list": (TASKS, '{"mark": [[1], [2, 3]] * 4}', "'mark' is no array of numbers"),
    "parameter without rows": (TASKS, '{"mark": np.array(3.0)}', "'mark' must have a row per task"),
    "masked parameter": (TASKS, '{"mark": np.ma.masked_array(np.ones(8), [1] + [0] * 7)}', "'mark' is no array of numbers"),
    "parameters that change": (TASKS, '{"mark": np.random.rand(8)}', "another task table each time that it is made"),
    "infinite parameter": (TASKS, '{"mark": np.full(8, np.inf)}', "'mark' must have a row per task, of finite numbers"),
    "parameter beyond float32": (TASKS, '{"mark": np.linspace(-1, 1, 8) * 1e300}', "finite numbers that float32 can hold"),
    "parameter of 128 bits": (TASKS, '{"mark": np.linspace(-1, 1, 8, dtype=np.longdouble)}', "float128: make it np.float64"),
    "info of 400 digits": (END, 'self.steps >= 6, {"x": 10**400}', "the info 'x' is too large a number"),
    "info that grows to 400 digits": (END, 'self.steps >= 6, {"x": 10 ** (100 * self.steps)}', "the info 'x' is too large"),
    "complex info": (END, 'self.steps >= 6, {"x": 1j}', "the info 'x' is complex: give its real and imaginary part"),
    "info of complex numbers": (END, 'self.steps >= 6, {"x": np.ones(2, np.complex64)}', "the info 'x' is complex"),
    "complex info of NumPy": (END, 'self.steps >= 6, {"x": np.complex64(1)}', "the info 'x' is complex"),
    "infos of a batch that are complex": ("    def __init__(self):", '''    class batch_class:
        def __init__(self, tasks):
            self.infos = {"x": np.ones(2, complex)}

        def reset(self, seeds):
            return np.zeros((2, 2))

        def step(self, actions):
            return np.zeros((2, 2)), np.zeros(2)

    def __init__(self):''', "must report infos..x.. as an array of numbers with a value per row"),
    "unequal parameters": (TASKS, '{"mark": np.linspace(-1, 1, 8), "mass": np.ones(7)}', r"unequal length \(mark 8, mass 7\)"),
    "parameter with a long name": (TASKS, '{"x" * 70_000: np.linspace(-1, 1, 8)}', "has no usable name"),
    "parameter called as the task's id": (TASKS, '{"task_id": np.arange(8.0)}', "as the task's number in a dataset is"),
    "parameter with a line break": (TASKS, '{"a\\nb": np.linspace(-1, 1, 8)}', "has no usable name"),
    "empty info": (END, 'self.steps >= 6, {"x": np.zeros(0)}', r"the info 'x' has shape \(0,\): give a number, or an array"),
    "info of five axes": (END, 'self.steps >= 6, {"x": np.zeros((1, 1, 1, 1, 2))}', r"'x' has shape \(1, 1, 1, 1, 2\)"),
    "no observations": (SEEN, "gym.spaces.Box(-1, 1, (0,))", "has no observations: a Box needs a number at least"),
    "no actions": (BOX, "gym.spaces.Box(-1, 1, (0,))", "has no actions: a Box needs a number at least"),
    "whole actions": (BOX, "gym.spaces.Box(-1, 1, (1,), np.int32)", "acts in a Box of int32, and policies give fractions"),
    "actions without end": (BOX, "gym.spaces.Box(-3e38, 3e38, (1,))", "an action space without bounds"),
    "one action": (BOX, "gym.spaces.Box(0, 0, (1,))", "without bounds: give its Box finite low and high"),
    "actions of float64": (BOX, "gym.spaces.Box(-1e300, 1e300, (1,), np.float64)", "an action space without bounds"),
    "actions beyond all measure": (BOX, "gym.spaces.Box(-1e16, 1e16, (1,))", "low below high in float32 and both within 1e.15"),
    "actions that float32 takes for one": (BOX, "gym.spaces.Box(1, 1 + 1e-12, (1,), np.float64)", "low below high in float32"),
    "actions that float32 takes for zero": (BOX, "gym.spaces.Box(-1e-60, 1e-60, (1,), np.float64)", "low below high in float32"),
    "an end that is an array": (END, "np.array([True, False]), {}", "step returned truncated that is not True or False"),
    "an end that is a text": (END, '"no", {}', "step returned truncated that is not True or False"),
    "an end that is nothing": (END, "None, {}", "step returned truncated that is not True or False"),
    "a step of the old gym": ("reward, False, self.steps", "reward, self.steps", "step must return .observation, reward"),
    "a reset of the old gym": ("float32), {}\n\n", "float32)\n\n", r"reset must return \(observation, info\)"),
    "a reset without options": ("seed=None, options=None", "seed=None", r"reset fails .*TypeError: .*'options'"),
    "a reset that fails": ("self.steps = 0", 'raise OSError("no engine")', r"reset fails \(refused_.*, line \d+: OSError: no"),
    "a step that fails": ("self.steps += 1", "self.steps += 1 / 0", r"step fails \(refused_.*py, line \d+: ZeroDivisionError"),
    "a step that fails later": ("self.steps += 1", 'self.steps += 1\n        assert self.steps < 3, "a\\nb"',
                                r"step fails \(.* AssertionError: a b\)"),
    "a reward of text": ("reward, False", '"a", False', "a reward at step 1 that is not one finite number"),
    "a reward in a list": ("reward, False", "[reward], False", "a reward at step 1 that is not one finite number"),
    "a reward beyond float32": ("reward, False", "1e39, False", "a reward at step 1 that is not one finite number"),
    "an observation in a dict": ("self.state.astype(np.float32), reward", '{"a": 1}, reward', "no array of numbers"),
    "a module that fails": ("import numpy as np", "import numpy as np\nnobody", r"made \(refused_.*, line 5: NameError"),
    "a module that ends": ("import numpy as np", "import numpy as np\nraise SystemExit(0)", "cannot be made .*SystemExit: 0"),
    "a class that fails": ("self.task = 0", "self.task = {}[0]", r"cannot be made \(refused_.*, line \d+: KeyError: 0\)"),
    "a batch that fails": ("    def __init__(self):", "    batch_class = dict\n\n    def __init__(self):",
                           "its batch_class fails"),
    "info called terminated": (END, 'self.steps >= 6, {"terminated": self.steps == 3}', "an info is named 'terminated'"),
    "info with a slash": (END, 'self.steps >= 6, {"a/b": 1.0}', "the info 'a/b' has no usable name"),
    "info at some steps": (END, 'self.steps >= 6, {"late": 1.0} if self.steps > 1 else {}', "info 'late' otherwise at step 2"),
    "info that comes late": (END, 'self.steps >= 6, {"late": 1.0} if self.steps > 4 else {}', "info 'late' otherwise at step 5"),
    "info that grows": (END, 'self.steps >= 6, {"seen": np.zeros(self.steps)}', "info 'seen' otherwise at step 2"),
    "no dictionary": (END, "self.steps >= 6, None", "infos that are no dictionary"),
    "info_keys not reported": ("self.task = 0", 'self.task, self.info_keys = 0, ("speed",)', "does not report the info 'speed'"),
    "info_keys with a task's id": (
        "self.task = 0", 'self.task, self.info_keys = 0, ("task_id",)', "names 'task_id', as a task's id is called in a dataset"),
    "info_keys in a text": ("self.task = 0", 'self.task, self.info_keys = 0, "speed"', "must be a tuple of names, not 'speed'"),
    "hidden parameter unknown": ("self.task = 0", 'self.task, self.hidden_parameters = 0, ("mark", "mrak")', "'mrak' in hidd"),
    "hidden parameter in a text": ("self.task = 0", 'self.task, self.hidden_parameters = 0, "mark"', "of names, not 'mark'"),
    "no hidden parameter": ("self.task = 0", "self.task, self.hidden_parameters = 0, ()", "hidden_parameters name none of mark"),
    "success that is not a number": (END, 'self.steps >= 6, {"success": np.nan}', "'success' is nan: give 0 or 1"),
    "success that is negative": (END, 'self.steps >= 6, {"success": -1}', "'success' is -1: give 0 or 1"),
    "success of two": (END, 'self.steps >= 6, {"success": np.ones(2)}', "'success' is .1. 1..: give 0 or 1"),
    "a task that is forgotten": ('"task", self.task', '"task", 0', "reset without options changes the task"),
    "a task that every reset needs": ('(options or {}).get("task", self.task)', 'options["task"]', "reset fails .*TypeError"),
    "seeds of 32 bits": ("super().reset(seed=seed)", "super().reset(seed=np.random.RandomState(seed).randint(9))",
                         r"reset fails .*ValueError: Seed must be between 0 and 2\*\*32 - 1"),
    "fractions of integers": (SEEN, "gym.spaces.Box(-9, 9, (2,), np.int64)", "fractions, and its observation_space is of int64"),
    "no end": (END, "False, {}", "truncated=False at step 6, but max_episode_steps is 6"),
    "discrete actions": (BOX, "gym.spaces.Discrete(3)", "acts in a Discrete: only BOReL's methods take discrete actions"),
    "actions of two dimensions": (BOX, "gym.spaces.Box(-1, 1, (1, 1))", r"acts in a Box of shape \(1, 1\): give a Box of one"),
    "discrete observations": (SEEN, "gym.spaces.Discrete(3)", "observes a Discrete: flatten it to a Box of one dimension"),
    "observations in a dict": (SEEN, f'gym.spaces.Dict(a={BOX})', "observes a Dict: flatten it"),
    "pictures": (SEEN, "gym.spaces.Box(0, 1, (2, 1))", r"observes a Box of shape \(2, 1\): flatten it"),
    "batch of another shape": ("    def __init__(self):", '''    class batch_class:
        def __init__(self, tasks):
            self.size = len(tasks["mark"])

        def reset(self, seeds):
            return np.zeros((self.size, 2))

        def step(self, actions):
            return np.zeros((self.size, 2)), np.zeros((self.size, 1))

    def __init__(self):''', r"returned a reward at step 1 that is not one finite number: rewards of shape \(2, 1\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, monkeypatch, request, case):
    old, new, message = case
    assert CODE.count(old) == 1
    module = "refused_" + "".join(c if c.isalnum() else "_" for c in request.node.callspec.id)
    (tmp_path / f"{module}.py").write_text(CODE.replace(old, new))
    document = yaml.safe_load((ROOT / "tests" / "toy" / "slide.yaml").read_text()) | {"entry_point": f"{module}:SlideEnv"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    env = read_env(tmp_path / "own.yaml", document)
    with pytest.raises(UserError, match=message) as error:
        env.make()  # as the scripts do, before anything is written
        play(env, make_batch(env, [0, 1]), lambda observations: np.zeros((2, 1)), [0, 1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("told", ["self.task", "7 - self.task"], ids=["its id", "something else"])
def test_an_info_called_task_is_left_out_so_that_our_own_export_comes_back(tmp_path, told):
    """A reader of the dataset takes it for the episode's task."""
    (tmp_path / "telling.py").write_text(CODE.replace(END, f'self.steps >= 6, {{"task": {told}, "Task_ID": 0, "speed": 1.0}}'))
    settings = yaml.safe_load((ROOT / "tests" / "toy" / "slide.yaml").read_text()) | {"entry_point": "telling:SlideEnv"}
    (tmp_path / "telling.yaml").write_text(yaml.safe_dump(settings))
    flags = ["--config", tmp_path / "telling.yaml", "--output_dir", tmp_path / "out"]
    made = shell("get_datasets", *flags, "--data_type", "random", "--task_id_end", 4, "--workers", 1)
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("note: telling:SlideEnv reports the infos Task_ID, task: they are not recorded") == 1
    source = tmp_path / "out/datasets/telling/random-v0"
    again = shell("get_datasets", *flags, "--data_type", "again", "--import_from", source)
    assert again.returncode == 0, again.stderr
    ours, theirs = (load(tmp_path / "out/datasets", "telling", name) for name in ("random", "again"))
    assert ours.infos.keys() == {"speed"} and set(theirs.task_ids.tolist()) == {0, 1, 2, 3}
    for name in ("observations", "actions", "rewards", "task_ids"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def hooks_of(monkeypatch, **hooks):
    """The example's environment with other hooks."""
    environment = example_env().make()
    for name, hook in hooks.items():
        monkeypatch.setattr(type(environment), name, staticmethod(hook), raising=False)
    return environment


def test_hooks_that_fail_are_named_in_one_line(monkeypatch):
    env = example_env()
    batch = play(env, make_batch(env, [0, 1]), lambda o: 0 * o[:, :2], [0, 1])
    arrays = {name: batch[name] for name in ("observations", "actions", "rewards", "lengths", "infos")}
    episodes = Trajectories(**arrays, task_ids=np.array([0, 1]))
    for hook, message in (
        (lambda *_: 1 / 0, r"compute_rewards fails \(test_own.*ZeroDivisionError.*leave --true_rewards out"),
        (lambda *_: np.zeros(7), r"compute_rewards gives shape \(7,\) for \(2, 15\) transitions"),
    ):
        with pytest.raises(UserError, match=message):
            EnvironmentRewards(hooks_of(monkeypatch, compute_rewards=hook), episodes)
    for hook, message in (
        (lambda tasks: tasks["x"], "task_features fails .*KeyError"),
        (lambda _: np.ones(20), r"shape \(20,\)"),
    ):
        with pytest.raises(UserError, match=message):
            task_features(hooks_of(monkeypatch, task_features=hook), range(16))
    for hook, message in (
        (lambda *_: 1 / 0, r"reference_policies fails .*ZeroDivisionError"),
        (lambda *_: {"best_known": lambda observations, rows: observations[7000]}, r"reference_policies fails .*IndexError"),
        (lambda *_: {"best_known": lambda observations, rows: np.ones((len(rows), 1))}, r"shape \(5, 1\).* for actions \(5, 2\)"),
        (lambda *_: {"best_known": lambda observations, rows: np.ones(len(rows))}, r"shape \(5,\).* for actions \(5, 2\)"),
        (lambda *_: {"best_known": lambda observations, rows: np.full((len(rows), 2), np.nan)}, "actions that are not finite"),
        (lambda *_: {"bset/known": lambda observations, rows: np.zeros((len(rows), 2))}, "names 'bset/known', which is no level"),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=message):
            references.reference_levels(env, hooks_of(patch, reference_policies=hook), [0])
    for given, message in (
        ({"bset": np.zeros(20)}, "names 'bset', which is no level"),
        ({"best_known": np.zeros(19)}, "must give 'best_known' a finite return for each of 20 tasks"),
        ({"best_known": np.full(20, np.nan)}, "must give 'best_known' a finite return"),
        ({"best_known": [[1], [2, 3]]}, "reference_levels fails"),
        ({"explicit_inference": np.full(20, 1e16)}, "explicit_inference of reach are above 1e.15.*scale the rewards"),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=message):
            references.reference_levels(env, hooks_of(patch, reference_levels=lambda *_, given=given: given), [0])
    observations = np.zeros((3, 2), np.float32)
    for hook, message in (
        (lambda *_: {}["abc"], "scripted_policy fails .*KeyError"),
        (lambda *_: np.zeros((3, 4)), r"scripted_policy gives an array of shape \(3, 4\)"),
        (lambda *_: np.full((3, 2), np.nan), "scripted_policy gives actions that are not finite"),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=message):
            act, facts = scripted(
                hooks_of(patch, scripted_policy=hook), "expert", np.zeros(3, int), None, np.random.default_rng(0)
            )
            assert facts["policy"] == "ReachEnv"  # without a scripted_name
            act(observations)


def test_rewards_that_are_not_those_recorded_are_refused(monkeypatch):
    env = example_env()
    batch = play(env, make_batch(env, np.repeat(np.arange(16), 10)), lambda o: 0 * o[:, :2], np.arange(160))
    arrays = {name: batch[name] for name in ("observations", "actions", "rewards", "lengths", "infos")}
    episodes, right = Trajectories(**arrays, task_ids=np.repeat(np.arange(16), 10)), env.make().compute_rewards
    EnvironmentRewards(env.make(), episodes)
    wrong_steps = episodes.rewards.copy()
    wrong_steps[0, 3] += 1  # at a threshold
    EnvironmentRewards(env.make(), dataclasses.replace(episodes, rewards=wrong_steps))
    calls = []
    for hook, message in (
        (lambda *some: calls.append(some) or right(*some) + 100, "compute_rewards gives .* for a step that was paid .*100% of"),
        (lambda o, a, n, tasks, infos: right(o, a, n, {"goal": -tasks["goal"]}, infos), "for a step that was paid"),
        (lambda *some: right(*some) * np.nan, "compute_rewards gives numbers that are not finite.*leave --true_rewards out"),
        (lambda *some: right(*some).astype(float) * 1e300, "compute_rewards gives numbers that are not finite"),
        (lambda *some: right(*some).tolist(), None),
    ):
        with monkeypatch.context() as patch:
            environment = hooks_of(patch, compute_rewards=hook)
            if message is None:
                assert EnvironmentRewards(environment, episodes)
                continue
            with pytest.raises(UserError, match=message):
                EnvironmentRewards(environment, episodes)
    assert len(calls) == 1 and len(calls[0][0]) == 16 * 5  # a few episodes of every task


def test_an_info_may_be_as_large_as_it_likes(recwarn):
    episode = [np.zeros((1, 2, 1)), np.zeros((1, 1, 1)), np.zeros((1, 1)), np.ones(1, int), {"far": np.full((1, 1), 1e300)}, {}]
    assert np.isinf(join_tasks(example_env(), {0: episode})[0].infos["far"]).all() and not list(recwarn)


def test_what_is_stored_under_a_name_is_not_that_of_another_environment(monkeypatch):
    """A settings file of one's own may be called as one of ours."""
    path = ROOT / "configs" / "ant_dir.yaml"
    ours = read_env(path, read_yaml(path))
    assert is_published(ours) and not is_published(example_env())
    document = read_yaml(EXAMPLE)
    theirs = read_env(EXAMPLE.with_name("ant_dir.yaml"), document | {"train_tasks": [0, 16], "test_tasks": [16, 20]})
    assert theirs.env_type == "ant_dir" and not is_published(theirs)
    stored = read_yaml(ROOT / "configs" / "references" / "ant_dir.json")["per_task"]  # JSON is YAML
    monkeypatch.setattr(references, "make_batch", lambda *_: types.SimpleNamespace(action_space=None))
    monkeypatch.setattr(references, "rollout", lambda agent, batch, seeds, steps: {"rewards": np.zeros((len(seeds), 1))})
    levels = references.reference_levels(ours, ours.make(), [0, 1])
    assert levels["best_known"] == stored["best_known"][:2] and levels["trivial"] == [0, 0]
    with monkeypatch.context() as patch:  # not measured on the fresh tasks
        patch.setattr(references, "read_json", lambda _: {"per_task": {"best_known": stored["best_known"][:50]}})
        assert references.reference_levels(ours, ours.make(), [0, 50])["best_known"] is None
        assert references.reference_levels(ours, ours.make(), [0, 49])["best_known"] is not None
    assert references.reference_levels(dataclasses.replace(ours, train_tasks=(0, 7)), ours.make(), [0, 1])["best_known"] is None
    source = Source(ROOT / "behaviour" / "ant_dir", "committed")
    with pytest.raises(UserError, match=r"trained in envs.ant:AntDirEnv, not in reach:ReachEnv: rename the settings file"):
        load_behaviour(source, theirs, 0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_four_scripts_refuse_discrete_actions(tmp_path, capsys, script):
    argv = ["--env_type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path / "out")]
    message = "acts in a Discrete: only BOReL's methods take discrete actions"
    assert_refused(capsys, importlib.import_module(script), argv, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_four_scripts_refuse_observations_in_a_dict(tmp_path, capsys, monkeypatch, script):
    module = f"in_a_dict_{script}"
    (tmp_path / f"{module}.py").write_text(CODE.replace(SEEN, f"gym.spaces.Dict(a={BOX})"))
    document = yaml.safe_load((ROOT / "tests" / "toy" / "slide.yaml").read_text()) | {"entry_point": f"{module}:SlideEnv"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    argv = ["--config", str(tmp_path / "own.yaml"), "--recipe", "debug", "--output_dir", str(tmp_path / "out")]
    message = "observes a Dict: flatten it to a Box of one dimension"
    assert_refused(capsys, importlib.import_module(script), argv, message)
    assert not (tmp_path / "out").exists()


def test_defaults_fit_short_episodes(tmp_path):
    """What is given stays as it is, on the command line and in the settings file."""

    def chosen(script, document, *flags):
        path = tmp_path / "short.yaml"
        path.write_text(yaml.safe_dump(document))
        return parse_args(importlib.import_module(script).make_parser(), script, ["--config", str(path), *flags])

    short = read_yaml(ROOT / "tests" / "toy" / "slide.yaml") | {"max_episode_steps": 3, "train_meta_dt": {}}
    assert chosen("train_context", short, "--recipe", "debug").context_horizon == 3
    assert chosen("train_meta_dt", short, "--recipe", "debug").prompt_length == 3
    assert chosen("train_meta_dt", short, "--prompt_length", "4").prompt_length == 4
    assert chosen("train_context", short | {"train_context": {"context_horizon": 4}}).context_horizon == 4
    assert chosen("train_context", short | {"max_episode_steps": 6}).context_horizon == 4


def test_values_of_numpy_bools_are_recorded():
    kept = recorded_infos("x", {"success": np.array([True]), "text": "no", "n": 3})
    assert kept.keys() == {"success", "n"} and kept["success"].shape == ()
    assert recorded_infos("x", {"n": 2**70})["n"].dtype == float
