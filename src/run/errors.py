"""Faults that end a run in one line."""

import functools
import math
import sys

import torch


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


def require_finite(value, what, flag="--learning_rate"):
    """Raises UserError when a loss (float) is NaN or infinite; flag: what the script calls its learning rate."""
    if not math.isfinite(value):
        raise UserError(f"{what} became {value}: lower {flag}, or look for extreme values in the dataset")
