"""A process pool over tasks in which one failure, even a killed process, costs one task only."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing import connection

import torch

from src.run.devices import use_threads
from src.run.errors import UserError, is_full, out_of_memory, patient_streams


def usable(workers=None):
    """So many processes as there are cores, or `workers` where these are fewer: more would only take turns, and memory."""
    cores = len(os.sched_getaffinity(0))
    return min(workers or cores, cores)


def run_pool(function, items, workers, on_result, on_progress=lambda amount: None):
    """Call `function(item, report)` for every item, in `workers` spawned processes with one torch thread each.

    Args:
        function: picklable; may call report(amount) as work gets done; what it returns is sent back.
        workers: no more than `usable`; 1 runs everything in this process.
        on_result: called here with (item, result) as each item ends.
        on_progress: called here with every reported amount.
    Returns {item: one line of text} of the items that failed; the others have run.
    """
    workers = usable(workers)
    if workers == 1 or len(items) == 1:
        torch.set_num_threads(1)  # as the workers do: the number of threads changes the last bits of a sum
        return _run_here(function, items, on_result, on_progress)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the `finally` below
    failures, waiting, busy = {}, list(items), {}
    context = multiprocessing.get_context("spawn")
    try:
        idle = [_Worker(context, function) for _ in range(min(workers, len(items)))]
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                worker.item = waiting.pop(0)
                worker.pipe.send(worker.item)
                busy[worker.pipe] = worker
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]
                try:
                    kind, value = pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    kind, value = "failed", f"its process ended with status {worker.process.exitcode}"
                    idle.append(_Worker(context, function))
                    del busy[pipe]
                else:
                    if kind != "progress":
                        idle.append(busy.pop(pipe))
                if kind == "progress":
                    on_progress(value)
                elif kind == "failed":
                    failures[worker.item] = value
                else:
                    on_result(worker.item, value)
    finally:
        for worker in [*idle, *busy.values()]:
            worker.process.terminate()
        signal.signal(signal.SIGTERM, previous)
    return failures


def _run_here(function, items, on_result, on_progress):
    failures = {}
    for item in items:
        try:
            result = function(item, on_progress)
        except Exception as error:
            failures[item] = _line(error)
        else:
            on_result(item, result)
    return failures


def _line(error):
    """One line for the user; the traceback of anything but a UserError goes to stderr, for whoever mends the code."""
    if isinstance(error, UserError):
        return str(error)
    if is_full(error):
        return out_of_memory(error)
    traceback.print_exc()
    return " ".join(f"{type(error).__name__}: {error}".split())


class _Worker:
    """A process that takes one item after another from its pipe."""

    def __init__(self, context, function):
        self.pipe, other = context.Pipe()
        self.item = None
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the pipe


def _serve(pipe, function):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_die_with_parent, daemon=True).start()
    use_threads(1)
    with contextlib.suppress(EOFError), patient_streams():
        while True:
            item = pipe.recv()
            try:
                pipe.send(("done", function(item, lambda amount: pipe.send(("progress", amount)))))
            except Exception as error:
                pipe.send(("failed", _line(error)))


def _die_with_parent():
    """A killed parent must not leave workers behind that hold the locks of its run."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
