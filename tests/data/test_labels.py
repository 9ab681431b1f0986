"""Imports of many tasks: which task every episode belongs to, and names that are refused."""

import importlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import ROOT, assert_refused, listing
from recorded import ENV, GOALS, flat, lengths_of, notes_of, put, walk, write_hdf5

import get_datasets
from src.data import importers
from src.data.importers import import_trajectories
from src.data.trajectories import load
from src.run.config import read_env, read_yaml
from src.run.errors import UserError


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


def test_a_file_of_many_tasks_is_hashed_once(tmp_path, monkeypatch):
    """It may be as large as a disk."""
    hashed = []
    monkeypatch.setattr(importers, "_sha256", lambda path: hashed.append(path) or "0" * 64)
    parts = [{**walk((20,), task, task)[0], "task": task} for task in (9, 4, 11)]
    _, facts, _ = import_trajectories(put(tmp_path / "a.pkl", parts), ENV, range(50))
    assert hashed == [tmp_path / "a.pkl"] and [*facts["imported_from"]] == ["4", "9", "11"]


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


@pytest.mark.parametrize("name", ["task", "task_id", "task_idx", "task_index", "tasks", "TaskID", "Task_Num"])
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


@pytest.mark.parametrize("name", ["task", "task_ids", "Tasks"])
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


@pytest.mark.parametrize("place", ["of the task", "of every step", "among the infos", "of every step, among the infos", "flat"])
def test_arrays_called_as_a_task_parameter(tmp_path, place):
    """They say which task it is, wherever they stand; what changes from step to step is something else."""

    def content(goal):
        (part,) = walk((20,), 3)
        if "every step" in place or place == "flat":
            goal = np.broadcast_to(goal, (20, 2))
        if place == "flat":
            arrays, last = flat([part])
            return arrays | {"timeouts": last, "goal": goal}
        return [part | ({"infos": {"goal": goal}} if "infos" in place else {"goal": goal})]

    assert lengths_of(put(tmp_path / "a.pkl", content(GOALS[3])), task_id=3).task_ids.tolist() == [3]
    with pytest.raises(UserError, match=r"task 3 has goal \[.*, ours has .*another task"):
        lengths_of(put(tmp_path / "a.pkl", content(GOALS[4])), task_id=3)
    if "every step" in place or place == "flat":
        moving = content(np.linspace(0, 1, 40).reshape(20, 2))
        assert lengths_of(put(tmp_path / "a.pkl", moving), task_id=3).task_ids.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "place"), [("a.npz", "goal"), ("a.hdf5", "infos/goal"), ("a.pkl", "goal"), ("a.pkl", "infos/goal")]
)
@pytest.mark.parametrize("per", ["step", "episode"])
def test_flat_parameters_of_other_tasks(tmp_path, name, place, per):
    """A task parameter beside flat arrays of several tasks is that of each episode's task."""
    tasks, steps = [0, 1, 2], [20, 7, 13]
    content = {"task": np.repeat(tasks, steps)}
    for key in ("observations", "next_observations", "actions", "rewards"):
        content[key] = np.concatenate(
            [flat([walk((length,), task)[0]])[0][key] for task, length in zip(tasks, steps, strict=True)]
        )
    content["timeouts"] = np.isin(np.arange(40), np.cumsum(steps) - 1)
    repeats = steps if per == "step" else 1
    for goals, right in ((GOALS[tasks], True), (GOALS[[0, 2, 1]], False)):
        values = np.repeat(goals, repeats, 0)
        where = {"infos": {"goal": values}} if place != "goal" and name == "a.pkl" else {place: values}
        path = put(tmp_path / name, content | where)
        if right:
            assert lengths_of(path, task_id=None).task_ids.tolist() == tasks
        else:
            with pytest.raises(UserError, match="task 1 has goal"):
                lengths_of(path, task_id=None)
