"""Faults that end a run in one line, and streams that never end one."""

import contextlib
import functools
import io
import math
import os
import sys
from pathlib import Path

import torch


class UserError(Exception):
    """A mistake that the user can mend; its text is one line that says how. Scripts print it and exit with status 2."""


def main_guard(main):
    """Decorator of a script's `main`: a UserError, a fault of the operating system or lack of memory becomes one line on stderr
    and exit status 2, Ctrl-C 130. What is printed goes through `patient_streams`."""

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        with patient_streams():
            try:
                return main(*args, **kwargs)
            except UserError as error:
                print(f"error: {shortened(error)}", file=sys.stderr)
                sys.exit(2)
            except (MemoryError, RuntimeError) as error:
                if not is_full(error):
                    raise
                print(f"error: {out_of_memory(error)}", file=sys.stderr)
                sys.exit(2)
            except OSError as error:
                if not (error.strerror and error.filename):
                    raise
                print(f"error: {shortened(error.filename)}: {error.strerror}", file=sys.stderr)
                sys.exit(2)
            except KeyboardInterrupt:
                print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
                sys.exit(130)

    return guarded


def is_full(error):
    """Whether an exception says that there is no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory(error):
    """The line for an exception of that kind."""
    reason = str(error).splitlines()[0][:160] if str(error) else "no memory left"
    return f"out of memory ({reason}): make sizes, batches or numbers of episodes smaller"


def shortened(text, longest=1000):
    """A text on one line of at most `longest` characters that a terminal shows as they are: names may be what people like."""
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(str(text).split()))
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


def require_finite(value, what, flag="--learning_rate"):
    """Raises UserError when a loss (float) is NaN or infinite; flag: what the script calls its learning rate."""
    if not math.isfinite(value):
        raise UserError(f"{what} became {value}: lower {flag}, or look for extreme values in the dataset")


class _PatientStream:
    """A text stream whose faults pass unnoticed: a terminal that was closed, a full disk, a reader that went away. What it
    cannot show becomes a question mark."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Write what can be written; always says that all was."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self):
        """As that of the stream, but silent."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def isatty(self):
        """Whether somebody watches; False where the stream is closed."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def _give_up(self):
        """What is still in the buffer would fail once more at the interpreter's end, and set its exit status."""
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
            self._stream.flush()


@contextlib.contextmanager
def patient_streams():
    """Within, nothing that goes wrong with stdout or stderr ends the program."""
    for descriptor in range(3):  # a file must not be opened as descriptor 1 or 2, where libraries print
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    former = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_PatientStream(io.StringIO() if stream is None else stream) for stream in former)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = former
