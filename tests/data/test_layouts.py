"""Trajectories in the layouts of other libraries: the right episodes, or one line that says what is missing."""

import dataclasses
import importlib
import json
import pickle
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import ROOT, assert_refused, listing

import get_datasets
from src.data.importers import import_trajectories
from src.data.layouts import episodes_of
from src.data.trajectories import load
from src.run.config import load_env, read_env, read_yaml
from src.run.errors import UserError

ENV = load_env("point_robot")
ENDING = dataclasses.replace(ENV, terminates=True)
GOALS = ENV.make().tasks["goal"]


def walk(lengths=(20, 7, 13), task=7, seed=0):
    """Episodes of a random walk from the origin, as dicts with L + 1 observations."""
    rng, episodes = np.random.default_rng(seed), []
    for length in lengths:
        actions = rng.uniform(-0.1, 0.1, (length, 2)).astype(np.float32)
        observations = np.concatenate([np.zeros((1, 2)), actions.cumsum(0)]).astype(np.float32)
        rewards = -np.linalg.norm(observations[1:] - GOALS[task], axis=-1).astype(np.float32)
        episodes.append({"observations": observations, "actions": actions, "rewards": rewards})
    return episodes


def flat(episodes, following=True):
    """One array per key, and the last steps of the episodes."""
    content = {key: np.concatenate([part[key] for part in episodes]) for key in ("actions", "rewards")}
    content["observations"] = np.concatenate([part["observations"][:-1] for part in episodes])
    if following:
        content["next_observations"] = np.concatenate([part["observations"][1:] for part in episodes])
    last = np.zeros(len(content["rewards"]), bool)
    last[np.cumsum([len(part["rewards"]) for part in episodes]) - 1] = True
    return content, last


def write_hdf5(path, content):
    with h5py.File(path, "w") as file:
        for key, values in content.items():
            file[key] = values
    return path


def put(path, content):
    """`content` in the format that the name of the file says."""
    if path.suffix in (".hdf5", ".h5"):
        return write_hdf5(path, content)
    if path.suffix.lower() == ".npz":
        with path.open("wb") as file:
            np.savez(file, **content)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        lists = [{k: v.tolist() for k, v in part.items()} for part in content] if isinstance(content, list) else {
            k: v.tolist() for k, v in content.items()}  # fmt: skip
        path.write_text(json.dumps(lists))
    return path


def lengths_of(path, env=ENV, task_id=7):
    return import_trajectories(path, env, range(50), task_id)[0]


# --------------------------------------------------------------------------------------------------------- flat layouts


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz", "a.pkl", "a.json"])
def test_d4rl_in_every_format(tmp_path, name):
    episodes = walk()
    content, last = flat(episodes)
    content |= {"terminals": last & (np.arange(40) == 26), "timeouts": last & (np.arange(40) != 26)}
    t = lengths_of(put(tmp_path / name, content), ENDING)
    assert t.lengths.tolist() == [20, 7, 13] and t.infos["terminated"].sum(1).tolist() == [0, 1, 0]
    for row, part in enumerate(episodes):
        np.testing.assert_array_equal(t.observations[row, : len(part["observations"])], part["observations"])
        np.testing.assert_array_equal(t.actions[row, : len(part["rewards"])], part["actions"])


def test_d3rlpy(tmp_path):
    """Version 1: terminals are those of the environment, episode_terminals are all ends. Version 2: arrays by episode."""
    episodes = walk()
    content, last = flat(episodes, following=False)
    content |= {"terminals": (last & (np.arange(40) == 26)).astype(float), "episode_terminals": last.astype(float)}
    content |= {"discrete_action": np.array(False), "version": np.array("1.0", dtype="S3")}
    t = lengths_of(put(tmp_path / "a.h5", content), ENDING)
    assert t.lengths.tolist() == [19, 6, 12] and not t.infos["terminated"].any()
    content["episode_terminals"][26] = 0
    with pytest.raises(UserError, match="its flags mark ends that episode_terminals do not"):
        lengths_of(put(tmp_path / "a.h5", content), ENDING)
    parts = {"total_size": np.array(3)}
    for index, part in enumerate(episodes):
        parts |= {f"observations_{index}": part["observations"][:-1], f"actions_{index}": part["actions"],
                  f"rewards_{index}": part["rewards"][:, None], f"terminated_{index}": np.array(index == 1)}  # fmt: skip
    t = lengths_of(put(tmp_path / "b.h5", parts), ENDING)
    assert t.lengths.tolist() == [19, 6, 12] and not t.infos["terminated"].any()


def test_stable_baselines3_expert_file(tmp_path):
    content, last = flat(walk((20, 20, 20)), following=False)
    content["obs"] = content.pop("observations")
    content |= {"episode_starts": np.roll(last, 1), "episode_returns": np.zeros(3)}
    assert lengths_of(put(tmp_path / "a.npz", content)).lengths.tolist() == [19, 19, 19]
    with pytest.raises(UserError, match=r"store terminals .* and timeouts apart"):
        lengths_of(put(tmp_path / "a.npz", content), ENDING)
    content["episode_starts"][0] = False
    with pytest.raises(UserError, match="its first step is not marked as the start"):
        lengths_of(put(tmp_path / "a.npz", content))


@pytest.mark.parametrize("full", [False, True])
def test_stable_baselines3_replay_buffer(tmp_path, full):
    """(steps, environments, ...): each environment is a stream of its own; `pos` and `full` say where it begins."""
    streams = [flat(walk((20, 20), seed=seed)) for seed in range(3)]
    content = {key: np.stack([stream[key] for stream, _ in streams], 1) for key in streams[0][0]}
    content["dones"] = np.stack([last for _, last in streams], 1).astype(np.float32)
    content["timeouts"] = content["dones"].astype(bool)
    content |= {"pos": np.array(13 if full else 40), "full": np.array(full)}
    if full:
        content = {key: np.roll(array, 13, 0) if array.ndim > 1 else array for key, array in content.items()}
    t = lengths_of(put(tmp_path / "a.npz", content), ENDING)
    assert t.lengths.tolist() == [20] * 6 and not t.infos["terminated"].any()
    np.testing.assert_array_equal(t.actions[2], walk((20, 20), seed=1)[0]["actions"])


def test_a_replay_buffer_says_where_it_stands(tmp_path):
    content, last = flat(walk((20, 20)))
    content["timeouts"] = last
    assert lengths_of(put(tmp_path / "a.npz", content | {"pos": content["observations"]})).lengths.tolist() == [20, 20]
    for pos, full in ((27.4, 0), (41, 0), (-1, 0), (np.nan, 1), (7, 2), (np.arange(2), 1)):
        with pytest.raises(UserError, match="are not those of a replay buffer of 40 steps"):
            lengths_of(put(tmp_path / "a.npz", content | {"pos": np.array(pos), "full": np.array(full)}))
    with pytest.raises(UserError, match="the replay buffer is empty"):
        lengths_of(put(tmp_path / "a.npz", content | {"pos": np.array(0), "full": np.array(False)}))


def test_stacked_episodes(tmp_path):
    episodes = walk((20, 20, 20))
    content = {key: np.stack([part[key] for part in episodes]) for key in episodes[0]}
    path = put(tmp_path / "a.npz", content)
    t = lengths_of(path)
    assert t.lengths.tolist() == [20, 20, 20]
    np.testing.assert_array_equal(t.observations[1], episodes[1]["observations"])
    content["next_observations"], content["observations"] = content["observations"][:, 1:], content["observations"][:, :-1]
    np.testing.assert_array_equal(lengths_of(put(path, content)).observations, t.observations)
    padded = {**content, "episode_lengths": np.array([20, 5, 8])}
    padded["rewards"] = np.where(np.arange(20) < [[20], [5], [8]], padded["rewards"], np.nan)
    assert lengths_of(put(path, padded)).lengths.tolist() == [20, 5, 8]
    for wrong in ([20, 5.5, 8], [20, np.nan, 8], [20, 0, 8], [20, 21, 8]):
        with pytest.raises(UserError, match="episode_lengths must be integers from 1 to 20"):
            lengths_of(put(path, {**content, "episode_lengths": np.array(wrong)}))
    with pytest.raises(UserError, match=r"rewards have shape \(3, 20, 2\); one number per step is expected"):
        lengths_of(put(path, {**content, "rewards": np.zeros((3, 20, 2))}))
    del content["next_observations"]
    with pytest.raises(UserError, match=r"which axis of its arrays .* is time"):
        lengths_of(put(path, content))


def test_rlds_and_explicit_ends(tmp_path):
    content, last = flat(walk())
    told = {
        "is_last": {"is_first": np.roll(last, 1), "is_last": last, "is_terminal": np.zeros(40, bool)},
        "ends": {"episode_ends": np.array([20, 27, 40]), "terminals": np.zeros(40)},
        "lengths": {"episode_lengths": np.array([20, 7, 13]), "terminals": np.zeros(40)},
        "ids": {"episode_ids": np.repeat([4, 2, 9], [20, 7, 13]), "terminals": np.zeros(40)},
    }
    for name, ends in told.items():
        t = lengths_of(put(tmp_path / f"{name}.npz", content | ends), ENDING)
        assert t.lengths.tolist() == [20, 7, 13] and not t.infos["terminated"].any(), name
    for ids in (np.tile([0, 1], 20), np.repeat([0, 1, 0], [20, 7, 13]), np.full(40, np.nan)):  # interleaved, used again, none
        with pytest.raises(UserError, match="episode_ids come back"):
            lengths_of(put(tmp_path / "a.npz", content | {"episode_ids": ids}))
    for ends in ([20, 41], [20, 20, 40], [20.5, 40], [0, 40]):
        with pytest.raises(UserError, match=r"episode_ends must be integers that rise, .* at most 40"):
            lengths_of(put(tmp_path / "a.npz", content | {"episode_ends": np.array(ends)}))
    for counts in ([20, 0, 20], [20, 21], [20.5, 19.5], [-1, 20], []):
        with pytest.raises(UserError, match=r"episode_lengths must be integers, a step or more for each episode, .* most 40"):
            lengths_of(put(tmp_path / "a.npz", content | {"episode_lengths": np.array(counts)}))
    for more in ({"episode_ends": np.array([20, 40])}, {"episode_starts": np.arange(40) % 20 == 0}):
        with pytest.raises(UserError, match="say different things about where episodes end"):  # none of them stays unread
            lengths_of(put(tmp_path / "a.npz", content | {"episode_lengths": np.array([20, 7, 13])} | more))
    with pytest.raises(UserError, match="say different things about where episodes end"):
        starts = {"episode_starts": np.arange(40) % 20 == 0, "episode_ids": np.repeat([0, 1, 2], [20, 7, 13])}
        lengths_of(put(tmp_path / "a.npz", content | starts))
    with pytest.raises(UserError, match="say different things about where episodes end"):
        lengths_of(put(tmp_path / "a.npz", content | {"episode_ends": np.array([20, 40]), "timeouts": last}))


def notes_of(path, env=ENV):
    return import_trajectories(path, env, range(50), 7)[2]


def test_episode_ids_without_signs(tmp_path, recwarn):
    content, _ = flat(walk())
    content["episode_ids"] = np.repeat([0, 1, 2], [20, 7, 13]).astype(np.uint32)
    assert lengths_of(put(tmp_path / "a.npz", content)).lengths.tolist() == [20, 7, 13] and not list(recwarn)


@pytest.mark.parametrize("width", [1, 3])
def test_a_full_buffer_that_begins_inside_an_episode(tmp_path, width):
    """What it holds of an episode whose beginning was overwritten is no episode."""
    streams = [flat(walk((20, 20, 20), seed=seed)) for seed in range(width)]
    content = {key: np.stack([stream[key] for stream, _ in streams], 1)[14:54] for key in streams[0][0]}
    content["dones"] = content["timeouts"] = np.stack([last for _, last in streams], 1)[14:54]
    content = {key: np.roll(array, 13, 0) for key, array in content.items()}
    path = tmp_path / "a.npz"
    full = {"pos": np.array(13), "full": np.array(True)}
    t, _, notes = import_trajectories(put(path, content | full), ENV, range(50), 7)
    assert t.lengths.tolist() == [20] * width
    np.testing.assert_array_equal(t.actions[0], walk((20, 20, 20))[1]["actions"])
    assert f"{6 * width} steps of {path} are left out, of episodes whose beginning its full replay buffer has lost" in notes
    if width == 1:
        unmarked = {key: array for key, array in content.items() if key not in ("dones", "timeouts")} | full
        unmarked |= {"episode_ids": np.roll(np.repeat([4, 5, 6], [6, 20, 14]), 13)}
        assert lengths_of(put(path, unmarked)).lengths.tolist() == [20, 14]
        for more in ({"episode_lengths": np.array([6, 20, 14])}, {"task": np.array([7, 7, 7])}):
            with pytest.raises(UserError, match="full replay buffer"):
                lengths_of(put(path, content | full | more), task_id=None)


def test_episodes_that_are_cut_short_are_noted(tmp_path):
    content, last = flat(walk())
    path = put(tmp_path / "a.npz", content | {"timeouts": last})
    message = (
        f"2 of 3 episodes of {path} are shorter than max_episode_steps, 20, and did not end on their own: see that none begins"
    )
    for env, more in ((ENV, {}), (ENDING, {"terminals": np.zeros(40)})):
        (note,) = notes_of(put(path, content | {"timeouts": last} | more), env)
        assert note.startswith(message)
    ended = {"terminals": last & (np.arange(40) > 20), "timeouts": last & (np.arange(40) < 20)}
    assert not notes_of(put(path, content | ended), ENDING)


def test_an_end_that_is_a_time_out_too(tmp_path):
    """It can be both at the horizon alone, where other time-outs show that terminals do not mark every end."""
    content, last = flat(walk((20, 20, 7)))
    path, first = tmp_path / "a.npz", np.arange(47) == 19
    for env in (ENV, ENDING):
        with pytest.raises(UserError, match=r"step 46 is marked as an end on its own and as a time-out: .* or call .* dones"):
            lengths_of(put(path, content | {"terminals": np.arange(47) == 46, "timeouts": last}), env)
    both = content | {"timeouts": last & (np.arange(47) < 46)}
    with pytest.raises(UserError, match="step 19 is marked as an end on its own and as a time-out"):
        lengths_of(put(path, both | {"terminals": last}), ENDING)
    assert lengths_of(put(path, both | {"terminals": last})).lengths.tolist() == [20, 20, 7]
    t = lengths_of(put(path, both | {"terminals": first | (np.arange(47) == 46)}), ENDING)
    assert t.infos["terminated"].sum(1).tolist() == [1, 0, 1]


# ------------------------------------------------------------------------------------------------ one group per episode


@pytest.mark.parametrize("name", ["a.npz", "a.hdf5", "a.pkl", "a.json"])
@pytest.mark.parametrize("style", ["one more", "next", "last step lost"])
def test_trajectory_dicts(tmp_path, name, style):
    episodes = [dict(part) for part in walk()]
    for part in episodes:
        if style != "one more":
            part["observations"], following = part["observations"][:-1], part["observations"][1:]
            if style == "next":
                part["next_observations"] = following
    if name in ("a.npz", "a.hdf5"):
        content = {f"{index}/{key}": values for index, part in enumerate(episodes) for key, values in part.items()}
    else:
        content = episodes
    t = lengths_of(put(tmp_path / name, content))
    assert t.lengths.tolist() == ([19, 6, 12] if style == "last step lost" else [20, 7, 13])
    np.testing.assert_allclose(t.actions[1, :6], walk()[1]["actions"][:6], rtol=1e-6)


def test_eleven_trajectories_keep_their_order(tmp_path):
    episodes = walk(range(5, 16))
    content = {f"traj_{index}/{key}": values for index, part in enumerate(episodes) for key, values in part.items()}
    for name in ("a.npz", "a.hdf5"):
        assert lengths_of(put(tmp_path / name, content)).lengths.tolist() == list(range(5, 16))


def test_robomimic(tmp_path):
    """Its dones mark successes, several of them and not at the end alone."""
    content = {}
    for index, part in enumerate(walk()):
        length = len(part["rewards"])
        content |= {f"data/demo_{index}/obs/flat": part["observations"][:-1], f"data/demo_{index}/actions": part["actions"],
                    f"data/demo_{index}/next_obs/flat": part["observations"][1:], f"data/demo_{index}/rewards": part["rewards"],
                    f"data/demo_{index}/dones": np.arange(length) > 3}  # fmt: skip
    content["mask/train"] = np.array([b"demo_0"])
    path = put(tmp_path / "a.hdf5", content)
    t = lengths_of(path)
    assert t.lengths.tolist() == [20, 7, 13]
    with pytest.raises(UserError, match=r"store terminals .* and timeouts apart"):
        lengths_of(path, ENDING)
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/eef"] = np.zeros((7, 3))
    with pytest.raises(UserError, match=r"demo_1: obs are 2 arrays \(eef, flat\): join them into one"):
        lengths_of(path)


# -------------------------------------------------------------------------------------------------- what is not certain


def test_ends_that_nobody_tells_are_refused(tmp_path):
    content, last = flat(walk((20, 20)), following=False)
    with pytest.raises(UserError, match="does not mark that an episode ends at step 20, and it has no next_observations: say"):
        lengths_of(put(tmp_path / "a.npz", content))
    content, _ = flat(walk((20, 20)))
    assert lengths_of(put(tmp_path / "a.npz", content)).lengths.tolist() == [20, 20]  # seen from the next observations
    content, _ = flat(walk((13, 20, 7)))
    with pytest.raises(UserError, match="does not mark that an episode ends at step 20, and the next observations go on there"):
        lengths_of(put(tmp_path / "a.npz", content))
    for unknown in ("episode_over", "cut"):
        with pytest.raises(UserError, match="does not mark that an episode ends"):
            lengths_of(put(tmp_path / "a.npz", content | {unknown: last}))


def test_a_large_dimension_hides_no_break(tmp_path):
    content, last = flat(walk((10, 10)))
    for key in ("observations", "next_observations"):
        content[key] = np.concatenate([content[key], 1e6 + np.arange(20)[:, None] + (key != "observations")], 1)
    content["timeouts"] = np.arange(20) == 19
    with pytest.raises(UserError, match=r"are not one episode .*at step 10"):
        episodes_of(content, tmp_path, ENV)
    content["timeouts"] = last
    assert [len(episode.rewards) for episode in episodes_of(content, tmp_path, ENV)[0]] == [10, 10]


def test_ends_and_time_outs_are_told_apart(tmp_path):
    content, last = flat(walk())
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match=r"store terminals .* and timeouts apart"):  # 20 steps: done by which of them?
        lengths_of(put(path, content | {"dones": last}), ENDING)
    for more in ({"timeouts": last}, {"episode_terminals": last}, {"episode_ends": np.array([20, 27, 40])}):
        with pytest.raises(UserError, match=r"store terminals .* and timeouts apart"):
            lengths_of(put(path, content | more), ENDING)
    short, end = flat(walk((7, 13)))
    assert lengths_of(put(path, short | {"dones": end}), ENDING).infos["terminated"].sum() == 2
    both = {"dones": last, "timeouts": last & (np.arange(40) != 26)}
    assert lengths_of(put(path, content | both), ENDING).infos["terminated"].sum(1).tolist() == [0, 1, 0]


def test_a_trajectory_that_is_several(tmp_path):
    content, last = flat(walk((10, 10)))
    for more, message in (({"terminals": last}, "mark step 9 of a trajectory"), ({}, "do not follow at step 10")):
        with pytest.raises(UserError, match=message):
            lengths_of(put(tmp_path / "a.pkl", [content | more]))
    for more in (
        {"episode_starts": np.arange(20) % 10 == 0},
        {"episode_ids": np.arange(20) // 10},
        {"episode_lengths": [10, 10]},
    ):
        with pytest.raises(UserError, match="of 20 steps says of itself that it is another number"):
            lengths_of(put(tmp_path / "a.pkl", [walk((20,))[0] | more]))


def test_an_observation_of_the_next_episode_is_refused(tmp_path):
    """Vector environments that reset by themselves store the new start; success flags mark steps inside of an episode."""
    content, last = flat(walk((20, 20)))
    reset = {**content, "next_observations": content["next_observations"].copy(), "timeouts": last}
    reset["next_observations"][19] = content["observations"][20]
    message = "ends at step 20, and the next observation there is the first of the episode that follows"
    with pytest.raises(UserError, match=message):
        lengths_of(put(tmp_path / "a.npz", reset))
    success = last | np.isin(np.arange(40), (12, 13))
    with pytest.raises(UserError, match="an episode ends at step 13, and the next observation"):
        lengths_of(put(tmp_path / "a.npz", content | {"dones": success}))
    del reset["next_observations"]
    assert lengths_of(put(tmp_path / "a.npz", reset)).lengths.tolist() == [19, 19]


@pytest.mark.parametrize("number", [np.inf, np.nan, 1e300])
@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "next_observations"])
def test_numbers_that_float32_cannot_hold(tmp_path, recwarn, key, number):
    content, last = flat(walk())
    content[key] = content[key].astype(float)
    content[key][9] = number
    with pytest.raises(UserError, match=f"{key} of step 9 are not finite, or too large"):
        lengths_of(put(tmp_path / "a.npz", content | {"timeouts": last}))
    assert not list(recwarn)


def test_names_that_contradict_each_other(tmp_path):
    content, last = flat(walk())
    with pytest.raises(UserError, match="terminals and terminations contradict each other"):
        lengths_of(put(tmp_path / "a.npz", content | {"terminals": last, "terminations": ~last}))


# ------------------------------------------------------------------------------------------------------------ several tasks


def run(root, *flags):
    get_datasets.main(["--env_type", "point_robot", "--output_dir", str(root), *map(str, flags)])


def test_our_own_export_of_many_tasks_comes_back_in_one_command(tmp_path, capsys):
    run(tmp_path / "a", "--data_type", "random", "--capacity", 40, "--task_id_end", 6, "--workers", 1)
    source = tmp_path / "a/datasets/point_robot/random-v0"
    run(tmp_path / "b", "--import_from", source, "--data_type", "my.data_2")
    assert "--data_type my.data_2" in capsys.readouterr().out
    ours, theirs = (
        load(tmp_path / a / "datasets", "point_robot", name, ENV) for a, name in (("a", "random"), ("b", "my.data_2"))
    )
    assert ours.digest() == theirs.digest() and ours.tasks == theirs.tasks
    (entry,) = theirs.metadata["provenance"]
    assert set(entry["imported_from"]) == set("012345") and entry["task_ids"] == list(range(6))
    before = listing(tmp_path)
    argv = ["--env_type", "point_robot", "--output_dir", str(tmp_path / "b"), "--import_from", str(source), "--task_id", "3"]
    assert_refused(capsys, get_datasets, argv, "holds episodes of task 0, and --task_id says 3: leave --task_id out")
    assert listing(tmp_path) == before


def test_minari_of_another_hand(tmp_path, monkeypatch):
    """Written by Minari itself, with the task in the options of the reset."""
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    environment, buffers = ENV.make(), []
    for index, task in enumerate((3, 3, 11)):
        (part,) = walk((20,), task, index)
        ends = {"terminations": np.zeros(20, bool), "truncations": np.arange(20) == 19}
        buffers.append(EpisodeBuffer(id=index, seed=5, options={"task": task, "goal": GOALS[task]}, **part, **ends))
    minari.create_dataset_from_buffers("mine/points-v0", buffers, observation_space=environment.observation_space,
                                       action_space=environment.action_space)  # fmt: skip
    t, _, _ = import_trajectories("mine/points-v0", ENV, range(50))
    assert t.task_ids.tolist() == [3, 3, 11] and t.lengths.tolist() == [20, 20, 20]


def test_lists_and_flat_arrays_of_many_tasks(tmp_path):
    parts = [{**walk((20,), task, task)[0], "task": task} for task in (9, 4, 4 + 7)]
    t = lengths_of(put(tmp_path / "a.pkl", parts), task_id=None)
    assert t.task_ids.tolist() == [4, 9, 11] and list(t.tasks) == [4, 9, 11]
    content, last = flat(parts)
    content |= {"timeouts": last, "task_id": np.repeat([9, 4, 11], 20)}
    assert lengths_of(put(tmp_path / "a.npz", content), task_id=None).task_ids.tolist() == [4, 9, 11]
    content["task_id"][30] = 9
    with pytest.raises(UserError, match="steps 20 to 40 have no single task id, but 4, 9"):
        lengths_of(put(tmp_path / "a.npz", content), task_id=None)
    parts[0]["task"] = 50
    with pytest.raises(UserError, match="holds episodes of task 50, and the environment has 50 tasks for data"):
        lengths_of(put(tmp_path / "a.pkl", parts), task_id=None)


def test_what_the_options_of_a_trajectory_say(tmp_path):
    (part,) = walk((20,), 3)
    path = put(tmp_path / "a.pkl", [part | {"options": {"task": 3}}])
    assert lengths_of(path, task_id=None).task_ids.tolist() == [3]
    with pytest.raises(UserError, match="holds episodes of task 3, and --task_id says 7"):
        lengths_of(path)
    with pytest.raises(UserError, match="steps 0 to 20 have task 4, and options/task says 3"):
        lengths_of(put(tmp_path / "a.pkl", [part | {"options": {"task": 3}, "task": 4}]))
    with pytest.raises(UserError, match="goal of task 3 are lists of unequal lengths, not an array"):
        lengths_of(put(tmp_path / "a.pkl", [part | {"options": {"task": 3, "goal": [[1, 2], [3]]}}]), task_id=None)
    for more in ({"options": 3}, {"infos": [1]}):
        with pytest.raises(UserError, match="infos and options of a trajectory must be dicts"):
            lengths_of(put(tmp_path / "a.pkl", [part | more]))


@pytest.mark.parametrize("name", ["task", "task_id", "task_idx", "task_index"])
def test_tasks_under_other_names_and_among_infos(tmp_path, name):
    """No name of a task is passed over in favour of one --task_id for all; where an environment pays alike, no reward tells."""
    content, last = flat(parts := [walk((20,), 3)[0], walk((20,), 9, 1)[0]])
    content |= {"timeouts": last, name: np.repeat([3, 9], 20)}
    put(tmp_path / "a.npz", content)
    put(tmp_path / "a.pkl", [part | {"infos": {name: np.full(21, task)}} for part, task in zip(parts, (3, 9), strict=True)])
    for path in (tmp_path / "a.npz", tmp_path / "a.pkl"):
        assert lengths_of(path, task_id=None).task_ids.tolist() == [3, 9]
        with pytest.raises(UserError, match="holds episodes of task 9, and --task_id says 3"):
            lengths_of(path, task_id=3)
    for wrong in (True, 2.5, -1, np.arange(21) // 20):
        with pytest.raises(UserError, match=r"no single task id|one number per step is expected"):
            lengths_of(
                put(tmp_path / "a.pkl", [parts[0] | ({"task": wrong} if np.ndim(wrong) == 0 else {"infos": {name: wrong}})])
            )
    named = [part | {"infos": {name: ["left"] * 20}} for part in parts[:1]]
    assert lengths_of(put(tmp_path / "a.pkl", named), task_id=3).task_ids.tolist() == [3]


def both(path, tasks):
    """A file that says its tasks itself: they come out, and one --task_id for all is refused."""
    assert lengths_of(path, task_id=None).task_ids.tolist() == sorted(tasks)
    with pytest.raises(UserError, match="holds episodes of task 9, and --task_id says 3"):
        lengths_of(path, task_id=3)


@pytest.mark.parametrize("name", ["task", "task_ids"])
@pytest.mark.parametrize("style", ["{}/{}", "{1}_{0}", "traj_{}/{}"])
def test_labels_beside_the_episodes_arrays(tmp_path, style, name):
    parts = [walk((20,), task, seed)[0] for seed, task in enumerate((3, 9, 9))]
    content = {style.format(index, key): values for index, part in enumerate(parts) for key, values in part.items()}
    both(put(tmp_path / "a.npz", content | {name: np.array([3, 9, 9])}), [3, 9, 9])
    if "/" in style:
        both(put(tmp_path / "a.hdf5", content | {name: np.array([3, 9, 9])}), [3, 9, 9])
    for suffix in ("a.npz", "a.hdf5") if "/" in style else ("a.npz",):
        for wrong, message in (({name: np.array([3, 9])}, "holds 2 task ids for 3 episodes: give one for each"),
                               ({"terminals": np.zeros(60)}, "terminals stand beside the arrays of its episodes"),
                               ({"episode_lengths": np.full(3, 20)}, "episode_lengths stand beside")):  # fmt: skip
            with pytest.raises(UserError, match=message):
                lengths_of(put(tmp_path / suffix, content | wrong), task_id=3)


def test_labels_in_attributes_and_groups(tmp_path):
    parts = [walk((20,), task, seed)[0] for seed, task in enumerate((3, 9))]
    content = {f"data/demo_{index}/{key}": values for index, part in enumerate(parts) for key, values in part.items()}
    path = tmp_path / "a.hdf5"
    for change in (
        lambda group, task: group.attrs.create("task", task),
        lambda group, task: group.attrs.create("options/task_id", task),
        lambda group, task: group.attrs.create("options/task", float(task)),
        lambda group, task: group.__setitem__("infos/task", np.full(20, task)),
        lambda group, task: group.__setitem__("info/task_index", np.full(21, task)),
        lambda group, task: group.__setitem__("metadata/task_id", task),
        lambda group, task: group.__setitem__("options/task", task),
    ):
        with h5py.File(write_hdf5(path, content), "a") as file:
            for index, task in enumerate((3, 9)):
                change(file[f"data/demo_{index}"], task)
        both(path, [3, 9])
    with h5py.File(path, "a") as file:
        file["data/demo_1"].attrs["task"] = 4
        file["data"].attrs["task"] = "lift"
    with pytest.raises(UserError, match="steps 0 to 20 have task 4, and options/task says 9"):
        lengths_of(path, task_id=None)
    for value in ("left", True):
        with h5py.File(path, "a") as file:
            file["data/demo_1"].attrs["task"] = value
        with pytest.raises(UserError, match=r"demo_1 names its task '?(left|True)'?: give the row"):
            lengths_of(path, task_id=9)
    with h5py.File(write_hdf5(path, content), "a") as file:
        file["data"].attrs["task"] = [3, 9]
    both(path, [3, 9])
    flat_content, last = flat(parts)
    both(write_hdf5(path, flat_content | {"timeouts": last, "infos/task": np.repeat([3, 9], 20)}), [3, 9])
    renamed = {key.replace("data/demo", "task"): values for key, values in content.items()}
    for name in ("a.hdf5", "a.npz"):
        with pytest.raises(UserError, match="task_0 seems to be called after its task: store the id in it"):
            lengths_of(put(tmp_path / name, renamed), task_id=3)


def test_labels_among_infos_of_other_kinds(tmp_path):
    parts = [walk((20,), task, seed)[0] for seed, task in enumerate((3, 9))]
    for facts in (
        lambda task: {"info": {"task": np.full(20, task)}},
        lambda task: {"env_infos": {"task_id": [task] * 20}},
        lambda task: {"infos": [{"task": task, "x": 1.5}, *[{}] * 19]},
        lambda task: {"options": {"task_idx": task}},
        lambda task: {"metadata": {"task": task, "made": "today"}},
    ):
        both(put(tmp_path / "a.pkl", [part | facts(task) for part, task in zip(parts, (3, 9), strict=True)]), [3, 9])
    content, last = flat(parts)
    both(put(tmp_path / "a.pkl", content | {"timeouts": last, "infos": {"task": np.repeat([3, 9], 20)}}), [3, 9])
    both(put(tmp_path / "a.npz", content | {"timeouts": last, "infos/task": np.repeat([3, 9], 20)}), [3, 9])
    with pytest.raises(UserError, match="have task 9, and task_id says 3"):
        lengths_of(put(tmp_path / "a.npz", content | {"timeouts": last, "task": np.full(40, 9), "task_id": np.full(40, 3)}))
    for wrong in ({"infos": {"task": [[0], [0, 1]]}}, {"task": [[0], [0, 1]]}):
        with pytest.raises(UserError, match="task are lists of unequal lengths, not an array"):
            lengths_of(put(tmp_path / "a.pkl", [parts[0] | wrong]), task_id=3)
    for number in (np.inf, np.nan, -1, 2.5):
        with pytest.raises(UserError, match="have no single task id"):
            lengths_of(put(tmp_path / "a.pkl", [parts[0] | {"task": number}]), task_id=None)


def test_one_label_per_episode_or_for_all(tmp_path):
    content, last = flat(parts := [walk((length,), task, seed)[0] for seed, (length, task) in enumerate(((20, 3), (7, 9)))])
    path = tmp_path / "a.npz"
    both(put(path, content | {"episode_lengths": np.array([20, 7]), "task": np.array([3, 9])}), [3, 9])
    both(put(path, content | {"timeouts": last, "task": np.array([[3.0], [9.0]])}), [3, 9])
    alike = flat(walk((20, 7), 5))[0] | {"timeouts": last, "task": np.array(5)}
    assert lengths_of(put(path, alike), task_id=None).task_ids.tolist() == [5, 5]
    with pytest.raises(UserError, match="one number per step is expected, 27, or per episode, 2"):
        lengths_of(put(path, content | {"timeouts": last, "task": np.array([3, 9, 9])}))
    stacked = {key: np.stack([part[key] for part in (parts[0], walk((20,), 9)[0])]) for key in parts[0]}
    both(put(path, stacked | {"task": np.array([3, 9])}), [3, 9])


@pytest.mark.parametrize("full", [False, True])
def test_labels_of_a_replay_buffer(tmp_path, full):
    """Per step, per environment, or one for all; where an axis could be either they are refused."""

    def buffer(tasks, steps=40):
        streams = [flat(walk((20, 20), task, seed)) for seed, task in enumerate(tasks)]
        content = {key: np.stack([stream[key] for stream, _ in streams], 1)[:steps] for key in streams[0][0]}
        content["timeouts"] = np.stack([last for _, last in streams], 1)[:steps]
        content = {key: np.roll(array, 20, 0) if full else array for key, array in content.items()}
        return content | {"pos": np.array(20 if full else steps), "full": np.array(full)}

    path = tmp_path / "a.npz"
    told = {"task": np.array([3, 3, 9]), "task_id": np.broadcast_to([3, 3, 9], (40, 3))}
    both(put(path, buffer((3, 3, 9)) | told), [3, 3, 3, 3, 9, 9])
    for label in (np.array(7), np.full(40, 7)):
        assert lengths_of(put(path, buffer((7, 7)) | {"task": label}), task_id=None).task_ids.tolist() == [7] * 4
    with pytest.raises(UserError, match=r"task has shape \(2,\), rewards \(40, 3\): give a task id for each"):
        lengths_of(put(path, buffer((7, 7, 7)) | {"task": np.array([7, 7])}))
    if not full:
        with pytest.raises(UserError, match=r"task has shape \(3,\), rewards \(3, 3\)"):
            lengths_of(put(path, buffer((7, 7, 7), 3) | {"task": np.arange(3)}))


def test_a_task_beside_files_that_name_theirs_is_refused(tmp_path):
    content, _ = flat(walk((20, 20), 0))
    put(tmp_path / "dataset_task_0.pkl", content)
    assert lengths_of(tmp_path, task_id=None).task_ids.tolist() == [0, 0]
    with pytest.raises(UserError, match=r"--task_id 7: the files of .* say their tasks in their names"):
        lengths_of(tmp_path)


def test_episodes_that_are_missing_are_missed(tmp_path):
    """A copy that was cut short: fewer episodes than the file says, or an episode without its arrays."""
    content = {f"episode_{index}/{key}": values for index, part in enumerate(walk()) for key, values in part.items()}
    path = tmp_path / "a.hdf5"

    def changed(change):
        with h5py.File(write_hdf5(path, content), "a") as file:
            change(file)
        return path

    assert lengths_of(changed(lambda file: file.attrs.create("total_episodes", 3))).lengths.tolist() == [20, 7, 13]
    cases = {
        "it says that it has 5 episodes, and has 3": lambda file: file.attrs.create("total_episodes", 5),
        "episode_1 has no actions": lambda file: file.__delitem__("episode_1/actions"),
        "episode_1 has 7 actions, its total_steps is 9": lambda file: file["episode_1"].attrs.create("total_steps", 9),
        "episode_2 has 13 actions, its num_samples is 9": lambda file: file["episode_2"].attrs.create("num_samples", 9),
    }
    for message, change in cases.items():
        with pytest.raises(UserError, match=f"{message}: it is not complete"):
            lengths_of(changed(change))
    parts = {f"{key}_{index}": values for index, part in enumerate(walk()) for key, values in part.items()}
    with pytest.raises(UserError, match="total_size says 5 episodes, there are 3"):
        lengths_of(put(tmp_path / "a.npz", parts | {"total_size": np.array(5)}))


def test_a_gap_in_the_numbers_of_episodes_is_noted(tmp_path):
    for name in ("a.hdf5", "a.npz"):
        for numbers, gap in (((0, 1, 2), False), ((1, 2, 3), False), ((0, 1, 3), True), ((2, 3, 4), True)):
            parts = zip(numbers, walk((20, 20, 20)), strict=True)
            content = {f"episode_{number}/{key}": values for number, part in parts for key, values in part.items()}
            path = put(tmp_path / name, content)
            said = [f"the 3 episodes of {path} are numbered {numbers[0]} to {numbers[-1]}: are some missing?"]
            assert notes_of(path) == (said if gap else [])
            told = put(path, content | {"task": np.array([7, 7, 7])})
            if gap:
                with pytest.raises(UserError, match="which episode has which entry of task, since they are not numbered"):
                    notes_of(told)
            else:
                assert not notes_of(told)


def test_valid_files_that_are_not_called_damaged(tmp_path):
    content, last = flat(walk())
    content["timeouts"] = last
    with zipfile.ZipFile(put(tmp_path / "a.NPZ", content), "a") as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("folder/", "")
    assert lengths_of(tmp_path / "a.NPZ").lengths.tolist() == [20, 7, 13]
    with h5py.File(write_hdf5(tmp_path / "a.h5", content | {"nothing": h5py.Empty("f4")}), "a") as file:
        file[b"\xff\xfe"] = np.zeros(3)
    assert lengths_of(tmp_path / "a.h5").lengths.tolist() == [20, 7, 13]
    for nothing in (h5py.Empty("f4"), np.array([b"yes"] * 40)):
        with pytest.raises(UserError, match=r"a.h5: timeouts are no array of numbers$"):
            lengths_of(write_hdf5(tmp_path / "a.h5", content | {"timeouts": nothing}))
    with pytest.raises(UserError, match=r"a.npz: rewards are no array of numbers$"):
        lengths_of(put(tmp_path / "a.npz", content | {"rewards": np.array(["a"] * 40)}))
    with pytest.raises(UserError, match="has no arrays, but sets: arrays at its top, or one group of arrays per episode"):
        lengths_of(write_hdf5(tmp_path / "a.h5", {f"sets/train/{key}": values for key, values in content.items()}))


def test_rewards_that_cannot_be_compared_are_noted(tmp_path, monkeypatch):
    """A compute_rewards that is broken, on one transition or on many, ends nothing, and is not passed over."""
    path = put(tmp_path / "a.pkl", walk((20, 20)))
    environment = type(ENV.make())

    def leave(*_):
        raise SystemExit(3)

    def write(observations, *_):
        observations[:] = 0

    for broken, reason in (
        (lambda *_: 1 / 0, "fails .*ZeroDivisionError"),
        (lambda o, *_: np.zeros(1) if len(o) == 1 else o + 1, r"gives shape \(2, 20, 2\) for \(2, 20\) transitions"),
        (lambda *_: 0.0, r"gives shape \(\) for \(2, 20\)"),
        (lambda o, *_: o[..., 0] * np.nan, "gives numbers that are not finite"),
        (lambda *_: None, "gives shape"),
        (leave, "fails .*SystemExit"),
        (write, "fails .*read-only"),
    ):
        monkeypatch.setattr(environment, "compute_rewards", staticmethod(broken))
        t, _, (note,) = import_trajectories(path, ENV, range(50), 7)
        assert re.match(rf"rewards are not compared with those that .*: PointRobotEnv\.compute_rewards {reason}", note), note
        np.testing.assert_array_equal(t.observations[0], walk((20,))[0]["observations"])


def test_a_range_of_the_tasks(tmp_path):
    parts = [{**walk((20,), task, task)[0], "task": task} for task in (9, 4, 11)]
    path = put(tmp_path / "a.pkl", parts)
    assert import_trajectories(path, ENV, range(4, 10))[0].task_ids.tolist() == [4, 9]
    with pytest.raises(UserError, match="holds no episode of the tasks 20 to 29"):
        import_trajectories(path, ENV, range(20, 30))


def test_swapped_and_doubled_tasks_are_named(tmp_path):
    parts = [{**walk((20,), task, seed)[0], "task": task} for seed, task in enumerate((2, 2, 5))]
    parts[1]["task"], parts[2]["task"] = 5, 2
    message = "the rewards of task 2, episode 1, are not those .* but those of task 5: .*2 of 3 episodes"
    with pytest.raises(UserError, match=message):
        lengths_of(put(tmp_path / "a.pkl", parts), task_id=None)
    twins = [{**walk((20,), 2)[0], "task": task} for task in (2, 3)]
    with pytest.raises(UserError, match="tasks 2 and 3 have the same episodes"):
        lengths_of(put(tmp_path / "a.pkl", twins), task_id=None)


def test_tasks_that_share_episodes(tmp_path, capsys):
    """In another order, all but one, or imported before: more than half of them under two tasks are refused."""
    settings = ROOT / "tests" / "toy" / "slide.yaml"  # without compute_rewards, so that nothing else tells
    env, parts = read_env(settings, read_yaml(settings)), []
    for part in walk((6,) * 4):
        parts.append({"observations": part["observations"], "actions": part["actions"][:, :1], "rewards": part["rewards"]})
    own = [part | {"rewards": part["rewards"] - 1} for part in parts]

    def put_tasks(**episodes):
        return put(tmp_path / "a.pkl", [part | {"task": int(name[1:])} for name, group in episodes.items() for part in group])

    for other, shared in (
        (parts[::-1], "4 of 4"),
        (parts[1:], "3 of 3"),
        ([*parts[:3], own[3]], "3 of 4"),
        (parts[:1], "1 of 1"),
    ):
        with pytest.raises(UserError, match=rf"tasks 0 and 2 have the same episodes \({shared}\)"):
            import_trajectories(put_tasks(t0=parts, t2=other, t1=own), env, range(6))
    assert len(import_trajectories(put_tasks(t0=parts, t1=[*parts[:2], *own[:2]]), env, range(6))[0]) == 8

    argv = ["--config", str(settings), "--output_dir", str(tmp_path), "--data_type", "mine", "--import_from"]
    get_datasets.main([*argv, str(put_tasks(t0=parts, t1=own))])
    before = listing(tmp_path / "datasets")
    assert_refused(capsys, get_datasets, [*argv, str(put_tasks(t2=parts[:3]))], "tasks 0 and 2 have the same episodes (3 of 3)")
    assert listing(tmp_path / "datasets") == before
    get_datasets.main([*argv, str(put_tasks(t0=own[:2], t1=parts))])  # made again, they may change places


def test_another_task_list_is_refused(tmp_path):
    run(tmp_path / "a", "--data_type", "random", "--capacity", 20, "--task_id_end", 2, "--workers", 1)
    path = tmp_path / "a/datasets/point_robot/random-v0/data/main_data.hdf5"
    with h5py.File(path, "a") as file:
        file["episode_1"].attrs["options/goal"] = [0.5, 0.5]
    with pytest.raises(UserError, match=r"task 1 has goal \[0.5, 0.5\], ours has .*another task"):
        import_trajectories(path, ENV, range(50))
    with h5py.File(path, "a") as file:
        file["episode_1"].attrs["options/task"] = "left"
    with pytest.raises(UserError, match="episode_1 names its task 'left': give the row"):
        import_trajectories(path, ENV, range(50))


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x" * 101, "x" * 5000, "a b", "é", "a\n"])
@pytest.mark.parametrize("script", ["get_datasets", "train_context", "train_meta_dt", "baselines.online_dt.__main__"])
def test_unsafe_names_of_data_are_refused(tmp_path, capsys, script, name):
    argv = ["--env_type", "point_robot", "--output_dir", str(tmp_path), f"--data_type={name}"]
    assert_refused(capsys, importlib.import_module(script), argv, "is no name of a dataset")
    assert not list(Path(tmp_path).iterdir())


def test_names_of_ones_own_are_for_imports(tmp_path, capsys):
    argv = ["--env_type", "point_robot", "--output_dir", str(tmp_path), "--data_type", "mine"]
    assert_refused(capsys, get_datasets, argv, "--data_type mine is none of medium")
    assert_refused(capsys, importlib.import_module("train_context"), argv, "mine is none of medium")


def test_importing_from_nothing_keeps_the_data(tmp_path, capsys):
    run(tmp_path, "--data_type", "random", "--capacity", 20, "--task_id_end", 2, "--workers", 1)
    before = listing(tmp_path)
    for source in ("", " "):
        argv = ["--env_type", "point_robot", "--output_dir", str(tmp_path), "--data_type", "random", "--import_from", source]
        assert_refused(capsys, get_datasets, argv, "--import_from names nothing")
    assert listing(tmp_path) == before
