"""What must not be believed, lost or left behind: altered files, closed terminals, dead and refused runs."""

import fcntl
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers import ROOT, listing

from src.run import files
from src.run.directory import run_directory
from src.run.errors import UserError, patient_streams
from src.run.files import SEAL, load_state, load_tensors, locked_file, parse_json, read_json, save_state, save_tensors, write_json
from src.run.logger import Logger, read_metrics

TENSORS = {"weight": torch.arange(40.0), "half": torch.ones(3, dtype=torch.float16)}


# ---------------------------------------------------------------------------------------------------------------- seals


@pytest.mark.parametrize(
    ("write", "read"),
    [(save_tensors, load_tensors), (lambda path, value: save_state(path, {"model": value, "step": 3}), load_state)],
    ids=["safetensors", "state"],
)
def test_every_flipped_byte_is_refused(tmp_path, write, read):
    path = tmp_path / "file"
    write(path, TENSORS)
    whole = path.read_bytes()
    read(path)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="is damaged") as error:
            read(path)
        assert "\n" not in str(error.value)
    for altered in (whole + b"x", whole[:-1], b"x" + whole):
        path.write_bytes(altered)
        with pytest.raises(UserError, match="is damaged"):
            read(path)


def test_an_altered_json_object_is_refused(tmp_path):
    """Settings and figures count as weights do: every flipped byte that leaves another content is refused."""
    path, document = tmp_path / "a.json", {"target": -3.25, "steps": [10, 20], "name": "few_shot", "sha256": "ab", "on": True}
    write_json(path, document)
    whole = path.read_bytes()
    assert read_json(path) == document
    write_json(path, json.loads(whole))  # with the seal of before
    assert path.read_bytes() == whole
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 4
        path.write_bytes(flipped)
        try:
            found = read_json(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:  # a blank that became another one, or the name of the seal
            assert {key: found[key] for key in document} == document


def test_files_without_a_seal_are_refused(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file(TENSORS, tmp_path / "a")
    torch.save({"step": 3}, tmp_path / "b")
    for path, read in ((tmp_path / "a", load_tensors), (tmp_path / "b", load_state)):
        with pytest.raises(UserError, match="its bytes are not those that were written"):
            read(path)


def test_sealed_files_are_what_the_libraries_read(tmp_path):
    import safetensors.torch

    save_tensors(tmp_path / "a", TENSORS)
    save_state(tmp_path / "b", {"model": TENSORS})
    for found in (safetensors.torch.load_file(tmp_path / "a"), torch.load(tmp_path / "b", weights_only=True)["model"]):
        assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


def test_committed_weights_carry_their_seal():
    paths = [path for path in ROOT.rglob("*.safetensors") if not {"saves", "datasets"} & set(path.relative_to(ROOT).parts)]
    assert len(paths) >= 8
    for path in paths:
        load_tensors(path)
        for document in path.parent.glob("*.json"):
            assert SEAL in document.read_text() and read_json(document)


# --------------------------------------------------------------------------------------------------------- what is written


def test_files_have_the_ordinary_mode(tmp_path):
    former = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a", TENSORS)
        save_state(tmp_path / "b", {})
        write_json(tmp_path / "c", {})
    finally:
        os.umask(former)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_temporary_files_of_dead_writers_go(tmp_path):
    for name in (".a.1.tmp", ".a.22.tmp", ".ab.1.tmp", ".a.tmp", ".a.33.tmp"):
        (tmp_path / name).write_text("x")
    with (tmp_path / ".a.33.tmp").open() as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        write_json(tmp_path / "a", {})
    assert sorted(listing(tmp_path)) == [".a.33.tmp", ".a.tmp", ".ab.1.tmp", "a"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
@pytest.mark.parametrize("read", [read_json, load_tensors, load_state])
def test_pipes_and_devices_are_refused(tmp_path, make, read):
    make(tmp_path / "file")
    with pytest.raises(UserError, match=r"no regular file|Is a directory"):
        read(tmp_path / "file")


def test_what_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    save_tensors(tmp_path / "a", TENSORS)
    monkeypatch.setattr(files, "open_regular", denied)
    with pytest.raises(UserError, match=r"cannot read .*Permission denied"):
        load_tensors(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "NaN", "[1e999]", '{"a": -Infinity}', "\xff", "", '{"a": 1,}']
)
def test_malformed_json_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is not valid JSON") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert parse_json("[1.5, 1e3]") == [1.5, 1000]


def test_what_is_written_is_json(tmp_path):
    document = {1: {2: (3, None)}, "a": [[1, 2], {"b": 1.5}], 2.5: [], "c": {}}
    write_json(tmp_path / "a.json", document)
    assert read_json(tmp_path / "a.json") == json.loads(json.dumps(document))


def test_json_is_read_up_to_a_size_and_with_its_keys(tmp_path):
    write_json(tmp_path / "a.json", {"a": list(range(100))})
    assert read_json(tmp_path / "a.json", "a")["a"][3] == 3
    with pytest.raises(UserError, match="has more than 0 MiB"):
        read_json(tmp_path / "a.json", largest=100)
    with pytest.raises(UserError, match="lacks b"):
        read_json(tmp_path / "a.json", "a", "b")
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(UserError, match="lacks a"):
        read_json(tmp_path / "a.json", "a")


# ----------------------------------------------------------------------------------------------------------- the folder


def test_a_refused_run_does_not_bind_the_corrected_one(tmp_path):
    path = tmp_path / "saves" / "run"

    def refuse(config):
        with run_directory(path, config, True):
            raise UserError("mend it")

    with pytest.raises(UserError, match="mend it"):
        refuse({"steps": 1})
    assert not listing(tmp_path)
    path.mkdir(parents=True)
    write_json(path / "config.json", {"steps": 1})  # of a run that was killed before its first checkpoint
    with run_directory(path, {"steps": 2}, True):
        assert read_json(path / "config.json") == {"steps": 2}
        (path / "state.pt").write_text("")
    with pytest.raises(UserError, match="mend it"):
        refuse({"steps": 2})
    assert {"config.json", "state.pt"} <= listing(path).keys()  # an error later on costs nothing


def test_a_state_without_settings_is_refused(tmp_path):
    (tmp_path / "state.pt").write_text("")
    with pytest.raises(UserError, match=r"without its settings, config.json: pass --no-r"), run_directory(tmp_path, {}, True):
        pass
    assert not (tmp_path / "config.json").exists()
    with run_directory(tmp_path, {}, False):
        assert not (tmp_path / "state.pt").exists()


def test_a_lock_empties_nothing(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot write into"), run_directory(tmp_path / "run", {}, True):
        pass
    with pytest.raises(OSError, match="Too many levels"), locked_file(tmp_path / "run" / ".lock"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "plain").write_text("mine")
    with locked_file(tmp_path / "plain"), pytest.raises(BlockingIOError), locked_file(tmp_path / "plain", wait=False):
        pass
    assert (tmp_path / "plain").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------------- streams


PRINTING = textwrap.dedent("""
    import sys
    from pathlib import Path
    from tqdm import tqdm
    from src.run.errors import main_guard
    from src.run.logger import Logger

    @main_guard
    def main():
        with Logger(sys.argv[1], 3, tensorboard=False) as logger:
            for step in (1, 2, 3):
                logger.advance()
                logger.log(step, {"loss": 1.0})
                print("R² of the probe" * 3000, flush=True)
                print("R² of the probe", file=sys.stderr)
        Path(sys.argv[1], "result").write_text("done")

    main()
""")


@pytest.mark.long
@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", "| true", "2>&1 | head -c 10"])
def test_no_terminal_ends_a_run(tmp_path, streams):
    (tmp_path / "script.py").write_text(PRINTING)
    command = f"{{ {sys.executable} {tmp_path / 'script.py'} {tmp_path}; echo $? >{tmp_path / 'status'}; }} {streams}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, check=False, capture_output=True, timeout=100)
    assert (tmp_path / "result").read_text() == "done"
    assert len(read_metrics(tmp_path)) == 3
    assert "|" in streams or (tmp_path / "status").read_text() == "0\n"


def test_streams_are_given_back(capsys):
    former = sys.stdout
    with patient_streams():
        print("shown")
        assert sys.stdout is not former
    assert sys.stdout is former and capsys.readouterr().out == "shown\n"


def test_logging_never_ends_a_run(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "tensorboard").write_text("in the way")
    with Logger(tmp_path, 2) as logger:
        logger.log(1, {"loss": 2.0})
    assert "note: metrics.jsonl cannot be written" in capsys.readouterr().err


def test_a_foreign_log_is_passed_over(tmp_path):
    lines = ["[1]", "7", "[" * 100_000, '{"a": 1}', '{"step": "one"}', json.dumps({"step": 1, "a": 2})]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2}]
    with Logger(tmp_path, 2, start=1, tensorboard=False):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 2}\n'


def test_long_names_are_one_line(capsys):
    from helpers import assert_refused

    import train_context

    for argv in (["--config", "x" * 5000], ["--env_type", "x" * 5000], ["--output_dir", "x" * 5000, "--env_type", "point_robot"]):
        capsys.readouterr()
        assert_refused(capsys, train_context, argv, "xxx")
