"""The pool of processes: never more than cores, and what cannot be done is a line."""

import os

from src.run.workers import run_pool, usable


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
