"""Reads everything in an HDF5 file, in a process of its own: `python hdf5_trial.py FILE BYTES`, arrays of at most BYTES.

The library may crash or never end on a damaged file, for example where a text of an attribute lies in a broken heap. It then does
so here. What it only complains about is left to the reader, who names it. Nothing but h5py is imported: it starts fast.
"""

import contextlib
import resource
import sys

import h5py

BLOCK = 1 << 24  # bytes of an array that are read at once
MEMORY = 4 << 30  # bytes that this process may take


def main(path, largest):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with contextlib.suppress(Exception), h5py.File(path, "r") as file:
        read_attributes(file)
        file.visititems(lambda _, found: visit(found, largest))  # every object that has a hard link, once


def visit(found, largest):
    with contextlib.suppress(Exception):
        read_attributes(found)
    with contextlib.suppress(Exception):
        if isinstance(found, h5py.Dataset) and not (found.is_virtual or found.external or found.dtype.hasobject):
            read_array(found, largest)


def read_attributes(found):
    for name in found.attrs:
        with contextlib.suppress(Exception):
            found.attrs[name]


def read_array(found, largest):
    if found.nbytes > largest:  # refused by its size
        return
    if not found.shape:
        found[()]
        return
    rows = max(1, BLOCK * found.shape[0] // max(found.nbytes, 1))
    for start in range(0, found.shape[0], rows):
        found[start : start + rows]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
