"""HDF5 files of unknown origin, read so that nothing outside of them is opened and no array is larger than they can hold.

A file may name other files (external links, external storage, virtual datasets), say that an array is as large as it likes, or be
a pipe. All shapes and types are checked before anything is read. A damaged file may crash the library, or never let it end: our
own files carry a seal, which is checked before the library sees them, and files of others are read by a process of its own first.
"""

import contextlib
import hashlib
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from src.run.errors import UserError
from src.run.files import open_regular, parse_json

NUMBERS = "biuf"  # kinds of numpy types that are read
UNPACKED = 64  # so many times the size of its file may an array take: compressed flags shrink by much, observations do not
SPARE = 64 << 20  # bytes that any file may unpack to
UNFOLLOWED = "links are not followed"
USER_BLOCK = 512  # bytes at the start of a file that HDF5 leaves to its user, the fewest that it knows: our seal
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of an HDF5 file without one
TRIAL = Path(__file__).with_name("hdf5_trial.py")
PATIENCE = 60, 1 << 22  # seconds that a trial may take, and bytes for each of which it may take a second more
FAULTS = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, OverflowError, MemoryError)  # of a broken file


@contextlib.contextmanager
def open_hdf5(path):
    """The h5py.File, for reading; whatever is wrong with its content is a UserError, one line that says what to do."""
    try:
        if not is_sealed(path):
            _try(path)
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except FAULTS as error:
        mend = "fetch it again"
        if UNFOLLOWED in str(error):
            mend = "remove it, or put what it names in its place"
        elif "filter" in str(error) or "plugin" in str(error):
            mend = "write it again with gzip, or name the folder of the filter that it needs in HDF5_PLUGIN_PATH"
        elif "unable to lock file" in str(error):
            mend = "another program has it open for writing: close it there"
        raise UserError(f"{path} is not a readable HDF5 file ({' '.join(str(error).split())[:150]}); {mend}") from None


def write_sealed(path, image):
    """Write the bytes of an HDF5 file behind a user block that holds their SHA-256 as text."""
    with path.open("wb") as file:
        file.write(hashlib.sha256(image).hexdigest().encode().ljust(USER_BLOCK, b"\0"))
        file.write(image)


def is_sealed(path):
    """Whether a file is what `write_sealed` wrote, to the last bit. Raises OSError, also where it is no regular file."""
    with open_regular(path) as file:
        seal = file.read(USER_BLOCK)
        if seal.startswith(SIGNATURE):  # no user block: of others
            return False
        return seal == hashlib.file_digest(file, "sha256").hexdigest().encode().ljust(USER_BLOCK, b"\0")


def _try(path):
    """Have all of a file read by another process. Raises ValueError where that crashes or does not end."""
    seconds = PATIENCE[0] + Path(path).stat().st_size // PATIENCE[1]
    command, silent = [sys.executable, "-I", str(TRIAL), str(path), str(Room(path).left)], subprocess.DEVNULL
    try:
        ended = subprocess.run(command, stdin=silent, stdout=silent, stderr=silent, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it has no end after {seconds} seconds") from None
    if ended.returncode < 0:
        raise ValueError(f"it crashes the library, signal {-ended.returncode}")


def members(group):
    """Names in a group, in order, but those that are no text. Raises ValueError where one is a link: links are not followed."""
    names = [name for name in group if isinstance(name, str)]
    for name in names:
        _hard(group.id, name.encode())
    return names


def subgroup(group, name):
    """A group inside a group. Raises ValueError or KeyError."""
    _hard(group.id, name.encode())
    found = group[name]
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{name} is no group")
    return found


def _hard(group, name):
    if name not in group:
        raise KeyError(f"{name.decode()} is missing")
    if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name.decode(errors='replace')} is a link, and {UNFOLLOWED}")


def dataset(group, name):
    """An array inside a low-level group, not read yet: h5py's DatasetID. Raises ValueError or KeyError.

    name: bytes, with slashes where it lies deeper.
    """
    *parents, last = name.split(b"/")
    for parent in parents:
        _hard(group, parent)
        group = h5py.h5g.open(group, parent)
    _hard(group, last)
    found = h5py.h5o.open(group, last)
    if not isinstance(found, h5py.h5d.DatasetID):
        raise ValueError(f"{name.decode()} is no array")
    properties = found.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise ValueError(f"{name.decode()} lies in other files, which are not opened")
    return found


class Room:
    """Bytes that the arrays of a file may take together, see UNPACKED."""

    def __init__(self, path):
        self.left = UNPACKED * Path(path).stat().st_size + SPARE

    def take(self, size, name):
        """Raises ValueError where nothing is left."""
        self.left -= size
        if self.left < 0:
            raise ValueError(f"with {name} it says that it has {size} bytes more than the file can hold; store it uncompressed")


def read_array(group, name, room):
    """An array of numbers in an h5py.Group, or None where it holds something else than numbers."""
    found = dataset(group.id, name.encode())
    if found.dtype.kind not in NUMBERS or found.dtype.hasobject or found.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return None
    room.take(math.prod(found.shape) * found.dtype.itemsize, name)
    values = np.empty(found.shape, found.dtype)
    if values.size:
        found.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def integer(group, name):
    """An attribute (bytes) of a low-level group that is one integer. Raises ValueError or KeyError."""
    if not h5py.h5a.exists(group, name):
        raise KeyError(f"the attribute {name.decode()} is missing")
    attribute = h5py.h5a.open(group, name)
    if attribute.shape not in ((), (1,)) or attribute.dtype.kind not in "iu":
        raise ValueError(f"the attribute {name.decode()} is not one integer")
    value = np.zeros(attribute.shape, np.int64)
    attribute.read(value)
    return int(value.reshape(()))


def json_attribute(group, name):
    """An attribute that holds JSON. Raises ValueError or KeyError."""
    if not h5py.h5a.exists(group.id, name.encode()):
        raise KeyError(f"the attribute {name} is missing")
    attribute = h5py.h5a.open(group.id, name.encode())
    if attribute.shape != () or attribute.dtype.kind not in "OS":
        raise ValueError(f"the attribute {name} is not one text")
    text = group.attrs[name]
    if not isinstance(text, str | bytes):
        raise ValueError(f"the attribute {name} is not one text")
    return parse_json(text)
