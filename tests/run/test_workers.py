"""The pool of processes: never more than cores, and what cannot be done is a line."""

import os
import subprocess
import sys
from pathlib import Path

from src.run.workers import run_pool, usable

ROOT = Path(__file__).resolve().parents[2]


def double(item, report):
    report(1)
    if item == 3:
        raise MemoryError("Unable to allocate 124 GiB")
    return 2 * item, os.getpid()


def test_no_more_processes_than_cores(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    results, progress = {}, []
    failures = run_pool(double, [1, 2, 3], 8, results.__setitem__, progress.append)
    assert results == {1: (2, os.getpid()), 2: (4, os.getpid())} and progress == [1, 1, 1]
    assert failures[3].startswith("out of memory (Unable to allocate 124 GiB): make sizes") and not capsys.readouterr().err
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    assert [usable(), usable(2), usable(10**6)] == [4, 2, 4]


def test_a_bar_takes_no_semaphore_that_an_ended_worker_leaves_behind():
    code = """
import multiprocessing.synchronize
multiprocessing.synchronize.SemLock.__init__ = lambda *_, **__: exit("a semaphore of the system")
from src.run.logger import progress_bar
progress_bar(1, "step", disable=True)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
