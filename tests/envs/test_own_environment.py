"""An environment of the user's own: the example of the documentation, what is refused, and that no wrapper is left out."""

import shutil

import gymnasium as gym
import numpy as np
import pytest
import yaml
from helpers import ROOT, SCRIPTS, shell

from envs.point_robot import PointRobotEnv
from src.behaviour.policies import make_frame, task_features
from src.data.relabel import EnvironmentRewards
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import EnvironmentLoop, make_batch
from src.evaluation.rollout import rollout
from src.run import environment as checks
from src.run.config import read_env, read_yaml
from src.run.errors import UserError

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


def test_the_example_runs_through_all_scripts_from_a_folder_of_its_own(tmp_path):
    """Its module lies beside the settings file, in a folder that Python does not know."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("reach.yaml", "reach.py"):
        shutil.copy(EXAMPLE.with_name(name), folder)
    flags = ["--config", folder / "reach.yaml", "--recipe", "debug", "--output_dir", tmp_path / "out", "--no-tensorboard"]
    more = {"get_datasets": ["--task_id_end", 20], "train_context": ["--decode", "relabelled"],
            "train_meta_dt": ["--other_tasks", "training", "--render", tmp_path / "film.gif"]}  # fmt: skip
    for script in SCRIPTS:
        data = [] if script == "train_data_collection" else ["--data_type", "random"]
        done = shell(script, *flags, *data, *more.get(script, []))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "film.gif").stat().st_size > 0
    assert list((tmp_path / "out" / "results").rglob("*.json"))


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
    "infinite parameter": (TASKS, '{"mark": np.full(8, np.inf)}', "'mark' must have a row per task, of finite numbers"),
    "unequal parameters": (TASKS, '{"mark": np.linspace(-1, 1, 8), "mass": np.ones(7)}', r"unequal length \(mark 8, mass 7\)"),
    "info called terminated": (END, 'self.steps >= 6, {"terminated": self.steps == 3}', "an info is named 'terminated'"),
    "info with a slash": (END, 'self.steps >= 6, {"a/b": 1.0}', "the info 'a/b' has no usable name"),
    "info at some steps": (END, 'self.steps >= 6, {"late": 1.0} if self.steps > 1 else {}', "'late' is reported at some steps"),
    "info that comes late": (END, 'self.steps >= 6, {"late": 1.0} if self.steps > 4 else {}', "info 'late' otherwise at step 5"),
    "info that grows": (END, 'self.steps >= 6, {"seen": np.zeros(self.steps)}', "info 'seen' otherwise at step 2"),
    "no dictionary": (END, "self.steps >= 6, None", "infos that are no dictionary"),
    "info_keys not reported": ("self.task = 0", 'self.task, self.info_keys = 0, ("speed",)', "names 'speed' in info_keys, but"),
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

    def __init__(self):''', r"step's rewards of its batch_class gives shape \(2, 1\), not \(2,\)"),
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


def test_all_four_scripts_refuse_discrete_actions(tmp_path):
    for script in SCRIPTS:
        done = shell(script, "--env_type", "gridworld", "--recipe", "debug", "--output_dir", tmp_path / "out")
        assert done.returncode == 2 and not (tmp_path / "out").exists()
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "acts in a Discrete: only BOReL's methods take discrete actions" in line
        assert "Traceback" not in done.stderr


def test_values_of_numpy_bools_are_recorded():
    assert checks.recorded_infos("x", {"success": np.bool_(True), "text": "no", "n": 3}).keys() == {"success", "n"}
