"""The one training loop: resume, cadence of evaluations and checkpoints, stop signals, logging.

loop = Loop(directory, total, every, parts={"model": model, "optimizer": optimizer, "batches": generator})
for step in loop.steps():
    ...                                   # one gradient step
    loop.loss = loss
    if loop.due:
        with loop.measuring():
            scores = ...
        loop.record(loss=loss.item(), **scores)
"""

import contextlib
import dataclasses
import math
import signal
import sys
import time

import torch

from src.run import distributed
from src.run.errors import require_finite
from src.run.files import load_state, save_state, save_tensors
from src.run.flags import natural, nonnegative_float, positive_float, positive_int
from src.run.logger import Logger, NoLogger
from src.run.seeding import derive
from src.run.settings import setting

OWN_STATE = ("step", "total", "seconds", "curve", "torch_generator")  # of state.pt, beside the parts


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """optimisation"""

    steps: int = setting(100_000, "gradient steps", positive_int)
    batch_size: int = setting(128, "windows per step", positive_int)
    learning_rate: float = setting(5e-5, "of AdamW", positive_float)
    lr_schedule: str = setting("constant", "cosine ends at 5 %% of it", choices=["constant", "cosine"])
    lr_warmup_steps: int = setting(10_000, "steps of linear learning-rate warm-up", natural)
    weight_decay: float = setting(1e-4, "of AdamW", nonnegative_float)
    grad_clip: float = setting(0.25, "largest gradient norm", positive_float)

    def optimizer(self, parameters):
        """AdamW over `parameters`."""
        return torch.optim.AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def schedule(self, optimizer, step):
        """Set the learning rate of update `step` (from 1)."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule_factor(step - 1, self.steps, self.lr_warmup_steps, self.lr_schedule)

    def descend(self, optimizer, parameters, loss):
        """One step down the gradient of `loss`, its norm clipped. In several processes the loss is that of the global batch, and
        was computed by what `distributed.parallel` gives."""
        optimizer.zero_grad()
        (loss if distributed.size() == 1 else loss * distributed.size()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        optimizer.step()


def schedule_factor(step, steps, warmup, shape):
    """Learning rate of update `step` (from 0) as a share of the base: linear warm-up, then constant or cosine to 5 %."""
    factor = min((step + 1) / warmup, 1.0) if warmup else 1.0
    if shape == "cosine":
        factor *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return factor


class Loop:
    """One training run in its folder. In several processes (src/run/distributed.py) all do the same steps, and one writes.

    Args:
        directory: holds state.pt, from which the same command goes on, the weights, and the logs.
        total: last step. every: steps between evaluations (`due`, also at the last step), after which a checkpoint is written.
        parts: {name: object} of everything that must go on where it stood: torch modules, optimisers and others with
            `state_dict` and `load_state_dict`, and torch generators. torch's global generator (dropout) is saved too.
        weights: {name: module} written to <name>.safetensors at every checkpoint.
        unit: what is counted. save_every: steps between checkpoints, where these are not those between evaluations. save_seconds:
            a checkpoint is written besides where the last one is so old.
        logger: function (first step) -> what stands in the place of a Logger.
    Attributes:
        step: steps done. at: the step that the body is doing. due: whether it is an evaluation step. curve: records so far.
        seconds: spent so far. loss: set by the body; a checkpoint is refused where it is not finite.
    """

    def __init__(self, directory, total, every, parts, weights=None, tensorboard=True, unit="step", save_every=None,
                 save_seconds=math.inf, logger=None):  # fmt: skip
        self.directory, self.total, self.every = directory, total, every
        self.save_every, self.save_seconds = save_every or every, save_seconds
        self.parts, self.weights = parts, weights or {}
        self._open_logger = logger or (lambda step: Logger(directory, total, step, unit=unit, tensorboard=tensorboard))
        if not distributed.leads():
            self._open_logger = lambda step: NoLogger()
        self.seed = torch.initial_seed()  # of dropout where there are several processes
        self.step, self.at, self.seconds, self.curve, self.loss, self.due = 0, 0, 0.0, [], None, False
        if (directory / "state.pt").exists():
            self._restore(load_state(directory / "state.pt", *OWN_STATE, *parts))

    def steps(self):
        """Yields 1, 2, ..., total, or what is left of them; checkpoints at due steps and on a stop signal, then exits."""
        yield from self.rounds(lambda step: 1)

    def rounds(self, length):
        """As `steps` for rounds of several steps: `length(step)` of them after `step`; yields the step at which a round ends.

        A round is due when it reaches or passes a multiple of `every`, or `total`, which the last one may exceed.
        """
        if self.step >= self.total:
            return
        began = time.time() - self.seconds
        with self._open_logger(self.step) as self.logger, StopSignal() as self.stop:
            saved = time.monotonic()
            while self.step < self.total:
                self.at = self.step + length(self.step)
                self.due, due_save = self._reaches(self.every), self._reaches(self.save_every)
                if distributed.size() > 1:  # dropout of each process is a function of the step: nothing of it is saved
                    torch.manual_seed(derive(self.seed, "dropout", self.at, distributed.rank()))
                yield self.at
                done, self.step, self.seconds = self.at - self.step, self.at, time.time() - began
                self.logger.advance(done)
                self.stop.agree()
                if due_save or self.stop.received or time.monotonic() - saved > self.save_seconds:
                    self.save()
                    saved = time.monotonic()
                if self.stop.received:
                    distributed.wait()  # until it is saved
                    self.logger.close()
                    self.stop.exit(self.step)
        distributed.wait()  # for what the first process has written last

    def _reaches(self, every):
        """Whether the round reaches or passes a multiple of `every`, or the end."""
        return self.at // every > self.step // every or self.at >= self.total

    def record(self, **values):
        """Add a point to the curve and to the logs."""
        self._check_loss(self.at)
        self.curve.append({"step": self.at, **values})
        self.logger.log(self.at, values)

    @contextlib.contextmanager
    def measuring(self):
        """A long evaluation: a stop signal ends it at once. The same command goes on from the checkpoint before it."""
        self.stop.at_once = True
        if self.stop.received:  # between the last step and here
            self.stop.leave()
        try:
            yield
        finally:
            self.stop.at_once = False

    def save(self):
        """Weights, and everything from which the same command goes on."""
        self._check_loss(self.step)
        if not distributed.leads():
            return
        for name, source in self.weights.items():
            save_tensors(self.directory / f"{name}.safetensors", source.state_dict())
        own = {"step": self.step, "total": self.total, "seconds": self.seconds, "curve": self.curve}
        own["torch_generator"] = torch.get_rng_state()
        save_state(self.directory / "state.pt", own | {name: _state(part) for name, part in self.parts.items()})

    def _check_loss(self, step):
        if self.loss is not None:
            require_finite(float(self.loss), f"the loss at step {step}")

    def _restore(self, state):
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        torch.set_rng_state(state["torch_generator"])
        for name, part in self.parts.items():
            if isinstance(part, torch.Generator):
                part.set_state(state[name])
            else:
                part.load_state_dict(state[name])


def _state(part):
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


class StopSignal:
    """Turns SIGTERM, Ctrl-C and a terminal that was closed (SIGHUP) into a flag that a training loop reads between steps; `exit`
    leaves with the shell's status. What is ignored, as SIGHUP under nohup, stays so."""

    def __enter__(self):
        self.received, self.at_once = None, False
        former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        self._previous = {number: handler for number, handler in former.items() if handler != signal.SIG_IGN}
        for number in self._previous:
            signal.signal(number, self._receive)
        return self

    def _receive(self, number, frame):
        self.received = number
        if self.at_once:
            self.leave()

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree(self):
        """All processes stop where one was told to."""
        if distributed.size() > 1:
            self.received = distributed.largest(self.received or 0) or None

    def exit(self, step):
        print(f"stopped at step {step}, saved; the same command continues", file=sys.stderr)
        sys.exit(128 + self.received)

    def leave(self):
        """Exit in the middle of an evaluation, without a checkpoint."""
        print("stopped during an evaluation; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(128 + self.received)
