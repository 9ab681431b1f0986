"""Artifacts on disk: atomic, safe to open, self-describing, resumable.

Nothing loaded here can run code: weights are safetensors, settings JSON, training states are read with `weights_only=True`.
Every file is written under a temporary name, flushed and renamed, so that a reader sees the old file or the new one.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import safetensors
import safetensors.torch
import torch

MAKE_AGAIN = "give the command that makes it once more, with --no-resume"
ROOT = Path(__file__).resolve().parent.parent  # of the checkout


class UserError(Exception):
    """A mistake that the user can mend; its text is one line that says how. Scripts print it and exit with status 2."""


def main_guard(main):
    """Decorator of a script's `main`: a UserError or lack of memory becomes one line on stderr and exit status 2, Ctrl-C 130."""

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except (MemoryError, RuntimeError) as error:
            full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            if not full:
                raise
            reason = str(error).splitlines()[0][:160] if str(error) else "no memory left"
            print(f"error: out of memory ({reason}): make sizes, batches or numbers of episodes smaller", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
            sys.exit(130)

    return guarded


# ------------------------------------------------------------------------------------------------------------ files


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary path beside `path`; on success it is flushed and renamed to `path`, on failure removed.

    Raises UserError when the disk is full or the folder cannot be written; the former file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        raise UserError(f"cannot write {path}: {_reason(number)}; the file that was there before is intact") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _errno(error):
    """The operating system's error number behind an exception: torch, h5py and safetensors wrap it in types of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        found = re.search(r"(?:os error|errno =) (\d+)", str(error))
        if found:
            return int(found[1])
        error = error.__context__
    return None


def _reason(number):
    if number == errno.ENOSPC:
        return "the disk is full (free some space and run the same command again)"
    return os.strerror(number)


def write_json(path, document):
    """Write `document` atomically. NaN and infinities are refused: they are not JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path):
    """Raises UserError when the file is missing or broken."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {MAKE_AGAIN}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error.errno)}; {MAKE_AGAIN}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): {MAKE_AGAIN}") from None


def save_tensors(path, tensors):
    """dict of tensors -> safetensors file, atomically."""
    with atomic_path(path) as temporary:
        safetensors.torch.save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)


def load_tensors(path):
    """safetensors file -> dict of CPU tensors. Raises UserError when it is missing or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {MAKE_AGAIN}") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {MAKE_AGAIN}") from None


def digest(tensors):
    """SHA-256 of a dict of tensors: says whether two artifacts were made from the same weights."""
    return hashlib.sha256(safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()})).hexdigest()


def save_state(path, state):
    """Training state (nested dicts and lists of tensors and plain values) -> one file, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_state(path, *keys):
    """Read what `save_state` wrote; never executes code. Raises UserError when the file is damaged, or lacks one of `keys`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); delete it, or pass --no-resume to start again") from None
    if not isinstance(state, dict) or not all(key in state for key in keys):
        raise UserError(f"{path} is not the state of such a run: delete it, or pass --no-resume to start again")
    return state


# ------------------------------------------------------------------------------------------------------------- runs


@contextlib.contextmanager
def run_directory(path, config, resume, volatile=()):
    """Own a run's folder: locks it, checks that what lies there was made with the same settings, else writes config.json.

    Args:
        config: JSON-able settings; a resumed run must agree in all but the keys in `volatile`.
        resume: False deletes the former run's files first.
    Raises UserError when another process writes there, or when the settings differ.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write into {path}: {_reason(error.errno)}; choose another --output_dir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is writing into {path}; wait for it or choose another --output_dir") from None
        for leftover in path.glob(".*.tmp"):  # of a run that was killed in the middle of a write
            leftover.unlink()
        if not resume:
            files = [old for old in path.rglob("*") if old.is_file() and old.name != ".lock"]
            for old in sorted(files, key=lambda file: file == path / "config.json"):  # last: it vouches for the others
                old.unlink()
        elif (path / "config.json").exists():
            _check_same(path, read_json(path / "config.json"), config, volatile)
        if not (path / "config.json").exists():
            write_json(path / "config.json", config)
        yield path


def _check_same(path, old, new, volatile):
    if not isinstance(old, dict):
        raise UserError(f"{path / 'config.json'} holds no settings: pass --no-resume to replace the run")
    new = json.loads(json.dumps(new))  # tuples and lists are one thing in JSON
    for key in sorted((old.keys() | new.keys()) - set(volatile)):
        if key not in old and not new[key]:
            continue  # a switch that is younger than the run, and off
        if old.get(key) != new.get(key):
            difference = f"{key} {old.get(key)!r}, this command says {new.get(key)!r}"
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                inner = [k for k in old[key].keys() | new[key].keys() if old[key].get(k) != new[key].get(k)]
                difference = f"another {key} ({', '.join(sorted(inner))})"
            raise UserError(
                f"{path} holds a run with {difference}: pass --no-resume to replace it, or choose another --output_dir"
            )


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a flag that a training loop reads between steps; `exit` leaves with the shell's status."""

    def __enter__(self):
        self.received = None
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number, frame):
        self.received = number

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def exit(self, step):
        print(f"stopped at step {step}, saved; the same command continues", file=sys.stderr)
        sys.exit(128 + self.received)


def require_finite(value, what, flag="--learning_rate"):
    """Raises UserError when a loss (float) is NaN or infinite; flag: what the script calls its learning rate."""
    if not math.isfinite(value):
        raise UserError(f"{what} became {value}: lower {flag}, or look for extreme values in the dataset")


# -------------------------------------------------------------------------------------------------------- provenance


def provenance():
    """Where a number comes from: {"command", "commit", "hardware", "versions"}."""
    packages = ("torch", "numpy", "gymnasium", "mujoco", "minari", "stable-baselines3")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"command": command_line(), "commit": git_commit(), "hardware": hardware(), "versions": versions}


def command_line():
    """The command that started this process, with the script's path as the user would type it from the repository."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = f"-m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name
    return shlex.join(["python", *script.split(), *sys.argv[1:]])


@functools.lru_cache
def git_commit(root=ROOT):
    """Short hash of the checkout `root`, with "-dirty" when tracked files differ, those under results/ apart, which a run writes
    itself; "unknown" outside git."""
    git = ["git", "-C", str(root)]
    options = {"capture_output": True, "text": True, "timeout": 20}
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], check=True, **options).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!results"], **options).returncode
        return commit + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.lru_cache
def hardware():
    """Processor name and the number of cores that this process may use (and the GPU where there is one)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {cores} cores{gpu}"


def processor():
    """Name of the processor, as Linux tells it where there is one."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return name
