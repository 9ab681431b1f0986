"""Artifacts on disk: atomic, safe to open, self-describing, resumable.

Nothing loaded here can run code: weights are safetensors, settings JSON, training states are read with `weights_only=True`.
Every file is written under a temporary name, flushed and renamed, so that a reader sees the old file or the new one. Weights and
states carry a seal, the SHA-256 of all their other bytes, and JSON objects that of their content: one flipped bit is refused.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import stat
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from src.run.errors import UserError

MAKE_AGAIN = "give the command that makes it once more, with --no-resume"
LARGEST_JSON = 64 << 20  # bytes; ours are below a megabyte, and Python's objects take ten times the text
BLANK = b"0" * 64  # stands in the place of the seal while the file is hashed
SEAL = "content_sha256"  # the last key of a JSON object that was written here
SEALED_TENSORS = re.compile(rb'.{8}\{"__metadata__":\{"sha256":"', re.DOTALL)  # how a safetensors file of ours begins


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary path beside `path`; on success it is flushed and renamed to `path`, on failure removed.

    What writers of the same file left behind when they were killed is removed too. Raises UserError when the disk is full or
    the folder cannot be written; the former file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path, temporary)
        # made here, so that it has the ordinary mode whatever library writes it; the lock says that its writer lives
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666), "rb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
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


def _remove_leftovers(path, own):
    """Remove the temporary files of `path` whose writers are dead, as large as a dataset each."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    with os.scandir(path.parent) as entries:
        found = [path.with_name(entry.name) for entry in entries if pattern.fullmatch(entry.name)]
    for leftover in found:
        if leftover != own:
            with contextlib.suppress(OSError), leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                leftover.unlink()


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


@contextlib.contextmanager
def locked_file(path, wait=True):
    """Hold the lock `path`, an empty file that is made where it is missing; yields its descriptor.

    Raises BlockingIOError where another process holds it and `wait` is False, OSError where it cannot be made or is a link.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(path):
    """Open a file for reading in binary. Raises OSError, also where it is a pipe or a device, which could be read for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer must not wait
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number) if number == errno.EISDIR else "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}  # how such files begin


def refuse_packed(path):
    """Raises UserError where a file is compressed as a whole. What cannot be opened is left to who reads it."""
    try:
        with open_regular(path) as file:
            begin = file.read(6)
    except OSError:
        return
    for magic, name in PACKED.items():
        if begin.startswith(magic):
            raise UserError(f"{path} is compressed by {name}: unpack it first")


def as_utf8(name):
    """The name of a file, which may be any bytes, as text that UTF-8 can hold, whatever the locale."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_text(path, largest=LARGEST_JSON, errors="strict"):
    """A UTF-8 file as text (`errors` as of bytes.decode). Raises OSError, ValueError where it has more than `largest` bytes."""
    with open_regular(path) as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, largest) + 1)
    if len(data) > largest:
        raise ValueError(f"it has more than {largest >> 20} MiB")
    return data.decode(errors=errors)


# ------------------------------------------------------------------------------------------------------------- settings


def write_json(path, document):
    """Write `document` atomically, an object with its seal. NaN and infinities are refused: they are not JSON.

    A line holds an entry of an object, or an item of a list of lists or objects; so a list of numbers is one line.
    """
    text = _layout(sealed(document), 0)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sealed(document):
    """A document as JSON knows it, an object with the SHA-256 of what it says, whatever its layout, as its last entry."""
    document = json.loads(json.dumps(document, allow_nan=False))  # keys are texts in JSON, tuples are lists
    if isinstance(document, dict):
        document.pop(SEAL, None)  # of before a change
        document[SEAL] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return document


def unsealed(document):
    """What `sealed` was given; what others wrote has no seal. Raises ValueError where it was altered since."""
    seal = document.pop(SEAL, None) if isinstance(document, dict) else None
    if seal is not None and sealed(document)[SEAL] != seal:
        raise ValueError("its content is not what was written")
    return document


def _layout(value, depth):
    if value and isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_layout(item, depth + 1)}" for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        lines = [json.dumps(item, allow_nan=False) for item in value]
    else:
        return json.dumps(value, allow_nan=False)
    margin, (opening, closing) = "\n" + " " * depth, "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{margin} " + f",{margin} ".join(lines) + f"{margin}{closing}"


def parse_json(text):
    """JSON text, with a byte order mark or without -> document. Raises ValueError, also where it is nested too deeply, gives a
    key twice, or holds a number that is not finite."""
    try:
        return json.loads(text.removeprefix("\ufeff"), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return found


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def read_json(path, *keys, mend=MAKE_AGAIN, largest=LARGEST_JSON):
    """A JSON document, without its seal; with `keys`, an object that has them. Raises UserError when the file is missing, broken,
    too large, or altered since it was written."""
    try:
        document = parse_json(read_text(path, largest))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {mend}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {mend}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({str(error)[:120]}): {mend}") from None
    try:
        document = unsealed(document)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {mend}") from None
    missing = [key for key in keys if key not in document] if isinstance(document, dict) else keys
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: {mend}")
    return document


# -------------------------------------------------------------------------------------------------- weights and states


def save_tensors(path, tensors):
    """dict of tensors -> safetensors file, atomically, sealed by "sha256" in its metadata."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = safetensors.torch.save(plain, metadata={"sha256": BLANK.decode()})
    start = SEALED_TENSORS.match(data).end()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.seek(start)
        file.write(_seal(io.BytesIO(data), start))


def load_tensors(path):
    """safetensors file -> dict of CPU tensors. Raises UserError when it is missing, damaged or altered."""
    try:
        with open_regular(path) as file:
            data = file.read()
        start = SEALED_TENSORS.match(data)
        if not start or _seal(io.BytesIO(data), start.end()) != data[start.end() :][: len(BLANK)]:
            raise ValueError("its bytes are not those that were written")
        return safetensors.torch.load(data)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {MAKE_AGAIN}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {MAKE_AGAIN}") from None
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): {MAKE_AGAIN}") from None


def _seal(file, start):
    """SHA-256 of an open file with its seal, at `start`, blanked out."""
    sha, end = hashlib.sha256(), start + len(BLANK)
    file.seek(0)
    left = start
    while left:
        left -= len(block := file.read(min(left, 1 << 20)))
        sha.update(block)
        if not block:
            break
    sha.update(BLANK)
    file.seek(end)
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest().encode()


def digest(tensors):
    """SHA-256 of a dict of tensors: says whether two artifacts were made from the same weights."""
    return hashlib.sha256(safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()})).hexdigest()


def save_state(path, state):
    """Training state (nested dicts and lists of tensors and plain values) -> one file, atomically.

    It is what torch.save writes, a zip archive, with the seal as the archive's comment, at the very end.
    """
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        torch.save(state, file)
        end = file.seek(0, os.SEEK_END)
        file.seek(end - 2)  # the length of the comment, 0 so far
        file.write(len(BLANK).to_bytes(2, "little") + BLANK)
        seal = _seal(file, end)
        file.seek(end)
        file.write(seal)


def load_foreign_state(path):
    """What torch.save wrote elsewhere, without our seal; never executes code. Raises what torch raises for a damaged file."""
    with open_regular(path) as file:
        return _unpacked(file)


def _unpacked(file):
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def load_state(path, *keys):
    """Read what `save_state` wrote; never executes code. Raises UserError when it is altered, or lacks one of `keys`."""
    mend = "delete it, or pass --no-resume to start again"
    try:
        with open_regular(path) as file:
            end = max(file.seek(0, os.SEEK_END) - len(BLANK), 0)
            seal = _seal(file, end)
            file.seek(end)
            if file.read() != seal:
                raise ValueError("its bytes are not those that were written")
            state = _unpacked(file)
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); {mend}") from None
    if not isinstance(state, dict) or not all(key in state for key in keys):
        raise UserError(f"{path} is not the state of such a run: {mend}")
    return state
