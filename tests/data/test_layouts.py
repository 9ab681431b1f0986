"""Trajectories in the layouts of other libraries: the right episodes, or one line that says what is missing."""

import dataclasses
import zipfile

import h5py
import numpy as np
import pytest
from recorded import ENDING, ENV, flat, lengths_of, put, walk, write_hdf5

from src.data.importers import read_hdf5
from src.data.layouts import episodes_of
from src.run.errors import UserError


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


@pytest.mark.parametrize("name", ["a.npz", "a.pkl", "a.json"])
@pytest.mark.parametrize("whole", [False, True])
def test_rlds_keeps_the_last_observation_as_a_step(tmp_path, name, whole):
    """An episode of 20 actions has 21 steps; the last one's action and reward are no part of it. It is the 7 steps that end."""
    episodes, parts = walk(), []
    for index, part in enumerate(episodes):
        count = len(part["rewards"]) + 1
        last = np.arange(count) == count - 1
        parts.append({
            "observation": part["observations"], "is_first": np.arange(count) == 0, "is_last": last,
            "action": np.concatenate([part["actions"], np.full((1, *part["actions"].shape[1:]), 99.0)]),
            "reward": np.append(part["rewards"], 99.0), "discount": 1.0 - last, "is_terminal": last & (index == 1),
        })  # fmt: skip
    steps = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    content = steps if not whole else parts
    if whole and name == "a.npz":
        content = {f"{index}/{key}": values for index, part in enumerate(parts) for key, values in part.items()}
    t = lengths_of(put(tmp_path / name, content), ENDING)
    assert t.lengths.tolist() == [20, 7, 13] and t.infos["terminated"].sum(1).tolist() == [0, 1, 0]
    for row, part in enumerate(episodes):
        np.testing.assert_array_equal(t.observations[row, : len(part["observations"])], part["observations"])
        np.testing.assert_array_equal(t.rewards[row, : len(part["rewards"])], part["rewards"])
    if not whole:  # the last episode is cut off
        t = lengths_of(put(tmp_path / name, {key: values[:-3] for key, values in steps.items()}), ENDING)
        assert t.lengths.tolist() == [20, 7]


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


@pytest.mark.parametrize("name", ["episode_lengths", "lengths", "path_lengths"])
def test_padded_episodes_are_cut_or_refused(tmp_path, name):
    parts = [walk((20,), 7, seed)[0] for seed in range(3)]
    lengths = [20, 12, 20]
    stacks = {}
    for key in ("observations", "actions", "rewards"):
        stacks[key] = np.stack([part[key] for part in parts])
        stacks[key][1, 12 + (len(stacks[key][1]) > 20) :] = 0
    t = lengths_of(put(tmp_path / "a.npz", stacks | {name: np.array(lengths)}))
    assert t.lengths.tolist() == lengths
    with pytest.raises(UserError, match="end in zeros alone, as padding does: give episode_lengths"):
        lengths_of(put(tmp_path / "b.npz", stacks))
    with pytest.raises(UserError, match="a mask tells that some of its steps are padding"):
        lengths_of(put(tmp_path / "c.npz", stacks | {"mask": np.arange(20) < np.array(lengths)[:, None]}))


@pytest.mark.parametrize("name", ["mask", "valid"])
def test_masks_that_leave_steps_out(tmp_path, name):
    content, last = flat(walk())
    content |= {"timeouts": last, "terminals": np.zeros(40)}
    for mask in (np.arange(40) < 30, np.full(40, np.nan)):
        with pytest.raises(UserError, match="a mask tells that some of its steps are padding"):
            lengths_of(put(tmp_path / "a.npz", content | {name: mask}))
    parts = [part | {name: np.arange(len(part["rewards"])) < 5} for part in walk()]
    with pytest.raises(UserError, match="a mask tells that some of its steps are padding"):
        lengths_of(put(tmp_path / "a.pkl", parts))
    content["terminals"] = last & (np.arange(40) == 26)
    content["timeouts"] = last & (np.arange(40) != 26)
    goes_on = 1 - content["terminals"]  # as in jaxrl
    assert lengths_of(put(tmp_path / "b.npz", content | {name: goes_on}), ENDING).lengths.tolist() == [20, 7, 13]


@pytest.mark.parametrize("name", ["a.pkl", "a.hdf5"])
def test_padded_trajectory_dicts(tmp_path, name):
    whole, cut = walk((20,))[0], walk((20,), seed=1)[0]
    for values in cut.values():
        values[12 + (len(values) > 20) :] = 0

    def lengths(**more):
        parts = [part | {key: np.array(values[row]) for key, values in more.items()} for row, part in enumerate((whole, cut))]
        content = {f"{row}/{key}": v for row, part in enumerate(parts) for key, v in part.items()}
        return lengths_of(put(tmp_path / name, content if name == "a.hdf5" else parts)).lengths.tolist()

    with pytest.raises(UserError, match="end in zeros alone, as padding does: give episode_lengths"):
        lengths()
    for said in ("ep_len", "episode_length", "traj_len"):
        with pytest.raises(UserError, match="says of itself that it is another number of episodes or steps"):
            lengths(**{said: (20, 12)})


@pytest.mark.parametrize("key", ["length", "T", "n_steps"])
@pytest.mark.parametrize("stacked", [True, False])
def test_episodes_that_repeat_their_last_step(stacked, key):
    """As padding does: of a number that says so it is certain, and without one the user is told."""
    whole, cut = walk((20,))[0], walk((20,), seed=1)[0]
    for values in cut.values():
        end = 12 + (len(values) > 20)
        values[end:] = values[end - 1]

    def found(*said):
        parts = (
            [part | {key: np.array(number)} for part, number in zip((whole, cut), said, strict=True)] if said else [whole, cut]
        )
        return episodes_of(
            {field: np.stack([part[field] for part in parts]) for field in parts[0]} if stacked else parts, "it", ENV
        )

    with pytest.raises(UserError, match=f"repeat their last step from where {key} may say that they end"):
        found(20, 12)
    for harmless in ((), (20, 20), (3, 5), (20, 11)):  # none, or another quantity
        episodes, (note,) = found(*harmless)
        assert len(episodes) == 2
        assert note.startswith("1 of 2 episodes of it end in steps that repeat the one before, observation, action and reward")
    episodes, notes = episodes_of(walk((20, 20)), "it", ENV)
    assert len(episodes) == 2 and not notes


def plain():
    """An environment whose rewards nobody knows: what is glued, shifted or swapped is not noticed by them."""
    return dataclasses.replace(ENV, env_type="plain")


def test_steps_of_zeros_at_the_beginning():
    """As left padding has them, with a mask of any name or none."""
    whole, late = walk((20,))[0], walk((20,), seed=1)[0]
    for values in late.values():
        values[:6] = 0
    with pytest.raises(UserError, match="begin with steps of zeros alone, as padding does"):
        episodes_of([whole, late], "it", plain())
    for name, inside in (("attention_mask", 1), ("valid_mask", 1), ("padding_mask", 0), ("pad_mask", 1)):
        masks = [np.full(20, inside), np.where(np.arange(20) < 5, 1 - inside, inside)]
        parts = [part | {name: mask} for part, mask in zip(walk((20, 20)), masks, strict=True)]
        with pytest.raises(UserError, match="a mask tells that some of its steps are padding"):
            episodes_of(parts, "it", plain())
        assert len(episodes_of([parts[0]], "it", plain())[0]) == 1


@pytest.mark.parametrize("name", ["next_observation", "obs_next", "observations_next"])
def test_next_observations_under_other_names(name):
    episodes = walk()
    content, last = flat(episodes)
    content[name] = content.pop("next_observations")
    content |= {"terminals": last & (np.arange(40) == 26), "timeouts": last & (np.arange(40) != 26)}
    found, notes = episodes_of(content, "it", ENDING)
    assert [len(episode.rewards) for episode in found] == [20, 7, 13]
    assert [episode.terminated for episode in found] == [False, True, False] and "left out" not in str(notes)
    content["the_next_state"] = content.pop(name)
    with pytest.raises(UserError, match="the_next_state may be next observations: call them next_observations"):
        episodes_of(content, "it", ENDING)


def test_next_observations_under_another_name_are_no_rlds():
    content, last = flat(walk())
    content = {"observation": content["observations"], "next_observation": content["next_observations"],
               "action": content["actions"], "reward": content["rewards"], "is_last": last,
               "is_first": np.append(True, last[:-1]), "is_terminal": last & (np.arange(40) == 26)}  # fmt: skip
    found, _ = episodes_of(content, "it", ENDING)
    assert [(len(episode.rewards), episode.terminated) for episode in found] == [(20, False), (7, True), (13, False)]


@pytest.mark.parametrize("stacked", [True, False])
def test_next_observations_that_contradict_what_follows(stacked):
    parts = [part | {"next_observations": part["observations"][1:] + 3} for part in walk((20, 20))]
    content = {key: np.stack([part[key] for part in parts]) for key in parts[0]} if stacked else parts
    with pytest.raises(UserError, match="its next observations are not the observations that follow"):
        episodes_of(content, "it", plain())


def test_steps_that_nobody_marks_are_no_episode():
    """Two short ones may be as long as one."""
    content, _ = flat(walk((10, 10)), following=False)
    with pytest.raises(UserError, match="does not mark that its 20 steps are one episode, and it has no next_observations"):
        episodes_of(content, "it", plain())


@pytest.mark.parametrize("more", [{}, {"pos": np.array(0), "full": np.array(True)}, {"dones": np.zeros((1, 8))}])
def test_one_step_of_several_environments_is_no_episode(more):
    rng = np.random.default_rng(0)
    content = {
        "observations": rng.normal(size=(1, 8, 2)),
        "actions": rng.uniform(size=(1, 8, 2)),
        "rewards": rng.normal(size=(1, 8)),
    }
    with pytest.raises(UserError, match=r"which axis of its arrays|no step whose observation"):
        episodes_of(content | more, "it", plain())


def test_a_full_replay_buffer_without_next_observations():
    """The newest of them stands where the oldest observation was."""
    episodes = walk((20, 20))
    content, last = flat(episodes, following=False)
    content["observations"] = np.roll(content["observations"], 0, 0)
    content["observations"][0] = episodes[1]["observations"][-1]
    more = {"timeouts": last, "dones": last, "pos": np.array(0), "full": np.array(True)}
    found, notes = episodes_of(content | more, "it", plain())
    np.testing.assert_array_equal(found[0].observations[0], episodes[1]["observations"][0])
    assert len(found) == 1 and any("whose beginning its full replay buffer has lost" in note for note in notes)


def test_infos_that_begin_with_what_the_reset_told():
    """As Minari records them: a row more than there are steps."""
    part = walk((20,))[0]
    for infos in (np.arange(21.0), np.arange(1.0, 21.0)):
        (episode,) = episodes_of([part | {"infos": {"heat": infos}}], "it", plain())[0]
        np.testing.assert_array_equal(episode.infos["heat"], np.arange(1.0, 21.0))


@pytest.mark.parametrize(
    "change",
    [{"rewards": lambda a: a * 1e-50}, {"observations": lambda a: 1e9 + np.round(a * 10)}],
)
def test_numbers_that_float32_does_not_know_apart(change):
    parts = [
        {key: change.get(key, np.asarray)(values.astype(np.float64)) for key, values in part.items()} for part in walk((20,))
    ]
    with pytest.raises(UserError, match="that float32 does not know them apart: scale them"):
        episodes_of(parts, "it", plain())
    parts = walk((20,))
    parts[0]["observations"] = np.concatenate([parts[0]["observations"], np.full((21, 1), 1.0)], 1).astype(np.float64)
    parts[0]["observations"][::2, 2] += 1e-16  # what rounding leaves of a constant
    assert len(episodes_of(parts, "it", plain())[0]) == 1


def test_one_large_number_does_not_loosen_what_follows():
    content, _ = flat(walk((20, 20)))
    content["observations"][30] = content["next_observations"][29] = 1e6
    found, _ = episodes_of(content, "it", plain())
    assert [len(episode.rewards) for episode in found] == [20, 20]


@pytest.mark.parametrize("total", [40, 60])
def test_a_cut_robomimic_file(tmp_path, total):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["total"] = total
        for row, part in enumerate(walk((20, 20))):
            group = file.create_group(f"data/demo_{row}")
            group["obs"], group["actions"], group["rewards"] = part["observations"], part["actions"], part["rewards"]
    if total == 40:
        assert len(read_hdf5(path)) == 2
    else:
        with pytest.raises(UserError, match="its total is 60, its episodes have 40 steps: it is not complete"):
            read_hdf5(path)


def test_names_of_groups_that_are_no_episodes(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for row, part in enumerate(walk((20, 7))):
            for key, values in part.items():
                file[f"traj{row}²/{key}"] = values
        file["traj"] = [1.0]
    assert [len(part["rewards"]) for part in read_hdf5(path)] == [20, 7]


def test_a_trajectory_that_truly_ends_at_zeros(tmp_path):
    """Where its length or its end is said."""
    part = walk((20,))[0]
    part["observations"][-1:], part["actions"][-1:], part["rewards"][-1:] = 0, 0, 0
    for more in ({"timeouts": np.arange(20) == 19}, {"episode_lengths": np.array(20)}):
        with pytest.raises(UserError, match="are not those that the environment pays"):  # for standing there
            lengths_of(put(tmp_path / "a.pkl", [part | more]))


@pytest.mark.parametrize("start", [0.0, 0.25])
def test_trajectories_that_end_after_the_reset(tmp_path, start):
    """Environments that reset themselves give the first observation of the next episode as the last one."""
    parts = walk((20, 20, 20))
    for row, part in enumerate(parts):
        part["observations"] += np.float32(start * row)
    for row, part in enumerate(parts):
        part["observations"][-1] = parts[(row + 1) % 3]["observations"][0]
    stacks = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    for path in (put(tmp_path / "a.pkl", parts), put(tmp_path / "a.npz", stacks)):
        with pytest.raises(UserError, match="3 of 3 trajectories end at the very observation with which one of them begins"):
            lengths_of(path)


def test_one_field_under_two_names(tmp_path):
    content, last = flat(walk())
    twins = {"actions": ("acts", 2 * content["actions"]), "rewards": ("reward", 2 * content["rewards"])}
    for name, (other, values) in twins.items():
        with pytest.raises(UserError, match=f"{name} and {other} contradict each other"):
            lengths_of(put(tmp_path / "a.npz", content | {"timeouts": last, other: values}))
    counts = {"episode_lengths": np.array([20, 7, 13]), "lengths": np.array([10, 17, 13])}
    with pytest.raises(UserError, match="episode_lengths and lengths contradict each other"):
        lengths_of(put(tmp_path / "a.npz", content | counts))


def test_dones_of_another_clock(tmp_path):
    content, last = flat(walk((10, 4, 10, 10)))
    path = put(tmp_path / "a.npz", content | {"dones": last})
    with pytest.raises(UserError, match=r"3 of 4 episodes are done after 10 steps, and max_episode_steps is 20: .* apart"):
        lengths_of(path, ENDING)
    content, last = flat(walk((10, 4, 8, 6)))
    assert lengths_of(put(path, content | {"dones": last}), ENDING).infos["terminated"].sum() == 4


def test_d3rlpy_before_1_0(tmp_path):
    """Its rewards are those of the step before; only a file that says its version is of a later one."""
    content, last = flat(walk(), following=False)
    content |= {"terminals": np.zeros(40), "episode_terminals": last.astype(float), "discrete_action": np.array(False)}
    with pytest.raises(UserError, match=r"of a d3rlpy before 1.0, which kept with an observation the reward of the step before"):
        lengths_of(put(tmp_path / "a.h5", content))
