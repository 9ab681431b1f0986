"""Pickles of numbers, read without running them.

A pickle is a program. This reader knows numpy arrays of numbers, numpy scalars and plain containers, builds the arrays itself
from shape, dtype and bytes, and refuses every other name before a call. What it makes is no larger than the file can hold: no
length that the file only claims is believed, and nothing may be used more often than it was written.
"""

import collections
import math
import pickle
import re

import numpy as np

from src.run.errors import UserError
from src.run.files import open_regular

REPEATED = 4  # so many times the size of the file may all values together have; more comes from one value used again and again


class _Bounded:
    """A file whose reads are cut at its end, so that a claimed length reserves no memory."""

    def __init__(self, file, start):
        self._file = file
        self.left = max(file.seek(0, 2) - start, 0)
        file.seek(start)

    def _took(self, data):
        self.left -= len(data)
        return data

    def read(self, size):
        return self._took(self._file.read(min(size, self.left)))

    def readline(self):
        return self._took(self._file.readline())


class _Dtype:
    """Stands for numpy.dtype while a pickle is read: type code and byte order of numbers; of objects, None, in `_Array` alone."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biuf]\d{1,2}|O8", code):
            raise pickle.UnpicklingError(f"an array of {str(code)[:20]!r}, not of numbers")
        self.dtype = None if code == "O8" else np.dtype(code)

    def set_state(self, state):
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(state[1] if state[1] in "<>" else "=")


class _Array:
    """Stands for numpy.ndarray while a pickle is read. table: of an array of objects (N, k), (list of N·k values, k)."""

    value = table = None

    def set_state(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.dtype is not None:
            self.value = _array(data, dtype, shape, "F" if fortran else "C")
            return
        sizes = isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
        if not sizes or fortran or not isinstance(data, list) or len(data) != math.prod(shape):
            raise pickle.UnpicklingError("an array of objects that is no table")
        self.table = data, shape[1]  # cut into rows in the end, where what comes out is counted: many may share one list


def _array(data, dtype, shape, order="C"):
    if not isinstance(dtype, _Dtype) or dtype.dtype is None or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array without plain bytes")
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array without a shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError("an array whose bytes do not fit its shape")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(*_):
    return _Array()


def _from_buffer(data, dtype, shape, order="C"):
    array = _Array()
    array.value = _array(data, dtype, shape, order if order in ("C", "F") else "C")
    return array


def _scalar(dtype, data):
    return _array(data, dtype, (1,))[0].item()


def _ordered():
    return collections.OrderedDict()


def _refused(reader):
    raise pickle.UnpicklingError("it holds more than numbers, text, lists and dicts")


KNOWN = {
    ("collections", "OrderedDict"): _ordered,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
}
OBJECTS = ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER")


class _Reader(pickle._Unpickler):  # the one in Python: the one in C reserves memory for every claimed length and memo number
    def __init__(self, file, start, tables):
        self._bounded, self._tables = _Bounded(file, start), tables
        self._encoded = self._size = self._bounded.left
        super().__init__(self._bounded)

    def find_class(self, module, name):
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:100])
        return KNOWN[module, name]

    def _encode(self, text, encoding):
        """Bytes in a pickle of protocol 2 are text and the name of an encoding."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes encoded as {str(encoding)[:20]!r}")
        self._encoded -= len(text)
        self._check(self._encoded)
        return text.encode("latin-1")

    def _check(self, left):
        if left < 0:
            raise pickle.UnpicklingError("it unpacks to more than it holds")

    def load_reduce(self):
        arguments = self.stack.pop()
        function = self.stack[-1]
        if function != self._encode and function not in KNOWN.values():
            raise pickle.UnpicklingError("it calls what is no function")
        self.stack[-1] = function(*arguments)

    def load_build(self):
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise pickle.UnpicklingError("it changes what is no array")
        self.stack[-1].set_state(state)
        if not self._tables and getattr(self.stack[-1], "table", None):
            raise pickle.UnpicklingError("an array of objects, not of numbers")

    def load_bytearray8(self):
        size = int.from_bytes(self.read(8), "little")
        self._check(self._size - size)
        self.append(bytearray(self.read(size)))

    dispatch = {  # noqa: RUF012 (the name and kind that pickle has)
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        **{getattr(pickle, name)[0]: _refused for name in OBJECTS},
    }

    def plain(self):
        """The value, with numpy arrays in their places."""
        self._left = REPEATED * self._size + 1000
        value = self.load()
        if self._bounded.left:
            raise pickle.UnpicklingError("more follows the end of its first object: dump one list of all")
        return self._plain(value)

    def _plain(self, value):
        size = value.value.nbytes if isinstance(value, _Array) and value.value is not None else len(value) if (
            isinstance(value, str | bytes | bytearray)) else 0  # fmt: skip
        self._left -= 1 + size
        self._check(self._left)
        if isinstance(value, _Array):
            if value.table is None:
                return value.value
            values, width = value.table
            return [self._plain(values[first : first + width]) for first in range(0, len(values), width)]
        if isinstance(value, dict):
            return {key: self._plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        if value is not None and not isinstance(value, bool | int | float | str | bytes | bytearray):
            raise pickle.UnpicklingError("it holds more than numbers, text, lists and dicts")
        return value


def read_pickle(path, start=0, tables=False):
    """Numbers, text, lists, dicts and numpy arrays of numbers from a pickle file, without running any of its code.

    Args:
        start: bytes before the pickle. tables: take arrays of objects (N, k) as well, as lists of N lists.
    Raises UserError when the file asks for anything else, unpacks to more than it holds, or is damaged.
    """
    try:
        with open_regular(path) as file:
            return _Reader(file, start, tables).plain()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: {error}; only numpy arrays of numbers are read") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a readable pickle ({type(error).__name__}); fetch it again") from None
