"""Where episodes end in a stream of steps: what files say, what is seen, and what is refused."""

import numpy as np
import pytest
from recorded import ENDING, ENV, flat, lengths_of, notes_of, put, walk

from src.data.importers import import_trajectories
from src.data.layouts import episodes_of
from src.run.errors import UserError


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
