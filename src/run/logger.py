"""Logs of a run: metrics.jsonl always, TensorBoard events beside it, a progress bar with throughput and ETA on the terminal."""

import contextlib
import json
import sys
from pathlib import Path

from tqdm import tqdm

from src.run.files import atomic_path


class Logger:
    """Records scalars of one run.

    Args:
        directory: the run's folder; a resumed run drops the records after `start` and goes on.
        total, start, unit: length of the progress bar, where it begins, and what it counts.
        tensorboard: also write event files to `directory/tensorboard`.
        bar: show the progress bar; False where a parent process shows one for many runs.
    """

    def __init__(self, directory, total, start=0, unit="step", tensorboard=True, bar=True):
        self.path = Path(directory) / "metrics.jsonl"
        self._keep_until(start)
        self._file = self.path.open("a")
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second of import, only where it is wanted

            self._writer = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=start + 1)
        # a file or a pipe gets a line now and then instead of hundreds of redrawn bars
        interval = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm(total=total, initial=start, unit=unit, mininterval=interval, dynamic_ncols=True, disable=not bar)

    def _keep_until(self, step):
        kept = []
        if self.path.exists():
            for line in self.path.read_text(errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the torn last line of a killed run
                if record["step"] <= step:
                    kept.append(line)
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))

    def advance(self, steps=1):
        """Move the progress bar."""
        self._bar.update(steps)

    def log(self, step, values):
        """Record scalars (float or None) of one step, and show them beside the bar."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._writer:
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
        self._file.close()
        if self._writer:
            self._writer.close()


def read_metrics(directory):
    """Records of `metrics.jsonl` as a list of dicts; a line that a crash tore, or a lost file, is left out."""
    records, path = [], Path(directory) / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records
