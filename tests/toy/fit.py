"""A line is fitted in a Loop (src/run/loop.py): python -m tests.toy.fit FOLDER STEP, where the process kills itself."""

import os
import signal
import sys
from pathlib import Path

import torch

from src.run.errors import main_guard
from src.run.loop import Loop


def fit(folder, step=None, number=None, measuring=False, loss=None):
    """12 steps with dropout, checkpoints every 4. The signal `number` comes in step `step`, or in its evaluation.

    loss: {step: what the loop is told}. Returns the loop.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    generator = torch.Generator().manual_seed(1)
    folder.mkdir(exist_ok=True)
    parts = {"model": model, "optimizer": optimizer, "generator": generator}
    loop = Loop(folder, 12, 4, parts, {"model": model}, tensorboard=False)
    for now in loop.steps():
        inputs = torch.randn(8, 3, generator=generator)
        optimizer.zero_grad()
        error = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        error.backward()
        optimizer.step()
        loop.loss = (loss or {}).get(now, error.detach())
        if now == step and not measuring:
            os.kill(os.getpid(), number)
        if loop.due:
            with loop.measuring():
                if now == step and measuring:
                    os.kill(os.getpid(), number)
                    raise AssertionError("the evaluation went on")
            loop.record(loss=error.item())
    return loop


if __name__ == "__main__":
    main_guard(fit)(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:3]), signal.SIGKILL)
