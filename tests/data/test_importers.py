"""Datasets of other projects, and the pickles that must not run."""

import dataclasses
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import shell

from get_datasets import main
from src.data.importers import import_trajectories
from src.data.pickles import read_pickle
from src.data.trajectories import load
from src.run.config import read_env, read_yaml
from src.run.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENV = read_env(ROOT / "configs" / "point_robot.yaml", read_yaml(ROOT / "configs" / "point_robot.yaml"))


def flat(episodes=3, steps=20, seed=0, task=7):
    """Flat arrays of whole episodes as the official replay buffers hold them: float64, rewards in a column."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(episodes, steps + 1, 2))
    rewards = -np.linalg.norm(states[:, 1:] - ENV.make().tasks["goal"][task], axis=-1)
    return OrderedDict(
        observations=states[:, :-1].reshape(-1, 2),
        actions=rng.uniform(-0.1, 0.1, (episodes * steps, 2)),
        rewards=rewards.reshape(-1, 1),
        next_observations=states[:, 1:].reshape(-1, 2),
        terminals=np.zeros((episodes * steps, 1)),
        masks=np.ones((episodes * steps, 1)),
    )


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_pickles_of_numpy_arrays_are_read(tmp_path, protocol):
    content = {
        "c": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "flag": np.array([True, False]),
        "scalar": np.float64(1.5),
        "list": [{"velocity": np.float32(0.5), "name": "x"}, (1, 2.0, None)],
    }
    read = read_pickle(write(tmp_path / "a.pkl", content, protocol))
    for key in ("c", "f", "big", "flag"):
        np.testing.assert_array_equal(read[key], content[key])
    assert read["scalar"] == 1.5 and read["list"] == [{"velocity": 0.5, "name": "x"}, [1, 2.0, None]]


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        Evil(os.system, "touch touched"),
        {"observations": Evil(eval, "open('touched', 'w')")},
        [Evil(getattr, "x", "upper")],
        Evil(np.fromfile, "x"),
        np.array([Evil(os.system, "touch touched")], dtype=object),
        Evil(np.dtype, "O"),
        Evil(np.dtype, "V8"),
    ],
)
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 5):
        path = write(tmp_path / "dataset_task_0.pkl", content, protocol)
        with pytest.raises(UserError, match=r"refused|not a readable pickle") as error:
            read_pickle(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()


def test_forged_arrays_are_refused(tmp_path):
    whole = pickle.dumps(np.arange(4.0), protocol=3)
    for damaged in (whole[:-20], whole.replace(b"K\x04\x85", b"K\x09\x85"), b"", b"garbage"):
        (tmp_path / "a.pkl").write_bytes(damaged)
        with pytest.raises(UserError):
            read_pickle(tmp_path / "a.pkl")


def test_official_folder(tmp_path, capsys):
    source = tmp_path / "official"
    source.mkdir()
    contents = {0: flat(seed=0, task=0), 2: flat(2, seed=2, task=2)}
    contents[2] = OrderedDict(  # the names of other published files
        states=contents[2]["observations"],
        acts=contents[2]["actions"],
        rewards=contents[2]["rewards"][:, 0],
        next_states=contents[2]["next_observations"],
        dones=contents[2]["terminals"],
    )
    for task, content in contents.items():
        write(source / f"dataset_task_{task}.pkl", content)
    goals = ENV.make().tasks["goal"]
    write(source / "task_goals.pkl", [{"goal": goal} for goal in goals])
    main(["--env_type", "point_robot", "--import_from", str(source), "--output_dir", str(tmp_path)])
    assert "5 episodes of 2 tasks" in capsys.readouterr().out
    t = load(tmp_path / "datasets", "point_robot", "medium", ENV)
    assert t.task_ids.tolist() == [0, 0, 0, 2, 2] and set(t.lengths) == {20}
    np.testing.assert_array_equal(t.actions[1], contents[0]["actions"][20:40].astype(np.float32))
    np.testing.assert_array_equal(t.observations[4, -1], contents[2]["next_states"][-1].astype(np.float32))
    (entry,) = t.metadata["provenance"]
    assert entry["rule"] == "imported" and entry["imported_from"]["2"][0] == "dataset_task_2.pkl"

    write(source / "task_goals.pkl", [{"goal": goal + 0.1} for goal in goals])
    with pytest.raises(UserError, match="another task list"):
        import_trajectories(source, ENV, range(50))


def test_official_prompt_files(tmp_path, capsys):
    """Lists of whole trajectories, which mark no end; the data of the same folder stay out."""
    contents = {}
    for task in (0, 2):
        content = flat(3, seed=task, task=task)
        names = ("observations", "next_observations", "actions", "rewards")
        contents[task] = [{name: content[name][start : start + 20] for name in names} for start in (0, 20, 40)]
        write(tmp_path / f"dataset_task_prompt{task}.pkl", contents[task])
    flags = ["--env_type", "point_robot", "--import_from", str(tmp_path), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*flags, "--data_type", "prompts"])
    assert "for its dataset_task_prompt<i>.pkl pass --import_prompts" in capsys.readouterr().err
    write(tmp_path / "dataset_task_1.pkl", flat(task=1))
    main([*flags, "--data_type", "prompts", "--import_prompts"])
    t = load(tmp_path / "datasets", "point_robot", "prompts", ENV)
    assert t.task_ids.tolist() == [0, 0, 0, 2, 2, 2] and set(t.lengths) == {20}
    last = contents[2][2]
    np.testing.assert_array_equal(t.observations[5, -1], last["next_observations"][-1].astype(np.float32))
    np.testing.assert_array_equal(t.actions[5], last["actions"].astype(np.float32))
    write(tmp_path / "dataset_task_prompt2.pkl", [Evil(os.system, "touch touched")])
    with pytest.raises(UserError, match=r"refused|not a readable pickle"):
        import_trajectories(tmp_path, ENV, range(50), prompts=True)
    with pytest.raises(UserError, match="leave it out for a file"):
        import_trajectories(tmp_path / "dataset_task_1.pkl", ENV, range(50), prompts=True)


@pytest.mark.parametrize(("name", "said"), [(b"caf\xe9.pkl", "caf\\xe9.pkl"), ("café.pkl".encode(), "café.pkl")])
def test_names_of_files_that_are_any_bytes(tmp_path, name, said):
    """Also where the locale knows ASCII alone."""
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write(source, dict(flat()))
    flags = ["--env_type", "point_robot", "--import_from", source, "--output_dir", tmp_path, "--task_id", 7]
    simple = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("get_datasets", *flags, env=simple)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "datasets/point_robot/medium-v0"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"imported from {said} (SHA-256" in text and f"/{said}" in text  # the command, too
    entry = load(tmp_path / "datasets", "point_robot", "medium", ENV).metadata["provenance"][0]
    assert entry["imported_from"]["7"][0] == said
    main(list(map(str, flags)))  # joins what is there


@pytest.mark.parametrize("goals", [7, ["left", "right"], [[0.1, 0.2, 0.3]], {3: [0.1, 0.2]}])
def test_goals_that_are_none(tmp_path, goals):
    write(tmp_path / "dataset_task_0.pkl", flat(task=0))
    write(tmp_path / "task_goals.pkl", goals)
    with pytest.raises(UserError, match=r"task_goals.pkl is no list of goals, one per task: put it right, or move it away"):
        import_trajectories(tmp_path, ENV, range(50))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("rewards"), "has no rewards"),
        (lambda c: c.update(rewards=5), "rewards hold no steps"),
        (lambda c: c.update(actions=[[1.0], [1.0, 2.0]]), "actions are lists of unequal lengths"),
        (lambda c: c.update({k: v[:0] for k, v in c.items()}), "hold no steps"),
        (lambda c: c.update(actions=c["actions"][:-1]), "actions have shape"),
        (lambda c: c.update(terminals=c["terminals"] + np.nan), "terminals hold other numbers than 0 and 1"),
        (lambda c: c.update(timeouts=c["terminals"] + 0.7), "timeouts hold other numbers than 0 and 1"),
        (lambda c: c.update(rewards=["a"] * 60), "rewards are no array of numbers"),
        (lambda c: c.update({k: v[:-3] for k, v in c.items()}), "no multiple of 20"),
        (lambda c: c.update(next_observations=np.roll(c["next_observations"], 1, 0)), "are not one episode"),
        (lambda c: c.update(next_observations=np.zeros((len(c["rewards"]), 3))), "have another shape than observations"),
    ],
)
def test_bad_official_files(tmp_path, change, message):
    content = flat(task=0)
    change(content)
    write(tmp_path / "dataset_task_0.pkl", content)
    with pytest.raises(UserError, match=message):
        import_trajectories(tmp_path, ENV, range(50))


def test_d4rl_file(tmp_path):
    content = flat(2)
    timeouts = np.zeros(40, bool)
    timeouts[[11, 31]] = True  # episodes of 12 and 20 steps, and 8 steps that the file breaks off
    following = np.roll(content["observations"], -1, 0)  # its episodes end elsewhere than those of `flat`
    content["rewards"] = -np.linalg.norm(following - ENV.make().tasks["goal"][7], axis=-1)
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = content[name]
        file["terminals"], file["timeouts"] = np.zeros(40, bool), timeouts
    with pytest.raises(UserError, match="--task_id 0"):
        import_trajectories(path, ENV, range(50))
    t, _, notes = import_trajectories(path, ENV, range(50), 7)
    assert notes[0] == f"10 steps of {path} are left out, whose next observation or end is unknown"
    assert notes[1].startswith(f"1 of 2 episodes of {path} are shorter than max_episode_steps, 20") and len(notes) == 2
    # without next_observations the state after an episode's last step is unknown, so that step is left out
    assert t.lengths.tolist() == [11, 19] and t.task_ids.tolist() == [7, 7]
    np.testing.assert_array_equal(t.observations[1, :20], content["observations"][12:32].astype(np.float32))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="is not a readable HDF5 file"):
        import_trajectories(path, ENV, range(50), 7)
    with pytest.raises(UserError, match="neither a folder"):
        import_trajectories(tmp_path / "nothing.txt", ENV, range(50))
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"a.npy is not a .hdf5, .* file: store its arrays in one of these$"):
        import_trajectories(tmp_path / "a.npy", ENV, range(50))
    with pytest.raises(UserError, match=r"gone.hdf5 does not exist$"):
        import_trajectories(tmp_path / "gone.hdf5", ENV, range(50), 7)


ENDING = dataclasses.replace(ENV, terminates=True)


def test_without_timeouts_an_episode_also_ends_at_the_horizon(tmp_path):
    content = flat(3)
    content["terminals"][[45]] = 1  # 20, 20 and 6 steps, and 14 that the file breaks off
    content["next_observations"][45] += 0.5
    content["rewards"][45] = -np.linalg.norm(content["next_observations"][45] - ENV.make().tasks["goal"][7])
    path = write(tmp_path / "data.pkl", dict(content))
    t, _, notes = import_trajectories(path, ENDING, range(50), 7)
    assert t.lengths.tolist() == [20, 20, 6] and t.infos["terminated"].sum(1).tolist() == [0, 0, 1]
    assert notes[0].startswith("14 steps of")
    content["timeouts"] = np.zeros(60, bool)
    content["timeouts"][59] = True  # now the file says where episodes end
    with pytest.raises(UserError, match="steps 0 to 46 are not one episode"):
        import_trajectories(write(tmp_path / "data.pkl", dict(content)), ENDING, range(50), 7)


def test_an_end_without_next_observations_is_left_out(tmp_path):
    """The state after it is unknown, as after any last step: what is kept did not end on its own."""
    content = flat(2)
    del content["next_observations"]
    content["terminals"][14] = 1
    content["timeouts"] = np.arange(40) == 34
    following = np.roll(content["observations"], -1, 0)
    content["rewards"][:, 0] = -np.linalg.norm(following - ENV.make().tasks["goal"][7], axis=-1)
    content["rewards"][14] = 50
    path = write(tmp_path / "data.pkl", dict(content))
    t, _, notes = import_trajectories(path, ENDING, range(50), 7)
    assert t.lengths.tolist() == [14, 19] and not t.infos["terminated"].any()
    np.testing.assert_array_equal(t.observations[0, :15], content["observations"][:15].astype(np.float32))
    assert notes[0].startswith("7 steps of")  # the last one of both, five at the end
    assert notes[1].startswith(f"1 episodes of {path} that ended on their own are kept without that end") and len(notes) == 2
    t, _, _ = import_trajectories(write(tmp_path / "data.pkl", dict(content)), ENV, range(50), 7)
    assert t.lengths.tolist() == [14, 19]  # where episodes have one length a flag is no termination


def test_minari_in_another_shape(tmp_path):
    with h5py.File(tmp_path / "hopper.hdf5", "w") as file:
        file.create_group("episode_0")
    with pytest.raises(UserError, match=r"hopper.hdf5 has no arrays"):
        import_trajectories(tmp_path / "hopper.hdf5", ENV, range(50), 7)
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "metadata.json").write_text(json.dumps({"data_format": "arrow"}))
    for folder in (tmp_path / "set", tmp_path / "set" / "data"):
        with pytest.raises(UserError, match=r"in arrow storage: make it again with data_format="):
            import_trajectories(folder, ENV, range(50), 7)
