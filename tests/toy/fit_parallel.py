"""Several processes fit a line; the last gets SIGTERM at STEP: python -m tests.toy.fit_parallel FOLDER DROPOUT [STEP]."""

import os
import signal
import sys
from pathlib import Path

import torch

from src.run import distributed
from src.run.directory import run_directory
from src.run.errors import main_guard
from src.run.loop import Loop, Optimisation


class Errors(torch.nn.Module):
    """Squared errors (n,) of n rows. `unused` has a gradient in every third step only, as prompts have."""

    def __init__(self, dropout):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(dropout), torch.nn.Linear(4, 1))
        self.unused = torch.nn.Linear(3, 1)

    def forward(self, inputs, step):
        predicted = self.net(inputs) + (self.unused(inputs) if step % 3 == 0 else 0)
        return (predicted[:, 0] - inputs.sum(1)).square()


def fit(folder, dropout=0.0, stop=None):
    """12 steps of 7 rows, of which a varying number counts. Returns the loop."""
    torch.manual_seed(0)
    model = Errors(dropout)
    errors, settings = (
        distributed.parallel(model, some_unused=True),
        Optimisation(learning_rate=0.05, lr_warmup_steps=0, steps=12),
    )
    optimizer, generator = settings.optimizer(model.parameters()), torch.Generator().manual_seed(1)
    with run_directory(folder, {}, True):
        loop = Loop(folder, 12, 4, {"model": model, "optimizer": optimizer, "generator": generator}, {"model": model}, False)
        for step in loop.steps():
            inputs, counts = torch.randn(7, 3, generator=generator), torch.rand(7, generator=generator) < 0.6
            counts[0] = True
            own = distributed.share(inputs)
            loss = (distributed.gathered(errors(own, step)) * counts).sum() / counts.sum()
            settings.descend(optimizer, model.parameters(), loss)
            loop.loss = loss.detach()
            if step == stop and distributed.rank() == distributed.size() - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if loop.due:
                with loop.measuring():
                    rows = sum(distributed.collected(len(own)))
                loop.record(loss=loss.item(), rows=rows)
    return loop


def main(folder, dropout, *stop):
    distributed.join(torch.device("cpu"))
    torch.set_num_threads(1)
    fit(Path(folder), float(dropout), *map(int, stop))
    print(f"process {distributed.rank()} of {distributed.size()}")


if __name__ == "__main__":
    main_guard(main)(*sys.argv[1:])
