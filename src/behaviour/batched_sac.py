"""SAC agents of many tasks trained at once: one batch of environments, one stack of networks, the artifacts of `sac`.

Hyperparameters and order of events are those of stable-baselines3 as sac.py uses it: uniform actions first, then one update after
every step; batches drawn with replacement; an episode's end at the horizon bootstraps.
"""

import contextlib

import numpy as np
import torch

from src.behaviour.logs import TaskLogs
from src.behaviour.measure import measure, measure_random
from src.behaviour.policies import to_bounds
from src.behaviour.replay import Replay
from src.behaviour.stacked_sac import StackedSAC
from src.behaviour.store import History, is_finished, open_task, read_curve, write_behaviour
from src.evaluation.batch import make_batch
from src.run.errors import UserError, require_finite
from src.run.files import load_state
from src.run.loop import Loop
from src.run.seeding import derive, torch_generator

CHUNK = 16  # updates whose random numbers are drawn together
RETURNS = ("stochastic_returns", "deterministic_returns")


def train_group(run, agent, checkpoints, group, report):
    """Train the SAC agents of the tasks in `group` together and write the artifacts of each, as `sac` does.

    Training goes in rounds of one episode, cut short at a checkpoint. The draws of a task in a round are a function of
    (seed, task, step), so they depend neither on the other tasks nor on whether the run was interrupted: a killed run
    goes on from its last state file and repeats what was lost exactly. `report(steps)` is called after every round.
    Returns the means {"return": last checkpoint, "random": uniform actions}.
    """
    with contextlib.ExitStack() as stack:
        directories = {task: stack.enter_context(open_task(run, agent, checkpoints, task)) for task in group}
        pending = [task for task in group if not is_finished(directories[task])]
        if pending:
            Group(run, agent, checkpoints, group, pending, directories).train(report)
        (directories[group[0]] / "state.pt").unlink(missing_ok=True)
        curves = [read_curve(directory) for directory in directories.values()]
    return {
        "return": np.mean([np.mean(curve["stochastic_returns"][-1]) for curve in curves]),
        "random": np.mean([np.mean(curve["random_returns"]) for curve in curves]),
    }


class Group:
    """The state of a group's training, and what it does with it. P tasks; row p of every array belongs to tasks[p]."""

    def __init__(self, run, agent, checkpoints, group, pending, directories):
        self.run, self.settings, self.checkpoints = run, agent, checkpoints
        self.group, self.pending, self.directories = group, pending, directories
        self.state_file = directories[group[0]] / "state.pt"
        self.tasks = load_state(self.state_file, "returns")["returns"]["tasks"] if self.state_file.exists() else pending
        if not set(pending) <= set(self.tasks) <= set(group):
            raise UserError(
                f"{self.state_file} holds an unfinished run of tasks {self.tasks}: give the same --task_id_start, --task_id_end "
                "and --group_size as then, or pass --no-resume"
            )
        environment = run.env.make()
        self.space = environment.action_space
        size, actions = environment.observation_space.shape[0], self.space.shape[0]
        self.learner = StackedSAC(
            len(self.tasks), size, actions, agent.hidden_sizes, learning_rate=agent.learning_rate, gamma=agent.gamma,
            tau=agent.tau, entropy=agent.entropy_coefficient, device=run.device,
            generators=[torch_generator(run.seed, "batched_sac", task, "init") for task in self.tasks],
        )  # fmt: skip
        columns = {"observations": size, "actions": actions, "rewards": 1, "next_observations": size}
        self.replay = Replay(len(self.tasks), agent.buffer_size, columns, run.device)
        self.batch = make_batch(run.env, self.tasks)
        self.histories = [History.empty(*RETURNS) for _ in self.tasks]

    def train(self, report):
        """Rounds until `num_steps`, a checkpoint of every agent each `save_freq`, then the artifacts."""
        total, every, horizon = self.settings.num_steps, self.checkpoints.save_freq, self.run.env.max_episode_steps
        shown = {task: self.directories[task] for task in self.pending}
        loop = Loop(
            self.directories[self.group[0]], total, every, {"learner": self.learner, "replay": self.replay, "returns": self},
            save_seconds=self.checkpoints.save_seconds,
            logger=lambda start: TaskLogs(shown, total, start, self.run.tensorboard, report),
        )  # fmt: skip
        for step in loop.rounds(lambda start: min(horizon, every - start % every, total - start)):
            losses = self.play_round(loop.step, step)
            for name, value in losses.items():
                require_finite(value, f"{name} of tasks {self.tasks}")
            if loop.due:
                with loop.measuring():
                    measured = self.keep_checkpoint(step)
                loop.logger.log(step, {task: {**returns, **losses} for task, returns in measured.items()})
        for task in self.pending:
            random = measure_random(self.run, task, self.checkpoints.eval_episodes)
            write_behaviour(self.directories[task], self.histories[self.tasks.index(task)], random)

    def play_round(self, start, end):
        """Steps of every task from a reset, `start` to `end` of the run, and their updates; returns numbers for the log."""
        settings, seed, device = self.settings, self.run.seed, self.run.device
        seeds = [derive(seed, "batched_sac", task, start) for task in self.tasks]
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        uniform = _draw(torch.rand, generators, end - start, *self.space.shape).mul_(2).sub_(1)
        normal = _draw(torch.randn, generators, end - start, *self.space.shape)
        draws, last = self._draws_of_updates(generators), None
        observations = self.batch.reset([derive(seed, "reset") for seed in seeds])
        total = np.zeros(len(self.tasks))
        for index, step in enumerate(range(start, end)):
            if step < settings.learning_starts:
                actions = uniform[:, index]
            else:
                seen = torch.as_tensor(observations[:, None], device=device)
                actions = self.learner.act(seen, normal[:, index, None])[:, 0]
            actions = actions.cpu().numpy()
            following, rewards = self.batch.step(to_bounds(actions, self.space.low, self.space.high))
            self.replay.add(observations[:, None], actions[:, None], rewards[:, None, None], following[:, None])
            observations, total = following, total + rewards
            if step >= settings.learning_starts:
                for _ in range(settings.updates(step, step + 1)):
                    places, noise = next(draws)
                    batch = self.replay.sample(places)
                    last = self.learner.update(
                        batch["observations"], batch["actions"], batch["rewards"][..., 0], batch["next_observations"], noise
                    )
        if not np.isfinite(total).all():
            raise UserError(
                f"{self.run.env.entry_point}: rewards of task {self.tasks[int(np.argmin(np.isfinite(total)))]} are not all finite"
            )
        return self.learner.losses(*last) if last else {}

    def _draws_of_updates(self, generators):
        """Endlessly (uniform (P, B), noise (P, 2 B, da)), one pair for every update."""
        size = self.settings.batch_size
        while True:
            places = _draw(torch.rand, generators, CHUNK, size)
            noise = _draw(torch.randn, generators, CHUNK, 2 * size, *self.space.shape)
            yield from zip(places.unbind(1), noise.unbind(1), strict=True)

    def keep_checkpoint(self, step):
        """Add the actors, rounded to half precision, to the histories, with the returns of each on its task.

        Returns {task: {name: mean return}}.
        """
        weights, episodes = self.learner.actor_weights(), self.checkpoints.eval_episodes
        returns = [measure(self.run, self.tasks, step, weights, episodes, deterministic=mode) for mode in (False, True)]
        means = {}
        for row, task in enumerate(self.tasks):
            measured = {name: values[row].tolist() for name, values in zip(RETURNS, returns, strict=True)}
            self.histories[row].add(step, {name: value[row].clone() for name, value in weights.items()}, measured)
            means[task] = {f"eval/{name}": float(np.mean(values)) for name, values in measured.items()}
        return means

    def state_dict(self):
        """What a checkpoint holds beside the learner and the replay memory."""
        return {"tasks": self.tasks, "histories": [history.state_dict() for history in self.histories]}

    def load_state_dict(self, state):
        for history, values in zip(self.histories, state["histories"], strict=True):
            history.load_state_dict(values)


def _draw(function, generators, *shape):
    """(P, *shape) random numbers, row p from generator p."""
    return torch.stack([function(shape, generator=generator, device=generator.device) for generator in generators])
