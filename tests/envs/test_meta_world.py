"""Meta-World's sets against the library: observations bit for bit, rewards, task lists; and what they offer the scripts."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import ROOT
from numpy.testing import assert_allclose, assert_array_equal

import get_datasets
import train_context
import train_data_collection
import train_meta_dt
from envs.meta_world import SETS, HiddenGoalEnv, MetaWorldEnv, draw_vectors, library, task_list
from envs.settings import family_settings
from envs.tasks import load_tasks
from src.behaviour.scripted import episode_levels, scripted
from src.data.trajectories import load
from src.evaluation.references import reference_levels
from src.run.config import known_env_types, load_env, read_env, read_yaml
from src.run.errors import UserError

pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install -r requirements-metaworld.txt")

HIDDEN = (
    "reach", "reach-wall", "push", "push-wall", "pick-place", "soccer", "plate-slide", "plate-slide-side", "plate-slide-back",
    "shelf-place", "pick-out-of-hole", "coffee-push",
)  # fmt: skip
FEW = ("reach", "push", "door-lock")  # a free hand, an object in the grip, a body that stands elsewhere in every task
every_set = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in SETS]


def make(name, **options):
    return (HiddenGoalEnv if name in HIDDEN else MetaWorldEnv)(name, **options)


def library_environment(name, vector):
    """The library's own environment of a task, set without its pickles."""
    environment = library().env_dict.ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
    environment._set_task_called, environment._freeze_rand_vec, environment._last_rand_vec = True, True, vector
    return environment


def played(name, rows, steps, noise=0.3):
    """An environment of the set and its batch of `rows` (task ids), played by the noisy scripted policy: what each step gave."""
    env = make(name)
    batch = env.batch_class({key: values[rows] for key, values in env.tasks.items()})
    generator, record = np.random.default_rng(1), []
    observations = batch.reset()
    first = batch.full.copy()
    for _ in range(steps):
        actions = env.scripted_policy(observations, rows) + noise * generator.standard_normal((len(rows), 4))
        actions = np.clip(actions, -1, 1).astype(np.float32)
        before = observations
        observations, rewards = batch.step(actions)
        record.append((before, actions, observations, batch.full.copy(), rewards, batch.infos))
    return env, first, record


@pytest.mark.parametrize("name", every_set)
def test_rows_have_the_bits_of_the_library(name):
    """Tasks interleaved over one model; long enough for contacts, where the smallest difference grows."""
    rows = np.array([45, 3, 45])
    _, first, record = played(name, rows, 150 if name in FEW else 500)
    for row in (0, 1):
        environment = library_environment(name, load_tasks(f"metaworld_{name.replace('-', '_')}")["vector"][rows[row]])
        observation, _ = environment.reset()
        assert_array_equal(first[row], observation)
        for _, actions, _, full, rewards, infos in record:
            observation, reward, terminated, _, info = environment.step(actions[row])
            assert_array_equal(full[row], observation)
            assert abs(rewards[row] - reward) < 1e-5
            assert infos["success"][row] == info["success"] and not terminated


def test_a_second_episode_repeats_the_first():
    """Nothing of an episode, or of other tasks, is left in the simulator."""
    env = make("push")
    batch = env.batch_class({key: values[[45, 3]] for key, values in env.tasks.items()})
    episodes = []
    for _ in range(2):
        observations, episode = batch.reset(), []
        for _ in range(120):
            observations, _ = batch.step(np.clip(env.scripted_policy(observations, [45, 3]), -1, 1))
            episode.append(batch.full)
        episodes.append(np.array(episode))
        HiddenGoalEnv("push").reset(options={"task": 7})
    assert_array_equal(*episodes)


# --------------------------------------------------------------------------------------------------------- task lists


def test_the_lists_of_the_papers():
    goals = load_tasks("metaworld_reach")["goal"]
    assert_allclose(goals[0], [0.0579, 0.8794, 0.1403], atol=5e-5)
    test = [[-0.0207, 0.8571, 0.1714], [0.0038, 0.8178, 0.1272], [-0.0320, 0.8064, 0.1753], [0.0428, 0.8301, 0.2436],
            [0.0966, 0.8061, 0.2723]]  # fmt: skip
    assert_allclose(goals[45:], test, atol=5e-5)
    sweep = [[-0.0945, 0.6026], [0.0688, 0.6830], [-0.0186, 0.6671], [-0.0616, 0.6252], [-0.0781, 0.6758]]
    assert_allclose(load_tasks("metaworld_sweep")["vector"][45:, :2], sweep, atol=5e-5)
    of_meta_dt = [[-0.0104, 0.8791, 0.2213], [-0.0126, 0.8112, 0.2820], [-0.0763, 0.8653, 0.2912], [-0.0746, 0.8025, 0.2723],
                  [0.0027, 0.8841, 0.1827]]  # fmt: skip
    assert_allclose(load_tasks("metaworld_reach_20")["goal"][15:], of_meta_dt, atol=1e-4)


@pytest.mark.parametrize("name", every_set)
def test_the_rule_makes_the_committed_list(name):
    known = load_tasks(f"metaworld_{name.replace('-', '_')}")
    for task, made in enumerate(task_list(name, number=10 if name in FEW else 50)):
        assert_array_equal(known["vector"][task], made["vector"])
        assert_array_equal(known["goal"][task], made["goal"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_rule_is_the_library_s(name):
    drawn = library().ML1(f"{name}-v3", seed=1337).train_tasks
    assert_array_equal(draw_vectors(name, 1337, 50), [pickle.loads(task.data)["rand_vec"] for task in drawn])


@pytest.mark.parametrize("env_type", [name for name in known_env_types() if name.startswith("metaworld_")])
def test_settings_say_what_is_hidden(env_type):
    """A set whose first observation tells the goal must not be offered as one that hides it."""
    settings = family_settings(env_type)
    hidden = settings["options"]["name"] in HIDDEN
    assert settings["entry_point"] == f"envs.meta_world:{'HiddenGoalEnv' if hidden else 'MetaWorldEnv'}"
    assert settings["max_episode_steps"] in (200, 500) and settings["train_meta_dt"]["return_scale"] > 0


@pytest.mark.parametrize("name", every_set)
def test_the_first_observation_tells_the_goal_or_not(name):
    env = make(name)
    first = env.batch_class({key: values[:20] for key, values in env.tasks.items()}).reset()
    seen = np.concatenate([first.astype(np.float64), np.ones((20, 1))], 1)
    goals = env.tasks["goal"][:20]
    fit = seen @ np.linalg.lstsq(seen, goals, rcond=1e-9)[0]
    left = np.abs(fit - goals).max()  # metres
    assert left > 0.005 if name in HIDDEN else left < 1e-4


# ------------------------------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("reach", "push") else pytest.mark.slow) for name in HIDDEN]
)
def test_relabelled_rewards_are_those_of_the_library(name):
    """This object's start and another task's goal make a task of its own, which the library can play."""
    bodies = ("plate-slide", "soccer", "shelf-place", "coffee-push")  # their goal is a body, and the motion would be another one
    env, _, record = played(name, np.array([45, 3]), 150)
    before, actions, after, _, rewards, infos = zip(*record, strict=True)
    before, actions, after, rewards = (np.stack(values, 1) for values in (before, actions, after, rewards))
    infos = {key: np.stack([info[key] for info in infos], 1).astype(np.float32) for key in env.info_keys}
    own = {key: values[[45, 3]][:, None] for key, values in env.tasks.items()}
    assert_allclose(env.compute_rewards(before, actions, after, own, infos), rewards, atol=1e-4)
    other = {key: values[[3, 45]][:, None] for key, values in env.tasks.items()}
    paid = env.compute_rewards(before, actions, after, other, infos)
    assert paid.shape == (2, 150) and paid.dtype == np.float32
    if name in bodies:
        return
    mixed = np.concatenate([env.tasks["vector"][45, :3], env.tasks["vector"][3, 3:]])
    assert np.linalg.norm(mixed[:2] - mixed[3:5]) >= SETS[name].apart  # else the library draws for ever
    environment = library_environment(name, mixed)
    environment.reset()
    assert_allclose(paid[0], [environment.step(action)[1] for action in actions[0]], atol=1e-4)


def test_rewards_without_their_infos_are_refused():
    env = make("reach")
    with pytest.raises(ValueError, match="recorded infos tcp"):
        env.compute_rewards(np.zeros((1, 39)), np.zeros((1, 4)), np.zeros((1, 39)), {"goal": np.zeros((1, 3))})


def test_no_rewards_of_other_tasks_where_the_fixture_tells_the_goal():
    env, _, record = played("door-lock", np.array([0]), 2)
    assert not hasattr(env, "compute_rewards") and env.info_keys == () and record[0][-1].keys() == {"success"}


@pytest.mark.parametrize(("name", "trivial", "blind", "best"), [("reach", 742, 4208, 4850), ("door-lock", None, None, None)])
def test_reference_levels(name, trivial, blind, best):
    env = load_env(f"metaworld_{name.replace('-', '_')}")
    levels = reference_levels(env, env.make(), [45, 46, 47, 48, 49] if trivial else [45], episodes=1)
    means = {level: np.mean(values) for level, values in levels.items()}
    if trivial is None:
        assert means["task_blind"] == means["best_known"] > 3000 > 1000 > means["trivial"]
    else:
        assert abs(means["trivial"] - trivial) < 5 and abs(means["task_blind"] - blind) < 20 and means["best_known"] >= best


# ------------------------------------------------------------------------------------------------ what scripts work with


def test_one_episode_under_the_gymnasium_interface():
    check_env(gym.make("MetaWorldReach200-v0").unwrapped, skip_render_check=True)
    env = load_env("metaworld_reach_200").make()
    observation, _ = env.reset(options={"task": 46})
    batch = env.batch_class({key: values[[46]] for key, values in env.tasks.items()})
    assert_array_equal(observation, batch.reset()[0])
    generator = np.random.default_rng(0)
    for step in range(1, 201):
        action = generator.uniform(-1, 1, 4).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        expected, rewards = batch.step(action[None])
        assert_array_equal(observation, expected[0])
        assert reward == rewards[0] and not terminated and truncated == (step == 200)
        assert info.keys() == {"success", "tcp"}


def test_names_and_observations_are_checked():
    assert HiddenGoalEnv("reach-v2").env_type == HiddenGoalEnv("Reach-v3").env_type == "metaworld_reach"
    with pytest.raises(ValueError, match="no set 'lift': choose from reach"):
        HiddenGoalEnv("lift")
    with pytest.raises(ValueError, match="for reach and reach-wall"):
        HiddenGoalEnv("push", observe="hand")
    with pytest.raises(ValueError, match="choose from all, hand"):
        HiddenGoalEnv("reach", observe="eyes")


def test_hand_only():
    """The same motion and rewards; the object, whose place is a fingerprint of the training task, is not seen."""
    whole, hand = HiddenGoalEnv("reach"), HiddenGoalEnv("reach", observe="hand")
    observations = [env.reset(options={"task": 3})[0] for env in (whole, hand)]
    for _ in range(5):
        actions = [env.scripted_policy(seen[None], [3])[0] for env, seen in zip((whole, hand), observations, strict=True)]
        assert_array_equal(*np.clip(actions, -1, 1))
        steps = [env.step(np.clip(action, -1, 1)) for env, action in zip((whole, hand), actions, strict=True)]
        observations = [step[0] for step in steps]
        assert_array_equal(observations[0][[0, 1, 2, 3, 18, 19, 20, 21]], observations[1])
        assert steps[0][1] == steps[1][1]


def test_the_scripted_policy_is_wrong_about_what_tells_the_goal():
    error = np.array([[0.1, 0.0, 0.0]])
    reach, sweep = make("reach"), make("sweep")
    first = reach.reset(options={"task": 2})[0][None]
    expected = 5 * (reach.tasks["goal"][2] + error[0] - first[0, :3])  # the library's gain of this policy is 5
    assert_allclose(reach.scripted_policy(first, [2], error)[0, :3], expected, rtol=1e-5)
    first = sweep.reset(options={"task": 2})[0][None]
    elsewhere = first.copy()
    elsewhere[0, 4:7] += error[0].astype(np.float32)
    assert_allclose(sweep.scripted_policy(first, [2], error), sweep.scripted_policy(elsewhere, [2]), rtol=1e-5)


def test_levels_of_scripted_data():
    medium = (0.05, 0.5)
    assert episode_levels("expert", 2, medium).tolist() == [[0, 0.1], [0, 0.1]]
    assert episode_levels("mixed", 10, medium).tolist() == [[0.05, 0.5]] * 7 + [[0, 0.1]] * 3
    assert_allclose(episode_levels("replay", 3, medium), [[0.3, 1], [0.15, 0.55], [0, 0.1]])
    assert_allclose(episode_levels("medium-replay", 2, medium), [[0.3, 1], [0.05, 0.5]])


@pytest.fixture(scope="module")
def push_40(tmp_path_factory):
    """Flags of Push in 40 steps: a set of one's own horizon is a settings file of a few lines."""
    folder = tmp_path_factory.mktemp("push")
    text = (ROOT / "configs" / "metaworld_push.yaml").read_text()
    config = folder / "push_40.yaml"
    config.write_text(text.replace("max_episode_steps: 500", "max_episode_steps: 40").replace("MetaWorldPush-v0", "Push40-v0"))
    return folder, config, ["--config", str(config), "--recipe", "debug", "--output_dir", str(folder), "--no-tensorboard"]


def provenance_of(folder, config, quality):
    data = load(folder / "datasets", "push_40", quality, read_env(config, read_yaml(config)))
    (entry,) = data.metadata["provenance"]
    return data, entry


@pytest.mark.long
def test_the_four_scripts(push_40, capsys):
    folder, config, flags = push_40
    train_data_collection.main(flags)
    assert "needs no training" in capsys.readouterr().out and not (folder / "saves").exists()
    get_datasets.main([*flags, "--data_type", "replay", "--capacity", "160", "--task_id_end", "6"])
    data, entry = provenance_of(folder, config, "replay")
    assert len(data) == 24 and entry["policies"] == "scripted" and "0.3 to 0" in entry["rule"]
    behaviour = entry["behaviour"]["0"]
    assert behaviour["policy"] == "SawyerPushV3Policy" and behaviour["action_noise"] == [0.1, 0.4, 0.7, 1.0]
    assert data.infos.keys() == {"success", "tcp", "pads", "object_start"} and "metaworld" in entry["versions"]
    assert data.metadata["options"] == {"name": "push"} and ", metaworld 3." in data.metadata["simulator"]
    card = (folder / "datasets" / "push_40" / "replay-v0" / "README.md").read_text()
    assert "SawyerPushV3Policy" in card and "by 0 to 0.3 m per axis, noise of 0.1 to 1 half ranges" in card
    train_context.main([*flags, "--data_type", "replay", "--decode", "relabelled"])
    (model,) = (folder / "saves/push_40/replay").glob("context*/seed_0")
    train_meta_dt.main([*flags, "--data_type", "replay", "--world_model", str(model)])
    assert "success 0.00" in capsys.readouterr().out


def test_cross_data_are_told_other_training_tasks():
    env, seen = make("reach"), make("reach").reset(options={"task": 2})[0]
    act, facts = scripted(env, "cross", np.array([2, 7]), (0.1, 0.3), np.random.default_rng(0))
    generator = np.random.default_rng(0)
    generator.standard_normal((2, 3))
    noise = 0.1 * generator.standard_normal((2, 4))
    expected = np.concatenate([env.scripted_policy(seen[None], [told]) for told in (2, 7)])
    assert_allclose(act(np.stack([seen, seen])), np.clip(expected + noise, -1, 1))
    assert facts["players"] == [2, 7] and facts["goal_error"] == [0]
    with pytest.raises(UserError, match="observations tell the task"):
        scripted(make("door-lock"), "cross", np.array([2, 7]), (0.1, 0.3), generator)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sac", "multitask_sac"])
def test_trained_policies_come_before_scripted_ones(push_40, tmp_path, algo):
    _, config, flags = push_40
    flags = [*flags, "--output_dir", str(tmp_path)]
    train_data_collection.main([*flags, "--algo", algo])
    get_datasets.main([*flags, "--data_type", "medium", "--capacity", "80"])
    assert provenance_of(tmp_path, config, "medium")[1]["policies"] == ("per_task" if algo == "sac" else "multitask")


@pytest.mark.long
def test_the_camera_leaves_the_motion_alone():
    filmed, plain = HiddenGoalEnv("push", render_mode="rgb_array", width=64, height=48), HiddenGoalEnv("push")
    observations = [env.reset(options={"task": 45})[0] for env in (filmed, plain)]
    try:
        first = filmed.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    for _ in range(80):  # into the grip
        action = np.clip(filmed.scripted_policy(observations[0][None], [45])[0], -1, 1)
        observations = [env.step(action)[0] for env in (filmed, plain)]
        picture = filmed.render()
        assert_array_equal(*observations)
    assert picture.shape == (48, 64, 3) and np.abs(picture.astype(int) - first).mean() > 2  # the arm has moved
    assert plain.render() is None
    filmed.close()
