"""Artifacts when something goes wrong: full disks, damaged and malicious files, two runs in one folder, signals."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import CONTEXT, POLICY, ROOT, SAVES, listing, run_stage

from src.data import trajectories
from src.run import files as checkpoint
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import atomic_path, digest, load_state, load_tensors, read_json, save_state, save_tensors, write_json
from src.run.logger import Logger, read_metrics
from src.run.loop import StopSignal
from src.run.provenance import git_commit, provenance

TENSORS = {"weight": torch.arange(60_000.0), "step": torch.tensor([3])}
WRITERS = {
    "json": lambda path: write_json(path, list(range(60_000))),
    "tensors": lambda path: save_tensors(path, TENSORS),
    "state": lambda path: save_state(path, {"model": TENSORS, "step": 4}),
    "text": lambda path: _write_text(path),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def _write_text(path):
    with atomic_path(path) as temporary:
        temporary.write_text("x" * 60_000)


@pytest.fixture
def tiny_files():
    """The operating system refuses files above 4 KiB, as a full disk refuses all: a real failure in the middle of a write."""
    old, limit = resource.getrlimit(resource.RLIMIT_FSIZE), 4096
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    class Limit:
        def __enter__(self):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))

        def __exit__(self, *exception):
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    yield Limit()
    signal.signal(signal.SIGXFSZ, previous)


# -------------------------------------------------------------------------------------------------------- atomic writes


@every_writer
@pytest.mark.parametrize("former", [b"the former content", None])
def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path, tiny_files, write, former):
    path = tmp_path / "file"
    if former:
        path.write_bytes(former)
    with tiny_files, pytest.raises(UserError, match=r"cannot write .*file: File too large; the file .* is intact") as error:
        write(path)
    assert "\n" not in str(error.value)
    assert listing(tmp_path) == ({"file": former} if former else {})
    write(path)
    assert path.stat().st_size > 4096


@every_writer
@pytest.mark.parametrize("instant", ["fsync", "replace"])
def test_a_full_disk_is_named(tmp_path, monkeypatch, write, instant):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"the former content")
    if instant == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(checkpoint.Path, "replace", full)
    with pytest.raises(UserError, match=r"the disk is full \(free some space and run the same command again\)"):
        write(path)
    assert listing(tmp_path) == {"file": b"the former content"}


def test_a_dataset_on_a_full_disk(tmp_path, tiny_files, data_root, capsys):
    root = tmp_path / "data"
    shutil.copytree(data_root / "datasets", root / "datasets")
    before = listing(root)
    with tiny_files, pytest.raises(SystemExit) as end:
        run_stage("get_datasets", root, "--seed", "1")
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: cannot write ") and error.endswith("File too large; the file that was there before is intact")
    assert listing(root) == before
    trajectories.load(root / "datasets", "point_robot", "random")


def test_what_is_not_a_failure_of_the_disk_is_not_disguised(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    with pytest.raises(UserError, match="mend"), atomic_path(tmp_path / "file"):
        raise UserError("mend")
    assert not listing(tmp_path)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(tmp_path / "file", {"a": value})


def test_folders_are_made_and_files_in_their_way_named(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {"x": 1})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"x": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/c.json: (Not a directory|File exists)"):
        write_json(tmp_path / "file" / "c.json", {})
    with pytest.raises(UserError, match="choose another --output_dir"), run_directory(tmp_path / "file" / "run", {}, True):
        pass


# -------------------------------------------------------------------------------------------------------- damaged files


def test_round_trips(tmp_path):
    save_tensors(tmp_path / "a", TENSORS | {"transposed": torch.arange(6.0).view(2, 3).T})
    found = load_tensors(tmp_path / "a")
    assert torch.equal(found["weight"], TENSORS["weight"]) and found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    state = {"tensors": [TENSORS["weight"]], "step": 3, "none": None, "text": "x", "nested": {"a": [1.5, True]}}
    save_state(tmp_path / "b", state)
    found = load_state(tmp_path / "b")
    assert torch.equal(found.pop("tensors")[0], TENSORS["weight"]) and found == {k: v for k, v in state.items() if k != "tensors"}


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:7], lambda b: b"", lambda b: b"\xff" * 300])
@pytest.mark.parametrize(
    ("write", "read", "mend"),
    [
        (lambda path: save_tensors(path, TENSORS), load_tensors, "is damaged .*once more, with --no-resume"),
        (lambda path: save_state(path, {"a": TENSORS}), load_state, "is damaged .*delete it, or pass --no-resume"),
        (lambda path: write_json(path, {"a": [1, 2]}), read_json, "is not valid JSON .*once more, with --no-resume"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, damage, write, read, mend):
    write(tmp_path / "file")
    (tmp_path / "file").write_bytes(damage((tmp_path / "file").read_bytes()))
    with pytest.raises(UserError, match=mend) as error:
        read(tmp_path / "file")
    assert "\n" not in str(error.value) and "file" in str(error.value)


@pytest.mark.parametrize("read", [load_tensors, read_json, load_state])
def test_missing_files_are_one_line(tmp_path, read):
    with pytest.raises(UserError, match="missing"):
        read(tmp_path / "missing")


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_state_is_refused_and_runs_nothing(tmp_path, policy_root, capsys, legacy):
    for script, directory in (("train_context", CONTEXT), ("train_meta_dt", POLICY)):
        root = tmp_path / script
        shutil.copytree(policy_root, root)
        evil = {"step": 1, "x": Evil(tmp_path / "touched")}
        torch.save(evil, root / directory / "state.pt", _use_new_zipfile_serialization=not legacy)
        before = listing(root)
        with pytest.raises(SystemExit) as end:
            run_stage(script, root)
        assert end.value.code == 2 and "state.pt is damaged" in capsys.readouterr().err
        assert listing(root) == before and not (tmp_path / "touched").exists()
    (tmp_path / "x.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "touched")))
    with pytest.raises(UserError, match="damaged"):
        load_tensors(tmp_path / "x.safetensors")
    assert not (tmp_path / "touched").exists()


def test_a_digest_tells_weights_apart():
    same = {name: value.clone() for name, value in TENSORS.items()}
    assert digest(same) == digest(TENSORS)
    same["weight"][5] += 1e-3
    assert digest(same) != digest(TENSORS) != digest({"weight": TENSORS["weight"]})


# ----------------------------------------------------------------------------------------------------------- the folder


def test_the_first_settings_stay_and_others_are_refused(tmp_path):
    first = {"learning_rate": 0.1, "seed": 0, "env": {"test_tasks": (45, 50)}, "device": "cpu"}
    with run_directory(tmp_path / "run", first, True, ("device",)):
        (tmp_path / "run" / "state.pt").write_bytes(b"state")
    with run_directory(tmp_path / "run", first | {"device": "cuda"}, True, ("device",)) as directory:
        assert directory == tmp_path / "run" and (directory / "state.pt").exists()
    with run_directory(tmp_path / "run", first | {"younger": False, "none": None}, True, ("device",)):
        pass  # a switch that the run did not know, and that is off
    assert read_json(tmp_path / "run" / "config.json") == json.loads(json.dumps(first))
    before = listing(tmp_path)
    for change, message in (
        ({"learning_rate": 0.2}, "holds a run with learning_rate 0.1, this command says 0.2: pass --no-resume to replace it"),
        ({"new": 1}, "new None, this command says 1"),
        ({"env": {"test_tasks": (45, 49)}}, r"another env \(test_tasks\)"),
    ):
        with pytest.raises(UserError, match=message), run_directory(tmp_path / "run", first | change, True, ("device",)):
            pass
    assert listing(tmp_path) == before
    with run_directory(tmp_path / "run", {"seed": 1}, False) as directory:
        assert sorted(path.name for path in directory.iterdir()) == [".lock", "config.json"]
        assert read_json(directory / "config.json") == {"seed": 1}


def test_two_runs_do_not_share_a_folder(tmp_path):
    other = [sys.executable, "-c", "import sys, time; from src.run.directory import run_directory\n"
             "with run_directory(sys.argv[1], {}, True): print('mine', flush=True); time.sleep(60)"]  # fmt: skip
    with subprocess.Popen([*other, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        before = listing(tmp_path)
        for resume in (True, False):
            message = "another run is writing into .*run; wait for it or choose another --output_dir"
            with pytest.raises(UserError, match=message), run_directory(tmp_path / "run", {}, resume):
                pass
        assert listing(tmp_path) == before
        process.kill()
        process.wait()
    with run_directory(tmp_path / "run", {}, True):  # a killed owner leaves no lock behind
        pass


def test_a_second_run_of_the_same_command_is_refused_by_the_scripts(tmp_path, policy_root, capsys):
    shutil.copytree(policy_root, tmp_path / "root")
    for script, directory in (("train_context", CONTEXT), ("train_meta_dt", POLICY)):
        config = read_json(tmp_path / "root" / directory / "config.json")
        with run_directory(tmp_path / "root" / directory, config, True), pytest.raises(SystemExit) as end:
            run_stage(script, tmp_path / "root")
        assert end.value.code == 2 and "another run is writing into" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_flag_until_the_step_ends(number, capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        deadline = time.time() + 5
        while stop.received is None and time.time() < deadline:
            time.sleep(0.001)
        assert stop.received == number
        with pytest.raises(SystemExit) as end:
            stop.exit(12)
    assert end.value.code == 128 + number and "stopped at step 12, saved; the same command continues" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_scripts_end_with_one_line_and_a_status(capsys):
    def ends(error):
        @main_guard
        def main():
            """Its docstring."""
            raise error

        with pytest.raises(SystemExit) as end:
            main()
        assert main.__doc__ == "Its docstring."
        return end.value.code, capsys.readouterr().err

    assert ends(UserError("do this")) == (2, "error: do this\n")
    assert ends(KeyboardInterrupt()) == (130, "interrupted: the same command continues from the last checkpoint\n")
    status, line = ends(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"))
    assert status == 2 and line.startswith("error: out of memory (CUDA out of memory.") and line.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())
    require_finite(1.0, "x")
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"the loss became .*: lower --learning_rate"):
            require_finite(value, "the loss")


# ----------------------------------------------------------------------------------------------------------------- logs


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "a": 1}\n{"step": 20, "a": 2}\n{"step": 3')
    log = Logger(tmp_path, 30, start=10, tensorboard=False, bar=False)
    log.log(20, {"a": 3.0, "b": None})
    log.log(30, {"b": 0.5})
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n10,1,\n20,3.0,\n30,,0.5\n"  # though nothing is closed
    log.close()
    assert read_metrics(tmp_path) == [{"step": 10, "a": 1}, {"step": 20, "a": 3.0, "b": None}, {"step": 30, "b": 0.5}]


def test_provenance(model_root):
    facts = provenance()
    assert facts["command"].startswith("python ") and facts["versions"]["torch"] and "core" in facts["hardware"]
    assert np.shape(read_json(model_root / CONTEXT / "config.json")["env"]["train_tasks"]) == (2,)
    assert SAVES in CONTEXT.parents and facts["commit"]


def test_a_commit_is_dirty_when_more_than_results_changed(tmp_path):
    """A run that is measured again overwrites tracked results; that is not another version of the code."""
    assert git_commit(tmp_path) == "unknown"

    def git(*words):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True)

    (tmp_path / "results").mkdir()
    for name in ("results/seed_0.json", "code.py"):
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "results/seed_0.json").write_text("2")
    git_commit.cache_clear()
    clean = git_commit(tmp_path)
    assert len(clean) == 10 and int(clean, 16) >= 0
    (tmp_path / "code.py").write_text("2")
    git_commit.cache_clear()
    assert git_commit(tmp_path) == clean + "-dirty"
    git_commit.cache_clear()
