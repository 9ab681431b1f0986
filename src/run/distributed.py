"""One training in several processes, started by torchrun: data-parallel by PyTorch's DistributedDataParallel.

Every process draws the same global batch from the same generators and takes its own rows of it; losses are of the global batch.
So the curve is that of one process but for rounding, and a run goes on with any number of processes. The first process alone
writes. Outside of torchrun everything here does nothing.
"""

import contextlib
import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from src.run.errors import UserError


def wanted():
    """How many processes torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device):
    """Meet the other processes; those behind the first print nothing. device: torch.device of this one."""
    if wanted() > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if rank():
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, it stays open to the end


def size():
    """How many processes share this training."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def leads():
    """Whether this process writes."""
    return rank() == 0


def wait():
    """Until all processes are here."""
    if size() > 1:
        distributed.barrier()


@contextlib.contextmanager
def leader_first(make):
    """The context manager that `make` gives, entered by the first process, then by nobody else; yields what it yields. The others
    wait for it and yield None."""
    with make() if leads() else contextlib.nullcontext() as value:
        wait()
        yield value


def share(items):
    """This process's part of a sequence: consecutive items, as many as the others have, or one more or less."""
    count = len(items)
    return items[rank() * count // size() : (rank() + 1) * count // size()]


def require_rows(count, flag):
    """Raises UserError where a batch has fewer rows than there are processes."""
    if count < size():
        raise UserError(f"{flag} gives {count} rows, fewer than the {size()} processes: raise it, or start fewer")


def gathered(values):
    """Rows of all processes, in their order: (n, ...) of each -> (N, ...). A gradient goes to the own rows only."""
    if size() == 1:
        return values
    counts = [torch.empty(1, dtype=torch.long, device=values.device) for _ in range(size())]
    distributed.all_gather(counts, torch.tensor([len(values)], device=values.device))
    padded = values.new_zeros(max(map(int, counts)), *values.shape[1:])  # pieces of one size are what can be sent
    padded[: len(values)] = values.detach()
    everybody = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(everybody, padded)
    rows = [row[: int(count)] for row, count in zip(everybody, counts, strict=True)]
    rows[rank()] = values
    return torch.cat(rows)


def collected(value):
    """[value of each process], plain data."""
    if size() == 1:
        return [value]
    values = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def largest(number):
    """The largest of the integers that the processes give."""
    value = torch.tensor([number], device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return int(value)


def parallel(module, some_unused=False):
    """A module whose gradients are the mean over the processes, for losses that each process computed of the global batch and
    multiplied by `size()`: its own rows' part alone has a gradient, and the parts add up.

    some_unused: there are steps that leave some parameters out (prompts).
    """
    if size() == 1:
        return module
    return DistributedDataParallel(module, find_unused_parameters=some_unused, forward_sync_buffers=False)
