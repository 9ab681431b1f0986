"""Artifacts on disk: atomic, safe to open, self-describing, resumable.

Nothing loaded here can run code: weights are safetensors, settings JSON, training states are read with `weights_only=True`.
Every file is written under a temporary name, flushed and renamed, so that a reader sees the old file or the new one.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from src.run.errors import UserError

MAKE_AGAIN = "give the command that makes it once more, with --no-resume"


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
        raise UserError(f"cannot write {path}: {system_reason(number)}; the file that was there before is intact") from error
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


def system_reason(number):
    """What the operating system means by an error number, in words that say what to do."""
    if number == errno.ENOSPC:
        return "the disk is full (free some space and run the same command again)"
    return os.strerror(number)


def write_json(path, document):
    """Write `document` atomically. NaN and infinities are refused: they are not JSON.

    A line holds an entry of an object, or an item of a list of lists or objects; so a list of numbers is one line.
    """
    text = _layout(document, 0)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def _layout(value, depth):
    if value and isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_layout(item, depth + 1)}" for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        lines = [json.dumps(item, allow_nan=False) for item in value]
    else:
        return json.dumps(value, allow_nan=False)
    margin, (opening, closing) = "\n" + " " * depth, "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{margin} " + f",{margin} ".join(lines) + f"{margin}{closing}"


def read_json(path):
    """Raises UserError when the file is missing or broken."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {MAKE_AGAIN}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {system_reason(error.errno)}; {MAKE_AGAIN}") from None
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
