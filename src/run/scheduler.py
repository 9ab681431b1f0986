"""The one scheduler: commands side by side, each once all that it needs is there, on any back end (src/run/backends.py).

A failed command costs only those that need it. One that was killed, or whose machine was lost, is started again and goes on from
its checkpoint. What commands print goes to one log each.
"""

import contextlib
import dataclasses
import shlex
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from src.run.errors import UserError, shortened
from src.run.files import locked_file

TERMINATED = 128 + signal.SIGTERM  # the status of a run that was told to stop, by a cluster for example (src/run/loop.py)


@dataclasses.dataclass(frozen=True)
class Job:
    """One command.

    words: script and flags. kind: jobs of one kind take about the same time. name: of its log, another one for each job.
    result: the file that it leaves when it is finished; None: it is given whenever something needs it, and finds out itself
    what is left to do. needs: jobs that must be finished first. artifact: what it leaves for those that need it. cells: the facts
    of all results that it writes, for those who ask what is missing.
    """

    words: tuple
    kind: str
    name: str
    result: Path | None = None
    needs: tuple = ()
    artifact: Path | None = None
    cells: tuple = dataclasses.field(default=(), compare=False)

    @property
    def finished(self):
        """Whether the result is there and not older than the artifact, which an interrupted run leaves newer."""
        if self.result is None or not self.result.exists() or self.artifact is None:
            return self.result is not None and self.result.exists()
        return self.artifact.exists() and self.artifact.stat().st_mtime <= self.result.stat().st_mtime

    @property
    def command(self):
        return shlex.join(["python", *self.words])


def remaining(targets):
    """The jobs of `targets` without result, each behind the unfinished ones that it needs."""
    left = {}

    def add(job):
        for need in job.needs:
            if not need.finished:
                add(need)
        left[job] = None

    for job in targets:
        if job.result is None or not job.result.exists():
            add(job)
    return list(left)


@contextlib.contextmanager
def exclusive(logs):
    """The lock of a folder of logs, which is made. Raises UserError while another scheduler, or a job of it, goes on there."""
    logs = Path(logs)
    with contextlib.ExitStack() as stack:
        try:
            logs.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(locked_file(logs / ".lock", wait=False))
        except BlockingIOError:
            raise UserError(f"{logs} is in use: another run, or a job of it, is still going; wait for it") from None
        except OSError as error:
            raise UserError(f"{logs} cannot be written ({error.strerror}): choose another --output_dir") from None
        yield lock


class Scheduler:
    """Runs jobs and shows how far they are: a line for each that ends, and on a terminal a table below.

    Args:
        backend: see src/run/backends.py. logs: folder of the logs. retries: starts of a lost job beyond the first.
        lock: of `exclusive`. on_done: called with a job that ended well and its seconds; it may write the job's result.
        on_failed: called with a job that failed, or was left, and the reason in one line.
    Attributes: failed: jobs. waiting: those that were left because one that they need failed.
    """

    def __init__(
        self, backend, logs, retries=1, lock=None, on_done=lambda job, seconds: None, on_failed=lambda job, reason: None
    ):  # fmt: skip
        self.backend, self.logs, self.retries, self.lock = backend, Path(logs), retries, lock
        self.on_done, self.on_failed = on_done, on_failed
        self.running = {}  # what the back end started -> (job, when it began)
        self.seconds = {}  # kind -> those of the jobs that ended here
        self.done, self.starts, self.failed, self.waiting = [], Counter(), [], []
        self.shown = []  # lines of the table on the terminal

    def run(self, targets):
        """Returns how many jobs failed or wait for one that did, when every job that can run has ended. Raises UserError."""
        self.waiting = remaining(targets)
        names = Counter(job.name for job in {*targets, *self.waiting})
        if max(names.values(), default=1) > 1:
            raise ValueError(f"{names.most_common(1)[0][0]} is the log of several jobs")
        left = set(self.waiting)
        self.done = [job for job in dict.fromkeys(targets) if job not in left]
        self.total = len(self.done) + len(left)
        print(f"{len(self.done)} of {self.total} runs are finished already", flush=True)
        former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # goes through the `finally` below
        try:
            while self.waiting or self.running:
                while len(self.running) < self.backend.slots and (job := self._next()):
                    self.waiting.remove(job)
                    self.starts[job] += 1
                    self.running[self.backend.start(job.words, self.log(job), self.lock)] = job, time.monotonic()
                if not self.running and not self._next():
                    break  # what still waits needs a job that failed
                self._show()
                time.sleep(self.backend.seconds)
                self._collect()
        finally:
            for run in self.running:
                run.terminate()  # a run answers by saving its state
            while any(run.poll() is None for run in self.running):
                time.sleep(0.1)
            signal.signal(signal.SIGTERM, former)
            self._show()
        for job in self.waiting:
            self.on_failed(job, "it needs a run that failed")
        return len(self.failed) + len(self.waiting)

    def log(self, job):
        """Where a job prints to."""
        return self.logs / f"{job.name}.log"

    def _next(self):
        pending = {*self.waiting, *(job for job, _ in self.running.values()), *self.failed}
        return next((job for job in self.waiting if not pending.intersection(job.needs)), None)

    def _collect(self):
        for run, status in [(run, run.poll()) for run in self.running]:
            if status is None:
                continue
            job, began = self.running.pop(run)
            seconds = time.monotonic() - began
            if (status < 0 or status == TERMINATED) and self.starts[job] <= self.retries:
                self.waiting.insert(0, job)
                self._say(f"{job.command}: lost after {seconds / 60:.1f} min, it is started again")
                continue
            if status == 0:
                self.on_done(job, seconds)
            if status == 0 and (job.result is None or job.result.exists()):
                self.done.append(job)
                self.seconds.setdefault(job.kind, []).append(seconds)
                outcome = f"done in {seconds / 60:.1f} min"
            else:
                self.failed.append(job)
                reason = self._last_line(job)
                self.on_failed(job, reason or f"status {status}")
                outcome = f"FAILED with status {status}, see {self.log(job)}{f' ({reason})' if reason else ''}"
            self._say(f"[{len(self.done)}/{self.total}] {job.command}: {outcome}; {_about(self.minutes_left())}")

    def _last_line(self, job):
        with contextlib.suppress(OSError, IndexError):
            last = self.log(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
            return "" if last.startswith("$ ") else shortened(last, 300)  # the command stands there first
        return ""

    # ------------------------------------------------------------------------------------------------------- how far

    def minutes_left(self, kind=None):
        """An estimate for one kind of jobs, or all: the mean of each kind (of all while one has not ended yet), shared by the
        slots. None while nothing is known."""
        known = {name: sum(seconds) / len(seconds) for name, seconds in self.seconds.items()}
        if not known:
            return None
        fallback, now = max(known.values()), time.monotonic()
        wanted = [job for job in self.waiting if kind in (None, job.kind)]
        left = sum(known.get(job.kind, fallback) for job in wanted)
        for job, began in self.running.values():
            if kind in (None, job.kind):
                left += max(0.0, known.get(job.kind, fallback) - (now - began))
        return left / max(1, self.backend.slots) / 60

    def table(self):
        """Lines: how many jobs of each kind are done, running, failed and waiting, and the minutes left."""
        states = {"done": self.done, "running": [job for job, _ in self.running.values()], "failed": self.failed}
        states["waiting"] = self.waiting
        kinds = list(dict.fromkeys(job.kind for jobs in states.values() for job in jobs))
        rows = [("runs", *states, "minutes left")]
        for kind in [*kinds, None]:
            counts = [sum(kind in (None, job.kind) for job in jobs) for jobs in states.values()]
            minutes = self.minutes_left(kind)
            rows.append(("all" if kind is None else kind, *map(str, counts), "" if minutes is None else f"{minutes:.0f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def _show(self):
        if sys.stdout.isatty() and (lines := self.table()) != self.shown:
            self._erase()
            print(*lines, sep="\n", flush=True)
            self.shown = lines

    def _say(self, line):
        self._erase()
        print(line, flush=True)

    def _erase(self):
        if self.shown:
            print(f"\033[{len(self.shown)}F\033[J", end="")
            self.shown = []


def _about(minutes):
    return "time left unknown" if minutes is None else f"about {minutes:.0f} min left"
