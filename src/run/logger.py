"""Logs of a run: metrics.jsonl and metrics.csv always, TensorBoard events beside them, on the terminal a progress bar with ETA.

Logging never ends a run: what cannot be written is left out.
"""

import contextlib
import csv
import json
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from src.run.errors import UserError
from src.run.files import atomic_path, read_text

tqdm.set_lock(threading.RLock())  # its own lock holds a semaphore of the system, which a worker that is ended leaves behind


def progress_bar(total, unit, **more):
    """A tqdm of `total` units; a file or a pipe gets a line now and then instead of hundreds of redrawn bars."""
    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=total, unit=unit, mininterval=interval, dynamic_ncols=True, **more)


class Logger:
    """Records scalars of one run.

    Args:
        directory: the run's folder; a resumed run drops the records after `start` and goes on.
        total, start, unit: length of the progress bar, where it begins, and what it counts.
        tensorboard: also write event files to `directory/tensorboard`.
        bar: show the progress bar; False where a parent process shows one for many runs.
    """

    def __init__(self, directory, total, start=0, unit="step", tensorboard=True, bar=True):
        self._file = self._table = self._writer = None
        self._bar = progress_bar(total, unit, initial=start, disable=not bar)
        path = Path(directory) / "metrics.jsonl"
        kept = [record for record in read_metrics(directory) if record["step"] <= start]
        with self._forgiving("metrics.jsonl"):
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")
        with self._forgiving("metrics.csv"):
            self._table = Table(path.with_suffix(".csv"), kept)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second of import, only where it is wanted

            with self._forgiving("TensorBoard's events"):
                self._writer = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=start + 1)

    @contextlib.contextmanager
    def _forgiving(self, what):
        try:
            yield
        except (OSError, ValueError, RuntimeError, UserError) as error:
            self.message(f"note: {what} cannot be written ({error}); the run goes on")

    def advance(self, steps=1):
        """Move the progress bar."""
        self._bar.update(steps)

    def log(self, step, values):
        """Record scalars (float or None) of one step, and show them beside the bar."""
        if self._file:
            with self._forgiving("metrics.jsonl"):
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()
        if self._table:
            with self._forgiving("metrics.csv"):
                self._table.add({"step": step, **values})
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._writer:
            with self._forgiving("TensorBoard's events"):
                for name, value in numbers.items():
                    self._writer.add_scalar(name, value, step)
        self._bar.set_postfix({name.rsplit("/", 1)[-1]: f"{value:.3g}" for name, value in numbers.items()}, refresh=False)

    def message(self, text):
        """Print a line without breaking the progress bar."""
        tqdm.write(text, file=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End the bar's line and write what is still in memory; twice does no harm."""
        self._bar.close()
        if self._file:
            with self._forgiving("metrics.jsonl"):
                self._file.close()
        if self._table:
            with self._forgiving("metrics.csv"):
                self._table.close()
        if self._writer:
            with self._forgiving("TensorBoard's events"):
                self._writer.close()


class Table:
    """The records of metrics.jsonl as CSV: a column per name, in the order in which they came; empty where a record lacks it.

    No artifact: what a kill tears is written anew, from metrics.jsonl, when the run goes on.
    """

    def __init__(self, path, records):
        self.path, self.records, self._file = path, records, None
        self._write()

    def add(self, record):
        """One more line; a name that is new makes the whole file anew."""
        self.records.append(record)
        if record.keys() <= self.names.keys():
            self._writer.writerow(record)
            self._file.flush()
        else:
            self._write()

    def _write(self):
        self.close()
        self.names = {name: None for record in self.records for name in record}
        self._file = self.path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, list(self.names), lineterminator="\n")
        if self.records:
            self._writer.writeheader()
            self._writer.writerows(self.records)
        self._file.flush()

    def close(self):
        if self._file:
            self._file.close()


class NoLogger:
    """In the place of a Logger where another process keeps the logs."""

    def _nothing(self, *args):
        pass

    advance = log = message = close = __exit__ = _nothing

    def __enter__(self):
        return self


def read_metrics(directory):
    """Records of `metrics.jsonl`, dicts with a "step"; a line that a crash tore, or a lost or unreadable file, is left out."""
    records = []
    try:
        lines = read_text(Path(directory) / "metrics.jsonl", 1 << 30, "replace").splitlines()
    except (OSError, ValueError):
        return records
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int | float):
                records.append(record)
    return records
