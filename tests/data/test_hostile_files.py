"""Files of foreign or evil hands: larger than they look, pointing elsewhere, lying about shapes. One line each, little memory."""

import bz2
import functools
import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from helpers import ROOT, load_env
from recorded import lengths_of, put, sealed_again, walk

from src.behaviour.store import read_curve
from src.data import hdf5
from src.data.importers import import_trajectories, read_hdf5, read_npz
from src.data.pickles import read_pickle
from src.data.trajectories import Trajectories, load, save, task_parameters
from src.run.config import read_yaml
from src.run.errors import UserError
from src.run.files import write_json

ENV = load_env("point_robot")
MOST = 100 << 20  # bytes that a reader may take for a file of some kilobytes


def refuse(read, path, message=None):
    """`read(path)` ends in one short line, having taken little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST, peak >> 20
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


# -------------------------------------------------------------------------------------------------------------- pickles


def doubling(depth, start):
    """[[[start, start], [start, start]], ...] in a few bytes by the memo of pickle."""
    value = start
    for _ in range(depth):
        value = [value, value]
    return pickle.dumps(value)


def reduce_often(call, times):
    """A list of `times` results of a call whose arguments are written once."""
    return b"\x80\x02](" + call + b"q\x01" + b"h\x01" * times + b"e."


PICKLES = {
    "a list that doubles": doubling(40, 1),
    "an array that doubles": doubling(24, np.zeros(1000)),
    "a text that doubles": doubling(24, "x" * 1000),
    "the length of bytes": b"\x80\x04\x8e" + (3 << 30).to_bytes(8, "little") + b"x.",
    "the length of a bytearray": b"\x80\x05\x96" + (3 << 30).to_bytes(8, "little") + b"x.",
    "the length of a text": b"\x80\x04\x8d" + (3 << 30).to_bytes(8, "little") + b"x.",
    "a number of many digits": b"L" + b"1" * 100_000 + b"L\n.",
    "a call without end": b"\x80\x02c_codecs\nencode\nq\x00X\xa0\x86\x01\x00" + b"x" * 100_000
    + b"q\x01X\x06\x00\x00\x00latin1q\x02](" + b"h\x00h\x01h\x02\x86R" * 2000 + b"e.",
    "nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a changed class": b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
    "a changed function": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a dict of a list": b"\x80\x02ccollections\nOrderedDict\n](K\x01K\x02e\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a class called": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "the dtype of an array": b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("data", PICKLES.values(), ids=PICKLES)
def test_pickles_that_are_larger_than_they_look(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    refuse(read_pickle, tmp_path / "a.pkl", r"is refused|not a readable pickle")


@pytest.mark.parametrize("data", [b"\x80\x04Nr\xff\xff\xff\x0f.", b"\x80\x04\x95" + (3 << 30).to_bytes(8, "little") + b"N."])
def test_numbers_that_a_pickle_only_names_take_no_memory(tmp_path, data):
    """The 268 millionth entry of the memo, a frame of 3 GiB."""
    (tmp_path / "a.pkl").write_bytes(data)
    tracemalloc.start()
    assert read_pickle(tmp_path / "a.pkl") is None
    assert tracemalloc.get_traced_memory()[1] < MOST
    tracemalloc.stop()


def test_tables_of_objects_are_read_where_they_are_asked_for_alone(tmp_path):
    """An array of objects (N, k) becomes N lists; what is in it passes the same reader; its shape is not believed."""
    table = np.array([[np.arange(2.0), 1.5], [np.arange(2.0), 2.5]], dtype=object)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(table, 4))
    refuse(read_pickle, path, "an array of objects, not of numbers")
    rows = read_pickle(path, tables=True)
    assert [row[1] for row in rows] == [1.5, 2.5] and rows[1][0].tolist() == [0, 1]
    for bad in (
        np.array([[print, 1]], dtype=object),
        np.array([1, {}], dtype=object),
        table.T,
    ):  # a call, no table, Fortran's order
        path.write_bytes(pickle.dumps(bad, 4))
        refuse(functools.partial(read_pickle, tables=True), path, "is refused")
    whole = pickle.dumps(table, 4)
    path.write_bytes(whole.replace(b"K\x02K\x02\x86", b"J\xff\xff\xff\x0fK\x02\x86"))
    assert path.read_bytes() != whole
    refuse(functools.partial(read_pickle, tables=True), path, "is refused")


def test_a_second_pickle_in_one_file_is_not_lost(tmp_path):
    with (tmp_path / "a.pkl").open("wb") as file:
        for number in range(2):
            pickle.dump([number], file)
    refuse(read_pickle, tmp_path / "a.pkl", "more follows the end of its first object: dump one list of all")


def test_tables_that_share_one_list_take_no_memory(tmp_path):
    """Each is a few bytes of the file, and would be a thousand lists."""
    table = b"(K\x01M\xe8\x03K\x01\x86cnumpy\ndtype\n\x8c\x02O8\x85R\x89](" + b"N" * 1000 + b"etq\x01"
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04cnumpy.core.multiarray\n_reconstruct\nq\x00" + table + b"](" + b"h\x00)Rh\x01b" * 2000 + b"e.")
    tracemalloc.start()
    refuse(functools.partial(read_pickle, tables=True), path, "unpacks to more than it holds")
    assert tracemalloc.get_traced_memory()[1] < 30e6  # a hundred and more by the lists alone
    tracemalloc.stop()


# ----------------------------------------------------------------------------------------------------------- npz, JSON


def npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def header(shape, dtype="<f8"):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_npz_files(tmp_path):
    path = tmp_path / "a.npz"
    npz(path, observations=header((1 << 40,)) + b"x" * 64)
    refuse(read_npz, path, "is larger than what is stored of it")
    npz(path, observations=header((100 << 20,), "|u1") + bytes(100 << 20))
    refuse(read_npz, path, "more than the file can hold")
    np.savez(path, observations=np.array([{"a": 1}], dtype=object))
    refuse(read_npz, path, "an array of objects is a pickle and is not read")
    np.savez(path, a=np.array(["text"]), b=np.arange(3))
    assert read_npz(path).keys() == {"b"}
    for data in (b"", b"PK", path.read_bytes()[:-30], b"\x93NUMPY"):
        path.write_bytes(data)
        refuse(read_npz, path, "is not a readable npz file")


HEADERS = ["{'descr': '<f8', 'shape': (3,", "(((((", "[" * 5000, "'", "\0", "1 if", "    x\n  y", "x" * 9000, "-" * 9000 + "1",
           "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }",
           "{'descr': '<f8', 'fortran_order': 1, 'shape': (1,)}"]  # fmt: skip


@pytest.mark.parametrize("text", HEADERS)
def test_headers_of_arrays(tmp_path, text):
    npz(tmp_path / "a.npz", observations=b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64))
    refuse(read_npz, tmp_path / "a.npz", "is not a readable npz file")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_with_flipped_bytes(tmp_path, method):
    """Refused, or read as they were: a byte of the archive's own notes may mean nothing."""
    values, refused = np.random.default_rng(0).normal(size=2000), 0
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("a.npy", header((2000,)) + values.tobytes())
    whole = (tmp_path / "a.npz").read_bytes()
    positions = range(0, len(whole), 137)
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 255
        (tmp_path / "a.npz").write_bytes(flipped)
        try:
            found = read_npz(tmp_path / "a.npz")
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(np.array_equal(array, values) for array in found.values())
    assert refused > 0.9 * len(positions)


def test_names_that_are_given_twice(tmp_path):
    """Which of the two is meant? JSON and zip archives allow it."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("rewards.npy", "rewards"):
            archive.writestr(name, header((1,)) + bytes(8))
    refuse(read_npz, tmp_path / "a.npz", "it has rewards twice")
    (tmp_path / "a.json").write_text('{"rewards": [1], "actions": [2], "rewards": [3]}')
    refuse(lambda path: import_trajectories(path, ENV, range(50), 0), tmp_path / "a.json", "the key 'rewards' is given twice")


def test_json_files_of_trajectories(tmp_path):
    for text in ("[" * 50_000, "3", '"a"', "[1, 2]", "[]", '[{"actions": {}}]', '{"observations": [[1], [1, 2]], "actions": 1}'):
        (tmp_path / "a.json").write_text(text)
        refuse(lambda path: import_trajectories(path, ENV, range(50), 0), tmp_path / "a.json")


# ----------------------------------------------------------------------------------------------------------------- HDF5


def flat(file, **more):
    values = {"observations": np.zeros((20, 2)), "actions": np.zeros((20, 2)), "rewards": np.zeros(20), **more}
    for key, value in values.items():
        file[key] = value


def test_hdf5_links_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        flat(file)
    np.zeros(40).tofile(tmp_path / "secret.raw")
    layout = h5py.VirtualLayout((20, 2), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "secret.hdf5", "observations", (20, 2))
    raw = [(str(tmp_path / "secret.raw"), 0, 320)]
    cases = {
        "external link": lambda file: file.__setitem__(
            "observations", h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "rewards")
        ),
        "soft link": lambda file: file.__setitem__("observations", h5py.SoftLink("/actions")),
        "external storage": lambda file: file.create_dataset("observations", (20, 2), "f8", external=raw),
        "virtual": lambda file: file.create_virtual_dataset("observations", layout),
    }
    for write in cases.values():
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file["actions"], file["rewards"] = np.zeros((20, 2)), np.zeros(20)
            write(file)
        refuse(read_hdf5, tmp_path / "a.hdf5", "links are not followed|lies in other files")


@pytest.mark.parametrize("link", [h5py.SoftLink("/episode_0/rewards"), h5py.ExternalLink("secret.hdf5", "actions")])
def test_links_in_episodes_are_not_followed(tmp_path, link):
    for name in ("secret", "a"):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            flat(file if name == "secret" else file.create_group("episode_0"))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = link
    refuse(read_hdf5, tmp_path / "a.hdf5", r"actions is a link, and links are not followed\); remove it, or put what it names in")


def test_a_link_to_nothing_is_to_be_removed(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        flat(file, old=h5py.SoftLink("/nowhere"))
    refuse(read_hdf5, tmp_path / "a.hdf5", r"old is a link, and links are not followed\); remove it, or put what it names")


@pytest.mark.parametrize("actions", [np.float32(1), h5py.Empty("f4"), "text"])
def test_actions_that_are_no_rows(tmp_path, actions):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        flat(file.create_group("episode_0"))
        del file["episode_0/actions"]
        file["episode_0/actions"] = actions
    refuse(lambda path: import_trajectories(path, ENV, range(50), 0), tmp_path / "a.hdf5")


def test_hdf5_arrays_that_are_larger_than_their_file(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("observations", (1 << 40, 2), "f4", chunks=(1024, 2))
        file["actions"], file["rewards"] = np.zeros((20, 2)), np.zeros(20)
    refuse(read_hdf5, tmp_path / "a.hdf5", "more than the file can hold")


def test_many_arrays_that_are_larger_together(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for index in range(5):
            file.create_dataset(f"a{index}", (30 << 20,), "u1", chunks=(1 << 20,))
    refuse(read_hdf5, tmp_path / "a.hdf5", "more than the file can hold")


def test_hdf5_text_and_foreign_types_are_left_out(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        flat(file, names=["a", "b"], pair=np.zeros(3, [("a", "f4"), ("b", "i4")]), more=np.void(b"x"))
        file.create_dataset("ragged", (2,), h5py.vlen_dtype(np.float32))
    assert read_hdf5(tmp_path / "a.hdf5").keys() == {"observations", "actions", "rewards"}


@pytest.mark.parametrize("suffix", ["pkl", "hdf5", "npz", "json"])
def test_pipes_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    os.mkfifo(path)
    refuse(lambda path: import_trajectories(path, ENV, range(50), 0), path)
    path.unlink()
    path.symlink_to("/dev/zero")
    refuse(lambda path: import_trajectories(path, ENV, range(50), 0), path)


def with_a_broken_heap(path):
    """Texts of attributes lie in a heap of the file; with the size of the first changed, the library looks for ever."""
    data = bytearray(path.read_bytes())
    size = data.index(b"GCOL") + 24
    data[size] = 255
    path.write_bytes(data)


def test_hdf5_whose_reading_never_ends(tmp_path, monkeypatch):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["author"], file.attrs["licence"] = "somebody" * 8, "MIT"
        file["rewards"] = [1.0]
    read_hdf5(path)
    with_a_broken_heap(path)
    monkeypatch.setattr(hdf5, "PATIENCE", (5, 1 << 22))
    refuse(read_hdf5, path, r"reading it has no end after 5 seconds\); fetch it again")


def test_hdf5_that_crashes_the_library(tmp_path, monkeypatch):
    put(tmp_path / "a.hdf5", {"rewards": np.zeros(3)})
    (tmp_path / "crash.py").write_text("import os; os.abort()")
    monkeypatch.setattr(hdf5, "TRIAL", tmp_path / "crash.py")
    refuse(read_hdf5, tmp_path / "a.hdf5", r"it crashes the library, signal 6\); fetch it again")


# --------------------------------------------------------------------------------------------------- our own datasets


@pytest.fixture
def dataset(tmp_path):
    """The file of a small dataset of ours."""
    rng, tasks = np.random.default_rng(0), task_parameters(ENV.make(), [0, 1])
    observations, actions = rng.normal(size=(3, 21, 2)), rng.uniform(-0.1, 0.1, (3, 20, 2))
    arrays = (a.astype(np.float32) for a in (observations, actions, np.zeros((3, 20))))
    t = Trajectories(*arrays, np.full(3, 20), np.array([0, 0, 1]), tasks)
    save(t, tmp_path, ENV, "medium", {})
    return tmp_path / "point_robot" / "medium-v0" / "data" / "main_data.hdf5"


@pytest.mark.parametrize("what", ["a pipe", "an endless device"])
def test_our_own_file_is_a_regular_one(dataset, what):
    root = dataset.parents[3]
    dataset.unlink()
    if what == "a pipe":
        os.mkfifo(dataset)
    else:
        dataset.symlink_to("/dev/zero")
    refuse(lambda root: load(root, "point_robot", "medium", ENV), root, "no regular file")


def test_a_broken_heap_of_our_own_is_refused_at_once(dataset):
    with_a_broken_heap(dataset)
    refuse(lambda root: load(root, "point_robot", "medium", ENV), dataset.parents[3], "its bytes are not those that were written")


def attribute(name, value, dtype=None):
    return lambda file: file["episode_1"].attrs.create(name, value, dtype=dtype)


def metadata(**changes):
    def change(file):
        file.attrs["metadata"] = json.dumps(json.loads(file.attrs["metadata"]) | changes)

    return change


def replaced(name, **options):
    def change(file):
        del file[f"episode_1/{name}"]
        file["episode_1"].create_dataset(name, **options)

    return change


def linked(link):
    def change(file):
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = link

    return change


LIES = {
    "more steps than max_steps": attribute("total_steps", 5000),
    "more steps than that, and an array to match": lambda file: (
        attribute("total_steps", 5000)(file), replaced("rewards", data=np.zeros(5000, "f4"))(file)),
    "no steps": attribute("total_steps", 0),
    "negative steps": attribute("total_steps", -3),
    "steps that are an array": attribute("total_steps", np.full(4000, 20)),
    "steps that are a text": attribute("total_steps", "20"),
    "steps that are a float": attribute("total_steps", 20.0),
    "a task that is an array": attribute("options/task", np.zeros(4000, np.int64)),
    "a task that is a long text": attribute("options/task", "x" * 5000),
    "no task": lambda file: file["episode_1"].attrs.__delitem__("options/task"),
    "another shape": replaced("actions", data=np.zeros((20, 3), "f4")),
    "more rows": replaced("actions", data=np.zeros((4000, 2), "f4")),
    "doubles": replaced("actions", data=np.zeros((20, 2))),
    "text": replaced("rewards", data=["x"] * 20),
    "lists": replaced("rewards", shape=(20,), dtype=h5py.vlen_dtype(np.float32)),
    "pairs": replaced("rewards", shape=(20,), dtype=[("a", "f4"), ("b", "f4")]),
    "a group": lambda file: (file.__delitem__("episode_1/rewards"), file["episode_1"].create_group("rewards")),
    "a soft link": linked(h5py.SoftLink("/episode_0/rewards")),
    "an external link": linked(h5py.ExternalLink("other.hdf5", "/x")),
    "metadata that are a number": lambda file: file.attrs.create("metadata", 3),
    "metadata that are texts": lambda file: file.attrs.create("metadata", ["{}", "{}"]),
    "metadata that are a list": lambda file: file.attrs.create("metadata", "[]"),
    "deep metadata": lambda file: file.attrs.create("metadata", "[" * 30_000),
    "no metadata": lambda file: file.attrs.__delitem__("metadata"),
    "too many episodes": metadata(total_episodes=10**15),
    "no episodes": metadata(total_episodes=0),
    "too long episodes": metadata(max_steps=10**12),
    "a shape of texts": metadata(observation_shape=["2"]),
    "a huge shape": metadata(observation_shape=[10**9, 10**9]),
    "a negative shape": metadata(action_shape=[-2]),
    "infos that are a list": metadata(info_shapes=[1]),
    "tasks that are a list": metadata(tasks=[1]),
    "tasks of another kind": metadata(tasks={"left": {}}),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_datasets_that_lie_about_themselves(dataset, change):
    """Sealed by who wrote them. In a process of its own: a reader that trusts them writes over its memory."""
    with sealed_again(dataset) as file:
        change(file)
    code = "import sys\nfrom src.run.errors import main_guard\nfrom src.data.trajectories import load\n" \
           "main_guard(lambda: load(sys.argv[1], 'point_robot', 'medium'))()"  # fmt: skip
    root = dataset.parents[3]
    done = subprocess.run([sys.executable, "-c", code, root], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, (done.returncode, done.stderr[-500:])
    assert len(done.stderr.splitlines()) == 1 and "is damaged" in done.stderr and "make it again" in done.stderr


# ------------------------------------------------------------------------------------------------------ YAML and curves


LETTERS = [(chr(97 + i), chr(98 + i)) for i in range(20)]
YAMLS = {
    "laughs": "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in LETTERS),
    "merges": "a: &a {x: 1}\n" + "".join(f"{new}: &{new} {{<<: [*{old}, *{old}]}}\n" for old, new in LETTERS),
    "itself": "a: &a [*a]",
    "deep": "a: " + "[" * 1000,
    "digits": "a: " + "1" * 5000,
    "date": "a: 2001-99-99",
    "large": "a: " + "x" * (2 << 20),
    "tag": "a: !!python/object/apply:os.system [true]",
    "bytes": "a: \x00",
    "empty": "",
}  # fmt: skip


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_yaml_bombs(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    refuse(read_yaml, tmp_path / "a.yaml")


def test_yaml_pipes(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    refuse(read_yaml, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 3}, {"steps": []}, {"steps": ["1", "2"]}, {"steps": [1.5, 2.5]}, {"steps": [1, 2, 3]}, {"steps": {}},
        {"stochastic_returns": [[1.0], [1.0, 2.0]]}, {"stochastic_returns": [1.0, 2.0]}, {"stochastic_returns": None},
        {"stochastic_returns": [[[1.0]], [[2.0]]]}, {"stochastic_returns": [["a"], ["b"]]}, {"stochastic_returns": [[], []]},
        {"random_returns": 5}, {"random_returns": [[1.0]]}, {"random_returns": [None]}, {"random_returns": "text"},
    ],
)  # fmt: skip
def test_curves_of_wrong_types(tmp_path, change):
    good = {"steps": [10, 20], "stochastic_returns": [[1.0, 2.0], [2.0, 3.0]], "random_returns": [0.0]}
    write_json(tmp_path / "curve.json", good)
    assert read_curve(tmp_path) == good
    with pytest.raises(UserError, match="lacks task_ids"):
        read_curve(tmp_path, shared=True)
    write_json(tmp_path / "curve.json", good | change)
    refuse(read_curve, tmp_path, "train its policies again")


@pytest.mark.parametrize("change", [{"task_ids": [0]}, {"task_ids": "ab"}, {"random_returns": [0.0]}, {"task_ids": [[0], [1]]}])
def test_curves_of_shared_agents(tmp_path, change):
    good = {"steps": [10], "stochastic_returns": [[[1.0], [2.0]]], "random_returns": [[0.0], [1.0]], "task_ids": [0, 3]}
    write_json(tmp_path / "curve.json", good)
    assert read_curve(tmp_path, shared=True) == good
    write_json(tmp_path / "curve.json", good | change)
    with pytest.raises(UserError, match="train its policies again"):
        read_curve(tmp_path, shared=True)


@pytest.mark.parametrize("package, name", [(gzip, "gzip"), (bz2, "bzip2"), (lzma, "xz")])
@pytest.mark.parametrize("kind", ["hdf5", "npz", "json", "pkl"])
def test_files_that_are_compressed_as_a_whole(tmp_path, kind, package, name):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(package.compress(b"anything"))
    with pytest.raises(UserError, match=f"a.{kind} is compressed by {name}: unpack it first"):
        lengths_of(path)


def test_json_with_a_byte_order_mark(tmp_path):
    path = put(tmp_path / "a.json", walk((20,)))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert lengths_of(path).lengths.tolist() == [20]


def test_a_file_that_another_program_writes(tmp_path):
    """It is not damaged: to fetch it again would not help."""
    script = (
        "import h5py, sys; file = h5py.File(sys.argv[1], 'w'); file['a'] = [1]; file.flush(); print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "a.hdf5"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another program has it open for writing: close it there"):
            lengths_of(tmp_path / "a.hdf5")
        other.communicate("\n")
