"""SAC agents of many tasks trained at once: one batch of environments, one stack of networks, the artifacts of `sac`.

Hyperparameters and order of events are those of stable-baselines3 as sac.py uses it: uniform actions first, then one update after
every step; batches drawn with replacement; an episode's end at the horizon bootstraps.
"""

import contextlib
import dataclasses
import time

import numpy as np
import torch

from src.behaviour.measure import measure, measure_random
from src.behaviour.policies import unscale
from src.behaviour.replay import Replay
from src.behaviour.stacked_sac import StackedSAC
from src.behaviour.store import History, is_finished, open_task, read_curve, task_directory, write_behaviour
from src.evaluation.batch import make_batch
from src.run.errors import UserError, require_finite
from src.run.files import load_state, save_state
from src.run.logger import Logger
from src.run.loop import StopSignal
from src.run.seeding import derive, torch_generator

CHUNK = 16  # updates whose random numbers are drawn together
RETURNS = ("stochastic_returns", "deterministic_returns")


def train_group(args, group, report):
    """Train the SAC agents of the tasks in `group` together and write the artifacts of each, as `sac` does.

    Training goes in rounds of one episode, cut short at a checkpoint. The draws of a task in a round are a function of
    (seed, task, step), so they depend neither on the other tasks nor on whether the run was interrupted: a killed run
    goes on from its last state file and repeats what was lost exactly. `report(steps)` is called after every round.
    Returns the means {"return": last checkpoint, "random": uniform actions}.
    """
    with contextlib.ExitStack() as stack:
        directories = {task: stack.enter_context(open_task(args, task)) for task in group}
        state_file = task_directory(args.output_dir, args.env_type, group[0]) / "state.pt"
        pending = [task for task in group if not is_finished(directories[task])]
        if pending:
            with StopSignal() as stop:
                _Run(args, group, pending, state_file).train(directories, report, stop)
        state_file.unlink(missing_ok=True)
        curves = [read_curve(directory) for directory in directories.values()]
    return {
        "return": np.mean([np.mean(curve["stochastic_returns"][-1]) for curve in curves]),
        "random": np.mean([np.mean(curve["random_returns"]) for curve in curves]),
    }


class _Run:
    """The state of a group's training, and what it does with it. P tasks; row p of every array belongs to tasks[p]."""

    def __init__(self, args, group, pending, state_file):
        self.args, self.pending, self.state_file = args, pending, state_file
        state = load_state(state_file) if state_file.exists() else None
        self.tasks = state["tasks"] if state else pending
        if not set(pending) <= set(self.tasks) <= set(group):
            raise UserError(
                f"{state_file} holds an unfinished run of tasks {self.tasks}: give the same --task_id_start, --task_id_end "
                "and --group_size as then, or pass --no-resume"
            )
        environment = args.env.make()
        self.space = environment.action_space
        size, actions = environment.observation_space.shape[0], self.space.shape[0]
        self.learner = StackedSAC(
            len(self.tasks), size, actions, args.hidden_sizes, learning_rate=args.learning_rate, gamma=args.gamma,
            tau=args.tau, entropy=args.entropy_coefficient, device=args.device,
            generators=[torch_generator(args.seed, "batched_sac", task, "init") for task in self.tasks],
        )  # fmt: skip
        columns = {"observations": size, "actions": actions, "rewards": 1, "next_observations": size}
        self.replay = Replay(len(self.tasks), args.buffer_size, columns, args.device)
        self.batch = make_batch(args.env, self.tasks)
        self.histories = [History.empty(*RETURNS) for _ in self.tasks]
        self.step = 0
        if state:
            self.step = state["step"]
            self.learner.load_state_dict(state["learner"])
            self.replay.load_state_dict(state["replay"])
            self.histories = [History(**history) for history in state["histories"]]

    def play_round(self, end):
        """Steps of every task from a reset to step `end` of the run, and their updates; returns numbers for the log."""
        args, device, count = self.args, self.args.device, len(self.tasks)
        seeds = [derive(args.seed, "batched_sac", task, self.step) for task in self.tasks]
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        rounds = end - self.step
        uniform = _draw(torch.rand, generators, rounds, *self.space.shape).mul_(2).sub_(1)
        normal = _draw(torch.randn, generators, rounds, *self.space.shape)
        draws, last = self._draws_of_updates(generators), None
        observations = self.batch.reset([derive(seed, "reset") for seed in seeds])
        total = np.zeros(count)
        for index in range(rounds):
            if self.step < args.learning_starts:
                actions = uniform[:, index]
            else:
                seen = torch.as_tensor(observations[:, None], device=device)
                actions = self.learner.act(seen, normal[:, index, None])[:, 0]
            actions = actions.cpu().numpy()
            following, rewards = self.batch.step(unscale(actions, self.space.low, self.space.high))
            self.replay.add(observations[:, None], actions[:, None], rewards[:, None, None], following[:, None])
            observations, total = following, total + rewards
            self.step += 1
            if self.step > args.learning_starts:
                for _ in range(int(self.step * args.updates_per_step) - int((self.step - 1) * args.updates_per_step)):
                    places, noise = next(draws)
                    batch = self.replay.sample(places)
                    last = self.learner.update(
                        batch["observations"], batch["actions"], batch["rewards"][..., 0], batch["next_observations"], noise
                    )
        if not np.isfinite(total).all():
            raise UserError(
                f"{args.env.entry_point}: rewards of task {self.tasks[int(np.argmin(np.isfinite(total)))]} are not all finite"
            )
        return self.learner.losses(*last) if last else {}

    def _draws_of_updates(self, generators):
        """Endlessly (uniform (P, B), noise (P, 2 B, da)), one pair for every update."""
        size = self.args.batch_size
        while True:
            places = _draw(torch.rand, generators, CHUNK, size)
            noise = _draw(torch.randn, generators, CHUNK, 2 * size, *self.space.shape)
            yield from zip(places.unbind(1), noise.unbind(1), strict=True)

    def train(self, directories, report, stop):
        """Rounds until `num_steps`, a checkpoint of every agent each `save_freq`, then the artifacts."""
        args = self.args
        report(self.step * len(self.pending))
        logs = {
            task: Logger(directories[task], args.num_steps, self.step, tensorboard=args.tensorboard, bar=False)
            for task in self.pending
        }
        saved = time.monotonic()
        while self.step < args.num_steps:
            start = self.step
            checkpoint = min((start // args.save_freq + 1) * args.save_freq, args.num_steps)
            losses = self.play_round(min(start + args.env.max_episode_steps, checkpoint))
            for name, value in losses.items():
                require_finite(value, f"{name} of tasks {self.tasks}")
            if self.step == checkpoint:
                self.keep_checkpoint(logs, losses)
            if stop.received or time.monotonic() - saved > args.save_seconds or self.step == args.num_steps:
                save_state(self.state_file, self.snapshot())
                saved = time.monotonic()
            report((self.step - start) * len(self.pending))
            if stop.received:
                stop.exit(self.step)
        for log in logs.values():
            log.close()
        for task in self.pending:
            write_behaviour(directories[task], self.histories[self.tasks.index(task)], measure_random(args, task))

    def keep_checkpoint(self, logs, losses):
        """Add the actors, rounded to half precision, to the histories, with the returns of each on its task."""
        weights = self.learner.actor_weights()
        returns = [measure(self.args, self.tasks, self.step, weights, deterministic=mode) for mode in (False, True)]
        for row, task in enumerate(self.tasks):
            measured = {name: values[row].tolist() for name, values in zip(RETURNS, returns, strict=True)}
            self.histories[row].add(self.step, {name: value[row].clone() for name, value in weights.items()}, measured)
            logs[task].log(self.step, {**{f"eval/{name}": float(np.mean(r)) for name, r in measured.items()}, **losses})

    def snapshot(self):
        return {
            "tasks": self.tasks,
            "step": self.step,
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "histories": [dataclasses.asdict(history) for history in self.histories],
        }


def _draw(function, generators, *shape):
    """(P, *shape) random numbers, row p from generator p."""
    return torch.stack([function(shape, generator=generator, device=generator.device) for generator in generators])
